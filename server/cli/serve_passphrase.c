/* SPDX-License-Identifier: BSD-3-Clause */
/* Passphrases are handed to nbdkit as descriptors. */
#include "serve_passphrase.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "cli.h"

#define KEY "passphrase"

/* Above those that a shell passes on, and the socket's. */
#define LOWEST_FD 10

const char *serve_passphrase(const char *setting)
{
    const char *rest = setting + strlen(KEY);

    if (strncmp(setting, KEY, strlen(KEY)) != 0 || (rest[0] != '=' && rest[0] != '.'))
        return NULL;
    const char *equals = strchr(rest, '=');
    return equals ? equals + 1 : NULL;
}

/* A file in memory with the text; -1 with errno. */
static int open_text(const char *text)
{
    size_t len = strlen(text);
    int memory = memfd_create(KEY, MFD_CLOEXEC);

    if (memory < 0)
        return -1;
    if (write(memory, text, len) != (ssize_t)len || lseek(memory, 0, SEEK_SET) < 0) {
        close(memory);
        return -1;
    }
    int fd = fcntl(memory, F_DUPFD, LOWEST_FD);
    close(memory);
    return fd;
}

int serve_passphrase_hide(char **setting)
{
    const char *value = serve_passphrase(*setting);
    char *hidden;

    /* Of a descriptor nbdkit takes one line. */
    if (!value || !value[0] || strchr("+-", value[0]) || strchr(value, '\n'))
        return CLI_OK;
    int fd = open_text(value);
    if (fd < 0)
        return cli_error("cannot pass on the passphrase: %s", strerror(errno));
    if (asprintf(&hidden, "%.*s-%d", (int)(value - *setting), *setting, fd) < 0)
        return cli_error("out of memory");
    *setting = hidden;
    return CLI_OK;
}
