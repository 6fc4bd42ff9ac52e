/* SPDX-License-Identifier: BSD-3-Clause */
/* Prints the canonical text of an NBD URI. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/percent.h"
#include "storage/nbd_uri.h"

/* Characters that aren't encoded in paths and values. */
#define PLAIN "-._~/:@,=+"

/* A host that was parsed contains nothing to encode; in others an encoded byte makes the parser
 * reject the text. */
static void print_host(FILE *f, const char *host)
{
    bool v6 = strchr(host, ':') != NULL;

    fputs(v6 ? "[" : "", f);
    percent_print(f, host, ".-_:");
    fputs(v6 ? "]" : "", f);
}

static void print_user(FILE *f, const char *name)
{
    if (!name)
        return;
    percent_print(f, name, "-._~");
    fputc('@', f);
}

/* *separator: '?' before the first parameter, then '&'. */
static void print_parameter(FILE *f, char *separator, const char *key, const char *value)
{
    if (!value)
        return;
    fprintf(f, "%c%s=", *separator, key);
    percent_print(f, value, PLAIN);
    *separator = '&';
}

static void print_query(FILE *f, const struct nbd_uri *uri)
{
    const struct nbd_tls_choice *keys = &uri->keys;
    char separator = '?';

    print_parameter(f, &separator, "socket", uri->socket);
    print_parameter(f, &separator, "tls-certificates", keys->certificates);
    print_parameter(f, &separator, "tls-psk-file", keys->psk_file);
    if (keys->verify)
        print_parameter(f, &separator, "tls-verify-peer",
                        keys->verify > 0 ? "true" : "false");
    print_parameter(f, &separator, "tls-hostname", keys->hostname);
    print_parameter(f, &separator, "x-dirty-bitmap", uri->context);
}

char *nbd_uri_print(const struct nbd_uri *uri)
{
    char *text = NULL;
    size_t n;
    FILE *f = open_memstream(&text, &n);

    if (!f)
        return NULL;
    fprintf(f, "%s%s://", uri->tls ? "nbds" : "nbd", uri->socket ? "+unix" : "");
    print_user(f, uri->keys.username);
    if (!uri->socket) {
        print_host(f, uri->host);
        if (strcmp(uri->port, "10809") != 0)
            fprintf(f, ":%s", uri->port);
    }
    fputc('/', f);
    percent_print(f, uri->export_name, PLAIN);
    print_query(f, uri);
    if (fclose(f) == 0)
        return text;
    free(text);
    return NULL;
}
