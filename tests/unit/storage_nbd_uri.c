/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests NBD URIs: which are accepted, which are refused, and that a printed URI parses to the
 * same. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/compiler.h"
#include "rng.h"
#include "storage/nbd_uri.h"

static int parse(const char *text, enum nbd_uri_origin origin, struct nbd_uri *uri)
{
    struct diag diag = {0};
    int err = nbd_uri_parse(text, origin, uri, &diag);

    cr_assert_eq(diag.err, -err, "%s", text);
    cr_assert_eq(diag.text[0] != '\0', err != 0, "%s", text);
    for (const char *p = diag.text; *p; p++)
        cr_assert(*p >= ' ' && *p <= '~', "a message must be harmless: %s", diag.text);
    return err;
}

static bool same(const char *a, const char *b)
{
    return a && b ? strcmp(a, b) == 0 : a == b;
}

Test(nbd_uri, parts)
{
    static const struct {
        const char *text;
        bool tls;
        const char *socket, *host, *port, *name;
    } cases[] = {
        {"nbd://host", false, NULL, "host", "10809", ""},
        {"nbd://host/", false, NULL, "host", "10809", ""},
        {"nbd://", false, NULL, "localhost", "10809", ""},
        {"nbd:///name", false, NULL, "localhost", "10809", "name"},
        {"nbd://host:/x", false, NULL, "host", "10809", "x"},
        {"nbd://1.2.3.4:1/a/b%20c", false, NULL, "1.2.3.4", "1", "a/b c"},
        {"nbd://h:65535//x", false, NULL, "h", "65535", "/x"},
        {"nbd://[::1]:10810/x", false, NULL, "::1", "10810", "x"},
        {"nbds://some.host-1.example/x", true, NULL, "some.host-1.example", "10809", "x"},
        {"nbd+unix:///?socket=/run/s", false, "/run/s", NULL, NULL, ""},
        {"nbd+unix:///a%2fb?socket=/run/a%26b%25", false, "/run/a&b%", NULL, NULL, "a/b"},
        {"nbd+unix:///%c3%a9?socket=/s", false, "/s", NULL, NULL, "\xc3\xa9"},
        /* QEMU's older syntax, which isn't a URI. */
        {"nbd:host:1", false, NULL, "host", "1", ""},
        {"nbd:[::1]:10809:exportname=x", false, NULL, "::1", "10809", "x"},
        {"nbd:h:2:exportname=a b/%20?c#d:exportname=e", false, NULL, "h", "2",
         "a b/%20?c#d:exportname=e"},
        {"nbd:unix:/run/a b", false, "/run/a b", NULL, NULL, ""},
        {"nbd:unix:/run/s:1:exportname=x", false, "/run/s:1", NULL, NULL, "x"},
    };

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct nbd_uri uri;
        cr_assert_eq(parse(cases[i].text, NBD_URI_USER, &uri), 0, "%s", cases[i].text);
        cr_expect_eq(uri.tls, cases[i].tls, "%s", cases[i].text);
        cr_expect(same(uri.socket, cases[i].socket), "%s", cases[i].text);
        cr_expect(same(uri.host, cases[i].host), "%s", cases[i].text);
        cr_expect(same(uri.port, cases[i].port ? cases[i].port : ""), "%s", cases[i].text);
        cr_expect(same(uri.export_name, cases[i].name), "%s", cases[i].text);
        cr_expect(nbd_uri_is_one(cases[i].text));
        nbd_uri_free(&uri);
    }
}

