/* SPDX-License-Identifier: BSD-3-Clause */
/* Catches the signals that end a command. */
#include "interrupt.h"

#include <stddef.h>
#include <stdio.h>

#include "base/compiler.h"

volatile sig_atomic_t interrupt_came;

/* A second signal of the first three kills the command at once.  SIGPIPE comes again with each
 * word that is written to a closed pipe, and must not end the cleaning up. */
static const struct {
    int number, flags;
} ending[] = {
    {SIGINT, (int)SA_RESETHAND},
    {SIGTERM, (int)SA_RESETHAND},
    {SIGHUP, (int)SA_RESETHAND},
    {SIGPIPE, 0},
};

/* The command dies of the first one. */
static void note_signal(int number)
{
    if (!interrupt_came)
        interrupt_came = number;
}

/* A signal that the parent process made us ignore stays ignored. */
static void handle_all(void (*handler)(int))
{
    for (size_t i = 0; i < ARRAY_LEN(ending); i++) {
        const struct sigaction action = {.sa_handler = handler,
                                         .sa_flags = ending[i].flags};
        struct sigaction before;
        if (sigaction(ending[i].number, NULL, &before) == 0 && before.sa_handler != SIG_IGN)
            sigaction(ending[i].number, &action, NULL);
    }
}

void interrupt_catch(void)
{
    handle_all(note_signal);
}

void interrupt_let_go(void)
{
    handle_all(SIG_DFL);
}

void interrupt_die(void)
{
    if (!interrupt_came)
        return;
    fflush(NULL);
    signal(interrupt_came, SIG_DFL);
    raise(interrupt_came);
}
