/* SPDX-License-Identifier: BSD-3-Clause */
/* What `qimg serve` was asked for, and the command line of nbdkit that it becomes.
 * Layer: server. */
#ifndef CLI_SERVE_LINE_H
#define CLI_SERVE_LINE_H

#include <stdbool.h>

/* The first descriptor of those that are passed on as listening sockets. */
#define PASSED_FD 3

/* nbdkit, its options and an end, beside the words taken from our command line. */
#define SERVE_OWN_WORDS 24

struct serve_args {
    bool read_only;
    const char *socket, *port, *address, *threads, *run;
    bool activated;    /* by systemd, or who does as it: the socket is there already */
    bool replaces;     /* another server, whose sockets it is to have */
    bool is_trial;     /* on a socket that nobody knows */
    const char *image; /* NULL: settings say what is served */
    char **words;      /* key=value ... [nbdkit options] */
    int n_words;
};

/* The words before nbdkit's options. */
int serve_count_settings(const struct serve_args *args);

/* The value of the first setting of that key; NULL: there is none. */
const char *serve_setting(const struct serve_args *args, const char *key);

/* What is served: the image, the folder, or the first of the named images. */
const char *serve_subject(const struct serve_args *args);

/* nbdkit's arguments into argv, of args->n_words + SERVE_OWN_WORDS; they are borrowed.  file:
 * "file=IMAGE"; or NULL, with the settings.  pidfile may be NULL. */
void serve_build_line(const struct serve_args *args, const char *plugin, const char *file,
                      const char *pidfile, const char **argv);

#endif
