/* SPDX-License-Identifier: BSD-3-Clause */
/* The control socket: its thread, its clients, and the events that they get. */
#include "control.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/thread.h"
#include "common/json_text.h"
#include "control_client.h"
#include "control_cmds.h"
#include "control_events.h"
#include "control_handover.h"
#include "control_lane.h"
#include "control_query.h"
#include "control_queue.h"
#include "control_socket.h"
#include "export_table.h"
#include "jobs/manager.h"

#define MAX_CLIENTS 256
/* How long the server's end waits for clients to read what is queued for them. */
#define LAST_WORDS_MS 500

struct control {
    struct control_context context;
    struct control_socket socket;
    int wake_fd; /* eventfd; readable: events are queued, or the thread is to stop */
    bool started;
    pthread_t thread;

    _Atomic bool job_is_over;    /* a job has to be freed */
    _Atomic bool request_failed; /* check whether an image is corrupt */
    _Atomic bool stopping;
    struct control_queue queue; /* events and answers for the control thread to send */

    /* the control thread's */
    struct client *clients[MAX_CLIENTS];
    unsigned n_clients;
    /* accept failed for lack of descriptors or memory: pause before the next */
    bool out_of_files;
};

/* ---- events; any thread ---- */

static void wake_thread(struct control *control)
{
    uint64_t one = 1;

    /* EAGAIN: the counter is full, which wakes the thread, too. */
    if (write(control->wake_fd, &one, sizeof one) < 0 && errno != EAGAIN)
        log_error("control socket: cannot wake its thread: %s", strerror(errno));
}

void control_event(struct control *control, const char *name, json_t *data)
{
    json_t *message = control_event_message(name, data);
    char *text = message ? json_dumps(message, JSON_COMPACT) : NULL;

    json_decref(message);
    if (!text)
        return;
    control_queue_add_event(&control->queue, text);
    wake_thread(control);
}

void control_request_failed(struct control *control)
{
    if (!atomic_exchange(&control->request_failed, true))
        wake_thread(control);
}

/* Takes over the answer. */
static void note_answer(void *opaque, struct control_answer *answer)
{
    struct control *control = opaque;

    control_queue_add_answer(&control->queue, answer);
    wake_thread(control);
}

/* Answers the command that started the job. */
static void note_opened(struct control *control, const struct job_event *event)
{
    struct control_answer answer = {.ticket = event->info.ticket};

    if (event->err == 0) {
        answer.value = json_object();
    } else {
        control_fail(&answer.error, CLASS_GENERIC, "%s", event->info.error);
        answer.error.diag.err = -event->err;
        atomic_store(&control->job_is_over, true);
    }
    note_answer(control, &answer);
}

/* Exactly one such event comes for each job that was started, when it has given back its
 * seat at the disk. */
static bool is_end_of_job(const struct job_event *event)
{
    return event->kind == JOB_EVENT_COMPLETED || event->kind == JOB_EVENT_CANCELLED ||
           (event->kind == JOB_EVENT_OPENED && event->err);
}

static void give_back_export(const struct job_event *event)
{
    if (event->info.owner)
        export_end_job(event->info.owner);
}

static void on_job_event(void *opaque, const struct job_event *event)
{
    struct control *control = opaque;
    json_t *data;

    if (is_end_of_job(event))
        give_back_export(event);
    if (event->kind == JOB_EVENT_OPENED) {
        note_opened(control, event);
        return;
    }
    if (event->kind == JOB_EVENT_STATUS && event->info.state == JOB_NULL)
        atomic_store(&control->job_is_over, true);
    if (event->info.of_no_disk && event->kind != JOB_EVENT_STATUS)
        return;
    const char *name = control_job_event(event, &data);
    control_event(control, name, data);
}

/* ---- the thread ---- */

static json_t *handle_request(void *opaque, struct client *client, json_t *request)
{
    struct control *control = opaque;

    if (!request && client->ending)
        return control_refusal("The message is too long");
    json_t *reply = control_execute(&control->context, &client->negotiated, request);
    if (!reply) {
        client->awaits = control->context.awaited;
        client->id = json_incref(json_object_get(request, "id"));
    }
    return reply;
}

static void report_dropped(struct control *control)
{
    unsigned dropped = control_queue_take_dropped(&control->queue);

    if (dropped)
        log_warning("control socket: %u events were dropped", dropped);
}

static void send_to_all(struct control *control, const char *text)
{
    for (unsigned i = 0; i < control->n_clients; i++) {
        if (!control->clients[i]->negotiated)
            continue;
        client_send_text(control->clients[i], text, strlen(text));
        client_send_text(control->clients[i], "\r\n", 2);
    }
}

