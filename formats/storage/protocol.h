/* SPDX-License-Identifier: BSD-3-Clause */
/* The kinds of stores, in a table.  The layers above open a store by its protocol, and use it
 * as a struct storage from then on.  Layer: storage. */
#ifndef STORAGE_PROTOCOL_H
#define STORAGE_PROTOCOL_H

#include <stdbool.h>

#include "base/library.h"
#include "storage/storage.h"

struct storage_protocol {
    const char *name; /* "file", "nbd", "null-co", "rbd" */

    /* Does the name belong to the protocol?  Looks at the name only, not at files.  NULL: no
     * names do. */
    bool (*owns)(const char *name);

    /* Was the store opened by this protocol?  NULL: it is, if by no other. */
    bool (*opened)(const struct storage *st);

    /* As storage_open_file; members of `how` for other protocols are ignored. */
    int (*open)(const char *name, const struct storage_open *how, struct storage **out,
                struct diag *diag);

    /* As storage_create_file, with hints for the new store.  NULL: stores of this protocol
     * can't be created. */
    int (*create)(const char *name, const struct storage_hints *hints, struct storage **out,
                  struct diag *diag);
    /* Opens and locks an existing store that is going to be overwritten.  Afterwards it is
     * empty, unless its size is fixed.  NULL: `create` does that. */
    int (*empty)(const char *name, struct storage **out, struct diag *diag);
    /* The name without secrets, which the caller frees; NULL when memory is short.  NULL
     * operation: names contain no secrets. */
    char *(*shown)(const char *name);
    /* Checks whether an image may contain the name.  What images must not say (which keys are
     * used) is also rejected when the name is opened.  Returns 0 or -errno with diag.  NULL:
     * any name is allowed. */
    int (*check_named_by_image)(const char *name, struct diag *diag);
    /* Removes a store that was created and closed; ignores failures.  NULL: `create` opens what
     * exists already, with a fixed size. */
    void (*remove)(const char *name);
};

/* To be called once per process, before any store is opened.  A write beyond the largest file
 * size of the process (RLIMIT_FSIZE) then fails with -EFBIG, instead of raising SIGXFSZ, which
 * would end the process with everything that isn't flushed.  Does nothing if that signal is
 * handled or ignored already. */
void storage_survive_size_limit(void);

extern const struct storage_protocol storage_protocol_file, storage_protocol_nbd,
    storage_protocol_rbd, storage_protocol_null;

/* The i-th protocol of this build, from 0; NULL after the last. */
const struct storage_protocol *storage_protocol_at(size_t i);

/* The protocol to which the name belongs; otherwise that of files. */
const struct storage_protocol *storage_protocol_of(const char *name);

/* The name as it may be shown and logged; the caller frees it, NULL when memory is short. */
char *storage_shown_name(const struct storage_protocol *protocol,
                         const char *name) MUST_USE;

/* Reports the libraries of all protocols; loads those that are loaded on demand.  Not from two
 * threads at once. */
void storage_tell_libraries(library_sink *sink, void *opaque);

/* The protocol with this name (QEMU's driver); unknown names: that of files. */
const struct storage_protocol *storage_protocol_called(const char *protocol);

/* The protocol by which the store was opened. */
const struct storage_protocol *storage_protocol_of_store(const struct storage *st);

#endif
