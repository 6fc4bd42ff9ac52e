/* SPDX-License-Identifier: BSD-3-Clause */
/* Starts threads.  Layer: base. */
#ifndef BASE_THREAD_H
#define BASE_THREAD_H

#include <pthread.h>

#include "base/compiler.h"

/* Starts a thread with all signals blocked: signals of the process are delivered to the threads
 * of its server (nbdkit).  Returns 0 or -errno. */
int thread_start(pthread_t *thread, void *(*run)(void *), void *argument) MUST_USE;

#endif