static void hand_out_sockets(struct control *control, struct client *client)
{
    client->took_over = true;
    control_socket_put_aside(&control->socket);
    client_send_sockets(client, control->context.sockets.fds, control->context.sockets.n);
}

/* Takes over the answer's value.  The client that asked may have left. */
static void send_answer(struct control *control, struct control_answer *answer)
{
    control_note_handover(&control->context, answer);
    bool hands_over = answer->ticket == control->context.handover_ticket;
    for (unsigned i = 0; i < control->n_clients; i++) {
        struct client *client = control->clients[i];
        if (client->awaits != answer->ticket)
            continue;
        if (hands_over)
            hand_out_sockets(control, client);
        client_answer(client, control_reply(answer->value, &answer->error, client->id),
                      handle_request, control);
        return;
    }
    if (hands_over)
        control_take_back(&control->context);
    json_decref(answer->value);
}

static void hand_out_events(struct control *control)
{
    struct control_note note;

    while (control_queue_take(&control->queue, &note)) {
        if (note.event)
            send_to_all(control, note.event);
        else
            send_answer(control, &note.answer);
        free(note.event);
    }
    report_dropped(control);
}

static void accept_client(struct control *control)
{
    int fd = accept4(control->socket.fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

    if (fd < 0) {
        control->out_of_files = errno == EMFILE || errno == ENFILE || errno == ENOMEM;
        return;
    }
    struct client *client = client_new(fd);
    if (!client) {
        close(fd);
        return;
    }
    control->clients[control->n_clients++] = client;
    client_send(client, control_greeting());
}

/* If a client that has taken over the sockets leaves without having said `quit`, the other
 * server has failed: this one takes everything back. */
static void drop_client(struct control *control, struct client *client)
{
    if (client->took_over && !control->context.quit_came) {
        control_socket_put_back(&control->socket);
        control_take_back(&control->context);
    }
    client_free(client);
}

static void drop_dead_clients(struct control *control)
{
    unsigned alive = 0;

    for (unsigned i = 0; i < control->n_clients; i++) {
        if (control->clients[i]->dead)
            drop_client(control, control->clients[i]);
        else
            control->clients[alive++] = control->clients[i];
    }
    control->n_clients = alive;
}

/* The order in fds: the clients, then wake_fd, then the listening socket. */
static nfds_t prepare_poll(const struct control *control, struct pollfd *fds)
{
    nfds_t n = 0;

    for (; n < control->n_clients; n++) {
        const struct client *client = control->clients[n];
        short events = (short)((client->ending || client->awaits ? 0 : POLLIN) |
                               (client_has_queue(client) ? POLLOUT : 0));
        fds[n] = (struct pollfd){client->fd, events, 0};
    }
    fds[n++] = (struct pollfd){control->wake_fd, POLLIN, 0};
    if (control->n_clients < MAX_CLIENTS && !control->out_of_files)
        fds[n++] = (struct pollfd){control->socket.fd, POLLIN, 0};
    return n;
}

static void serve_client(struct control *control, struct client *client, short revents)
{
    if (revents & (POLLOUT | POLLHUP | POLLERR))
        client_flush(client);
    if (client->awaits) {
        client->dead |= (revents & (POLLHUP | POLLERR)) != 0;
        return;
    }
    if (revents & (POLLIN | POLLHUP | POLLERR) && !client->ending && !client->dead)
        client_receive(client, handle_request, control);
}

static void drain_wake_fd(const struct control *control)
{
    uint64_t count;

    while (read(control->wake_fd, &count, sizeof count) < 0 && errno == EINTR)
        ;
}

/* Looking at the jobs frees those that are over, with everything that they have open. */
static void free_jobs(struct control *control)
{
    if (atomic_exchange(&control->job_is_over, false))
        job_query(control->context.jobs, NULL, 0);
}

static bool tell_corruption(struct control *control, struct served_export *exp, bool fatal)
{
    json_t *data = control_find_corruption(exp, fatal);

    if (data)
        control_event(control, "BLOCK_IMAGE_CORRUPTED", data);
    return data;
}

/* Reported once in an export's life, and once more if it makes writes fail from then on. */
static void look_for_corruption_of(struct control *control, struct served_export *exp)
{
    if (exp->fatal_corruption_told)
        return;
    exp->fatal_corruption_told = tell_corruption(control, exp, true);
    if (!exp->fatal_corruption_told && !exp->corruption_told)
        exp->corruption_told = tell_corruption(control, exp, false);
}

static void look_for_corruption(struct control *control)
{
    if (!atomic_exchange(&control->request_failed, false))
        return;
    EXPORT_TABLE_EACH (exp, control->context.exports)
        look_for_corruption_of(control, exp);
}

static void serve_once(struct control *control)
{
    struct pollfd fds[MAX_CLIENTS + 2];
    unsigned n_clients = control->n_clients;
    nfds_t n = prepare_poll(control, fds);

    if (poll(fds, n, control->out_of_files ? 100 : -1) < 0)
        return;
    control->out_of_files = false;
    for (unsigned i = 0; i < n_clients; i++)
        if (fds[i].revents)
            serve_client(control, control->clients[i], fds[i].revents);
    if (fds[n_clients].revents)
        drain_wake_fd(control);
    free_jobs(control);
    look_for_corruption(control);
    hand_out_events(control);
    if (n > n_clients + 1 && fds[n_clients + 1].revents)
        accept_client(control);
    drop_dead_clients(control);
}

/* Sends what is queued to those clients that read it. */
static void say_last_words(struct control *control)
{
    int64_t end = (int64_t)clock_ms() + LAST_WORDS_MS;

    for (;;) {
        struct pollfd fds[MAX_CLIENTS];
        nfds_t n = 0;
        for (unsigned i = 0; i < control->n_clients; i++) {
            client_flush(control->clients[i]);
            if (client_has_queue(control->clients[i]) && !control->clients[i]->dead)
                fds[n++] = (struct pollfd){control->clients[i]->fd, POLLOUT, 0};
        }
        int64_t left = end - (int64_t)clock_ms();
        if (n == 0 || left <= 0 || poll(fds, n, (int)left) == 0)
            return;
    }
}

static void end_jobs(struct control *control)
{
    control_lane_free(control->context.lane);
    control->context.lane = NULL;
    job_manager_free(control->context.jobs);
    control->context.jobs = NULL;
}

static void *control_main(void *opaque)
{
    struct control *control = opaque;

    while (!atomic_load(&control->stopping))
        serve_once(control);
    control_event(control, "SHUTDOWN",
                  json_pack("{s:b,s:s}", "guest", 0, "reason",
                            control->context.quit_came ? "host-qmp-quit" : "host-signal"));
    hand_out_events(control);
    end_jobs(control);
    hand_out_events(control);
    say_last_words(control);
    return NULL;
}

/* ---- the main thread ---- */

static void tell_export_deleted(void *opaque, const char *id)
{
    json_t *data = json_object();

    json_object_set_new(data, "id", json_from_text(id));
    control_event(opaque, "BLOCK_EXPORT_DELETED", data);
}

static void control_free(struct control *control)
{
    for (unsigned i = 0; i < control->n_clients; i++)
        client_free(control->clients[i]);
    end_jobs(control);
    node_table_destroy(&control->context.nodes);
    block_context_destroy(&control->context.trial);
    control_queue_destroy(&control->queue);
    if (control->wake_fd >= 0)
        close(control->wake_fd);
    free(control);
}

/* Everything but the socket.  On failure control_free frees what is there. */
static int fill_control(struct control *control, const struct control_setup *setup)
{
    control_queue_init(&control->queue);
    control->context = (struct control_context){
        .exports = setup->exports,
        .throttles = setup->throttles,
        .jobs = job_manager_new(on_job_event, control),
        .config = setup->config,
        .give_up = &control->stopping,
        .shut_down = setup->shut_down,
        .hand_over = setup->hand_over,
        .take_back = setup->take_back,
        .opaque = setup->opaque,
    };
    node_table_init(&control->context.nodes);
    control->context.shared = setup->shared;
    block_context_init_shared(&control->context.trial, setup->shared);
    control->context.lane = control_lane_new(&control->context, note_answer, control);
    control->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    bool full = control->wake_fd >= 0 && control->context.jobs && control->context.lane;
    return full ? 0 : -ENOMEM;
}

int control_open(const struct control_setup *setup, struct control **out, struct diag *diag)
{
    struct control *control = calloc(1, sizeof *control);

    if (!control)
        return diag_errno(diag, ENOMEM, "control=%s", setup->path);
    int err = fill_control(control, setup);
    if (err)
        diag_errno(diag, -err, "control=%s", setup->path);
    else
        err = control_socket_open(&control->socket, setup->path, diag);
    if (err) {
        control_free(control);
        return err;
    }
    *out = control;
    return 0;
}

int control_start(struct control *control)
{
    export_table_tell_closed(control->context.exports, tell_export_deleted, control);
    int err = thread_start(&control->thread, control_main, control);

    control->started = err == 0;
    return err;
}

void control_begin_close(struct control *control)
{
    atomic_store(&control->stopping, true);
    wake_thread(control);
}

void control_stop(struct control *control)
{
    if (!control)
        return;
    control_begin_close(control);
    if (control->started)
        pthread_join(control->thread, NULL);
    control->started = false;
}

void control_close(struct control *control)
{
    if (!control)
        return;
    control_stop(control);
    export_table_tell_closed(control->context.exports, NULL, NULL);
    control_socket_close(&control->socket);
    control_free(control);
}
