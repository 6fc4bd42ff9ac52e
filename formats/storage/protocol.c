/* SPDX-License-Identifier: BSD-3-Clause */
/* The table of protocols. */
#include "storage/protocol.h"

#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "storage/nbd.h"
#include "storage/nbd_library.h"
#include "storage/null.h"
#include "storage/rbd.h"

/* How long a request waits for a server that went away, in ms. */
#define NBD_PATIENCE_MS 10000

static void do_nothing(int number)
{
    (void)number;
}

void storage_survive_size_limit(void)
{
    /* Programs that this process starts inherit SIG_IGN, but not a handler. */
    const struct sigaction ours = {.sa_handler = do_nothing, .sa_flags = SA_RESTART};
    struct sigaction old;

    if (sigaction(SIGXFSZ, NULL, &old) == 0 && !(old.sa_flags & SA_SIGINFO) &&
        old.sa_handler == SIG_DFL)
        (void)sigaction(SIGXFSZ, &ours, NULL);
}

static int open_nbd(const char *name, const struct storage_open *how, struct storage **out,
                    struct diag *diag)
{
    const struct nbd_open nbd = {
        .read_only = how->read_only,
        .connections = NBD_MAX_CONNECTIONS,
        .reconnect_ms = NBD_PATIENCE_MS,
        .origin = how->named_by_image ? NBD_URI_IMAGE : NBD_URI_USER,
        .give_up = how->give_up,
    };

    return storage_open_nbd(name, &nbd, out, diag);
}

/* The export exists already; an image is written into it. */
static int create_nbd(const char *name, const struct storage_hints *hints,
                      struct storage **out, struct diag *diag)
{
    static const struct storage_open how = {0};

    (void)hints;
    return open_nbd(name, &how, out, diag);
}

static int create_file(const char *name, const struct storage_hints *hints,
                       struct storage **out, struct diag *diag)
{
    int err = storage_create_file(name, out, diag);
    if (err)
        return err;
    storage_set_hints(*out, hints);
    return 0;
}

static void remove_file(const char *name)
{
    unlink(name);
}

const struct storage_protocol storage_protocol_file = {
    .name = "file",
    .open = storage_open_file,
    .create = create_file,
    .remove = remove_file,
};

static int check_nbd_of_image(const char *name, struct diag *diag)
{
    CLEANUP_NBD_URI struct nbd_uri parsed = {0};

    return nbd_uri_parse(name, NBD_URI_IMAGE, &parsed, diag);
}

const struct storage_protocol storage_protocol_nbd = {
    .name = "nbd",
    .owns = nbd_uri_is_one,
    .opened = storage_is_nbd,
    .open = open_nbd,
    .create = create_nbd,
    .check_named_by_image = check_nbd_of_image,
};

/* Hints for a new file don't apply to Ceph. */
static int create_rbd(const char *name, const struct storage_hints *hints,
                      struct storage **out, struct diag *diag)
{
    (void)hints;
    return storage_create_rbd(name, out, diag);
}

static char *show_rbd(const char *name)
{
    CLEANUP_RBD_NAME struct rbd_name parsed = {0};

    return rbd_name_parse(name, RBD_NAME_USER, &parsed, NULL)
               ? strdup("rbd:?")
               : rbd_name_print_shown(&parsed);
}

static int check_rbd_of_image(const char *name, struct diag *diag)
{
    CLEANUP_RBD_NAME struct rbd_name parsed = {0};

    return rbd_name_parse(name, RBD_NAME_IMAGE, &parsed, diag);
}

const struct storage_protocol storage_protocol_rbd = {
    .name = "rbd",
    .owns = rbd_name_is_one,
    .opened = storage_is_rbd,
    .open = storage_open_rbd,
    .create = create_rbd,
    .empty = storage_empty_rbd,
    .remove = storage_remove_rbd,
    .shown = show_rbd,
    .check_named_by_image = check_rbd_of_image,
};

const struct storage_protocol storage_protocol_null = {
    .name = "null-co",
    .owns = null_name_is_one,
    .opened = storage_is_null,
    .open = storage_open_null,
};

static const struct storage_protocol *const protocols[] = {
    &storage_protocol_nbd, &storage_protocol_null, &storage_protocol_rbd};

const struct storage_protocol *storage_protocol_at(size_t i)
{
    if (i == 0)
        return &storage_protocol_file;
    bool is_there = i <= ARRAY_LEN(protocols) &&
                    (protocols[i - 1] != &storage_protocol_rbd || rbd_is_there);
    return is_there ? protocols[i - 1] : NULL;
}

const struct storage_protocol *storage_protocol_of(const char *name)
{
    for (size_t i = 0; i < ARRAY_LEN(protocols); i++)
        if (protocols[i]->owns(name))
            return protocols[i];
    return &storage_protocol_file;
}

char *storage_shown_name(const struct storage_protocol *protocol, const char *name)
{
    return protocol->shown ? protocol->shown(name) : strdup(name);
}

void storage_tell_libraries(library_sink *sink, void *opaque)
{
    sink(opaque, "libnbd", libnbd_version());
    if (rbd_is_there)
        sink(opaque, "librbd", librbd_version());
}

const struct storage_protocol *storage_protocol_called(const char *protocol)
{
    for (size_t i = 0; i < ARRAY_LEN(protocols); i++)
        if (strcmp(protocols[i]->name, protocol) == 0)
            return protocols[i];
    return &storage_protocol_file;
}

const struct storage_protocol *storage_protocol_of_store(const struct storage *st)
{
    for (size_t i = 0; i < ARRAY_LEN(protocols); i++)
        if (protocols[i]->opened(st))
            return protocols[i];
    return &storage_protocol_file;
}
