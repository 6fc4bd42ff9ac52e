/* SPDX-License-Identifier: BSD-3-Clause */
/* Signals that ask a command to end: it ends what it is at, says what became of its target,
 * and then dies of the signal.  A second one kills it at once.  Layer: server. */
#ifndef CLI_INTERRUPT_H
#define CLI_INTERRUPT_H

#include <signal.h>

/* Not 0 once one came; stays 0 until interrupt_catch. */
extern volatile sig_atomic_t interrupt_came;

void interrupt_catch(void);

/* They kill again, as before interrupt_catch. */
void interrupt_let_go(void);

/* Dies of the signal that came; returns when none did. */
void interrupt_die(void);

#endif
