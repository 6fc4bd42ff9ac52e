/* SPDX-License-Identifier: BSD-3-Clause */
/* Opening an image and the chain of backing files below it.  Layer: block. */
#ifndef BLOCK_CHAIN_H
#define BLOCK_CHAIN_H

#include "block/node.h"
#include "block/open_policy.h"

/* The largest number of layers of a chain, the active layer included. */
#define CHAIN_MAX_DEPTH 500

/* The passphrase of the layer at this depth; 0 is the top. */
struct chain_passphrase {
    unsigned depth;
    const void *bytes;
    size_t len;
    bool optional; /* otherwise the layer has to exist and to be encrypted */
};

struct chain_options {
    const char *format; /* NULL: by magic, which never finds raw */
    /* Except for the top: raw if its magic is unknown. */
    bool unknown_is_raw;
    const struct storage_protocol *protocol; /* of the filename; NULL: local files */
    const struct storage_folder *folder;     /* where the file has to lie; NULL: anywhere */
    /* Where the filename comes from; NULL: a plain path. */
    const struct reference *named;
    bool read_only;             /* open all files read-only */
    bool fallback_read_only;    /* a file that can't be written is opened read-only */
    bool no_backing;            /* backing=none, or only this image is needed */
    const char *backing;        /* NULL: as the image says */
    const char *backing_format; /* NULL: as the image says */
    enum references references; /* rules for backing and data files named by images */
    const char *data_file;      /* NULL: as the image says */
    const struct chain_passphrase *passphrases;
    size_t n_passphrases;
    /* A chain with the same files, whose keys are used instead of passphrases; NULL: none. */
    const struct node *keys_of;
    /* Layers without a passphrase are allowed: their status can be asked, but not their data. */
    bool keep_locked;
    const _Atomic bool *give_up; /* as for nbd_open, until chain_start; NULL: none */
    struct node_options node;
};

/* Opens filename and, unless no_backing, the whole chain below it, which is opened read-only
 * with the same cache mode.  Changes no byte.  Messages name the file that is at fault.
 * Returns 0 or -errno with *out NULL.
 *
 * Backing files may be NBD exports: call chain_start once the process has forked. */
int chain_open(struct block_context *ctx, const char *filename,
               const struct chain_options *options, struct node **out,
               struct diag *diag) MUST_USE;

/* Describes the chain below the node by the names under which it was opened; the image itself
 * may by now name another backing file, or none.  Used as chain_options.named to open the image
 * a second time over the same chain.  Nobody may change the chain meanwhile.  Returns 0 or
 * -ENOMEM; the caller frees *out. */
int chain_describe_below(const struct node *node, struct reference *out) MUST_USE;

struct nbd_open;

/* Opens what an NBD server exports as a node without a chain: a backing file that the image
 * names isn't opened.  -ELOOP: it is an export of this process. */
int chain_open_nbd(struct block_context *ctx, const char *uri, const struct nbd_open *how,
                   const struct chain_options *options, struct node **out,
                   struct diag *diag) MUST_USE;

/* Does `path`, a local file or an RBD image, lie in the chain, as a layer or as the data file
 * of one?  False also when it can't be opened. */
bool chain_has_file(struct node *top, const char *path);
/* The same for a store that is open. */
bool chain_has_store(const struct node *top, struct storage *st);

/* Before a fork: from here until chain_start the chain isn't used. */
void chain_rest(struct node *top);

/* After a fork: lets the stores of the chain that lie on servers start their threads.  Returns
 * 0 or -errno. */
int chain_start(struct node *top) MUST_USE;

/* From `node` (NULL: nothing) on down, all requests to stores on servers fail from now on,
 * those in flight too.  From any thread, for nodes that stay open during the call. */
void chain_abandon_servers(struct node *node);

/* Finds the driver for an opened file: by name, or by magic when format is NULL or "auto".
 * Returns 0 or -errno. */
int chain_find_driver(struct storage *file, const char *format, const struct driver **out,
                      struct diag *diag) MUST_USE;

#endif
