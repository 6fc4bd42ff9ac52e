/* SPDX-License-Identifier: BSD-3-Clause */
/* Fuzzes the control socket: the input is what a client sends.  It goes through the real socket
 * code, the commands and their arguments to jobs and bitmaps.  Every answer must be a line of
 * JSON.
 *
 * The disk and the targets of jobs are in memory.  All functions of the server that would open
 * or create files (control_open_target and others) are replaced here, so that no file is
 * touched, whatever paths the fuzzer invents. */
#include "control_cmds.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "control_client.h"
#include "control_events.h"
#include "control_query.h"
#include "control_target.h"
#include "creation_file.h"
#include "export_table.h"
#include "fuzz.h"
#include "jobs/manager.h"
#include "layer_writer.h"
#include "mem_storage.h"
#include "node_table.h"
#include "overlay_file.h"
#include "plugin_config.h"
#include "scratch.h"

#define DISK_BYTES (256u << 10)
#define PIECE      4096u

static struct storage *empty; /* a qcow2 image of DISK_BYTES */

static void make_empty(void)
{
    struct scratch scratch;

    scratch_make(&scratch);
    CLEANUP_FREE char *path = scratch_path(&scratch, "image");
    struct create_option options[] = {{.key = "cluster_size", .value = "4096"}};
    struct create_request request = {
        .filename = path, .size = DISK_BYTES, .options = options, .n_options = 1};
    struct diag diag = {0};
    if (create_image(driver_find("qcow2"), &request, &diag) ||
        mem_storage_load(path, &empty))
        abort();
    scratch_remove(&scratch);
}

static int open_node(struct block_context *ctx, const char *format, struct storage *st,
                     const char *name, struct node **out, struct diag *diag)
{
    const struct node_options options = {.lock_off = true};

    return node_open(ctx, driver_find(format), st, name, &options, out, diag);
}

/* ---- targets ---- */

static struct storage *target_storage(const struct target_request *request)
{
    bool raw = strcmp(request->format, "raw") == 0;
    struct storage *st =
        raw ? mem_storage_new(request->source->size) : mem_storage_clone(empty);

    if (strncmp(request->target, "full", 4) == 0)
        mem_storage_limit(st, 32 << 10);
    return st;
}

int added_node_open(struct added_node *node, const struct node_opening *how,
                    struct node **out, struct diag *diag)
{
    const char *format = node->file ? node->driver : "raw";
    bool qcow2 = strcmp(format, "qcow2") == 0;

    if (!qcow2 && strcmp(format, "raw") != 0)
        return diag_set(diag, ENOENT, "%s: there is none", added_node_target(node));
    if (how->as_target && added_node_is_used(node))
        return diag_set(diag, EBUSY, "%s: is in use", added_node_target(node));
    int err = open_node(how->ctx, format,
                        qcow2 ? mem_storage_clone(empty) : mem_storage_new(DISK_BYTES),
                        added_node_target(node), out, diag);
    if (!err)
        (*out)->name = node_name_get(node->name);
    return err;
}

int overlay_make_file(const struct node *old, const char *file, const char *format,
                      struct diag *diag)
{
    (void)old;
    return strcmp(format, "qcow2") == 0 ? 0 : diag_set(diag, ENOENT, "%s: can't be", file);
}

int creation_make_file(struct export_table *exports, const struct driver *driver,
                       const struct create_request *request, struct diag *diag)
{
    (void)exports;
    (void)driver;
    return strcmp(request->filename, "/full") == 0
               ? diag_set(diag, ENOSPC, "%s: is full", request->filename)
               : 0;
}

void overlay_remove_file(const char *file)
{
    (void)file;
}

int overlay_open_file(const struct node *old, const char *file, const char *format,
                      enum references policy, struct node **out, struct diag *diag)
{
    (void)policy;
    return strcmp(format, "qcow2") == 0
               ? open_node(old->ctx, format, mem_storage_clone(empty), file, out, diag)
               : diag_set(diag, ENOENT, "%s: there is none", file);
}

int layer_writer_open(struct node *layer, const _Atomic bool *give_up, struct node **out,
                      struct diag *diag)
{
    (void)give_up;
    int err = open_node(layer->ctx, "qcow2", mem_storage_clone(empty), layer->filename, out,
                        diag);
    if (!err)
        err = node_activate(*out, diag);
    return err;
}

/* Opens the node that was added by blockdev-add, or the target of drive-mirror. */
static int open_by_request(const struct target_request *request, struct node **out,
                           struct diag *diag)
{
    const struct node_opening how = {.ctx = request->source->ctx, .as_target = true};

    if (request->added)
        return added_node_open(request->added, &how, out, diag);
    return open_node(request->source->ctx, request->format, target_storage(request),
                     request->target, out, diag);
}

void control_target_request_free(struct target_request *request)
{
    added_node_put(request->added);
    free(request->target);
    free(request);
}

int control_open_target(struct target_request *request, struct node **out,
                        struct diag *diag)
{
    if (!request->format)
        request->format = "raw"; /* the request has no format */
    if (!request->added && strcmp(request->format, "qed") == 0)
        return diag_set(diag, ENOENT, "%s: there is none", request->target);
    int err = open_by_request(request, out, diag);
    if (!err && (err = node_activate(*out, diag)) != 0)
        node_close(*out);
    return err;
}

/* ---- the server's side ---- */

/* Adds an export as export_table_open would, but with nodes in memory. */
static struct served_export *add_export(struct export_table *table, const char *name)
{
    static uint8_t data[DISK_BYTES / 4];
    struct node *node, *base;
    struct diag diag = {0};
    struct served_export *exp = export_new(name, name);

