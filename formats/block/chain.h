/* SPDX-License-Identifier: BSD-3-Clause */
/* Opening an image and the chain of backing files below it.  Layer: block. */
#ifndef BLOCK_CHAIN_H
#define BLOCK_CHAIN_H

#include "block/node.h"
#include "block/open_policy.h"

/* A chain is at most this deep, the active layer included. */
#define CHAIN_MAX_DEPTH 500

/* For the layer at that depth, 0 being the top. */
struct chain_passphrase {
    unsigned depth;
    const void *bytes;
    size_t len;
    bool optional; /* else that layer has to be encrypted, and has to be there */
};

struct chain_options {
    const char *format;                      /* NULL: by magic, raw never guessed */
    bool unknown_is_raw;                     /* but the top, of no known magic, is */
    const struct storage_protocol *protocol; /* of the filename; NULL: a local file */
    const struct storage_folder *folder;     /* it lies in there; NULL: anywhere */
    const struct reference *named;           /* what gave the filename; NULL: just a path */
    bool read_only;                          /* open all files read-only */
    bool fallback_read_only;    /* a file that can't be written is opened read-only */
    bool no_backing;            /* backing=none, or only this image is wanted */
    const char *backing;        /* NULL: as the image says */
    const char *backing_format; /* NULL: as the image says */
    enum references references; /* of backing files and data files that images name */
    const char *data_file;      /* NULL: as the image says */
    const struct chain_passphrase *passphrases;
    size_t n_passphrases;
    const struct node *keys_of; /* a chain: its files need no passphrase; NULL: none */
    /* Layers without a passphrase may be asked for their status, and not be read. */
    bool keep_locked;
    const _Atomic bool *give_up; /* as nbd_open's, until chain_start; NULL: none */
    struct node_options node;
};

/* Opens filename and, unless no_backing, everything below it, which is opened read-only
 * with the same cache mode.  Changes no byte.  Messages name the file that is wrong.
 *
 * Backing files may be NBD exports: a server calls chain_start once it has forked. */
int chain_open(struct block_context *ctx, const char *filename,
               const struct chain_options *options, struct node **out,
               struct diag *diag) MUST_USE;

/* What lies below the node, by the names that were followed: its image may name something else, or
 * nothing.  For chain_options.named, to open the image once more over the same.  While nobody
 * changes the chain.  0 or -ENOMEM; *out is to be freed. */
int chain_describe_below(const struct node *node, struct reference *out) MUST_USE;

struct nbd_open;

/* Opens what an NBD server exports, alone: what an image in there names isn't looked at.
 * -ELOOP: it is an export of this process. */
int chain_open_nbd(struct block_context *ctx, const char *uri, const struct nbd_open *how,
                   const struct chain_options *options, struct node **out,
                   struct diag *diag) MUST_USE;

/* Is the local file, or the RBD image, of that name one of the chain's, or a data file of one?
 * False also when it can't be opened. */
bool chain_has_file(struct node *top, const char *path);
/* The same of what is open. */
bool chain_has_store(const struct node *top, struct storage *st);

/* Before a fork: nothing of the chain is used until chain_start. */
void chain_rest(struct node *top);

/* Lets what the chain has on servers have its own threads, after a fork.  0 or -errno. */
int chain_start(struct node *top) MUST_USE;

/* What lies on servers from `node` (NULL: nothing) on down fails from here on, requests
 * under way as well.  From any thread, for nodes that stay open meanwhile. */
void chain_abandon_servers(struct node *node);

/* Finds the driver for an opened file: by name, or by magic when format is NULL or "auto".
 */
int chain_find_driver(struct storage *file, const char *format, const struct driver **out,
                      struct diag *diag) MUST_USE;

#endif
