/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests backing file names in JSON ("json:..."): which are understood, and that all others are
 * refused. */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "base/cleanup.h"
#include "block/driver.h"
#include "block/json_name.h"
#include "storage/nbd_tls.h"
#include "storage/rbd_keys.h"

static const struct driver qcow2 = {.name = "qcow2"}, raw = {.name = "raw"};

static void init(void)
{
    static const struct driver *const drivers[] = {&qcow2, &raw, NULL};

    drivers_set(drivers);
}

Test(json_name, understood, .init = init)
{
    static const struct {
        const char *name, *target, *format;
        const struct storage_protocol *protocol;
    } cases[] = {
        {"json:{\"driver\":\"file\",\"filename\":\"/a\"}", "/a", NULL,
         &storage_protocol_file},
        {"json:{\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\",\"filename\":\"b:c\"}}",
         "b:c", "qcow2", &storage_protocol_file},
        {"json:{\"driver\":\"raw\",\"file.driver\":\"file\",\"file.filename\":\"b\","
         "\"read-only\":true,\"file.node-name\":\"x\",\"file\":{\"cache\":{\"direct\":"
         "false}}}",
         "b", "raw", &storage_protocol_file},
        {"json:{\"file.driver\":\"file\",\"file.filename\":\"b\"}", "b", NULL,
         &storage_protocol_file},
        {"json:{'driver':'qcow2','file':{'driver':'host_device','filename':'/dev/b'}}",
         "/dev/b", "qcow2", &storage_protocol_file},
        {"json:{'driver': 'qcow2', 'file.filename': 'a\"b\\'c\\\\'}", "a\"b'c\\", "qcow2",
         &storage_protocol_file},
        {"json:{'driver':\"raw\",'file':{'filename':\"it's\"},'l2-cache-size':1}", "it's",
         "raw", &storage_protocol_file},
        {"json:{'driver':'raw','file.filename':'nbd://h:1/e'}", "nbd://h:1/e", "raw",
         &storage_protocol_nbd},
        {"json:{\"driver\":\"nbd\",\"host\":\"h\",\"port\":\"1\",\"export\":\"e f\"}",
         "nbd://h:1/e%20f", NULL, &storage_protocol_nbd},
        {"json:{\"driver\":\"nbd\",\"host\":\"::1\"}", "nbd://[::1]/", NULL,
         &storage_protocol_nbd},
        {"json:{\"driver\":\"nbd\",\"path\":\"/s\"}", "nbd+unix:///?socket=/s", NULL,
         &storage_protocol_nbd},
        {"json:{\"driver\":\"raw\",\"file\":{\"driver\":\"nbd\",\"server\":{\"type\":"
         "\"unix\","
         "\"path\":\"/s?&%\"},\"export\":\"x\"}}",
         "nbd+unix:///x?socket=/s%3F%26%25", "raw", &storage_protocol_nbd},
        {"json:{\"driver\":\"nbd\",\"server.type\":\"inet\",\"server.host\":\"h\",\"server."
         "port\":12}",
         "nbd://h:12/", NULL, &storage_protocol_nbd},
        /* Such a host can't be turned into another address: the URI's parser refuses "%". */
        {"json:{\"driver\":\"nbd\",\"host\":\"h/x?y@z\"}", "nbd://h%2Fx%3Fy%40z/", NULL,
         &storage_protocol_nbd},
        {"json:{\"driver\":\"raw\",\"file\":{\"driver\":\"rbd\",\"pool\":\"p/"
         "q\",\"namespace\":"
         "\"n\",\"image\":\"i@j\",\"snapshot\":\"s\",\"user\":\"me\",\"conf\":\"/etc/c\"}}",
         "rbd:p\\/q/n/i\\@j@s:id=me:conf=/etc/c", "raw", &storage_protocol_rbd},
    };

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct json_name got;
        struct diag diag = {0};
        cr_expect(json_name_is_one(cases[i].name));
        cr_assert_eq(json_name_parse("disk", cases[i].name, 0, &got, &diag), 0, "%s",
                     diag.text);
        CLEANUP_JSON_NAME struct json_name owned = got;
        cr_expect_str_eq(owned.target, cases[i].target);
        cr_expect_eq(got.protocol, cases[i].protocol, "%s", cases[i].name);
        cr_expect(cases[i].format ? got.format && strcmp(got.format, cases[i].format) == 0
                                  : !got.format,
                  "%s", cases[i].name);
    }
}

