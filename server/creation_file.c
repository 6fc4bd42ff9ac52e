/* SPDX-License-Identifier: BSD-3-Clause */
/* Creates the file of blockdev-create, unless an export uses that file. */
#include "creation_file.h"

#include <errno.h>

#include "base/path.h"
#include "block/chain.h"
#include "control_chain.h"
#include "export_table.h"

static bool is_layer_of(struct served_export *exp, const char *file)
{
    CHAIN_USE(chain, exp);

    return chain_has_file(chain.use.node, file);
}

/* A locked file would be refused anyway, but an export may have lock=off. */
static int check_not_served(struct export_table *exports, const char *file,
                            struct diag *diag)
{
    EXPORT_TABLE_EACH (exp, exports)
        if (is_layer_of(exp, file)) {
            diag_set(diag, EBUSY, "%s: is part of the disk '%s'", file, exp->node_name);
            export_put(exp);
            return -EBUSY;
        }
    return 0;
}

static bool is_file(const struct create_request *request)
{
    return !request->protocol || request->protocol == &storage_protocol_file;
}

int creation_make_file(struct export_table *exports, const struct driver *driver,
                       const struct create_request *request, struct diag *diag)
{
    const char *name = request->filename;

    int err = check_not_served(exports, name, diag);
    if (!err && request->data_file)
        err = check_not_served(exports, request->data_file, diag);
    if (!err)
        err = create_image(driver, request, diag);
    if (err || !is_file(request))
        return err;
    err = path_sync_folder(name);
    return err ? diag_errno(diag, -err, "%s: making its name durable", name) : 0;
}
