/* SPDX-License-Identifier: BSD-3-Clause */
/* The steps of changing an image's options. */
#include "block/amend.h"

#include "block/driver.h"
#include "block/node.h"

/* The part that needs access to the disk.  Returns 1 if it has to be called again after
 * driver->amend. */
static int amend_disk(struct node *node, const struct amend_request *req, struct diag *diag)
{
    int rc = node_activate(node, diag);

    if (rc == 0)
        rc = node->driver->amend_disk(node, req, diag);
    int err = rc < 0 ? 0 : node_settle(node);
    return err ? diag_errno(diag, -err, "%s: writing it back", node->filename) : rc;
}

int node_amend(struct node *node, const struct amend_request *req, struct diag *diag)
{
    int again = amend_disk(node, req, diag);

    if (again < 0)
        return again;
    int err = node->driver->amend(node, req, diag);
    return err || !again ? err : amend_disk(node, req, diag);
}
