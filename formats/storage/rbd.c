/* SPDX-License-Identifier: BSD-3-Clause */
/* Opening and closing an RBD image, and the pause for a fork. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "storage/rbd_internal.h"

const bool rbd_is_there = true;

static void use_link(struct rbd_storage *rbd, struct rbd_link *link)
{
    rbd->link = link;
    rbd->facts = link->facts;
    atomic_store(&rbd->size, link->facts.size);
}

static struct rbd_storage *new_storage(const char *text, const struct storage_open *how,
                                       struct diag *diag)
{
    struct rbd_storage *rbd = calloc(1, sizeof *rbd);

    if (!rbd) {
        diag_errno(diag, ENOMEM, "an RBD image");
        return NULL;
    }
    rbd->st.ops = &rbd_ops;
    rbd->st.align = 1;
    rbd->st.keeps_writes = true;
    rbd->st.lets_writers_in = true;
    rbd->st.no_flush = how->no_flush;
    rbd->early = !how->direct;
    rbd->st.read_only = how->read_only;
    range_lock_init(&rbd->growth, RANK_LEAF);
    enum rbd_name_origin origin = how->named_by_image ? RBD_NAME_IMAGE : RBD_NAME_USER;
    if (rbd_name_parse(text, origin, &rbd->name, diag) == 0) {
        rbd->st.name = rbd_name_print_place(&rbd->name);
        rbd->st.location = rbd_name_print(&rbd->name);
        if (rbd->st.name && rbd->st.location)
            return rbd;
        diag_errno(diag, ENOMEM, "an RBD image");
    }
    storage_close(&rbd->st);
    return NULL;
}

/* ---- opening ---- */

static bool can_fall_back(int err)
{
    return err == -EACCES || err == -EPERM || err == -EROFS;
}

/* A snapshot is never written to. */
static int open_for_writing(struct rbd_storage *rbd, const struct storage_open *how,
                            struct rbd_link **out, struct diag *diag)
{
    if (rbd->name.snapshot)
        return diag_set(diag, EROFS, "%s: is a snapshot, which can't be written",
                        rbd->st.name);
    return rbd_link_open(&rbd->name, RBD_READ_WRITE, how->give_up, out, diag);
}

static int open_link(struct rbd_storage *rbd, const struct storage_open *how,
                     struct diag *diag)
{
    struct rbd_link *link = NULL;
    int err = 0;

    if (!how->read_only) {
        err = open_for_writing(rbd, how, &link, diag);
        if (err && (!how->fallback_read_only || !can_fall_back(err)))
            return err;
        rbd->st.refused_err = -err;
        rbd->st.read_only = err != 0;
    }
    if (!link)
        err = rbd_link_open(&rbd->name, RBD_READ_ONLY, how->give_up, &link, diag);
    if (!err)
        use_link(rbd, link);
    return err;
}

int storage_open_rbd(const char *name, const struct storage_open *how, struct storage **out,
                     struct diag *diag)
{
    struct rbd_storage *rbd = new_storage(name, how, diag);

    if (!rbd)
        return diag ? -diag->err : -EINVAL;
    int err = librbd_load(diag);
    if (!err)
        err = open_link(rbd, how, diag);
    if (err)
        storage_close(&rbd->st);
    else
        *out = &rbd->st;
    return err;
}

int storage_create_rbd(const char *name, struct storage **out, struct diag *diag)
{
    const struct storage_open how = {0};
    struct rbd_storage *rbd = new_storage(name, &how, diag);
    struct rbd_link *link = NULL;

    if (!rbd)
        return diag ? -diag->err : -EINVAL;
    int err = rbd->name.snapshot
                  ? diag_set(diag, EINVAL, "%s: a snapshot can't be made so", rbd->st.name)
                  : librbd_load(diag);
    if (!err)
        err = rbd_link_open(&rbd->name, RBD_CREATE, NULL, &link, diag);
    if (err) {
        storage_close(&rbd->st);
        return err;
    }
    use_link(rbd, link);
    *out = &rbd->st;
    return 0;
}

int storage_empty_rbd(const char *name, struct storage **out, struct diag *diag)
{
    static const struct storage_open how = {0};
    CLEANUP_STORAGE struct storage *st = NULL;

    int err = storage_open_rbd(name, &how, &st, diag);
    if (!err)
        err = storage_lock(st, STORAGE_WRITER, diag);
    if (err)
        return err;
    err = storage_truncate(st, 0);
    if (err)
        return diag_errno(diag, -err, "%s: taking its bytes away", st->name);
    *out = TAKE(&st);
    return 0;
}

void storage_remove_rbd(const char *name)
{
    CLEANUP_RBD_NAME struct rbd_name parsed = {0};
    struct rbd_link *none = NULL;
    struct diag diag = {0};

    int err = rbd_name_parse(name, RBD_NAME_USER, &parsed, &diag);
    if (!err)
        err = librbd_load(&diag);
    if (!err)
        err = rbd_link_open(&parsed, RBD_REMOVE, NULL, &none, &diag);
    if (err)
        log_warning("%s: is not removed", diag.text);
}

bool storage_is_rbd(const struct storage *st)
{
    return st->ops == &rbd_ops;
}

/* ---- closing ---- */

/* If early writes may be lost, logs that, and makes the next flush fail. */
static void close_link(struct rbd_storage *rbd)
{
    unsigned lost = rbd_link_close(TAKE(&rbd->link));

    if (lost == 0)
        return;
    log_error("%s: %u writes that were answered, and not flushed, may be lost",
              rbd->st.name, lost);
    atomic_store(&rbd->st.unreported_failure, true);
}

void rbd_close_storage(struct storage *st)
{
    struct rbd_storage *rbd = rbd_of(st);

    close_link(rbd);
    range_lock_destroy(&rbd->growth);
    rbd_name_free(&rbd->name);
    free(rbd);
}

/* ---- before and after a fork ---- */

void rbd_rest_storage(struct storage *st)
{
    struct rbd_storage *rbd = rbd_of(st);

    int err = rbd_settle(rbd);
    if (err)
        log_error("%s: writing what was answered: %s", rbd->st.name, strerror(-err));
    close_link(rbd);
}

static int check_same(const struct rbd_storage *rbd, const struct rbd_link *link,
                      struct diag *diag)
{
    const struct rbd_facts *was = &rbd->facts, *is = &link->facts;

    if (was->device != is->device || was->inode != is->inode)
        return diag_set(diag, ESTALE, "%s: is another image than before", rbd->st.name);
    if (atomic_load(&rbd->size) != is->size)
        return diag_set(diag, ESTALE,
                        "%s: its size has changed, from %" PRIu64 " to %" PRIu64 " bytes",
                        rbd->st.name, atomic_load(&rbd->size), is->size);
    return 0;
}

static int connect_again(struct rbd_storage *rbd, struct diag *diag)
{
    struct rbd_link *link = NULL;

    int err = rbd_link_open(&rbd->name, rbd->st.read_only ? RBD_READ_ONLY : RBD_READ_WRITE,
                            NULL, &link, diag);
    if (err)
        return err;
    err = check_same(rbd, link, diag);
    if (err) {
        rbd_link_close(link);
        return err;
    }
    use_link(rbd, link);
    return rbd->wants_lock ? rbd_take_lock(rbd, STORAGE_WRITER, diag) : 0;
}

int rbd_start_storage(struct storage *st)
{
    struct rbd_storage *rbd = rbd_of(st);
    struct diag diag = {0};

    if (rbd->link)
        return 0;
    int err = connect_again(rbd, &diag);
    if (err)
        log_error("%s", diag.text);
    return err;
}
