/* SPDX-License-Identifier: BSD-3-Clause */
/* Resolves names found in images, as far as the user's policy allows. */
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "block/json_name.h"
#include "block/open_policy.h"

int references_parse(const char *word, enum references *out)
{
    static const char *const words[] = {
        [REFERENCES_ANY] = "any", [REFERENCES_DIR] = "dir", [REFERENCES_NONE] = "none"};

    for (unsigned i = 0; i < ARRAY_LEN(words); i++) {
        if (strcmp(word, words[i]) == 0) {
            *out = (enum references)i;
            return 0;
        }
    }
    return -EINVAL;
}

/* A colon before the first slash means that the name has a protocol, known or not. */
static bool has_protocol(const char *name)
{
    return name[strcspn(name, ":/")] == ':';
}

static const char *strip_file_protocol(const char *name)
{
    return strncmp(name, "file:", 5) == 0 ? name + 5 : name;
}

/* Length of the folder part of a path, including its last slash; 0: there is none. */
static size_t folder_length(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? (size_t)(slash - path) + 1 : 0;
}

char *reference_join(const char *image, const char *name)
{
    size_t folder = folder_length(image);
    if (name[0] == '/' || has_protocol(name) || folder == 0)
        return strdup(name);

    char *path = malloc(folder + strlen(name) + 1);
    if (path) {
        memcpy(path, image, folder);
        strcpy(path + folder, name);
    }
    return path;
}

/* Is `path`, symbolic links resolved, below the folder of `image`? */
static int check_below_folder(const char *image, const char *path, struct diag *diag)
{
    CLEANUP_FREE char *folder = strndup(image, folder_length(image));
    if (!folder)
        return diag_errno(diag, ENOMEM, "%s", image);

    CLEANUP_FREE char *real_folder = realpath(folder[0] ? folder : ".", NULL);
    if (!real_folder)
        return diag_errno(diag, errno, "%s", folder[0] ? folder : ".");
    CLEANUP_FREE char *real_path = realpath(path, NULL);
    if (!real_path)
        return diag_errno(diag, errno, "%s: cannot open %s", image, path);

    size_t n = strlen(real_folder);
    if (n == 1) /* "/": everything is below it */
        return 0;
    if (strncmp(real_path, real_folder, n) == 0 && real_path[n] == '/')
        return 0;
    return diag_set(diag, EACCES,
                    "%s: names %s, which is not below the image's folder (references=dir)",
                    image, path);
}

/* The context in which a name was found. */
struct finding {
    const char *image; /* for a user's name: the text that begins messages */
    enum references policy;
    bool given; /* by the user, who may say more than an image */
    bool layer; /* it may describe the layers below */
};

static int resolve_parsed(const struct finding *found, const struct json_name *name,
                          struct reference *out, struct diag *diag);

void reference_free(struct reference *ref)
{
    while (ref->below) { /* not recursive: there may be many */
        struct reference *below = ref->below;
        ref->below = below->below;
        free(below->path);
        free(below->data_file);
        free(below);
    }
    free(ref->path);
    free(ref->data_file);
    *ref = (struct reference){0};
}

/* Rejects what an image isn't allowed to say (options for Ceph, keys). */
static int check_remote(const struct finding *found,
                        const struct storage_protocol *protocol, const char *text,
                        struct diag *diag)
{
    struct diag why = {0};

    if (found->given || !protocol->check_named_by_image)
        return 0;
    int err = protocol->check_named_by_image(text, &why);
    return err ? diag_set(diag, -err, "%s: names %s", found->image, why.text) : 0;
}

static int resolve_remote(const struct finding *found,
                          const struct storage_protocol *protocol, const char *uri,
                          struct reference *out, struct diag *diag)
{
    CLEANUP_FREE char *shown = storage_shown_name(protocol, uri);

    if (found->policy == REFERENCES_DIR)
        return diag_set(diag, EACCES,
                        "%s: names %s, which is not below the image's folder "
                        "(references=dir)",
                        found->image, shown ? shown : "an image elsewhere");
    int err = check_remote(found, protocol, uri, diag);
    if (err)
        return err;
    out->path = strdup(uri);
    out->protocol = protocol;
    return out->path ? 0 : diag_errno(diag, ENOMEM, "%s", found->image);
}

static int resolve_local(const char *image, const char *local, enum references policy,
                         struct reference *out, struct diag *diag)
{
    if (storage_protocol_of(image) != &storage_protocol_file && local[0] != '/')
        return diag_set(diag, ENOTSUP,
                        "%s: names %s: what lies on a server has no folder that a relative "
                        "name could lie in",
                        image, local);
    if (local[0] == '\0')
        return diag_set(diag, EINVAL, "%s: the name of the backing file is empty", image);

    /* The name has no protocol any more, so this isn't reference_join. */
    size_t folder = local[0] == '/' ? 0 : folder_length(image);
    CLEANUP_FREE char *joined = NULL;
    if (asprintf(&joined, "%.*s%s", (int)folder, image, local) < 0) {
        joined = NULL;
        return diag_errno(diag, ENOMEM, "%s", image);
    }
    int rc = policy == REFERENCES_DIR ? check_below_folder(image, joined, diag) : 0;
    if (rc == 0) {
        out->path = TAKE(&joined);
        out->protocol = &storage_protocol_file;
    }
    return rc;
}

