/* SPDX-License-Identifier: BSD-3-Clause */
/* Passes passphrases to nbdkit as descriptors. */
#include "serve_passphrase.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "cli.h"

#define KEY "passphrase"

/* Above the descriptors that a shell passes on, and above the sockets. */
#define LOWEST_FD 10

const char *serve_passphrase(const char *setting)
{
    const char *rest = setting + strlen(KEY);

    if (strncmp(setting, KEY, strlen(KEY)) != 0 || (rest[0] != '=' && rest[0] != '.'))
        return NULL;
    const char *equals = strchr(rest, '=');
    return equals ? equals + 1 : NULL;
}

/* Longer than any passphrase. */
#define MAX_BYTES 65536

/* A memory file with the text, inherited by the next program; -1 with errno. */
static int open_text(const char *text, size_t len)
{
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

/* Replaces the setting by one that names a descriptor with the text. */
static int put_descriptor(char **setting, const char *value, const char *text, size_t len)
{
    char *hidden;

    int fd = open_text(text, len);
    if (fd < 0)
        return cli_error("cannot pass on the passphrase: %s", strerror(errno));
    if (asprintf(&hidden, "%.*s-%d", (int)(value - *setting), *setting, fd) < 0)
        return cli_error("out of memory");
    *setting = hidden;
    return CLI_OK;
}

int serve_passphrase_hide(char **setting)
{
    const char *value = serve_passphrase(*setting);

    /* From a descriptor nbdkit reads only one line. */
    if (!value || !value[0] || strchr("+-", value[0]) || strchr(value, '\n'))
        return CLI_OK;
    return put_descriptor(setting, value, value, strlen(value));
}

/* The descriptor of a setting like "passphrase=-10"; -1: it names none. */
static int descriptor_of(const char *setting)
{
    const char *value = serve_passphrase(setting);
    char *end;

    if (!value || value[0] != '-' || !value[1])
        return -1;
    long fd = strtol(value + 1, &end, 10);
    return *end || fd < 0 || fd > INT_MAX ? -1 : (int)fd;
}

static int read_descriptor(char **setting, int fd, char *text)
{
    size_t used = 0;
    ssize_t n = 1;

    while (n > 0 && used < MAX_BYTES) {
        n = read(fd, text + used, MAX_BYTES - used);
        if (n > 0)
            used += (size_t)n;
    }
    if (n < 0)
        return cli_error("%s: cannot be read: %s", *setting, strerror(errno));
    return put_descriptor(setting, serve_passphrase(*setting), text, used);
}

/* Opens the file that the setting names, or returns the descriptor that it names.  -1: it names
 * neither, or the file can't be opened. */
static int open_named(const char *setting)
{
    const char *value = serve_passphrase(setting);

    return value && value[0] == '+' ? open(value + 1, O_RDONLY | O_CLOEXEC)
                                    : descriptor_of(setting);
}

int serve_passphrase_keep(char **setting)
{
    const char *value = serve_passphrase(*setting);
    bool is_file = value && value[0] == '+';
    int fd = open_named(*setting);
    CLEANUP_CLOSE int own = is_file ? fd : -1;
    CLEANUP_FREE char *text = fd >= 0 ? malloc(MAX_BYTES) : NULL;

    if (is_file && fd < 0)
        return cli_error("%s: cannot be opened: %s", *setting, strerror(errno));
    if (fd < 0)
        return serve_passphrase_hide(setting);
    if (!text)
        return cli_error("out of memory");
    (void)own;
    int code = read_descriptor(setting, fd, text);
    explicit_bzero(text, MAX_BYTES);
    return code;
}

void serve_passphrase_rewind(const char *setting)
{
    int fd = descriptor_of(setting);

    if (fd >= 0)
        (void)lseek(fd, 0, SEEK_SET);
}