Test(json_name, says_what_lies_below, .init = init)
{
    static const struct {
        const char *name, *below;
        bool none;
    } cases[] = {
        {"json:{'driver':'qcow2','file.filename':'a'}", NULL, false},
        {"json:{'driver':'qcow2','file.filename':'a','backing':null}", NULL, true},
        {"json:{'driver':'qcow2','file.filename':'a','backing':''}", NULL, true},
        {"json:{'driver':'qcow2','file.filename':'a','backing.driver':'raw'}",
         "json:{\"driver\":\"raw\"}", false},
        {"json:{'driver':'qcow2','file.filename':'a','backing.file.filename':'b'}",
         "json:{\"file.filename\":\"b\"}", false},
        {"json:{'driver':'qcow2','file.filename':'a','backing':{'backing':null}}",
         "json:{\"backing\":null}", false},
        {"json:{'driver':'qcow2','file.filename':'a','backing.backing.backing':''}",
         "json:{\"backing.backing\":null}", false},
        {"json:{'file.filename':'a','backing':{'file':{'filename':'b'},'backing':{"
         "'backing.file.filename':'d'}}}",
         "json:{\"file.filename\":\"b\",\"backing.backing.file.filename\":\"d\"}", false},
    };

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        CLEANUP_JSON_NAME struct json_name got = {0};
        struct diag diag = {0};
        cr_assert_eq(json_name_parse("disk", cases[i].name, 0, &got, &diag), 0, "%s",
                     diag.text);
        cr_expect_str_eq(got.target, "a");
        cr_expect_str_eq(got.below ? got.below : "", cases[i].below ? cases[i].below : "");
        cr_expect_eq(got.none_below, cases[i].none, "%s", cases[i].name);
    }
}

Test(json_name, a_user_may_name_keys, .init = init)
{
    struct nbd_tls_choice x509 = {.certificates = strdup("/pki"), .verify = -1},
                          psk = {.psk_file = strdup("/keys"), .username = strdup("me")};
    static const struct {
        const char *name, *target, *says;
    } cases[] = {
        {"json:{'driver':'nbd','host':'h','tls-creds':'x'}",
         "nbds://h/?tls-certificates=/pki&tls-verify-peer=false", NULL},
        {"json:{'driver':'nbd','path':'/s','tls-creds':'p','tls-hostname':'n'}",
         "nbds+unix://me@/?socket=/s&tls-psk-file=/keys&tls-hostname=n", NULL},
        {"json:{'driver':'nbd','host':'h','x-dirty-bitmap':'qemu:dirty-bitmap:a b'}",
         "nbd://h/?x-dirty-bitmap=qemu:dirty-bitmap:a%20b", NULL},
        {"json:{'driver':'nbd','host':'h','tls-creds':'y'}", NULL,
         "disk: name 'json:{'driver':'nbd','host':'h','tls-creds':'y'}': tls-creds: there "
         "are "
         "no TLS credentials of that id"},
        {"json:{'driver':'nbd','host':'h','tls-hostname':'n'}", NULL, "tls-hostname"},
    };

    cr_assert_eq(nbd_tls_add_named("x", &x509), 0);
    cr_assert_eq(nbd_tls_add_named("p", &psk), 0);
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        CLEANUP_JSON_NAME struct json_name got = {0};
        struct diag diag = {0};
        int err = json_name_parse("disk", cases[i].name, JSON_NAME_GIVEN, &got, &diag);
        cr_expect_eq(!err, !cases[i].says, "%s: %s", cases[i].name, diag.text);
        cr_expect_str_eq(got.target ? got.target : "",
                         cases[i].target ? cases[i].target : "");
        cr_expect(!cases[i].says || strstr(diag.text, cases[i].says), "%s", diag.text);
    }
}

static char *find_key(void *opaque, const char *name)
{
    (void)opaque;
    return strcmp(name, "s") == 0 ? strdup("AQ==") : NULL;
}

