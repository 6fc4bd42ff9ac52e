/* SPDX-License-Identifier: BSD-3-Clause */
/* libmicrohttpd, loaded when metrics are to be served.
 *
 * It brings nine libraries along (TLS, Unicode), whose loading takes as long as all the rest
 * of a command that only describes an image.
 *
 * Threads: the main one; the functions may be called once microhttpd_load succeeded.
 * Layer: server. */
#ifndef CLI_MICROHTTPD_LIBRARY_H
#define CLI_MICROHTTPD_LIBRARY_H

#include <microhttpd.h>

#include "base/compiler.h"
#include "base/diag.h"

/* The functions we call, without "MHD_". */
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

/* microhttpd.run is MHD_run, and so on, with the types of the library's own header. */
struct microhttpd {
#define MICROHTTPD_MEMBER(name) __typeof__(MHD_##name) *name;
    MICROHTTPD_FUNCTIONS(MICROHTTPD_MEMBER)
#undef MICROHTTPD_MEMBER
};
extern struct microhttpd microhttpd;

/* Loads it.  0 or -ENOPKG with diag. */
int microhttpd_load(struct diag *diag) MUST_USE;

/* Of the library that is here, which is loaded for that; NULL: there is none. */
const char *microhttpd_version(void);

#endif
