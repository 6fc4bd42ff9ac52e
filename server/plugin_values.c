/* SPDX-License-Identifier: BSD-3-Clause */
/* Parsing the values of the plugin's parameters, one kind each. */
#include "plugin_values.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "base/cleanup.h"
#include "storage/nbd_uri.h"
#include "storage/rbd_name.h"

int value_refuse(const char *key, const char *value, const char *allowed)
{
    nbdkit_error("%s=%s: must be %s", key, value, allowed);
    return -1;
}

static int out_of_memory(const char *key)
{
    nbdkit_error("%s: out of memory", key);
    return -1;
}

int value_set_text(char **out, const char *key, const char *value)
{
    if (*out) {
        nbdkit_error("%s=%s: %s was given twice", key, value, key);
        return -1;
    }
    *out = strdup(value);
    return *out ? 0 : out_of_memory(key);
}

int value_set_path(char **out, const char *key, const char *value)
{
    size_t first = strcspn(value, ":/");

    if (*out || value[first] == ':')
        return value_set_text(out, key, value);
    if (!value[0])
        return value_refuse(key, value, "the name of a file");
    *out = nbdkit_absolute_path(value);
    return *out ? 0 : -1;
}

/* Stores the name in canonical form, in which a relative conf= is made absolute (nbdkit may
 * change its working directory). */
static int set_rbd(char **out, const char *key, const char *value)
{
    CLEANUP_RBD_NAME struct rbd_name name = {0};
    struct diag diag = {0};

    if (rbd_name_parse(value, RBD_NAME_USER, &name, &diag)) {
        nbdkit_error("%s=%s", key, diag.text);
        return -1;
    }
    CLEANUP_FREE char *text = rbd_name_print(&name);
    return text ? value_set_text(out, key, text) : out_of_memory(key);
}

int value_set_image(char **out, const char *key, const char *value)
{
    return rbd_name_is_one(value) ? set_rbd(out, key, value)
                                  : value_set_path(out, key, value);
}

int value_set_uri(char **out, const char *key, const char *value)
{
    CLEANUP_NBD_URI struct nbd_uri uri = {0};
    struct diag diag = {0};

    if (nbd_uri_parse(value, NBD_URI_USER, &uri, &diag)) {
        nbdkit_error("%s=%s", key, diag.text);
        return -1;
    }
    CLEANUP_FREE char *text = nbd_uri_print(&uri);
    return text ? value_set_text(out, key, text) : out_of_memory(key);
}

int value_set_key_path(char **out, const char *key, const char *value, bool folder)
{
    struct stat sb;

    if (!value[0])
        return value_refuse(key, value,
                            folder ? "the name of a folder" : "the name of a file");
    CLEANUP_FREE char *path = nbdkit_absolute_path(value);
    if (!path)
        return -1;
    int err = stat(path, &sb) != 0 || access(path, R_OK) != 0 ? errno
              : folder && !S_ISDIR(sb.st_mode)                ? ENOTDIR
              : !folder && S_ISDIR(sb.st_mode)                ? EISDIR
                                                              : 0;
    if (err) {
        nbdkit_error("%s=%s: %s", key, value, strerror(err));
        return -1;
    }
    return value_set_text(out, key, path);
}

int value_choose(unsigned *index, const char *key, const char *value,
                 const char *const *words, const char *allowed)
{
    for (unsigned i = 0; words[i]; i++)
        if (strcmp(words[i], value) == 0) {
            *index = i;
            return 0;
        }
    return value_refuse(key, value, allowed);
}

int value_parse_delay(uint64_t *ns, const char *key, const char *value)
{
    char *end;
    double seconds = strtod(value, &end);

    if (end == value || *end || !isfinite(seconds) || seconds < 0 || seconds > 1e6)
        return value_refuse(key, value, "a number of seconds from 0 to 1000000");
    *ns = (uint64_t)(seconds * 1e9);
    return 0;
}
