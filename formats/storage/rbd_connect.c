/* SPDX-License-Identifier: BSD-3-Clause */
/* Opens a link: reads Ceph's configuration, connects, and opens the image and learns its facts. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "storage/rbd_internal.h"
#include "storage/rbd_user.h"

/* The longest wait for the cluster when an image is opened, in seconds. */
#define OPEN_TIMEOUT 30u

/* Room for the id of an image. */
#define ID_BYTES 128

/* ---- configuring ---- */

static int set_option(struct rbd_link *link, const char *place, const char *key,
                      const char *value, struct diag *diag)
{
    int err = librados.conf_set(link->cluster, key, value);

    if (err == -ENOENT)
        return diag_set(diag, EINVAL, "%s: Ceph has no option '%s'", place, key);
    return err ? diag_errno(diag, -err, "%s: %s=%s", place, key,
                            rbd_option_is_secret(key) ? "***" : value)
               : 0;
}

/* It isn't an error if Ceph's default file doesn't exist: the options of the name may be enough. */
static int read_configuration(struct rbd_link *link, const struct rbd_name *name,
                              const char *place, struct diag *diag)
{
    int err = librados.conf_read_file(link->cluster, name->conf);

    if (!err || (err == -ENOENT && !name->conf))
        return 0;
    if (!name->conf)
        return diag_errno(diag, -err, "%s: reading Ceph's configuration", place);
    return diag_errno(diag, -err, "%s: %s: reading Ceph's configuration", place,
                      name->conf);
}

/* The value of a timeout in seconds; 0: none is set. */
static double configured_timeout(struct rbd_link *link, const char *key)
{
    char text[32];

    return librados.conf_get(link->cluster, key, text, sizeof text) < 0
               ? 0
               : strtod(text, NULL);
}

/* Takes the timeout for requests from Ceph's configuration, and disables librados' own: timeouts
 * there would let requests end out of order. */
static int take_timeout(struct rbd_link *link)
{
    double seconds = configured_timeout(link, "rados_osd_op_timeout");

    link->facts.timeout_ms = RBD_DEFAULT_TIMEOUT;
    if (seconds > 0)
        link->facts.timeout_ms = seconds < 1e6 ? (unsigned)(seconds * 1000) : 1000000000u;
    return librados.conf_set(link->cluster, "rados_osd_op_timeout", "0");
}

/* Ceph's own timeouts for monitors are five minutes, or none. */
static int limit_timeout(struct rbd_link *link, const char *key)
{
    double seconds = configured_timeout(link, key);
    char text[32];

    snprintf(text, sizeof text, "%u", OPEN_TIMEOUT);
    return seconds > 0 && seconds <= OPEN_TIMEOUT
               ? 0
               : librados.conf_set(link->cluster, key, text);
}

static int set_timeouts(struct rbd_link *link, const char *place, struct diag *diag)
{
    int err = take_timeout(link);
    if (!err)
        err = limit_timeout(link, "client_mount_timeout");
    if (!err)
        err = limit_timeout(link, "rados_mon_op_timeout");
    return err ? diag_errno(diag, -err, "%s: setting Ceph's timeouts", place) : 0;
}

/* Sets the options that this store relies on, whatever the configuration says. */
static int set_own_options(struct rbd_link *link, const char *place, struct diag *diag)
{
    static const struct {
        const char *key, *value;
    } ours[] = {
        {"rbd_cache", "false"},
        /* librbd copies the bytes of a write, so that the caller may reuse the buffer at once.
         * (Without the copies librbd 16 never ends a write that begins past the end.) */
        {"rbd_disable_zero_copy_writes", "true"},
    };

    for (size_t i = 0; i < ARRAY_LEN(ours); i++) {
        int err = set_option(link, place, ours[i].key, ours[i].value, diag);
        if (err)
            return err;
    }
    return set_timeouts(link, place, diag);
}

/* The Ceph user; NULL: Ceph's default.  *owned is to be freed. */
static const char *user_of(const struct rbd_name *name, char **owned)
{
    *owned = name->id ? NULL : rbd_user_of_environment();
    return name->id ? name->id : *owned;
}

static int configure(struct rbd_link *link, const struct rbd_name *name, const char *place,
                     struct diag *diag)
{
    CLEANUP_FREE char *owned = NULL;

    int err = librados.create(&link->cluster, user_of(name, &owned));
    if (err) {
        link->cluster = NULL;
        return diag_errno(diag, -err, "%s: a client of Ceph", place);
    }
    err = read_configuration(link, name, place, diag);
    for (unsigned i = 0; !err && i < name->n_options; i++)
        err = set_option(link, place, name->options[i].key, name->options[i].value, diag);
    return err ? err : set_own_options(link, place, diag);
}

