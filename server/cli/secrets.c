/* SPDX-License-Identifier: BSD-3-Clause */
/* --object secret,...: reads and decodes it. */
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "cli.h"
#include "crypto/secret.h"
#include "secrets.h"

/* No passphrase is longer. */
#define MAX_SECRET_BYTES (64u << 10)

/* ---- checking ---- */

const struct secret_item *secrets_find(const struct secrets *secrets, const char *id)
{
    for (size_t i = 0; i < secrets->count; i++)
        if (strcmp(secrets->items[i].id, id) == 0)
            return &secrets->items[i];
    return NULL;
}

static int check_keys(const struct option_list *list, const char *id)
{
    static const char *const known[] = {"qom-type", "id", "data", "file", "format", NULL};

    if (options_get(list, "keyid") || options_get(list, "iv"))
        return cli_error("--object: secret '%s': secrets that are encrypted themselves "
                         "(keyid, iv) are not supported",
                         id);
    for (size_t i = 0; i < list->count; i++) {
        size_t k = 0;
        while (known[k] && strcmp(known[k], list->pairs[i].key) != 0)
            k++;
        if (!known[k])
            return cli_error("--object: secret '%s': Parameter '%s' is unexpected", id,
                             list->pairs[i].key);
    }
    return CLI_OK;
}

static int check_source(const struct option_list *list, const char *id)
{
    bool data = options_get(list, "data"), file = options_get(list, "file");
    const char *format = options_get(list, "format");

    if (data && file)
        return cli_error("--object: secret '%s': 'file' and 'data' are mutually exclusive",
                         id);
    if (!data && !file)
        return cli_error("--object: secret '%s': Either 'file' or 'data' must be provided",
                         id);
    if (format && strcmp(format, "raw") != 0 && strcmp(format, "base64") != 0)
        return cli_error("--object: secret '%s': Parameter 'format' does not accept value "
                         "'%s': raw or base64",
                         id, format);
    return CLI_OK;
}

/* ---- the bytes ---- */

/* Reads to the end, at most `max` bytes.  Returns the number of bytes, or -errno. */
static ssize_t read_to_end(int fd, char *buf, size_t max)
{
    size_t used = 0;

    while (used < max) {
        ssize_t n = read(fd, buf + used, max - used);
        if (n < 0 && errno != EINTR)
            return -errno;
        if (n == 0)
            break;
        used += n > 0 ? (size_t)n : 0;
    }
    return (ssize_t)used;
}

static int read_file(struct secret_item *item, const char *path)
{
    CLEANUP_SECRET char *buf = secret_alloc(MAX_SECRET_BYTES + 1);
    CLEANUP_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (!buf)
        return cli_error("out of memory");
    ssize_t n = fd < 0 ? -errno : read_to_end(fd, buf, MAX_SECRET_BYTES + 1);
    if (n < 0)
        return cli_error("--object: secret '%s': Unable to read %s: %s", item->id, path,
                         strerror((int)-n));
    if (n > MAX_SECRET_BYTES)
        return cli_error("--object: secret '%s': %s has more than %u bytes", item->id, path,
                         MAX_SECRET_BYTES);
    item->bytes = TAKE(&buf);
    item->len = (size_t)n;
    return CLI_OK;
}

static int take_data(struct secret_item *item, const char *data)
{
    item->len = strlen(data);
    item->bytes = secret_copy(data, item->len);
    return item->bytes ? CLI_OK : cli_error("out of memory");
}

static const char base64_digits[] =
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

static int base64_digit(unsigned char c)
{
    const char *found = c ? strchr(base64_digits, c) : NULL;

    return found ? (int)(found - base64_digits) : -1;
}

/* Encodes 1..3 bytes as four digits. */
static void encode_group(const unsigned char *bytes, size_t n, char *out)
{
    uint32_t bits = (uint32_t)bytes[0] << 16;

    bits |= n > 1 ? (uint32_t)bytes[1] << 8 : 0;
    bits |= n > 2 ? bytes[2] : 0;
    for (unsigned i = 0; i < 4; i++)
        out[i] = i <= n ? base64_digits[bits >> (18 - 6 * i) & 0x3f] : '=';
}