/* QEMU's options, nested or in keys with dots. */
Test(json_name, how_ceph_is_asked, .init = init)
{
    static const struct {
        const char *name, *target;
    } cases[] = {
        {"json:{'driver':'rbd','pool':'p','image':'i','user':'u','key-secret':'s'}",
         "rbd:p/i:id=u:key=AQ=="},
        {"json:{'driver':'rbd','pool':'p','image':'i','server':[{'host':'h','port':'1'},{"
         "'host':'::1','port':'2'}],'auth-client-required':['cephx','none']}",
         "rbd:p/i:mon_host=h\\:1;[\\:\\:1]\\:2:auth_client_required=cephx;none"},
        {"json:{'driver':'raw','file.driver':'rbd','file.pool':'p','file.image':'i',"
         "'file.server.0.host':'h','file.server.0.port':'1','file.auth-client-required.0':"
         "'none'}",
         "rbd:p/i:mon_host=h\\:1:auth_client_required=none"},
        {"json:{'driver':'rbd','pool':'p','image':'i','key-secret':'t'}", NULL},
    };

    rbd_keys_set_finder(find_key, NULL);
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        CLEANUP_JSON_NAME struct json_name got = {0};
        struct diag diag = {0};
        int err = json_name_parse("", cases[i].name, JSON_NAME_GIVEN, &got, &diag);
        cr_expect_eq(!err, cases[i].target != NULL, "%s: %s", cases[i].name, diag.text);
        cr_expect_str_eq(got.target ? got.target : "",
                         cases[i].target ? cases[i].target : "");
        cr_expect(cases[i].target || strstr(diag.text, "there is no secret of that id"),
                  "%s", diag.text);
    }
}

Test(json_name, a_layer_below_may_leave_out_where_it_is, .init = init)
{
    static const struct {
        const char *name, *format, *below;
        bool none;
    } cases[] = {
        {"json:{'driver':'raw'}", "raw", NULL, false},
        {"json:{'backing':null}", NULL, NULL, true},
        {"json:{'driver':'qcow2','backing':null}", "qcow2", NULL, true},
        {"json:{'backing.driver':'qed'}", NULL, "json:{\"driver\":\"qed\"}", false},
    };

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        CLEANUP_JSON_NAME struct json_name got = {0};
        struct diag diag = {0};
        cr_assert_eq(json_name_parse("disk", cases[i].name, JSON_NAME_BELOW, &got, &diag),
                     0, "%s", diag.text);
        cr_expect_null(got.target);
        cr_expect_str_eq(got.format ? got.format : "",
                         cases[i].format ? cases[i].format : "");
        cr_expect_str_eq(got.below ? got.below : "", cases[i].below ? cases[i].below : "");
        cr_expect_eq(got.none_below, cases[i].none, "%s", cases[i].name);
    }
}

Test(json_name, a_layer_below_is_refused, .init = init)
{
    static const struct {
        const char *name, *says;
    } cases[] = {
        {"json:{'driver':'null'}", "driver: is neither file nor nbd"},
        {"json:{'driver':'file'}", "filename: is missing"},
        {"json:{'driver':'qcow2','file':'node0'}", "file.driver: is missing"},
        {"json:{'backing':null,'offset':1}", "offset: is not supported"},
        {"json:{'backing':null,'backing.driver':'raw'}", "backing: is there twice"},
    };

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        CLEANUP_JSON_NAME struct json_name got = {0};
        struct diag diag = {0};
        cr_expect_neq(json_name_parse("disk", cases[i].name, JSON_NAME_BELOW, &got, &diag),
                      0, "%s", cases[i].name);
        cr_expect(strstr(diag.text, cases[i].says), "%s: %s", cases[i].says, diag.text);
    }
}