/* ---- connecting ---- */

struct user_text {
    char text[100];
};

/* The user, for messages. */
static struct user_text who_asks(const struct rbd_name *name)
{
    CLEANUP_FREE char *owned = NULL;
    const char *user = user_of(name, &owned);
    struct user_text who;

    snprintf(who.text, sizeof who.text, "client.%s", user ? user : "admin");
    return who;
}

static bool has_monitors(struct rbd_link *link)
{
    char text[4] = "";

    return librados.conf_get(link->cluster, "mon_host", text, sizeof text) ==
               -ENAMETOOLONG ||
           text[0];
}

/* Ceph also returns -ENOENT when a key or the monitors' addresses are missing. */
static int refuse_connection(struct rbd_link *link, const struct rbd_name *name,
                             const char *place, int err, struct diag *diag)
{
    if (err == -ENOENT)
        return diag_set(diag, ENOENT, "%s: connecting to Ceph as %s: %s", place,
                        who_asks(name).text,
                        has_monitors(link) ? "there is no key of that name (keyring=)"
                                           : "no monitors are known (conf=, mon_host=)");
    return diag_errno(diag, -err, "%s: connecting to Ceph as %s", place,
                      who_asks(name).text);
}

static int connect_pool(struct rbd_link *link, const struct rbd_name *name,
                        const char *place, struct diag *diag)
{
    int err = librados.connect(link->cluster);

    if (err)
        return refuse_connection(link, name, place, err, diag);
    err = librados.ioctx_create(link->cluster, name->pool, &link->io);
    if (err)
        return diag_errno(diag, -err, "%s: pool '%s'", place, name->pool);
    link->in_cluster = true;
    if (name->space)
        librados.ioctx_set_namespace(link->io, name->space);
    /* With this, requests to a full pool fail instead of waiting until it has space. */
    librados.set_pool_full_try(link->io);
    link->facts.client = librados.get_instance_id(link->cluster);
    rbd_link_make_known(link);
    return 0;
}

/* FNV-1a over the text and its NUL. */
static uint64_t hash_text(uint64_t hash, const char *text)
{
    do
        hash = (hash ^ (unsigned char)*text) * 0x100000001b3u;
    while (*text++);
    return hash;
}

#define HASH_START 0xcbf29ce484222325u

/* device: a hash of cluster and pool; inode: one of namespace, image and snapshot.  A snapshot has
 * another identity than its image, because it never changes. */
static int learn_identity(struct rbd_link *link, const struct rbd_name *name)
{
    char fsid[64], id[ID_BYTES], pool[32];

    int err = librados.cluster_fsid(link->cluster, fsid, sizeof fsid);
    if (err < 0)
        return err;
    err = librbd.get_id(link->image, id, sizeof id);
    if (err < 0)
        return err;
    snprintf(pool, sizeof pool, "%" PRId64, librados.ioctx_get_id(link->io));
    link->facts.device = hash_text(hash_text(HASH_START, fsid), pool);
    uint64_t inode = hash_text(HASH_START, name->space ? name->space : "");
    inode = hash_text(inode, id);
    link->facts.inode = hash_text(inode, name->snapshot ? name->snapshot : "");
    return 0;
}

static bool has_parent(struct rbd_link *link)
{
    rbd_linked_image_spec_t image;
    rbd_snap_spec_t snapshot;

    if (librbd.get_parent(link->image, &image, &snapshot) < 0)
        return false;
    librbd.linked_image_spec_cleanup(&image);
    librbd.snap_spec_cleanup(&snapshot);
    return true;
}

static int learn_facts(struct rbd_link *link, const struct rbd_name *name)
{
    uint64_t features, stripes;
    rbd_image_info_t info;

    int err = librbd.stat(link->image, &info, sizeof info);
    if (!err)
        err = librbd.get_features(link->image, &features);
    if (!err)
        err = librbd.get_stripe_count(link->image, &stripes);
    if (!err)
        err = learn_identity(link, name);
    if (err)
        return err;
    if (info.size > INT64_MAX || !is_power_of_two(info.obj_size))
        return -EFBIG;
    link->facts.size = info.size;
    link->facts.object_size = info.obj_size;
    link->facts.has_lock = features & RBD_FEATURE_EXCLUSIVE_LOCK;
    link->facts.locks_to_read = features & RBD_FEATURE_JOURNALING;
    /* librbd before version 17 reports wrong offsets for striped images and for images with a
     * parent, also for an image that is being migrated, whose parent it doesn't report. */
    link->facts.tells_status = (features & RBD_FEATURE_FAST_DIFF) &&
                               !(features & RBD_FEATURE_MIGRATING) && stripes == 1 &&
                               !has_parent(link);
    return 0;
}

