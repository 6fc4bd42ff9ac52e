/* SPDX-License-Identifier: BSD-3-Clause */
/* Backing names that are a description in JSON, as QEMU writes them for chains that were put
 * together on its command line:
 *
 *     json:{"driver": "qcow2", "file": {"driver": "file", "filename": "/images/base"}}
 *     json:{"file.driver": "nbd", "file.server.type": "unix", "file.server.path": "/run/s"}
 *     json:{'driver': 'qcow2', 'file.filename': '/images/base'}
 *     json:{"driver": "qcow2", "file": {...}, "backing": {"driver": "raw", "file": {...}}}
 *     json:{"driver": "qcow2", "file": {...}, "backing": {"backing": null}}
 *     json:{"driver": "rbd", "pool": "p", "image": "i", "server": [{"host": "h", "port": "1"}]}
 *
 * Supported are qimg's formats over the protocols "file", "nbd" and "rbd", with nested objects
 * or dotted keys, and descriptions of the layers below.  Every other driver or key is rejected
 * by name, because ignoring it could change the meaning.  Layer: block. */
#ifndef BLOCK_JSON_NAME_H
#define BLOCK_JSON_NAME_H

#include <stdbool.h>
#include <stdlib.h>

#include "base/compiler.h"
#include "base/diag.h"
#include "storage/protocol.h"

struct json_name {
    /* NULL: the name doesn't say; then target is NULL, too. */
    const struct storage_protocol *protocol;
    /* Owned: a file name (any bytes), or an NBD URI or RBD name that wasn't validated. */
    char *target;
    const char *format; /* static; NULL: not given */
    bool plain; /* its driver is a protocol's: for QEMU the file then has no format */

    /* What it says of the layer below: a text to be parsed with JSON_NAME_BELOW, or that there
     * is none. */
    char *below; /* owned; NULL: not given */
    bool none_below;

    /* The external data file, as a name of this kind; only allowed in the user's name for the
     * top image. */
    char *data_file; /* owned; NULL: not given */
};

static inline void json_name_free(struct json_name *name)
{
    free(name->target);
    free(name->below);
    free(name->data_file);
    *name = (struct json_name){0};
}
#define CLEANUP_JSON_NAME CLEANUP(json_name_free)

/* Does the name begin with "json:"? */
bool json_name_is_one(const char *name);

/* Where the name comes from. */
#define JSON_NAME_GIVEN 0x1u /* from the user, who may also say which keys are used */
#define JSON_NAME_BELOW 0x2u /* describes a layer below: its place may be left out */

/* Parses a name that json_name_is_one accepts.  Returns 0; or -EINVAL, -ENOTSUP, -EACCES,
 * -ENOENT or -ENOMEM with *out empty and the sentence "IMAGE: backing name 'json:...': KEY:
 * reason".  With JSON_NAME_GIVEN it is "IMAGE: name 'json:...': KEY: reason", without "IMAGE: "
 * if image is empty. */
int json_name_parse(const char *image, const char *name, unsigned where,
                    struct json_name *out, struct diag *diag) MUST_USE;

#endif
