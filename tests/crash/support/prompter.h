/* SPDX-License-Identifier: BSD-3-Clause */
/* A second client whose requests run in the middle of another request.  When the image reads,
 * writes or flushes the file for one request, the prompter sometimes stops it there, lets a
 * second thread run a whole request, and then lets the first go on.  So the windows between the
 * steps of a request are tested on purpose and not by chance. */
#ifndef CRASH_PROMPTER_H
#define CRASH_PROMPTER_H

#include <stdint.h>

#include "crash_storage.h"
#include "tap_storage.h"

struct prompter;

/* Starts the prompter's thread, which calls one_request at about one in `one_in` moments. */
struct prompter *prompter_new(uint64_t seed, unsigned one_in, void (*one_request)(void *),
                              void *opaque);
void prompter_free(struct prompter *p);

/* Call it at a moment at which another request may run: it may wait until that request has ended,
 * or for a few milliseconds.  Does nothing on the prompter's own thread. */
void prompter_moment(struct prompter *p);

/* prompter_moment in the form of a hook of the crash log and of the callbacks of a tap. */
void prompter_hook(void *opaque, enum crash_kind kind, uint64_t off, uint64_t len);
void prompter_before_read(void *opaque, uint64_t off, uint64_t len);
int prompter_before_write(void *opaque, uint64_t off, uint64_t len, bool *done);

#endif
