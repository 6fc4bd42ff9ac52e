/* SPDX-License-Identifier: BSD-3-Clause */
/* libmicrohttpd, loaded only when metrics are served: it depends on nine other libraries
 * (TLS, Unicode), and loading these takes as long as a whole `qimg info`.
 *
 * Threads: the main one.  The functions may be called after microhttpd_load has succeeded.
 * Layer: server. */
#ifndef CLI_MICROHTTPD_LIBRARY_H
#define CLI_MICROHTTPD_LIBRARY_H

#include <microhttpd.h>

#include "base/compiler.h"
#include "base/diag.h"

/* The functions that are used, without "MHD_". */
#define MICROHTTPD_FUNCTIONS(F)    \
    F(add_response_header)         \
    F(create_response_from_buffer) \
    F(destroy_response)            \
    F(get_connection_info)         \
    F(get_daemon_info)             \
    F(get_timeout)                 \
    F(get_version)                 \
    F(queue_response)              \
    F(run)                         \
    F(start_daemon)                \
    F(stop_daemon)

/* microhttpd.run is MHD_run, and so on; with the types of the library's header. */
struct microhttpd {
#define MICROHTTPD_MEMBER(name) __typeof__(MHD_##name) *name;
    MICROHTTPD_FUNCTIONS(MICROHTTPD_MEMBER)
#undef MICROHTTPD_MEMBER
};
extern struct microhttpd microhttpd;

/* Loads the library.  0, or -ENOPKG with diag. */
int microhttpd_load(struct diag *diag) MUST_USE;

/* The version of the installed library, which is loaded for that; NULL: it isn't installed. */
const char *microhttpd_version(void);

#endif
