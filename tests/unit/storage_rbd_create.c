/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests creating an RBD image for a caller that gives up waiting, and opening one for
 * reading, with a fake Ceph that answers when the test wants. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "storage/rbd_internal.h"

static _Atomic bool hold, fail_open, fail_stat, exists, is_open;
static _Atomic unsigned n_shut_down;

/* ---- librados ---- */

static int fake_create_client(rados_t *cluster, const char *id)
{
    (void)id;
    *cluster = &hold;
    return 0;
}

static int fake_read_file(rados_t cluster, const char *path)
{
    (void)cluster;
    (void)path;
    return 0;
}

static int fake_set(rados_t cluster, const char *key, const char *value)
{
    (void)cluster;
    (void)key;
    (void)value;
    return 0;
}

static int fake_get(rados_t cluster, const char *key, char *buf, size_t len)
{
    (void)cluster;
    (void)key;
    snprintf(buf, len, "0");
    return 0;
}

static int fake_connect(rados_t cluster)
{
    (void)cluster;
    return 0;
}

static int fake_pool(rados_t cluster, const char *pool, rados_ioctx_t *io)
{
    (void)cluster;
    (void)pool;
    *io = &hold;
    return 0;
}

static void fake_full_try(rados_ioctx_t io)
{
    (void)io;
}

static uint64_t fake_instance(rados_t cluster)
{
    (void)cluster;
    return 7;
}

static void fake_shutdown(rados_t cluster)
{
    (void)cluster;
    atomic_fetch_add(&n_shut_down, 1);
}

/* ---- librbd ---- */

static void fake_options_create(rbd_image_options_t *options)
{
    *options = NULL;
}

static void fake_options_destroy(rbd_image_options_t options)
{
    (void)options;
}

static int fake_create(rados_ioctx_t io, const char *name, uint64_t size,
                       rbd_image_options_t options)
{
    (void)io;
    (void)size;
    (void)options;
    cr_assert_str_eq(name, "disk");
    while (atomic_load(&hold))
        clock_nap_ns(1000000);
    if (atomic_load(&exists))
        return -EEXIST;
    atomic_store(&exists, true);
    return 0;
}

static int fake_open(rados_ioctx_t io, const char *name, rbd_image_t *image,
                     const char *snapshot)
{
    (void)io;
    (void)name;
    (void)snapshot;
    if (atomic_load(&fail_open))
        return -EIO;
    *image = &hold;
    atomic_store(&is_open, true);
    return 0;
}

/* fail_writers: the user may only read.  features: with journaling librbd would take the lock even
 * to read. */
static _Atomic bool fail_writers;
static _Atomic uint64_t features;
static _Atomic unsigned n_opened_to_write, n_opened_to_read, n_watched;

static int fake_open_to_write(rados_ioctx_t io, const char *name, rbd_image_t *image,
                              const char *snapshot)
{
    if (atomic_load(&fail_writers))
        return -EPERM;
    atomic_fetch_add(&n_opened_to_write, 1);
    return fake_open(io, name, image, snapshot);
}

static int fake_open_to_read(rados_ioctx_t io, const char *name, rbd_image_t *image,
                             const char *snapshot)
{
    cr_expect(!atomic_load(&is_open));
    atomic_fetch_add(&n_opened_to_read, 1);
    return fake_open(io, name, image, snapshot);
}

static int fake_watch(rbd_image_t image, uint64_t *handle, rbd_update_callback_t callback,
                      void *opaque)
{
    (void)image;
    (void)callback;
    (void)opaque;
    *handle = 5;
    atomic_fetch_add(&n_watched, 1);
    return 0;
}

static int fake_unwatch(rbd_image_t image, uint64_t handle)
{
    (void)image;
    cr_expect_eq(handle, 5);
    cr_expect(atomic_load(&is_open));
    atomic_fetch_sub(&n_watched, 1);
    return 0;
}

static int fake_features(rbd_image_t image, uint64_t *number)
{
    (void)image;
    *number = atomic_load(&features);
    return 0;
}

static int fake_stat(rbd_image_t image, rbd_image_info_t *info, size_t len)
{
    (void)image;
    (void)len;
    *info = (rbd_image_info_t){.obj_size = 4096};
    return atomic_load(&fail_stat) ? -EIO : 0;
}

static int fake_number(rbd_image_t image, uint64_t *number)
{
    (void)image;
    *number = 1;
    return 0;
}

static int fake_fsid(rados_t cluster, char *buf, size_t len)
{
    (void)cluster;
    return snprintf(buf, len, "fsid");
}

static int fake_id(rbd_image_t image, char *buf, size_t len)
{
    (void)image;
    snprintf(buf, len, "id");
    return 0;
}

static int64_t fake_pool_id(rados_ioctx_t io)
{
    (void)io;
    return 1;
}

static int fake_config(rbd_image_t image, rbd_config_option_t *options, int *n)
{
    (void)image;
    (void)options;
    *n = 0;
    return 0;
}

static void fake_config_cleanup(rbd_config_option_t *options, int n)
{
    (void)options;
    (void)n;
}

static int fake_close(rbd_image_t image)
{
    (void)image;
    atomic_store(&is_open, false);
    return 0;
}

