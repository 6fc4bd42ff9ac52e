/* SPDX-License-Identifier: BSD-3-Clause */
/* Passphrases from nbdkit's command line, or from where a parameter refers to. */
#include "plugin_passphrase.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "crypto/secret.h"

#define KEY PLUGIN_PASSPHRASE_KEY

bool plugin_passphrase_is_key(const char *key)
{
    return strncmp(key, "pass", 4) == 0;
}

/* *depth: 0 for "passphrase", 7 for "passphrase.7".  False: the key is neither. */
static bool parse_key(const char *key, unsigned *depth)
{
    const char *digits = key + strlen(KEY) + 1;
    char *end;

    *depth = 0;
    if (strcmp(key, KEY) == 0)
        return true;
    if (strncmp(key, KEY ".", strlen(KEY) + 1) != 0 || !isdigit((unsigned char)digits[0]) ||
        strlen(digits) > 4)
        return false;
    *depth = (unsigned)strtoul(digits, &end, 10);
    return *end == '\0' && digits[0] != '0' && *depth < CHAIN_MAX_DEPTH;
}

static int refuse_key(const char *key)
{
    if (strncmp(key, KEY ".", strlen(KEY) + 1) == 0)
        nbdkit_error("%s: must be %s.N, of the N-th file below the image: 1 to %d", key,
                     KEY, CHAIN_MAX_DEPTH - 1);
    else
        nbdkit_error("%s: unknown parameter: did you mean %s?", key, KEY);
    return -1;
}

int plugin_passphrase_set(struct passphrases *all, const char *key, const char *value)
{
    unsigned depth;
    char *password;

    if (!parse_key(key, &depth))
        return refuse_key(key);
    if (nbdkit_read_password(value, &password))
        return -1;
    int err = passphrases_add(all, depth, password, strlen(password));
    secret_wipe(password, strlen(password));
    free(password);
    if (!err)
        return 0;
    if (err == -EEXIST)
        nbdkit_error("%s: was given twice", key);
    else
        nbdkit_error("%s: out of memory", key);
    return -1;
}
