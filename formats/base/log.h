/* SPDX-License-Identifier: BSD-3-Clause */
/* Messages that belong to no caller: background failures, corruption met while serving.
 *
 * The core prints nothing itself; plugin, command and tests set a sink.  Without one,
 * messages go to stderr.  Any thread may log.  Layer: base. */
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
