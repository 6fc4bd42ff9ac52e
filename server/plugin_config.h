/* SPDX-License-Identifier: BSD-3-Clause */
/* The plugin's key=value parameters.  Threads: the main thread, before nbdkit forks. */
#ifndef SERVER_PLUGIN_CONFIG_H
#define SERVER_PLUGIN_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "block/chain.h"
#include "common/passphrases.h"
#include "storage/nbd_tls.h"

/* export=NAME:IMAGE */
struct named_image {
    char *name, *file;
};

struct plugin_config {
    /* What is served: one image, or a folder's images, or named images. */
    char *file; /* absolute; NULL: not given */
    char *dir;  /* absolute; NULL: not given */
    struct named_image *exports;
    size_t n_exports;
    bool hide_exports;  /* clients that ask for a list of exports get none */
    uint64_t linger_ms; /* how long an unused image of `dir` stays open */
    char *format, *backing, *backing_format, *data_file;
    struct passphrases passphrases;
    char *control;   /* absolute path of the control socket; NULL: none */
    char *node_name; /* the image's node name there; NULL before plugin_config_complete */
    /* name or id of the snapshot that the default export shows; NULL: none */
    char *snapshot;
    const struct cache_mode *cache;
    enum references references;
    size_t metadata_cache; /* bytes */
    bool writable_now;
    bool no_backing;
    struct node_options node;
    struct nbd_tls_choice tls; /* for NBD exports that are opened as images */
};

void plugin_config_init(struct plugin_config *config);
void plugin_config_free(struct plugin_config *config);

/* Takes one parameter.  Returns 0, or -1 after nbdkit_error named the key, the value and
 * what is allowed. */
int plugin_config_set(struct plugin_config *config, const char *key, const char *value);

/* After the last parameter: checks that the mandatory ones were given.  0, or -1 after
 * nbdkit_error. */
int plugin_config_complete(struct plugin_config *config);

/* What is served, for messages: "disk.qcow2", or the folder, or the first named image. */
const char *plugin_config_subject(const struct plugin_config *config);

extern const char plugin_config_help[];

#endif
