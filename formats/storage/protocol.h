/* SPDX-License-Identifier: BSD-3-Clause */
/* Where images lie: the kinds of stores there are, in a table.  Everything above opens a
 * store by its protocol and then knows it as a storage.  Layer: storage. */
#ifndef STORAGE_PROTOCOL_H
#define STORAGE_PROTOCOL_H

#include <stdbool.h>

#include "base/library.h"
#include "storage/storage.h"

struct storage_protocol {
    const char *name; /* "file", "nbd", "null-co", "rbd" */

    /* Is this a name of the protocol's, without a look at any file?  NULL: it is none that
     * a name can show. */
    bool (*owns)(const char *name);

    /* Was the store opened by it?  NULL: who isn't another's is. */
    bool (*opened)(const struct storage *st);

    /* As storage_open_file; what `how` has for other protocols is ignored. */
    int (*open)(const char *name, const struct storage_open *how, struct storage **out,
                struct diag *diag);

    /* As storage_create_file, with wishes for what is made.  NULL: somebody else makes its
     * stores. */
    int (*create)(const char *name, const struct storage_hints *hints, struct storage **out,
                  struct diag *diag);
    /* Opens one that is there, locked, to be made anew: it is empty afterwards, unless its size is
     * fixed.  NULL: `create` does that. */
    int (*empty)(const char *name, struct storage **out, struct diag *diag);
    /* The name without secrets; the caller's to free, NULL when memory is short.  NULL: the
     * names have none. */
    char *(*shown)(const char *name);
    /* May an image have the name?  What isn't an image's to say (whose keys are used) is
     * refused when it is opened, too: 0 or -errno with diag.  NULL: whatever it is. */
    int (*check_named_by_image)(const char *name, struct diag *diag);
    /* Removes a store that was made and closed; what can't be removed stays.  NULL: `create`
     * gives what was there before, of a fixed size. */
    void (*remove)(const char *name);
};

/* Once per process, before anything is opened: a file that would become larger than the process may
 * make one (RLIMIT_FSIZE) is an error of the request that needs it, -EFBIG, and no signal (SIGXFSZ)
 * that ends the process with all that isn't flushed.  Who handles the signal himself goes on so. */
void storage_survive_size_limit(void);

extern const struct storage_protocol storage_protocol_file, storage_protocol_nbd,
    storage_protocol_rbd, storage_protocol_null;

/* The i-th from 0 on that this build has; NULL behind the last. */
const struct storage_protocol *storage_protocol_at(size_t i);

/* The protocol whose name it is; else that of files. */
const struct storage_protocol *storage_protocol_of(const char *name);

/* The name as it may be shown, and stand in a log; the caller's to free, NULL when memory is
 * short. */
char *storage_shown_name(const struct storage_protocol *protocol,
                         const char *name) MUST_USE;

/* Those of all protocols; loads what is loaded when it is needed.  Not from two threads. */
void storage_tell_libraries(library_sink *sink, void *opaque);

/* The protocol of that name (QEMU's driver); another's: that of files. */
const struct storage_protocol *storage_protocol_called(const char *protocol);

/* The protocol that the store was opened by. */
const struct storage_protocol *storage_protocol_of_store(const struct storage *st);

#endif
