/* SPDX-License-Identifier: BSD-3-Clause */
/* Serves metrics over HTTP.
 *
 * Clients aren't trusted: their number, memory and time are limited.  A connection serves one
 * request and ends after MAX_AGE_MS, even if it is kept busy; so clients that occupy all
 * connections are soon replaced.  libmicrohttpd parses HTTP; its event loop is driven here, in
 * one thread, so that a signal ends it at once. */
#include "metrics_http.h"

#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/clock.h"
#include "cli.h"
#include "interrupt.h"
#include "microhttpd_library.h"

#define MAX_CLIENTS      32u
#define MAX_CLIENTS_OF_1 24u /* per address, so that clients elsewhere still get in */
/* bytes for the heads of the request and of the answer */
#define CLIENT_MEMORY  ((size_t)16 << 10)
#define MAX_AGE_MS     10000u
#define LOOK_AROUND_MS 1000u /* how often to look for connections that are too old */

#define OPENMETRICS "application/openmetrics-text; version=1.0.0; charset=utf-8"
#define PLAIN_TEXT  "text/plain; charset=utf-8"

struct client {
    int fd; /* -1: unused entry */
    uint64_t until;
};

struct http {
    metrics_ask *ask;
    void *opaque;
    struct client clients[MAX_CLIENTS];
    unsigned n_clients;
};

/* ---- answers ---- */

/* Takes over the response; NULL closes the connection. */
static enum MHD_Result send_response(struct MHD_Connection *connection, unsigned status,
                                     const char *type, struct MHD_Response *response)
{
    if (!response)
        return MHD_NO;
    microhttpd.add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, type);
    microhttpd.add_response_header(response, MHD_HTTP_HEADER_CONNECTION, "close");
    if (status == MHD_HTTP_METHOD_NOT_ALLOWED)
        microhttpd.add_response_header(response, MHD_HTTP_HEADER_ALLOW,
                                       MHD_HTTP_METHOD_GET);
    enum MHD_Result result = microhttpd.queue_response(connection, status, response);
    microhttpd.destroy_response(response);
    return result;
}

static enum MHD_Result send_sentence(struct MHD_Connection *connection, unsigned status,
                                     const char *sentence)
{
    /* The library doesn't write to it; its parameter only lacks const. */
    return send_response(connection, status, PLAIN_TEXT,
                         microhttpd.create_response_from_buffer(strlen(sentence),
                                                                (void *)(uintptr_t)sentence,
                                                                MHD_RESPMEM_PERSISTENT));
}

static enum MHD_Result send_metrics(const struct http *http,
                                    struct MHD_Connection *connection)
{
    char *text;
    size_t length;

    /* After a signal nothing more is asked, as a server that hangs would delay the end. */
    if (interrupt_came || http->ask(http->opaque, &text, &length) != CLI_OK)
        return send_sentence(connection, MHD_HTTP_SERVICE_UNAVAILABLE,
                             "The server of the disks does not answer on its control "
                             "socket; the next request asks it again.\n");
    struct MHD_Response *response =
        microhttpd.create_response_from_buffer(length, text, MHD_RESPMEM_MUST_FREE);
    if (!response)
        free(text);
    return send_response(connection, MHD_HTTP_OK, OPENMETRICS, response);
}

/* Called when the head of a request has arrived; a body is ignored. */
static enum MHD_Result answer(void *opaque, struct MHD_Connection *connection,
                              const char *url, const char *method, const char *version,
                              const char *upload, size_t *upload_size, void **request)
{
    (void)version;
    (void)upload;
    (void)upload_size;
    (void)request;
    if (strcmp(url, METRICS_PAGE) != 0)
        return send_sentence(connection, MHD_HTTP_NOT_FOUND,
                             "There is " METRICS_PAGE " here, and nothing else.\n");
    if (strcmp(method, MHD_HTTP_METHOD_GET) != 0)
        return send_sentence(connection, MHD_HTTP_METHOD_NOT_ALLOWED,
                             METRICS_PAGE " can be read by GET only.\n");
    return send_metrics(opaque, connection);
}

/* ---- connections ---- */

