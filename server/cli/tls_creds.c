/* SPDX-License-Identifier: BSD-3-Clause */
/* Reads the options of keys for NBD with TLS. */
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/path.h"
#include "cli.h"
#include "storage/nbd_tls.h"
#include "tls_creds.h"

/* QEMU's default for "username". */
#define DEFAULT_USER "qemu"

static void free_choice(struct nbd_tls_choice *keys)
{
    free(keys->certificates);
    free(keys->psk_file);
    free(keys->username);
}

static int complain(const struct option_list *list, const char *key, const char *why)
{
    return cli_error("--object: %s '%s': %s: %s", options_get(list, "qom-type"),
                     options_get(list, "id"), key, why);
}

/* Accepts the keys in `known`, which ends with NULL, and those that both kinds have. */
static int check_keys(const struct option_list *list, const char *const *known)
{
    static const char *const common[] = {"qom-type", "id", "dir", "endpoint", NULL};

    for (size_t i = 0; i < list->count; i++) {
        const char *key = list->pairs[i].key;
        bool found = false;
        for (size_t k = 0; common[k]; k++)
            found |= strcmp(common[k], key) == 0;
        for (size_t k = 0; known[k]; k++)
            found |= strcmp(known[k], key) == 0;
        if (!found)
            return complain(list, key, "is not supported");
    }
    const char *endpoint = options_get(list, "endpoint");
    return !endpoint || strcmp(endpoint, "client") == 0
               ? CLI_OK
               : complain(list, "endpoint", "must be client");
}

static int read_switch(const struct option_list *list, const char *key, bool *out)
{
    static const char *const yes[] = {"on", "yes", "true", "y"}, *const no[] = {"off", "no",
                                                                                "false",
                                                                                "n"};
    const char *word = options_get(list, key);

    for (size_t i = 0; word && i < ARRAY_LEN(yes); i++) {
        if (strcmp(word, yes[i]) != 0 && strcmp(word, no[i]) != 0)
            continue;
        *out = strcmp(word, yes[i]) == 0;
        return CLI_OK;
    }
    return word ? complain(list, key, "must be on or off") : CLI_OK;
}

/* *folder: "dir", and *file: the file `name` in it, which must be readable; both absolute. */
static int find_folder(const struct option_list *list, const char *name, char **folder,
                       char **file)
{
    const char *dir = options_get(list, "dir");

    if (!dir || !dir[0])
        return complain(list, "dir", "is missing");
    *folder = path_absolute(dir);
    if (!*folder || asprintf(file, "%s/%s", *folder, name) < 0) {
        *file = NULL;
        return complain(list, "dir", strerror(errno));
    }
    return access(*file, R_OK) == 0
               ? CLI_OK
               : cli_error("--object: %s '%s': %s: %s", options_get(list, "qom-type"),
                           options_get(list, "id"), *file, strerror(errno));
}

static int add_keys(const struct option_list *list, struct nbd_tls_choice *keys)
{
    return nbd_tls_add_named(options_get(list, "id"), keys) == 0
               ? CLI_OK
               : cli_error("out of memory");
}

int tls_creds_add_x509(const struct option_list *list)
{
    /* sanity-check has no effect: certificates are checked for each connection anyway. */
    static const char *const known[] = {"verify-peer", "sanity-check", NULL};
    CLEANUP(free_choice) struct nbd_tls_choice keys = {0};
    CLEANUP_FREE char *authority = NULL;
    bool verify = true, ignored;

    int code = check_keys(list, known);
    if (code == CLI_OK)
        code = read_switch(list, "verify-peer", &verify);
    if (code == CLI_OK)
        code = read_switch(list, "sanity-check", &ignored);
    if (code == CLI_OK)
        code = find_folder(list, "ca-cert.pem", &keys.certificates, &authority);
    keys.verify = verify ? 1 : -1;
    return code == CLI_OK ? add_keys(list, &keys) : code;
}

int tls_creds_add_psk(const struct option_list *list)
{
    static const char *const known[] = {"username", "verify-peer", NULL};
    const char *username = options_get(list, "username");
    CLEANUP(free_choice) struct nbd_tls_choice keys = {0};
    CLEANUP_FREE char *folder = NULL;
    bool ignored; /* no effect: with pre-shared keys the server is verified by its key */

    int code = check_keys(list, known);
    if (code == CLI_OK)
        code = read_switch(list, "verify-peer", &ignored);
    if (code == CLI_OK)
        code = find_folder(list, "keys.psk", &folder, &keys.psk_file);
    if (code != CLI_OK)
        return code;
    keys.username = strdup(username ? username : DEFAULT_USER);
    return keys.username ? add_keys(list, &keys) : cli_error("out of memory");
}
