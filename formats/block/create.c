/* SPDX-License-Identifier: BSD-3-Clause */
/* Creates images: makes the stores, lets the driver write to them, and removes them after a
 * failure. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/cleanup.h"
#include "block/create.h"
#include "block/driver.h"
#include "block/open_policy.h"
#include "storage/protocol.h"

#define SECTOR 512u

/* A store, and what to do with it if the creation fails. */
struct made {
    const struct storage_protocol *protocol;
    const char *name;
    struct storage *st; /* owned, until the driver takes it over */
    bool was_there;
    bool is_ours; /* remove it */
    bool stays;   /* empty it */
};

static int check_exact_size(const struct driver *driver, const struct create_request *req,
                            struct diag *diag)
{
    if (!req->exact_size || req->size % SECTOR == 0 || !driver_can(driver, DRIVER_CLUSTERS))
        return 0;
    return diag_set(diag, EINVAL,
                    "%s: the disk's %" PRIu64 " bytes are no multiple of %u, as %s "
                    "images have them: say format=raw",
                    req->filename, req->size, SECTOR, driver->name);
}

/* ---- the store of a data file ---- */

/* Does it exist already?  *out: the store if it can be opened, otherwise NULL. */
static bool look_at(const struct made *made, struct storage **out)
{
    const struct storage_open how = {.read_only = true};

    *out = NULL;
    return made->protocol->open
               ? made->protocol->open(made->name, &how, out, NULL) != -ENOENT
               : false;
}

static int refuse_same(const struct made *data, struct diag *diag)
{
    return diag_set(diag, EINVAL, "%s: data_file: is the image itself", data->name);
}

/* Compares the names, and the files that exist, before either is created. */
static int check_not_the_image(const struct made *image, struct made *data,
                               struct diag *diag)
{
    CLEANUP_STORAGE struct storage *a = NULL, *b = NULL;

    data->was_there = look_at(data, &b);
    if (strcmp(image->name, data->name) == 0 ||
        (look_at(image, &a) && a && b && storage_is_same(a, b)))
        return refuse_same(data, diag);
    return 0;
}

/* Different names can lead to the same file, which can be told only after the image was
 * created. */
static int check_not_just_made(const struct made *image, const struct made *data,
                               struct diag *diag)
{
    CLEANUP_STORAGE struct storage *st = NULL;

    look_at(data, &st);
    return st && storage_is_same(st, image->st) ? refuse_same(data, diag) : 0;
}

/* A name without a protocol lies where the image lies. */
static int plan_data_file(const struct driver *driver, const struct create_request *req,
                          const struct made *image, struct reference *ref,
                          struct made *data, struct diag *diag)
{
    if (!driver->data_file)
        return diag_set(diag, ENOTSUP, "%s: data_file: %s images have none", req->filename,
                        driver->name);
    int err = reference_resolve(req->filename, req->data_file, REFERENCES_ANY, ref, diag);
    if (err)
        return err;
    data->name = ref->path;
    data->protocol =
        ref->protocol == &storage_protocol_file ? image->protocol : ref->protocol;
    if (!data->protocol->create)
        return diag_set(diag, ENOTSUP,
                        "%s: data_file: %s: can't be made by the protocol %s",
                        req->filename, data->name, data->protocol->name);
    return check_not_the_image(image, data, diag);
}

/* ---- all stores ---- */

static int make_store(const struct create_request *req, struct made *made,
                      struct diag *diag)
{
    const struct storage_protocol *protocol = made->protocol;

    int err = req->existing && made->was_there && protocol->empty
                  ? protocol->empty(made->name, &made->st, diag)
                  : protocol->create(made->name, &req->hints, &made->st, diag);
    if (!err)
        made->is_ours = !made->st->fixed_size && !made->was_there;
    return err;
}

/* Opens it first, because creating it would not report that it is missing. */
static int check_is_there(const struct made *image, struct diag *diag)
{
    const struct storage_open how = {.read_only = true};
    CLEANUP_STORAGE struct storage *st = NULL;

    return image->protocol->open(image->name, &how, &st, diag);
}

static int make_both(const struct create_request *req, struct made *image,
                     struct made *data, struct diag *diag)
{
    int err = req->existing ? check_is_there(image, diag) : 0;

    image->was_there = req->existing;
    if (!err)
        err = make_store(req, image, diag);
    if (!err)
        image->stays = req->existing && !image->st->fixed_size;
    if (!err && data->name)
        err = check_not_just_made(image, data, diag);
    if (!err && data->name)
        err = make_store(req, data, diag);
    return err;
}

/* Unless another process uses it by now. */
static void empty_store(const struct made *made)
{
    const struct storage_open how = {0};
    CLEANUP_STORAGE struct storage *st = NULL;
    struct diag ignored;

    if (made->protocol->open(made->name, &how, &st, &ignored) == 0 &&
        storage_lock(st, STORAGE_WRITER, &ignored) == 0)
        (void)!storage_truncate(st, 0);
}

static void give_up(struct made *made)
{
    storage_close(made->st);
    if (made->is_ours)
        made->protocol->remove(made->name);
    else if (made->stays)
        empty_store(made);
}

static int make_image(const struct driver *driver, const struct create_request *req,
                      struct made *image, struct made *data, struct diag *diag)
{
    int err = make_both(req, image, data, diag);

    if (!err) {
        err = driver->create(image->st, data->st, req, diag);
        image->st = data->st = NULL;
    }
    if (err) {
        give_up(image);
        give_up(data);
    }
    return err;
}

int create_image(const struct driver *driver, const struct create_request *req,
                 struct diag *diag)
{
    struct made image = {.protocol = req->protocol ? req->protocol : &storage_protocol_file,
                         .name = req->filename};
    CLEANUP_FREE char *shown = storage_shown_name(image.protocol, req->filename);
    CLEANUP_REFERENCE struct reference ref = {0};
    struct made data = {0};
    struct create_request named = *req; /* the request with the name that messages show */

    if (!shown)
        return diag_errno(diag, ENOMEM, "an image");
    named.filename = shown;
    if (!image.protocol->create)
        return diag_set(diag, ENOTSUP, "%s: images can't be made by the protocol %s", shown,
                        image.protocol->name);
    int err = check_exact_size(driver, &named, diag);
    if (err)
        return err;
    err = driver->check_create(&named, diag);
    if (!err && req->backing_file)
        err = reference_check_recorded(shown, req->backing_file, diag);
    if (!err && req->data_file)
        err = plan_data_file(driver, &named, &image, &ref, &data, diag);
    return err ? err : make_image(driver, &named, &image, &data, diag);
}