Test(json_name, refused, .init = init)
{
    static const struct {
        const char *name, *says;
        int err;
    } cases[] = {
        {"json:", "JSON", EINVAL},
        {"json:[]", "JSON: must be an object", EINVAL},
        {"json:{}", "driver: is missing", EINVAL},
        {"json:{\"driver\":\"ssh\",\"path\":\"/x\"}", "driver: is neither file nor nbd",
         ENOTSUP},
        {"json:{\"driver\":\"file\"}", "filename: is missing", EINVAL},
        {"json:{\"driver\":\"qcow2\",\"file\":\"node0\"}", "file.driver: is missing",
         EINVAL},
        {"json:{\"driver\":\"qcow2\",\"file\":{\"driver\":\"raw\",\"file\":{\"driver\":"
         "\"file\"}}}",
         "driver: is neither file nor nbd", ENOTSUP},
        {"json:{\"driver\":\"raw\",\"offset\":512,\"file.driver\":\"file\",\"file."
         "filename\":\"x\"}",
         "offset: is not supported", ENOTSUP},
        {"json:{\"driver\":\"qcow2\",\"backing\":null,\"backing.driver\":\"raw\","
         "\"file.filename\":\"x\"}",
         "backing: is there twice", EINVAL},
        {"json:{\"driver\":\"qcow2\",\"backing\":\"node0\",\"file.filename\":\"x\"}",
         "backing: is not supported", ENOTSUP},
        {"json:{\"driver\":\"nbd\",\"host\":\"h\",\"tls-creds\":\"t\"}",
         "tls-creds: is not an image's to say", EACCES},
        {"json:{\"driver\":\"nbd\",\"host\":\"h\",\"x-dirty-bitmap\":\"c\"}",
         "x-dirty-bitmap: is not an image's to say", EACCES},
        {"json:{\"driver\":\"nbd\",\"host\":\"h\",\"tls-hostname\":\"t\"}",
         "tls-hostname: is not supported", ENOTSUP},
        {"json:{\"driver\":\"nbd\",\"host\":\"h\",\"port\":\"123456\"}", "port", EINVAL},
        {"json:{\"driver\":\"nbd\",\"server.type\":\"vsock\"}", "server.type", ENOTSUP},
        {"json:{\"driver\":\"nbd\",\"server.type\":\"unix\"}", "server.path: is missing",
         EINVAL},
        {"json:{\"driver\":\"nbd\"}", "server.host: is missing", EINVAL},
        {"json:{\"driver\":\"rbd\",\"image\":\"i\"}", "pool: is missing", EINVAL},
        {"json:{\"driver\":\"rbd\",\"pool\":\"p\",\"image\":\"i\",\"key-secret\":\"k\"}",
         "key-secret: is not an image's to say", EACCES},
        {"json:{\"driver\":\"rbd\",\"pool\":\"p\",\"image\":\"i\",\"auth-client-required\":"
         "[\"gss\"]}",
         "auth-client-required.0: must be cephx or none", EINVAL},
        {"json:{\"driver\":\"rbd\",\"pool\":\"p\",\"image\":\"i\",\"server\":[{\"port\":"
         "\"1\"}]}",
         "server.0.port: is not supported", ENOTSUP},
        {"json:{\"driver\":\"file\",\"filename\":[\"a\"]}", "filename: is missing", EINVAL},
        {"json:{\"driver\":\"qcow2\",\"backing.driver\":null,\"file.filename\":\"x\"}",
         "backing.driver: must be", EINVAL},
        {"json:{\"driver\":\"file\",\"filename\":null}", "filename: must be", EINVAL},
        {"json:{\"driver\":\"file\",\"filename\":[]}", "filename: must be", EINVAL},
        {"json:{\"driver\":\"file\",\"filename\":\"a\",\"filename\":\"b\"}", "duplicate",
         EINVAL},
        {"json:{\"file.driver\":\"file\",\"file\":{\"driver\":\"nbd\"}}",
         "file.driver: is there twice", EINVAL},
        {"json:{\"driver\":\"file\",\"filename\":\"a\\u0000b\"}", "JSON", EINVAL},
        {"json:{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":1}}}}}"
         "}}}}}",
         "nested too deeply", EINVAL},
    };

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct json_name got;
        struct diag diag = {0};
        cr_expect_eq(json_name_parse("disk", cases[i].name, 0, &got, &diag), -cases[i].err,
                     "%s: %s", cases[i].name, diag.text);
        cr_expect_null(got.target);
        cr_expect(strstr(diag.text, cases[i].says), "%s: %s", cases[i].says, diag.text);
        cr_expect(strstr(diag.text, "disk: backing name 'json:") == diag.text, "%s",
                  diag.text);
    }
}
