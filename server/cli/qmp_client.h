/* SPDX-License-Identifier: BSD-3-Clause */
/* A connection to a server's control socket.  Threads: the main one.  Layer: server. */
#ifndef CLI_QMP_CLIENT_H
#define CLI_QMP_CLIENT_H

#include <stddef.h>

#include <jansson.h>

#define QMP_MAX_FDS 16

struct qmp {
    int fd;
    char *buffer; /* what was received and not yet taken */
    size_t used, capacity;
    json_t *events;       /* that came while a reply was waited for */
    int fds[QMP_MAX_FDS]; /* that came with answers; closed with it */
    unsigned n_fds;
    int fds_from;   /* the lowest that they may be; 0: any */
    uint64_t until; /* of clock_ms(): when replies are waited for no longer; 0: never */
};

/* Connects and negotiates.  Complains and returns an exit code; on failure there is nothing
 * to close. */
int qmp_open(struct qmp *qmp, const char *path);

/* The same, but a server that takes longer than this for all it is asked has failed; a
 * signal fails it, too. */
int qmp_open_within(struct qmp *qmp, const char *path, uint32_t timeout_ms);
void qmp_close(struct qmp *qmp);

/* Runs a command; args is taken over, NULL: none.  *value (which may be NULL) is then the
 * caller's.  What the server has against it is printed; returns an exit code. */
int qmp_command(struct qmp *qmp, const char *command, json_t *args, json_t **value);

/* The same, but what the server has against it is the caller's, in *refusal; then *value is
 * NULL. */
int qmp_try(struct qmp *qmp, const char *command, json_t *args, json_t **value,
            json_t **refusal);

/* The disk of that name, as query-block describes it, in *disk, the caller's.  NULL: the only
 * one that the server has; when there are more, the user has to say which. */
int qmp_find_disk(struct qmp *qmp, const char *name, json_t **disk);

/* The next event, in *event, or NULL there when none came in time.  Returns an exit code.
 */
int qmp_event(struct qmp *qmp, int timeout_ms, json_t **event);

#endif