static unsigned where_found(const struct finding *found)
{
    return found->given ? JSON_NAME_GIVEN : 0;
}

/* The depth of the recursion is limited by the length of keys (json_name.c). */
static int resolve_below(const struct finding *found, const struct json_name *name,
                         struct reference *out, struct diag *diag)
{
    if (!found->layer && (name->below || name->none_below))
        return diag_set(
            diag, ENOTSUP,
            "%s: names %s: backing: nothing can be said here of what lies below",
            found->image, out->path);
    out->none_below = name->none_below;
    if (!name->below)
        return 0;
    out->below = calloc(1, sizeof *out->below);
    if (!out->below)
        return diag_errno(diag, ENOMEM, "%s", found->image);
    *out->below = (struct reference){.given = found->given};

    CLEANUP_JSON_NAME struct json_name below = {0};
    int err = json_name_parse(found->image, name->below,
                              where_found(found) | JSON_NAME_BELOW, &below, diag);
    return err ? err : resolve_parsed(found, &below, out->below, diag);
}

static int resolve_target(const struct finding *found, const struct json_name *name,
                          struct reference *out, struct diag *diag)
{
    if (!name->target)
        return 0;
    if (name->protocol != &storage_protocol_file)
        return resolve_remote(found, name->protocol, name->target, out, diag);
    return resolve_local(found->image, name->target, found->policy, out, diag);
}

static int resolve_parsed(const struct finding *found, const struct json_name *name,
                          struct reference *out, struct diag *diag)
{
    int err = resolve_target(found, name, out, diag);

    out->format = name->format;
    out->plain = name->plain;
    if (!err && name->data_file && !(out->data_file = strdup(name->data_file)))
        err = diag_errno(diag, ENOMEM, "%s", found->image);
    return err ? err : resolve_below(found, name, out, diag);
}

static int resolve_json(const struct finding *found, const char *name,
                        struct reference *out, struct diag *diag)
{
    CLEANUP_JSON_NAME struct json_name parsed = {0};
    int err = json_name_parse(found->image, name, where_found(found), &parsed, diag);

    return err ? err : resolve_parsed(found, &parsed, out, diag);
}

/* The message must not show secrets of the name. */
static int refuse_any(const struct finding *found, const struct storage_protocol *protocol,
                      const char *name, struct diag *diag)
{
    CLEANUP_FREE char *shown = storage_shown_name(protocol, name);

    return diag_set(diag, EACCES, "%s: names %s, but references=none allows no other file",
                    found->image, shown ? shown : "another");
}

/* Has the name a protocol that is unknown here? */
static bool is_foreign(const char *name)
{
    return storage_protocol_of(name) == &storage_protocol_file && !json_name_is_one(name) &&
           strip_file_protocol(name) == name && has_protocol(name);
}

static int resolve(const struct finding *found, const char *name, struct reference *out,
                   struct diag *diag)
{
    const char *image = found->image;

    *out = (struct reference){.given = found->given};
    const struct storage_protocol *protocol = storage_protocol_of(name);
    if (found->policy == REFERENCES_NONE)
        return refuse_any(found, protocol, name, diag);
    if (protocol != &storage_protocol_file)
        return resolve_remote(found, protocol, name, out, diag);
    if (json_name_is_one(name))
        return resolve_json(found, name, out, diag);

    if (is_foreign(name))
        return diag_set(diag, ENOTSUP,
                        "%s: names %s: an image may name local files, NBD exports and RBD "
                        "images only",
                        image, name);
    return resolve_local(image, strip_file_protocol(name), found->policy, out, diag);
}

/* Leaves *out empty on failure. */
static int resolve_whole(const struct finding *found, const char *name,
                         struct reference *out, struct diag *diag)
{
    int err = resolve(found, name, out, diag);

    if (err)
        reference_free(out);
    return err;
}

int reference_resolve(const char *image, const char *name, enum references policy,
                      struct reference *out, struct diag *diag)
{
    const struct finding found = {.image = image, .policy = policy};

    return resolve_whole(&found, name, out, diag);
}

int reference_resolve_layer(const char *image, const char *name, enum references policy,
                            struct reference *out, struct diag *diag)
{
    const struct finding found = {.image = image, .policy = policy, .layer = true};

    return resolve_whole(&found, name, out, diag);
}

int reference_resolve_given(const char *what, const char *name, struct reference *out,
                            struct diag *diag)
{
    const struct finding found = {
        .image = what, .policy = REFERENCES_ANY, .given = true, .layer = true};

    return resolve_whole(&found, name, out, diag);
}

int reference_check_recorded(const char *image, const char *name, struct diag *diag)
{
    const struct finding found = {.image = image, .layer = true};
    CLEANUP_REFERENCE struct reference ref = {0};
    struct diag why = {0};

    if (!name[0] || is_foreign(name))
        return 0;
    int err = resolve_whole(&found, name, &ref, &why);
    if (!err || (json_name_is_one(name) && err != -EACCES))
        return 0;
    if (diag)
        *diag = why;
    return err;
}
