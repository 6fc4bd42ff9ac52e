/* SPDX-License-Identifier: BSD-3-Clause */
/* Catches the signals that end a command. */
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

/* A signal that the parent process made us ignore stays ignored. */
static void handle_all(const struct sigaction *action)
{
    for (size_t i = 0; i < ARRAY_LEN(ending); i++) {
        struct sigaction before;
        if (sigaction(ending[i], NULL, &before) == 0 && before.sa_handler != SIG_IGN)
            sigaction(ending[i], action, NULL);
    }
}

void interrupt_catch(void)
{
    handle_all(
        &(struct sigaction){.sa_handler = note_signal, .sa_flags = (int)SA_RESETHAND});
}

void interrupt_let_go(void)
{
    handle_all(&(struct sigaction){.sa_handler = SIG_DFL});
}

void interrupt_die(void)
{
    if (!interrupt_came)
        return;
    fflush(NULL);
    signal(interrupt_came, SIG_DFL);
    raise(interrupt_came);
}