static void note_connection(void *opaque, struct MHD_Connection *connection, void **place,
                            enum MHD_ConnectionNotificationCode what)
{
    struct http *http = opaque;
    struct client *client = *place;

    if (what == MHD_CONNECTION_NOTIFY_CLOSED) {
        if (client) {
            client->fd = -1;
            http->n_clients--;
        }
        return;
    }
    const union MHD_ConnectionInfo *info =
        microhttpd.get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
    for (client = http->clients; client < http->clients + MAX_CLIENTS; client++)
        if (info && client->fd < 0) {
            *client = (struct client){info->connect_fd, clock_ms() + MAX_AGE_MS};
            *place = client;
            http->n_clients++;
            return;
        }
}

/* shutdown makes the library notice the end, and close them. */
static void end_old_connections(struct http *http)
{
    uint64_t now = clock_ms();

    for (unsigned i = 0; i < MAX_CLIENTS; i++)
        if (http->clients[i].fd >= 0 && http->clients[i].until <= now)
            shutdown(http->clients[i].fd, SHUT_RDWR);
}

/* ---- the loop ---- */

/* How long to wait: *room, or NULL for no limit. */
static const struct timespec *next_wait(const struct http *http, struct MHD_Daemon *daemon,
                                        struct timespec *room)
{
    MHD_UNSIGNED_LONG_LONG ms;

    if (microhttpd.get_timeout(daemon, &ms) != MHD_YES) {
        if (http->n_clients == 0)
            return NULL;
        ms = LOOK_AROUND_MS;
    }
    if (ms > LOOK_AROUND_MS)
        ms = LOOK_AROUND_MS;
    *room = (struct timespec){(time_t)(ms / 1000), (long)(ms % 1000) * 1000000};
    return room;
}

/* Signals are blocked except during ppoll, so that none can come between the test of
 * interrupt_came and the wait. */
static void wait_for_work(const struct http *http, struct MHD_Daemon *daemon, int epoll_fd)
{
    struct pollfd poll_fd = {epoll_fd, POLLIN, 0};
    struct timespec room;
    sigset_t all, before;

    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, &before);
    if (!interrupt_came)
        ppoll(&poll_fd, 1, next_wait(http, daemon, &room), &before);
    sigprocmask(SIG_SETMASK, &before, NULL);
}

static int serve_until_signal(struct http *http, struct MHD_Daemon *daemon)
{
    const union MHD_DaemonInfo *info =
        microhttpd.get_daemon_info(daemon, MHD_DAEMON_INFO_EPOLL_FD);

    if (!info || info->epoll_fd < 0)
        return cli_error("this libmicrohttpd was built without epoll");
    while (!interrupt_came) {
        wait_for_work(http, daemon, info->epoll_fd);
        if (microhttpd.run(daemon) != MHD_YES)
            return cli_error("cannot go on listening: %s", strerror(errno));
        end_old_connections(http);
    }
    return CLI_OK;
}

int metrics_http_serve(int fd, metrics_ask *ask, void *opaque)
{
    struct http http = {.ask = ask, .opaque = opaque};
    struct diag diag = {0};

    if (microhttpd_load(&diag))
        return cli_diag(&diag);
    for (unsigned i = 0; i < MAX_CLIENTS; i++)
        http.clients[i].fd = -1;
    signal(SIGPIPE, SIG_IGN);
    struct MHD_Daemon *daemon = microhttpd.start_daemon(
        MHD_USE_EPOLL, 0, NULL, NULL, answer, &http, MHD_OPTION_LISTEN_SOCKET, fd,
        MHD_OPTION_CONNECTION_LIMIT, MAX_CLIENTS, MHD_OPTION_PER_IP_CONNECTION_LIMIT,
        MAX_CLIENTS_OF_1, MHD_OPTION_CONNECTION_MEMORY_LIMIT, CLIENT_MEMORY,
        MHD_OPTION_CONNECTION_TIMEOUT, MAX_AGE_MS / 1000, MHD_OPTION_NOTIFY_CONNECTION,
        note_connection, &http, MHD_OPTION_END);
    if (!daemon)
        return cli_error("cannot answer over HTTP: %s", strerror(errno));
    int code = serve_until_signal(&http, daemon);
    microhttpd.stop_daemon(daemon);
    return code;
}