Test(nbd_uri, refusals)
{
    static const struct {
        const char *text;
        int err;
    } cases[] = {
        {"", ENOTSUP},
        {"nbd", ENOTSUP},
        {"nbd:", EINVAL},
        {"nbd:host", EINVAL},
        {"nbd:host:", EINVAL}, /* QEMU requires a port, too */
        {"nbd:host:0", EINVAL},
        {"nbd:host:10809:x", EINVAL},
        {"nbd:ho/st:1", EINVAL},
        {"nbd:[::1]", EINVAL},
        {"nbd:unix:", EINVAL},
        {"nbd:unix::exportname=x", EINVAL},
        {"nbd:h:1:exportname=\x01", EINVAL},
        {"nbd+vsock://1:2/", ENOTSUP},
        {"nbd+ssh://host/", ENOTSUP},
        {"http://host/", ENOTSUP},
        {"NBD://host/", ENOTSUP},
        {"nbd://user@host/", EINVAL}, /* a user is meaningless without TLS */
        {"nbds://@host/", EINVAL},
        {"nbds://user:password@host/", EINVAL},
        {"nbds://a@b@host/", EINVAL},
        {"nbd://host/?tls-certificates=/x", EINVAL},
        {"nbd+unix:///?socket=/s&tls-psk-file=/x", EINVAL},
        {"nbd://host/?tls-verify-peer=true", EINVAL},
        {"nbds://host/?tls-verify-peer=1", EINVAL},
        {"nbds://host/?tls-psk-file=", EINVAL},
        {"nbds://host/?tls-psk-file=/a&tls-psk-file=/b", EINVAL},
        {"nbds://host/?tls-priority=NORMAL", ENOTSUP},
        {"nbds://host/?tls-certificates", ENOTSUP},
        {"nbd+unix:///?SOCKET=/s", ENOTSUP},
        {"nbd+unix:///?&socket=/s", ENOTSUP},
        {"nbd+unix:///?socket=/s&socket=/t", EINVAL},
        {"nbd+unix:///", EINVAL},
        {"nbd+unix:///?socket=", EINVAL},
        {"nbd+unix://host/?socket=/s", EINVAL},
        {"nbd://host/?socket=/s", EINVAL},
        {"nbd://host/x#fragment", EINVAL},
        {"nbd+unix:///?socket=/s#x", EINVAL},
        {"nbd://host:0/", EINVAL},
        {"nbd://host:65536/", EINVAL},
        {"nbd://host:99999999999999999999/", EINVAL},
        {"nbd://host:1x/", EINVAL},
        {"nbd://-o/", EINVAL},
        {"nbd://a%41/", EINVAL},
        {"nbd://[::1/", EINVAL},
        {"nbd://[]/", EINVAL},
        {"nbd://[::1]x/", EINVAL},
        {"nbd://::1/", EINVAL},
        {"nbd://host/a%", EINVAL},
        {"nbd://host/a%4", EINVAL},
        {"nbd://host/a%4g", EINVAL},
        {"nbd://host/a%00b", EINVAL},
        {"nbd://host/a%0ab", EINVAL},
        {"nbd://host/a%1b[2J", EINVAL},
        {"nbd://host/a%7f", EINVAL},
        {"nbd://host/a b", EINVAL},
        {"nbd://host/\x1b[2J", EINVAL},
        {"nbd://host/\xc3\xa9", EINVAL},
    };

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct nbd_uri uri;
        int err = parse(cases[i].text, NBD_URI_USER, &uri);
        cr_expect_eq(err, -cases[i].err, "%s: %d", cases[i].text, err);
        cr_expect(!uri.host && !uri.socket && !uri.export_name);
    }
}

Test(nbd_uri, keys_of_a_user)
{
    static const struct {
        const char *text, *certificates, *psk_file, *username;
        int verify;
        const char *hostname, *context;
    } cases[] = {
        {"nbds://host/", NULL, NULL, NULL, 0, NULL, NULL},
        {"nbds://a%40b@host:1/x", NULL, NULL, "a@b", 0, NULL, NULL},
        {"nbds://host/?tls-certificates=/a%20b&tls-verify-peer=false", "/a b", NULL, NULL,
         -1, NULL, NULL},
        {"nbds+unix://alice@/x?socket=/s&tls-psk-file=/k", NULL, "/k", "alice", 0, NULL,
         NULL},
        {"nbds://h?tls-verify-peer=true&tls-psk-file=/k", NULL, "/k", NULL, 1, NULL, NULL},
        {"nbds+unix:///?socket=/s&tls-hostname=a.b&x-dirty-bitmap=c:d%20e", NULL, NULL,
         NULL, 0, "a.b", "c:d e"},
    };

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct nbd_uri uri, again;
        cr_assert_eq(parse(cases[i].text, NBD_URI_USER, &uri), 0, "%s", cases[i].text);
        char *printed = nbd_uri_print(&uri);
        cr_assert_eq(parse(printed, NBD_URI_USER, &again), 0, "%s", printed);
        for (const struct nbd_uri *u = &uri; u; u = u == &uri ? &again : NULL) {
            cr_expect(u->tls && same(u->keys.certificates, cases[i].certificates) &&
                          same(u->keys.psk_file, cases[i].psk_file) &&
                          same(u->keys.username, cases[i].username) &&
                          u->keys.verify == cases[i].verify &&
                          same(u->keys.hostname, cases[i].hostname) &&
                          same(u->context, cases[i].context),
                      "%s", printed);
        }
        free(printed);
        nbd_uri_free(&uri);
        nbd_uri_free(&again);
    }
}

