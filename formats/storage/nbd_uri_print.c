/* SPDX-License-Identifier: BSD-3-Clause */
/* The canonical text of an NBD URI. */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "storage/nbd_uri.h"

static void print_encoded(FILE *f, const char *name)
{
    for (; *name; name++) {
        unsigned char c = (unsigned char)*name;
        if (c < 0x80 && (isalnum(c) || strchr("-._~/:@,=+", c)))
            fputc(c, f);
        else
            fprintf(f, "%%%02X", c);
    }
}

/* A host that was parsed has nothing to encode, and of others a %% is refused. */
static void print_host(FILE *f, const char *host)
{
    bool v6 = strchr(host, ':') != NULL;

    fputs(v6 ? "[" : "", f);
    for (; *host; host++)
        if (isalnum((unsigned char)*host) || strchr(".-_:", *host))
            fputc(*host, f);
        else
            fprintf(f, "%%%02X", (unsigned char)*host);
    fputs(v6 ? "]" : "", f);
}

static void print_user(FILE *f, const char *name)
{
    if (!name)
        return;
    for (; *name; name++)
        if (isalnum((unsigned char)*name) || strchr("-._~", *name))
            fputc(*name, f);
        else
            fprintf(f, "%%%02X", (unsigned char)*name);
    fputc('@', f);
}

/* *separator: '?' for the first, '&' then. */
static void print_parameter(FILE *f, char *separator, const char *key, const char *value)
{
    if (!value)
        return;
    fprintf(f, "%c%s=", *separator, key);
    print_encoded(f, value);
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
    print_encoded(f, uri->export_name);
    print_query(f, uri);
    if (fclose(f) == 0)
        return text;
    free(text);
    return NULL;
}
