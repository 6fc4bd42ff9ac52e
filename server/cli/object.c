/* SPDX-License-Identifier: BSD-3-Clause */
/* Parses --object. */
#include <ctype.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "base/cleanup.h"
#include "cli.h"
#include "crypto/secret.h"
#include "object.h"
#include "options.h"
#include "storage/nbd_tls.h"
#include "storage/rbd_keys.h"
#include "tls_creds.h"

/* The values may be secrets. */
static void wipe_options(struct option_list *list)
{
    for (size_t i = 0; i < list->count; i++)
        secret_wipe(list->pairs[i].value, strlen(list->pairs[i].value));
    options_free(list);
}

/* ---- parsing ---- */

/* The first word is the type; its key qom-type may be omitted. */
static int parse_options(struct option_list *list, const char *text)
{
    size_t word = strcspn(text, ",=");
    CLEANUP_FREE char *type = strndup(text, word);

    if (text[word] == '=' || word == 0)
        return text[0] ? options_add_shown(list, text, "--object") : CLI_OK;
    int code = type ? options_set(list, "qom-type", type) : cli_error("out of memory");
    return code == CLI_OK && text[word] == ','
               ? options_add_shown(list, text + word + 1, "--object")
               : code;
}

static int take_member(struct option_list *list, const char *key, const json_t *value)
{
    if (json_is_boolean(value))
        return options_set(list, key, json_is_true(value) ? "on" : "off");
    if (!json_is_string(value))
        return cli_error("--object: '%s' must be a string or a truth value", key);
    return options_set(list, key, json_string_value(value));
}

static int parse_json(struct option_list *list, const char *text)
{
    json_error_t error;
    json_auto_t *object = json_loads(text, JSON_REJECT_DUPLICATES, &error);
    const char *key;
    json_t *value;
    int code = CLI_OK;

    /* the parser's own message could show a part of a secret */
    if (!json_is_object(object))
        return cli_error("--object: what begins with { must be an object in JSON");
    json_object_foreach (object, key, value) {
        if (code == CLI_OK)
            code = take_member(list, key, value);
    }
    return code;
}

/* ---- adding ---- */

static int add_x509(struct secrets *secrets, const struct option_list *list)
{
    (void)secrets;
    return tls_creds_add_x509(list);
}

static int add_psk(struct secrets *secrets, const struct option_list *list)
{
    (void)secrets;
    return tls_creds_add_psk(list);
}

static const struct object_type {
    const char *name;
    int (*add)(struct secrets *secrets, const struct option_list *list);
} types[] = {
    {"secret", secrets_add},
    {"tls-creds-x509", add_x509},
    {"tls-creds-psk", add_psk},
};

static bool is_identifier(const char *id)
{
    if (!isalpha((unsigned char)*id))
        return false;
    for (; *id; id++)
        if (!isalnum((unsigned char)*id) && !strchr("-._", *id))
            return false;
    return true;
}

static int check_id(const struct secrets *secrets, const char *id)
{
    if (!id)
        return cli_error("--object: Parameter 'id' is missing");
    if (!is_identifier(id))
        return cli_error("--object: Parameter 'id' expects an identifier: letters, digits, "
                         "'-', '.', '_', starting with a letter, not '%s'",
                         id);
    if (secrets_find(secrets, id) || nbd_tls_find_named(id))
        return cli_error("--object: there is an object with the id '%s' already", id);
    return CLI_OK;
}

static int add_object(struct secrets *secrets, const struct option_list *list)
{
    const char *type = options_get(list, "qom-type");

    if (!type)
        return cli_error("--object: Parameter 'qom-type' is missing");
    for (size_t i = 0; i < ARRAY_LEN(types); i++) {
        if (strcmp(types[i].name, type) != 0)
            continue;
        int code = check_id(secrets, options_get(list, "id"));
        return code == CLI_OK ? types[i].add(secrets, list) : code;
    }
    return cli_error("--object: Parameter 'qom-type' does not accept value '%s': there are "
                     "secret, tls-creds-x509 and tls-creds-psk",
                     type);
}

int object_add(struct secrets *secrets, const char *text)
{
    struct option_list list = {0};

    int code = text[0] == '{' ? parse_json(&list, text) : parse_options(&list, text);
    if (code == CLI_OK)
        code = add_object(secrets, &list);
    rbd_keys_set_finder(secrets_find_key, secrets);
    wipe_options(&list);
    return code;
}
