/* SPDX-License-Identifier: BSD-3-Clause */
/* libnbd, loaded when the first NBD export is opened.
 *
 * It depends on twenty libraries (TLS, XML, Unicode).  Loading them takes as long as the rest
 * of a server's start, and their data is a third of its memory; most images never need them.
 * Private to this folder; the library is never unloaded.
 *
 * Threads: any; the functions may be called once libnbd_load has succeeded.  Layer: storage. */
#ifndef STORAGE_NBD_LIBRARY_H
#define STORAGE_NBD_LIBRARY_H

#include <libnbd.h>

#include "base/compiler.h"
#include "base/diag.h"

/* The functions that we call, without "nbd_". */
#define LIBNBD_FUNCTIONS(F) \
    F(add_meta_context)     \
    F(aio_block_status)     \
    F(aio_cache)            \
    F(aio_connect)          \
    F(aio_connect_tcp)      \
    F(aio_connect_unix)     \
    F(aio_disconnect)       \
    F(aio_flush)            \
    F(aio_get_direction)    \
    F(aio_get_fd)           \
    F(aio_is_closed)        \
    F(aio_is_dead)          \
    F(aio_is_ready)         \
    F(aio_notify_read)      \
    F(aio_notify_write)     \
    F(aio_pread)            \
    F(aio_pwrite)           \
    F(aio_trim)             \
    F(aio_zero)             \
    F(can_cache)            \
    F(can_fast_zero)        \
    F(can_flush)            \
    F(can_fua)              \
    F(can_meta_context)     \
    F(can_multi_conn)       \
    F(can_trim)             \
    F(can_zero)             \
    F(close)                \
    F(create)               \
    F(get_block_size)       \
    F(get_errno)            \
    F(get_error)            \
    F(get_size)             \
    F(get_version)          \
    F(is_read_only)         \
    F(poll)                 \
    F(set_export_name)      \
    F(set_tls)              \
    F(set_tls_certificates) \
    F(set_tls_psk_file)     \
    F(set_tls_username)     \
    F(set_tls_verify_peer)

/* libnbd.aio_pread is nbd_aio_pread, and so on, with the types of libnbd's own header. */
struct libnbd {
#define LIBNBD_MEMBER(name) __typeof__(nbd_##name) *name;
    LIBNBD_FUNCTIONS(LIBNBD_MEMBER)
#undef LIBNBD_MEMBER
    /* Since version 1.22; NULL: the library is older. */
    int (*set_tls_hostname)(struct nbd_handle *h, const char *hostname);
};
extern struct libnbd libnbd;

/* Loads the library; does nothing when called again.  Returns 0 or -ENOPKG with diag. */
int libnbd_load(struct diag *diag) MUST_USE;

/* The version of the installed library, which is loaded for this; NULL: not installed. */
const char *libnbd_version(void);

#endif
