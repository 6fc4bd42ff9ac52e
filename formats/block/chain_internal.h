/* SPDX-License-Identifier: BSD-3-Clause */
/* Shared by the files that open a chain; private to this folder. */
#ifndef BLOCK_CHAIN_INTERNAL_H
#define BLOCK_CHAIN_INTERNAL_H

#include <string.h>

#include "block/chain.h"

/* Is the format to be told from the content? */
static inline bool chain_is_auto(const char *format)
{
    return !format || strcmp(format, "auto") == 0;
}

/* The driver whose magic the file has.  remedy: what the message says about a file of unknown
 * content.  0 or -errno with diag. */
int chain_find_by_magic(struct storage *file, const char *remedy, const struct driver **out,
                        struct diag *diag) MUST_USE;

/* The files opened so far: each layer's, and its data file.  A loop is found by the identity of
 * files, as a file can have many names. */
struct visited {
    unsigned count;
    struct {
        uint64_t device, inode;
    } file[2 * CHAIN_MAX_DEPTH];
};

/* Returns -ELOOP, with a sentence that ends with `what`, if the file was opened before. */
int chain_note_visit(struct visited *visited, struct storage *file, const char *what,
                     struct diag *diag) MUST_USE;

/* How the files of a layer are opened. */
struct layer_files {
    unsigned depth; /* 0: the top */
    bool read_only, fallback_read_only;
};

/* Opens what a layer needs besides its own file: its data file and its key. */
int chain_complete_layer(struct node *node, const struct layer_files *how,
                         const struct chain_options *options, struct visited *visited,
                         struct diag *diag) MUST_USE;

#endif
