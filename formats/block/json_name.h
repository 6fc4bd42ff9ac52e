/* SPDX-License-Identifier: BSD-3-Clause */
/* Backing names that are a description in JSON, as QEMU writes them for chains that were
 * put together on its command line:
 *
 *     json:{"driver": "qcow2", "file": {"driver": "file", "filename": "/images/base"}}
 *     json:{"file.driver": "nbd", "file.server.type": "unix", "file.server.path": "/run/s"}
 *     json:{'driver': 'qcow2', 'file.filename': '/images/base'}
 *     json:{"driver": "qcow2", "file": {...}, "backing": {"driver": "raw", "file": {...}}}
 *     json:{"driver": "qcow2", "file": {...}, "backing": {"backing": null}}
 *     json:{"driver": "rbd", "pool": "p", "image": "i", "server": [{"host": "h", "port": "1"}]}
 *
 * Understood are the formats there are over "file", "nbd" and "rbd", nested or with dots between,
 * and what lies below them; every other driver and key is refused by its name, for it would
 * mean something.
 * Layer: block. */
#ifndef BLOCK_JSON_NAME_H
#define BLOCK_JSON_NAME_H

#include <stdbool.h>
#include <stdlib.h>

#include "base/compiler.h"
#include "base/diag.h"
#include "storage/protocol.h"

struct json_name {
    /* NULL: the name doesn't say, and so target is NULL, too. */
    const struct storage_protocol *protocol;
    /* Owned: a file's name, of any bytes, or an NBD URI or an RBD name that wasn't judged. */
    char *target;
    const char *format; /* static; NULL: the name doesn't say */
    bool
        plain; /* the driver that it names is a protocol's: for QEMU, no format is over it */

    /* What it says of the layer below: all of it, by a text to be parsed with JSON_NAME_BELOW; or
     * that there is none. */
    char *below; /* owned; NULL: it doesn't say */
    bool none_below;

    /* The external data file, by a name like this one: the user's of the image on top alone. */
    char *data_file; /* owned; NULL: it doesn't say */
};

static inline void json_name_free(struct json_name *name)
{
    free(name->target);
    free(name->below);
    free(name->data_file);
    *name = (struct json_name){0};
}
#define CLEANUP_JSON_NAME CLEANUP(json_name_free)

/* Does the name begin as one of these? */
bool json_name_is_one(const char *name);

/* Where the name was found. */
#define JSON_NAME_GIVEN 0x1u /* it is the user's, who may say which keys are used, too */
#define JSON_NAME_BELOW 0x2u /* said of a layer below: where that lies may be left out */

/* -EINVAL, -ENOTSUP or -EACCES with the sentence "IMAGE: backing name 'json:...': KEY: reason"; of
 * a given one "IMAGE: name 'json:...': KEY: reason", without an IMAGE that is empty.  *out is then
 * empty. */
int json_name_parse(const char *image, const char *name, unsigned where,
                    struct json_name *out, struct diag *diag) MUST_USE;

#endif