Test(nbd_uri, what_an_image_may_name)
{
    static const char *const allowed[] = {
        "nbd://localhost/x", "nbd:///x",      "nbd://host:99/",
        "nbd://[::1]/",      "nbds://host/x", "nbd+unix:///?socket=/run/s"};
    static const char *const refused[] = {"nbd+unix:///?socket=run/s",
                                          "nbd+unix:///?socket=../s",
                                          "nbds://user@host/",
                                          "nbds://host/?tls-psk-file=/etc/shadow",
                                          "nbds://host/?tls-hostname=other",
                                          "nbd://host/?x-dirty-bitmap=base:allocation",
                                          "nbds://host/?tls-certificates=/etc",
                                          "nbds://host/?tls-verify-peer=false"};
    struct nbd_uri uri;

    for (size_t i = 0; i < ARRAY_LEN(allowed); i++) {
        cr_expect_eq(parse(allowed[i], NBD_URI_IMAGE, &uri), 0, "%s", allowed[i]);
        nbd_uri_free(&uri);
    }
    for (size_t i = 0; i < ARRAY_LEN(refused); i++)
        cr_expect_eq(parse(refused[i], NBD_URI_IMAGE, &uri), -EACCES, "%s", refused[i]);
}

static char *with_tail(const char *head, char c, size_t n)
{
    size_t head_len = strlen(head);
    char *text = malloc(head_len + n + 1);

    memcpy(text, head, head_len);
    memset(text + head_len, c, n);
    text[head_len + n] = '\0';
    return text;
}

Test(nbd_uri, lengths)
{
    static const struct {
        const char *head;
        size_t n;
        int err;
    } cases[] = {
        {"nbd://h/", NBD_EXPORT_NAME_MAX, 0},
        {"nbd://h/", NBD_EXPORT_NAME_MAX + 1, -ENAMETOOLONG},
        {"nbd://h/", 1000000, -ENAMETOOLONG},
        {"nbd://", 253, 0},
        {"nbd://", 254, -EINVAL},
        {"nbd+unix:///?socket=/", 106, 0},
        {"nbd+unix:///?socket=/", 107, -ENAMETOOLONG},
    };

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct nbd_uri uri;
        char *text = with_tail(cases[i].head, 'a', cases[i].n);
        cr_expect_eq(parse(text, NBD_URI_USER, &uri), cases[i].err, "case %zu", i);
        nbd_uri_free(&uri);
        free(text);
    }
}

Test(nbd_uri, a_users_relative_socket_is_made_absolute)
{
    char folder[256];
    struct nbd_uri uri;

    cr_assert_eq(chdir("/tmp"), 0);
    cr_assert_not_null(getcwd(folder, sizeof folder));
    cr_assert_eq(parse("nbd+unix:///?socket=s", NBD_URI_USER, &uri), 0);
    cr_assert_eq(strncmp(uri.socket, folder, strlen(folder)), 0);
    cr_assert_str_eq(uri.socket + strlen(folder), "/s");
    nbd_uri_free(&uri);
}

Test(nbd_uri, printed_and_parsed_again)
{
    struct rng rng;

    rng_init(&rng, 1);
    for (int i = 0; i < 2000; i++) {
        char name[65] = "", path[65] = "/";
        for (unsigned n = 0, len = (unsigned)rng_below(&rng, 64); n < len; n++) {
            do {
                name[n] = (char)rng_between(&rng, 32, 255);
            } while (name[n] == 0x7f);
            path[1 + n / 2] = name[n];
        }
        struct nbd_uri uri = {.export_name = name,
                              .port = "77",
                              .tls = rng_one_in(&rng, 2)},
                       back;
        if (rng_one_in(&rng, 2)) {
            uri.socket = path;
            uri.tls = false;
            strcpy(uri.port, "");
        } else {
            uri.host = rng_one_in(&rng, 2) ? (char *)"::1" : (char *)"host";
        }
        char *text = nbd_uri_print(&uri);
        cr_assert_eq(parse(text, NBD_URI_USER, &back), 0, "%s", text);
        cr_assert(same(back.socket, uri.socket), "%s", text);
        cr_assert(same(back.host, uri.host), "%s", text);
        cr_assert_str_eq(back.port, uri.port, "%s", text);
        cr_assert_str_eq(back.export_name, uri.export_name, "%s", text);
        cr_assert_eq(back.tls, uri.tls, "%s", text);
        nbd_uri_free(&back);
        free(text);
    }
}

/* Only the result is checked; the sanitizers check the rest. */
Test(nbd_uri, any_text)
{
    static const char alphabet[] = "nbd:s+unix/?&=#%[]@socket=/0aF. \x01\xff";
    struct rng rng;

    rng_init(&rng, 2);
    for (int i = 0; i < 200000; i++) {
        char text[48] = "nbd";
        size_t start = rng_one_in(&rng, 2) ? 3 : 0;
        if (start && rng_one_in(&rng, 2)) {
            strcpy(text, "nbd+unix:///");
            start = strlen(text);
        }
        for (size_t n = start; n + 1 < sizeof text; n++)
            text[n] = alphabet[rng_below(&rng, sizeof alphabet)];
        text[sizeof text - 1] = '\0';
        struct nbd_uri uri;
        (void)parse(text, rng_one_in(&rng, 2) ? NBD_URI_USER : NBD_URI_IMAGE, &uri);
        nbd_uri_free(&uri);
    }
}
