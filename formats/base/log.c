/* SPDX-License-Identifier: BSD-3-Clause */
/* Formats messages and hands them to the sink. */
#include <stdio.h>

#include "base/log.h"
#include "base/plain_text.h"

#define LONGEST 4096

static void log_to_stderr(enum log_level level, const char *fmt, va_list ap)
{
    if (level == LOG_DEBUG)
        return;
    flockfile(stderr);
    vfprintf(stderr, fmt, ap);
    fputc('\n', stderr);
    funlockfile(stderr);
}

static log_sink *current_sink = log_to_stderr;

void log_set_sink(log_sink *sink)
{
    current_sink = sink ? sink : log_to_stderr;
}

static void PRINTF_LIKE(2, 3) hand_over(enum log_level level, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    current_sink(level, fmt, ap);
    va_end(ap);
}

static void write_message(enum log_level level, const char *fmt, va_list ap)
{
    char text[LONGEST];

    vsnprintf(text, sizeof text, fmt, ap);
    plain_text_tame(text, "");
    hand_over(level, "%s", text);
}

#define DEFINE_LOG(name, level)        \
    void name(const char *fmt, ...)    \
    {                                  \
        va_list ap;                    \
        va_start(ap, fmt);             \
        write_message(level, fmt, ap); \
        va_end(ap);                    \
    }

DEFINE_LOG(log_error, LOG_ERROR)
DEFINE_LOG(log_warning, LOG_WARNING)
DEFINE_LOG(log_debug, LOG_DEBUG)
