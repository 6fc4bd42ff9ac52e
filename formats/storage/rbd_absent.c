/* SPDX-License-Identifier: BSD-3-Clause */
/* RBD in a build without librbd's header files: every attempt to use it is refused. */
#include <errno.h>
#include <stddef.h>

#include "storage/rbd.h"

const bool rbd_is_there = false;

const char *librbd_version(void)
{
    return NULL;
}

static int refuse(const char *name, struct diag *diag)
{
    return diag_set(diag, ENOTSUP,
                    "%s: Ceph RBD wasn't built in (librbd-dev was missing then)", name);
}

int storage_open_rbd(const char *name, const struct storage_open *how, struct storage **out,
                     struct diag *diag)
{
    (void)how;
    (void)out;
    return refuse(name, diag);
}

int storage_create_rbd(const char *name, struct storage **out, struct diag *diag)
{
    (void)out;
    return refuse(name, diag);
}

int storage_empty_rbd(const char *name, struct storage **out, struct diag *diag)
{
    (void)out;
    return refuse(name, diag);
}

bool storage_is_rbd(const struct storage *st)
{
    (void)st;
    return false;
}

void storage_remove_rbd(const char *name)
{
    (void)name;
}
