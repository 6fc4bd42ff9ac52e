/* SPDX-License-Identifier: BSD-3-Clause */
/* A client's connection to a control socket.  Threads: the main one.  Layer: server. */
#ifndef CLI_QMP_CLIENT_H
#define CLI_QMP_CLIENT_H

#include <stddef.h>

#include <jansson.h>

#define QMP_MAX_FDS 16

struct qmp {
    int fd;
    char *buffer; /* received, and not yet parsed */
    size_t used, capacity;
    json_t *events;       /* received while waiting for a reply */
    int fds[QMP_MAX_FDS]; /* received with replies; closed by qmp_close */
    unsigned n_fds;
    int fds_from; /* received descriptors are moved to this number or above; 0: not moved */
    uint64_t until; /* when waiting for replies ends (clock_ms); 0: never */
};

/* Connects and negotiates.  Complains and returns an exit code; on failure there is nothing
 * to close. */
int qmp_open(struct qmp *qmp, const char *path);

/* The same, but commands fail when the server takes longer than this for all of them
 * together, or when a signal comes. */
int qmp_open_within(struct qmp *qmp, const char *path, uint32_t timeout_ms);
void qmp_close(struct qmp *qmp);

/* Runs a command; takes over args (NULL: none).  *value, which may become NULL, is the
 * caller's.  An error of the server is printed.  Returns an exit code. */
int qmp_command(struct qmp *qmp, const char *command, json_t *args, json_t **value);

/* The same, but an error of the server is returned in *refusal, which is the caller's, with
 * *value NULL. */
int qmp_try(struct qmp *qmp, const char *command, json_t *args, json_t **value,
            json_t **refusal);

/* *disk, which is the caller's: the entry of query-block with that name.  name NULL: the
 * server's only disk; if there are several, complains.  Returns an exit code. */
int qmp_find_disk(struct qmp *qmp, const char *name, json_t **disk);

/* The next event, *event, or NULL if none comes in time.  Returns an exit code. */
int qmp_event(struct qmp *qmp, int timeout_ms, json_t **event);

#endif
