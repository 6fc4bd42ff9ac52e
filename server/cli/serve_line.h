/* SPDX-License-Identifier: BSD-3-Clause */
/* The arguments of `qimg serve`, and the nbdkit command line made from them.  Layer: server. */
#ifndef CLI_SERVE_LINE_H
#define CLI_SERVE_LINE_H

#include <stdbool.h>

/* The first descriptor of listening sockets that are passed on (as by systemd). */
#define PASSED_FD 3

/* Upper bound of words that are added to those of our command line: nbdkit, its options and
 * NULL. */
#define SERVE_OWN_WORDS 24

struct serve_args {
    bool read_only;
    const char *socket, *port, *address, *threads, *run;
    bool activated;    /* the socket was passed to us, by systemd or in its way */
    bool replaces;     /* takes over the sockets of another server */
    bool is_trial;     /* a trial on a private socket */
    const char *image; /* NULL: settings say what is served */
    char **words;      /* key=value ... [nbdkit options] */
    int n_words;
};

/* How many of the words come before nbdkit's options. */
int serve_count_settings(const struct serve_args *args);

/* The value of the first setting with that key; NULL: none. */
const char *serve_setting(const struct serve_args *args, const char *key);

/* What is served, for messages: the image, the folder, or the first named image. */
const char *serve_subject(const struct serve_args *args);

/* Writes nbdkit's arguments, which are borrowed, to argv (room for args->n_words +
 * SERVE_OWN_WORDS).  file: "file=IMAGE"; NULL: the settings say it.  pidfile may be NULL. */
void serve_build_line(const struct serve_args *args, const char *plugin, const char *file,
                      const char *pidfile, const char **argv);

#endif