static int make_image(struct rbd_link *link, const struct rbd_name *name, const char *place,
                      struct diag *diag)
{
    rbd_image_options_t options;

    librbd.image_options_create(&options);
    int err = librbd.create4(link->io, name->image, 0, options);
    librbd.image_options_destroy(options);
    return err ? diag_errno(diag, -err, "%s: making the image", place) : 0;
}

static int remove_image(struct rbd_link *link, const struct rbd_name *name,
                        const char *place, struct diag *diag)
{
    int err = librbd.remove(link->io, name->image);

    return err ? diag_errno(diag, -err, "%s: removing the image", place) : 0;
}

/* ---- options that the image or its pool sets ---- */

static bool is_set(const rbd_config_option_t *option, const char *key, const char *value)
{
    return strcmp(option->name, key) == 0 && strcmp(option->value, value) == 0;
}

static int refuse_option(const rbd_config_option_t *option, const char *place,
                         struct diag *diag)
{
    static const struct {
        const char *key, *refused;
    } options[] = {
        {"rbd_cache", "true"},
        {"rbd_disable_zero_copy_writes", "false"},
    };

    for (size_t i = 0; i < ARRAY_LEN(options); i++)
        if (is_set(option, options[i].key, options[i].refused))
            return diag_set(diag, ENOTSUP,
                            "%s: %s=%s is set %s, and can't be used here: rbd config %s "
                            "remove takes it away",
                            place, option->name, option->value,
                            option->source == RBD_CONFIG_SOURCE_POOL ? "for the pool"
                                                                     : "for the image",
                            option->source == RBD_CONFIG_SOURCE_POOL ? "pool" : "image");
    return 0;
}

/* If there is too little room, librbd sets *n to the number of options. */
static int list_options(rbd_image_t image, rbd_config_option_t **options, int *n)
{
    int err, room = 256;

    do {
        *n = room;
        *options = calloc((size_t)room, sizeof **options);
        if (!*options)
            return -ENOMEM;
        err = librbd.config_image_list(image, *options, n);
        if (err)
            free(TAKE(options));
    } while (err == -ERANGE && *n > room && (room = *n) < 65536);
    return err;
}

/* Options of the image or its pool override those of the client, also those of set_own_options. */
static int check_options(struct rbd_link *link, const char *place, struct diag *diag)
{
    rbd_config_option_t *options;
    int n;

    int err = list_options(link->image, &options, &n);
    if (err)
        return diag_errno(diag, -err, "%s: reading the image's configuration", place);
    for (int i = 0; i < n && !err; i++) {
        err = refuse_option(&options[i], place, diag);
        link->facts.locks_to_read |= is_set(&options[i], "rbd_clone_copy_on_read", "true");
    }
    librbd.config_image_list_cleanup(options, n);
    free(options);
    return err;
}

/* ---- the image ---- */

/* Opens the image for writing, if that is permitted, even if it will only be read: then librbd
 * watches it.  Ceph doesn't remove a watched image, and tells watchers when a snapshot is removed.
 * Without the watch reads would return zeroes from then on. */
static int open_to_read(struct rbd_link *link, const struct rbd_name *name)
{
    int err = librbd.open(link->io, name->image, &link->image, name->snapshot);

    return err == -EPERM || err == -EACCES || err == -EROFS
               ? librbd.open_read_only(link->io, name->image, &link->image, name->snapshot)
               : err;
}

/* Opens the image read-only after all, because librbd would take the lock even to read. */
static int open_without_lock(struct rbd_link *link, const struct rbd_name *name)
{
    rbd_link_close_image(link);
    return librbd.open_read_only(link->io, name->image, &link->image, name->snapshot);
}

/* On a thread of librbd's: the image has changed, maybe its size. */
static void on_update(void *opaque)
{
    rbd_doubt_size(opaque);
}

static int describe_image(struct rbd_link *link, const struct rbd_name *name,
                          const char *place, struct diag *diag)
{
    int err = learn_facts(link, name);

    return err ? diag_errno(diag, -err, "%s: describing the image", place)
               : check_options(link, place, diag);
}

static int refuse_image(const struct rbd_name *name, const char *place, int err,
                        struct diag *diag)
{
    return err == -EPERM || err == -EACCES
               ? diag_errno(diag, -err, "%s: opening the image as %s", place,
                            who_asks(name).text)
               : diag_errno(diag, -err, "%s: opening the image", place);
}