    fuzz_check(exp, "out of memory");
    exp->is_open = true;
    exp->wanted_writable = true;
    if (block_context_init(&exp->ctx, 1 << 20, NULL, NULL) ||
        open_node(&exp->ctx, "qcow2", mem_storage_clone(empty), "/nowhere/image", &node,
                  &diag) ||
        open_node(&exp->ctx, "raw", mem_storage_new(DISK_BYTES), "/nowhere/base", &base,
                  &diag))
        fuzz_fail(__FILE__, __LINE__, "%s", diag.text);
    node->backing = base;
    node->name = node_name_new(name);
    fuzz_check(node_activate(node, &diag) == 0, "%s", diag.text);
    memset(data, 0xa5, sizeof data);
    fuzz_check(block_write(node, data, 1000, sizeof data, 0) == 0, "write");
    gate_init(&exp->gate);
    list_init(&exp->seats);
    list_init(&exp->retired);
    lock_init(&exp->lock, RANK_OPEN);
    cond_init_timed(&exp->drain_ended);
    atomic_store(&exp->node, node);
    fuzz_check(export_table_add(table, exp, &diag) == 0, "%s", diag.text);
    return exp;
}

static void on_job_event(void *opaque, const struct job_event *event)
{
    json_t *data;

    (void)opaque;
    if (event->info.owner &&
        (event->kind == JOB_EVENT_COMPLETED || event->kind == JOB_EVENT_CANCELLED ||
         (event->kind == JOB_EVENT_OPENED && event->err))) {
        export_end_job(event->info.owner);
    }
    if (event->kind == JOB_EVENT_OPENED ||
        (event->info.of_no_disk && event->kind != JOB_EVENT_STATUS))
        return;
    const char *name = control_job_event(event, &data);
    json_t *message = control_event_message(name, data);
    fuzz_check(message, "no message for %s", name);
    json_decref(message);
}

static void shut_down(void *opaque)
{
    (void)opaque;
}

struct server {
    struct export_table exports;
    struct throttle_groups throttles;
    struct control_context context;
};

static json_t *handle(void *opaque, struct client *client, json_t *request)
{
    struct server *server = opaque;

    /* After a message that isn't JSON the jobs get some time to run. */
    if (!request)
        usleep(300);
    json_t *reply = control_execute(&server->context, &client->negotiated, request);
    fuzz_check(json_object_get(reply, "return") || json_object_get(reply, "error"),
               "neither a result nor an error");
    return reply;
}

/* ---- the client's side ---- */

/* Reads what the server sent; every line must be a JSON object.  cut: the server closed the
 * connection because the client hadn't read its replies, so that the last line may be incomplete.
 */
static void read_replies(int fd, bool cut)
{
    static char buffer[256 << 10];
    static size_t used;
    ssize_t n;

    while ((n = recv(fd, buffer + used, sizeof buffer - used, MSG_DONTWAIT)) > 0) {
        used += (size_t)n;
        for (char *end; (end = memchr(buffer, '\n', used));) {
            size_t length = (size_t)(end - buffer) + 1;
            json_t *reply = json_loadb(buffer, length, 0, NULL);
            fuzz_check(json_is_object(reply), "the reply is no object");
            json_decref(reply);
            used -= length;
            memmove(buffer, buffer + length, used);
        }
        fuzz_check(used < sizeof buffer, "a reply without an end");
    }
    if (n == 0) {
        fuzz_check(used == 0 || cut, "half a reply");
        used = 0;
    }
}

static void converse(struct server *server, const uint8_t *data, size_t size)
{
    int fds[2];

    if (socketpair(AF_UNIX, SOCK_STREAM, 0, fds) != 0)
        abort();
    struct client *client = client_new(fds[0]);
    if (!client)
        abort();
    while (size > 0 && !client->dead && !client->ending) {
        size_t n = MIN(size, PIECE);
        fuzz_check(write(fds[1], data, n) == (ssize_t)n, "write");
        client_receive(client, handle, server);
        read_replies(fds[1], client->dead);
        client_flush(client);
        data += n;
        size -= n;
    }
    while (client_has_queue(client) && !client->dead) {
        read_replies(fds[1], client->dead);
        client_flush(client);
    }
    bool cut = client->dead;
    client_free(client);
    read_replies(fds[1], cut);
    close(fds[1]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct plugin_config config;
    struct server server;

    if (!empty)
        make_empty();
    export_table_init(&server.exports);
    throttle_groups_init(&server.throttles);
    struct served_export *disks[] = {add_export(&server.exports, "disk0"),
                                     add_export(&server.exports, "disk1")};
    server.context = (struct control_context){
        .exports = &server.exports,
        .throttles = &server.throttles,
        .config = &config,
        .jobs = job_manager_new(on_job_event, NULL),
        .shut_down = shut_down,
    };
    node_table_init(&server.context.nodes);
    if (block_context_init(&server.context.trial, 1 << 20, NULL, NULL))
        abort();
    server.context.shared = &server.context.trial.own;
    converse(&server, data, size);
    for (size_t i = 0; i < ARRAY_LEN(disks); i++) {
        json_decref(control_find_corruption(disks[i], true));
        json_decref(control_find_corruption(disks[i], false));
    }
    job_manager_free(server.context.jobs);
    for (size_t i = 0; i < ARRAY_LEN(disks); i++) {
        fuzz_check(atomic_load(&disks[i]->references) == 0, "a job's reference is left");
        fuzz_check(disks[i]->jobs == 0, "a job is counted still");
        fuzz_check(disks[i]->users == 1, "a command is still a user");
        fuzz_check(export_close(disks[i]) == 0, "the disk can't be closed");
    }
    export_table_close(&server.exports);
    node_table_destroy(&server.context.nodes);
    block_context_destroy(&server.context.trial);
    export_table_destroy(&server.exports);
    throttle_groups_destroy(&server.throttles);
    return 0;
}
