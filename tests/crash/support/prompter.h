/* SPDX-License-Identifier: BSD-3-Clause */
/* Another client that speaks up in the middle of things: while the image reads, writes, or
 * flushes on behalf of one request, a second thread is let run a request of its own, to its
 * end when that is possible.  So the windows between two steps of a request are met on
 * purpose and not by luck. */
#ifndef CRASH_PROMPTER_H
#define CRASH_PROMPTER_H

#include <stdint.h>

#include "crash_storage.h"
#include "tap_storage.h"

struct prompter;

/* one_request is called on the prompter's thread; one_in: at which share of the moments. */
struct prompter *prompter_new(uint64_t seed, unsigned one_in, void (*one_request)(void *),
                              void *opaque);
void prompter_free(struct prompter *p);

/* To be called at a moment; does nothing on the prompter's own thread. */
void prompter_moment(struct prompter *p);

/* The same, as a hook of the crash log and as a tap. */
void prompter_hook(void *opaque, enum crash_kind kind, uint64_t off, uint64_t len);
void prompter_before_read(void *opaque, uint64_t off, uint64_t len);
int prompter_before_write(void *opaque, uint64_t off, uint64_t len, bool *done);

#endif