/* Decodes in place; false: it isn't base64. */
static bool decode_base64(unsigned char *bytes, size_t *len)
{
    size_t out = 0, digits = 0, padding = 0;
    uint32_t bits = 0;

    for (size_t i = 0; i < *len; i++) {
        int digit = base64_digit(bytes[i]);
        if (bytes[i] == '\n' || bytes[i] == '\r')
            continue;
        if (bytes[i] == '=')
            padding++;
        else if (digit < 0 || padding)
            return false;
        bits = bits << 6 | (uint32_t)(digit < 0 ? 0 : digit);
        if (++digits % 4 == 0) {
            bytes[out++] = (unsigned char)(bits >> 16);
            bytes[out++] = (unsigned char)(bits >> 8);
            bytes[out++] = (unsigned char)bits;
        }
    }
    if (digits % 4 || padding > 2)
        return false;
    *len = out - padding;
    return true;
}

static int load_bytes(struct secret_item *item, const struct option_list *list)
{
    const char *file = options_get(list, "file"), *format = options_get(list, "format");

    int code = file ? read_file(item, file) : take_data(item, options_get(list, "data"));
    if (code != CLI_OK || !format || strcmp(format, "base64") != 0)
        return code;
    if (!decode_base64(item->bytes, &item->len))
        return cli_error("--object: secret '%s': its data is not base64", item->id);
    return CLI_OK;
}

/* ---- the list ---- */

static void free_item(struct secret_item *item)
{
    free(item->id);
    secret_free(item->bytes);
}

static int append_secret(struct secrets *secrets, const struct option_list *list,
                         const char *id)
{
    struct secret_item *items =
        reallocarray(secrets->items, secrets->count + 1, sizeof *items);
    struct secret_item item = {.id = strdup(id)};

    if (items)
        secrets->items = items;
    int code = items && item.id ? load_bytes(&item, list) : cli_error("out of memory");
    if (code == CLI_OK)
        secrets->items[secrets->count++] = item;
    else
        free_item(&item);
    return code;
}

int secrets_add(struct secrets *secrets, const struct option_list *list)
{
    const char *id = options_get(list, "id");

    if (check_keys(list, id) != CLI_OK || check_source(list, id) != CLI_OK)
        return CLI_FAILED;
    return append_secret(secrets, list, id);
}

char *secrets_find_key(void *opaque, const char *id)
{
    const struct secret_item *secret = secrets_find(opaque, id);
    char *text = secret ? calloc((secret->len + 2) / 3 * 4 + 1, 1) : NULL;

    for (size_t i = 0, at = 0; text && i < secret->len; i += 3, at += 4)
        encode_group((const unsigned char *)secret->bytes + i, MIN(secret->len - i, 3),
                     text + at);
    return text;
}

/* Bytes of the first character; 0: it isn't valid UTF-8, or is NUL. */
static size_t utf8_length(const unsigned char *s, size_t n)
{
    size_t len = s[0] < 0x80 ? 1 : s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : 4;
    static const uint32_t least[] = {0, 1, 0x80, 0x800, 0x10000};

    if (s[0] == 0 || s[0] > 0xf4 || (s[0] >= 0x80 && s[0] < 0xc2) || len > n)
        return 0;
    uint32_t code = len == 1 ? s[0] : s[0] & (0x7fu >> len);
    for (size_t i = 1; i < len; i++) {
        if ((s[i] & 0xc0) != 0x80)
            return 0;
        code = code << 6 | (s[i] & 0x3f);
    }
    bool surrogate = code >= 0xd800 && code < 0xe000;
    return code < least[len] || code > 0x10ffff || surrogate ? 0 : len;
}

static bool is_text(const unsigned char *s, size_t n)
{
    for (size_t len; n > 0; s += len, n -= len) {
        len = utf8_length(s, n);
        if (len == 0)
            return false;
    }
    return true;
}

const struct secret_item *secrets_find_passphrase(const struct secrets *secrets,
                                                  const char *id)
{
    const struct secret_item *item = secrets_find(secrets, id);

    if (!item)
        cli_error("No secret with id '%s'", id);
    else if (!is_text(item->bytes, item->len))
        cli_error("Data from secret %s is not valid UTF-8", id);
    else
        return item;
    return NULL;
}

void secrets_free(struct secrets *secrets)
{
    for (size_t i = 0; i < secrets->count; i++)
        free_item(&secrets->items[i]);
    free(secrets->items);
    *secrets = (struct secrets){0};
}