static int fake_remove(rados_ioctx_t io, const char *name)
{
    (void)io;
    cr_assert_str_eq(name, "disk");
    if (atomic_load(&is_open))
        return -EBUSY; /* as Ceph does */
    atomic_store(&exists, false);
    return 0;
}

static void set_up(void)
{
    librados.create = fake_create_client;
    librados.conf_read_file = fake_read_file;
    librados.conf_set = fake_set;
    librados.conf_get = fake_get;
    librados.connect = fake_connect;
    librados.ioctx_create = fake_pool;
    librados.ioctx_destroy = fake_full_try;
    librados.set_pool_full_try = fake_full_try;
    librados.get_instance_id = fake_instance;
    librados.shutdown = fake_shutdown;
    librbd.image_options_create = fake_options_create;
    librbd.image_options_destroy = fake_options_destroy;
    librbd.create4 = fake_create;
    librbd.open = fake_open_to_write;
    librbd.open_read_only = fake_open_to_read;
    librbd.update_watch = fake_watch;
    librbd.update_unwatch = fake_unwatch;
    librbd.stat = fake_stat;
    librbd.get_features = fake_features;
    librbd.get_stripe_count = fake_number;
    librbd.get_id = fake_id;
    librbd.config_image_list = fake_config;
    librbd.config_image_list_cleanup = fake_config_cleanup;
    librados.cluster_fsid = fake_fsid;
    librados.ioctx_get_id = fake_pool_id;
    librbd.close = fake_close;
    librbd.remove = fake_remove;
}

TestSuite(rbd_create, .init = set_up, .timeout = 60);

static int create(const _Atomic bool *give_up)
{
    CLEANUP_RBD_NAME struct rbd_name name = {0};
    struct rbd_link *link = NULL;
    struct diag diag = {0};

    cr_assert_eq(rbd_name_parse("rbd:p/disk", RBD_NAME_USER, &name, &diag), 0);
    int err = rbd_link_open(&name, RBD_CREATE, give_up, &link, &diag);
    cr_expect_null(link);
    return err;
}

static void await_end(unsigned n)
{
    while (atomic_load(&n_shut_down) < n)
        clock_nap_ns(1000000);
}

Test(rbd_create, what_cannot_be_opened_is_removed)
{
    atomic_store(&fail_open, true);
    cr_expect_eq(create(NULL), -EIO);
    cr_expect(!atomic_load(&exists));
    atomic_store(&fail_open, false);
    atomic_store(&fail_stat, true); /* opens, but its properties can't be read */
    cr_expect_eq(create(NULL), -EIO);
    cr_expect(!atomic_load(&exists));
}

Test(rbd_create, what_is_there_stays)
{
    atomic_store(&exists, true);
    cr_expect_eq(create(NULL), -EEXIST);
    cr_expect(atomic_load(&exists));
}

Test(rbd_create, who_has_left_leaves_nothing)
{
    static const _Atomic bool gave_up = true;

    atomic_store(&hold, true);
    cr_expect_eq(create(&gave_up), -ECANCELED);
    atomic_store(&hold, false);
    await_end(1);
    cr_expect(!atomic_load(&exists));
    atomic_store(&exists, true); /* an image of another client */
    atomic_store(&hold, true);
    cr_expect_eq(create(&gave_up), -ECANCELED);
    atomic_store(&hold, false);
    await_end(2);
    cr_expect(atomic_load(&exists));
}

static struct rbd_link *open_to_read(void)
{
    CLEANUP_RBD_NAME struct rbd_name name = {0};
    struct rbd_link *link = NULL;
    struct diag diag = {0};

    cr_assert_eq(rbd_name_parse("rbd:p/disk", RBD_NAME_USER, &name, &diag), 0);
    cr_assert_eq(rbd_link_open(&name, RBD_READ_ONLY, NULL, &link, &diag), 0, "%s",
                 diag.text);
    return link;
}

/* an image without a watcher can be removed while it is read, and then reads as zeroes.  So a
 * reader opens the image for writing, which watches it, where it is allowed to. */
Test(rbd_create, a_reader_watches_where_he_may)
{
    struct rbd_link *link = open_to_read();

    cr_expect_eq(n_opened_to_write, 1);
    cr_expect_eq(n_opened_to_read, 0);
    cr_expect_eq(n_watched, 1);
    rbd_link_close(link);
    cr_expect_eq(n_watched, 0);
    cr_expect(!atomic_load(&is_open));

    atomic_store(&fail_writers, true);
    link = open_to_read();
    cr_expect_eq(n_opened_to_read, 1);
    rbd_link_close(link);
    cr_expect(!atomic_load(&is_open));
}

Test(rbd_create, a_reader_never_takes_the_lock)
{
    atomic_store(&features, RBD_FEATURE_EXCLUSIVE_LOCK | RBD_FEATURE_JOURNALING);
    struct rbd_link *link = open_to_read();

    cr_expect_eq(n_opened_to_read, 1); /* after the one opened for writing was closed */
    rbd_link_close(link);
    cr_expect_eq(n_watched, 0);
    cr_expect(!atomic_load(&is_open));
}
