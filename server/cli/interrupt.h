/* SPDX-License-Identifier: BSD-3-Clause */
/* Signals that end a command.  After the first one the command stops its work, says what
 * became of its target, and then dies of the signal.  A second one kills it at once.
 * SIGPIPE, which says that nobody reads the output, is such a signal, too, and may come again;
 * offline commands ignore it (main.c), and finish their work.
 * Layer: server. */
#ifndef CLI_INTERRUPT_H
#define CLI_INTERRUPT_H

#include <signal.h>

/* The signal's number once one came; 0 before.  Signals are only caught after
 * interrupt_catch. */
extern volatile sig_atomic_t interrupt_came;

void interrupt_catch(void);

/* The signals kill the process again, as before interrupt_catch. */
void interrupt_let_go(void);

/* Dies of the signal that came; returns if none did. */
void interrupt_die(void);

#endif
