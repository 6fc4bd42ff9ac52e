/* SPDX-License-Identifier: BSD-3-Clause */
/* librbd and librados.  They are loaded when the first RBD image is opened, so that they needn't be
 * installed otherwise.  Private to this folder.
 *
 * Threads: any; the functions may be called after librbd_load has succeeded.  Layer: storage. */
#ifndef STORAGE_RBD_LIBRARY_H
#define STORAGE_RBD_LIBRARY_H

#include <rados/librados.h>
#include <rbd/librbd.h>

#include "base/compiler.h"
#include "base/diag.h"

/* The functions we call, without "rbd_" and "rados_". */
#define LIBRBD_FUNCTIONS(F)      \
    F(aio_create_completion)     \
    F(aio_discard)               \
    F(aio_flush)                 \
    F(aio_get_return_value)      \
    F(aio_read)                  \
    F(aio_release)               \
    F(aio_write)                 \
    F(aio_writev)                \
    F(aio_write_zeroes)          \
    F(close)                     \
    F(config_image_list)         \
    F(config_image_list_cleanup) \
    F(create4)                   \
    F(diff_iterate2)             \
    F(get_features)              \
    F(get_flags)                 \
    F(get_id)                    \
    F(get_parent)                \
    F(get_size)                  \
    F(get_stripe_count)          \
    F(image_options_create)      \
    F(image_options_destroy)     \
    F(linked_image_spec_cleanup) \
    F(list_lockers)              \
    F(lock_acquire)              \
    F(lock_release)              \
    F(open)                      \
    F(open_read_only)            \
    F(remove)                    \
    F(resize)                    \
    F(snap_spec_cleanup)         \
    F(stat)                      \
    F(update_unwatch)            \
    F(update_watch)              \
    F(version)                   \
    F(watchers_list)             \
    F(watchers_list_cleanup)

#define LIBRADOS_FUNCTIONS(F) \
    F(cluster_fsid)           \
    F(conf_get)               \
    F(conf_read_file)         \
    F(conf_set)               \
    F(connect)                \
    F(create)                 \
    F(get_instance_id)        \
    F(ioctx_create)           \
    F(ioctx_destroy)          \
    F(ioctx_get_id)           \
    F(ioctx_set_namespace)    \
    F(set_pool_full_try)      \
    F(shutdown)

/* librbd.open is rbd_open, and so on; the types are those of the libraries' headers. */
#define RBD_MEMBER(name)   __typeof__(rbd_##name) *name;
#define RADOS_MEMBER(name) __typeof__(rados_##name) *name;
struct librbd {
    LIBRBD_FUNCTIONS(RBD_MEMBER)
};
struct librados {
    LIBRADOS_FUNCTIONS(RADOS_MEMBER)
};
#undef RBD_MEMBER
#undef RADOS_MEMBER
extern struct librbd librbd;
extern struct librados librados;

/* Loads both libraries; later calls only return the first one's result.  0 or -ENOPKG with diag. */
int librbd_load(struct diag *diag) MUST_USE;

#endif
