/* SPDX-License-Identifier: BSD-3-Clause */
/* Fuzzes the command's client of the control socket: the input is what a hostile server answers. */
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "cli.h"
#include "fuzz.h"
#include "qmp_client.h"

/* Fits into a socket's buffer, so that the whole input can be sent at once without a thread. */
#define MAX_INPUT 32768u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    int fds[2], code = CLI_OK;

    if (size > MAX_INPUT)
        return 0;
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, fds) != 0)
        abort();
    fuzz_check(write(fds[1], data, size) == (ssize_t)size, "write");
    shutdown(fds[1], SHUT_WR);
    struct qmp qmp = {.fd = fds[0], .events = json_array()};
    for (unsigned i = 0; code == CLI_OK; i++) {
        json_t *value = NULL;
        code = i % 2 ? qmp_event(&qmp, 0, &value)
                     : qmp_command(&qmp, "query-jobs", json_object(), &value);
        json_decref(value);
        fuzz_check(i < 2 * MAX_INPUT, "more answers than bytes");
    }
    qmp_close(&qmp);
    close(fds[1]);
    return 0;
}
