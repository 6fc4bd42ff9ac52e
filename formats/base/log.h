/* SPDX-License-Identifier: BSD-3-Clause */
/* Messages that can't be returned to a caller: failures in the background, corruption found
 * while serving.
 *
 * The layers above set a sink that prints them (the plugin, the command and the tests have one
 * each); without one, messages go to stderr, except LOG_DEBUG.  Control characters in messages
 * become '?'.  Threads: any.  Layer: base. */
#ifndef BASE_LOG_H
#define BASE_LOG_H

#include <stdarg.h>

#include "base/compiler.h"

enum log_level { LOG_ERROR, LOG_WARNING, LOG_DEBUG };

/* fmt and ap describe one line without its newline. */
typedef void log_sink(enum log_level level, const char *fmt, va_list ap);

/* To be called before threads start. */
void log_set_sink(log_sink *sink);

void log_error(const char *fmt, ...) PRINTF_LIKE(1, 2);
void log_warning(const char *fmt, ...) PRINTF_LIKE(1, 2);
void log_debug(const char *fmt, ...) PRINTF_LIKE(1, 2);

#endif
