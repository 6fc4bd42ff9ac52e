/* SPDX-License-Identifier: BSD-3-Clause */
/* Noting the signals that end a command. */
#include "interrupt.h"

#include <stddef.h>
#include <stdio.h>

#include "base/compiler.h"

volatile sig_atomic_t interrupt_came;

static const int ending[] = {SIGINT, SIGTERM, SIGHUP};

static void note_signal(int number)
{
    interrupt_came = number;
}

void interrupt_catch(void)
{
    struct sigaction action = {.sa_handler = note_signal, .sa_flags = (int)SA_RESETHAND};

    for (size_t i = 0; i < ARRAY_LEN(ending); i++) {
        struct sigaction before;
        /* Who started us with one ignored goes on so. */
        if (sigaction(ending[i], NULL, &before) == 0 && before.sa_handler != SIG_IGN)
            sigaction(ending[i], &action, NULL);
    }
}

void interrupt_die(void)
{
    if (!interrupt_came)
        return;
    fflush(NULL);
    signal(interrupt_came, SIG_DFL);
    raise(interrupt_came);
}
