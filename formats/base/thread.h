/* SPDX-License-Identifier: BSD-3-Clause */
/* Threads of our own.  Layer: base. */
#ifndef BASE_THREAD_H
#define BASE_THREAD_H

#include <pthread.h>

#include "base/compiler.h"

/* Starts a thread that takes no signals: those that the process gets are for the threads of
 * its server.  0 or -errno. */
int thread_start(pthread_t *thread, void *(*run)(void *), void *argument) MUST_USE;

#endif