static int open_image(struct rbd_link *link, const struct rbd_name *name, bool read_only,
                      const char *place, struct diag *diag)
{
    int err = read_only || name->snapshot
                  ? open_to_read(link, name)
                  : librbd.open(link->io, name->image, &link->image, NULL);
    if (err) {
        link->image = NULL;
        return refuse_image(name, place, err, diag);
    }
    err = describe_image(link, name, place, diag);
    if (err)
        return err;
    if (read_only && !name->snapshot && link->facts.locks_to_read)
        err = open_without_lock(link, name);
    if (!err)
        err = librbd.update_watch(link->image, &link->watch, on_update, link);
    link->watched = !err;
    return err ? diag_errno(diag, -err, "%s: watching the image", place) : 0;
}

/* ---- opening, as a task ---- */

struct open_task {
    struct rbd_task task;
    struct rbd_name name; /* a copy, because the task may outlive its caller */
    char *place;
    enum rbd_purpose purpose;
    struct rbd_link *link;
    bool made; /* the task has created the image, and the caller doesn't have it yet */
};

/* Removes an image that was created for a caller who doesn't get it. */
static void drop_made(struct open_task *t)
{
    struct rbd_link *link = t->link;

    if (!t->made)
        return;
    t->made = false;
    rbd_link_close_image(link);
    (void)librbd.remove(link->io, t->name.image);
}

static int make_and_open(struct open_task *t)
{
    struct diag *diag = &t->task.diag;

    int err = make_image(t->link, &t->name, t->place, diag);
    if (err)
        return err;
    t->made = true;
    err = open_image(t->link, &t->name, false, t->place, diag);
    if (err)
        drop_made(t);
    return err;
}

static int run_open(struct rbd_task *task)
{
    struct open_task *t = CONTAINER_OF(task, struct open_task, task);
    const struct rbd_name *name = &t->name;

    t->link = rbd_link_new();
    if (!t->link)
        return diag_errno(&task->diag, ENOMEM, "%s", t->place);
    int err = configure(t->link, name, t->place, &task->diag);
    if (!err)
        err = connect_pool(t->link, name, t->place, &task->diag);
    if (!err && t->purpose == RBD_REMOVE)
        return remove_image(t->link, name, t->place, &task->diag);
    if (!err && t->purpose == RBD_CREATE)
        return make_and_open(t);
    return err ? err
               : open_image(t->link, name, t->purpose == RBD_READ_ONLY, t->place,
                            &task->diag);
}

static void free_open(struct rbd_task *task)
{
    struct open_task *t = CONTAINER_OF(task, struct open_task, task);

    if (task->abandoned)
        drop_made(t);
    if (t->link)
        rbd_link_destroy(t->link);
    rbd_name_free(&t->name);
    free(t->place);
    free(t);
}

static struct open_task *new_open(const struct rbd_name *name)
{
    struct open_task *t = calloc(1, sizeof *t);
    CLEANUP_FREE char *text = rbd_name_print(name);

    if (!t || !text || rbd_name_parse(text, RBD_NAME_USER, &t->name, NULL) ||
        !(t->place = rbd_name_print_place(name))) {
        if (t)
            rbd_name_free(&t->name);
        free(t);
        return NULL;
    }
    t->task.run = run_open;
    t->task.free = free_open;
    return t;
}

/* Adds the image's name to the message, unless it has it already. */
static int blame_place(const char *place, int err, struct diag *diag)
{
    if (!diag || strstr(diag->text, place))
        return err;
    struct diag cause = *diag;
    return diag_set(diag, cause.err, "%s: %s", place, cause.text);
}

int rbd_link_open(const struct rbd_name *name, enum rbd_purpose purpose,
                  const _Atomic bool *give_up, struct rbd_link **out, struct diag *diag)
{
    CLEANUP_FREE char *place = rbd_name_print_place(name);
    struct open_task *t = new_open(name);
    if (!place || !t) {
        if (t)
            free_open(&t->task);
        return diag_errno(diag, ENOMEM, "an RBD image");
    }
    if (rbd_too_many_tasks()) {
        free_open(&t->task);
        return diag_set(diag, ETIMEDOUT,
                        "%s: earlier attempts still wait for their clusters", place);
    }
    t->purpose = purpose;
    t->task.give_up = give_up;
    struct rbd_task *task = &t->task;
    int err = rbd_task_run(&task, (OPEN_TIMEOUT + 1) * 1000, diag);
    if (!task)
        return blame_place(place, err, diag);
    if (!err && purpose != RBD_REMOVE)
        *out = TAKE(&t->link);
    struct rbd_link *left = TAKE(&t->link);
    free_open(task);
    rbd_link_close(left);
    return err ? blame_place(place, err, diag) : 0;
}
