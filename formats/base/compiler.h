/* SPDX-License-Identifier: BSD-3-Clause */
/* Attributes the compilers check for us.  Layer: base. */
#ifndef BASE_COMPILER_H
#define BASE_COMPILER_H

#define MUST_USE              __attribute__((warn_unused_result))
#define PRINTF_LIKE(fmt, arg) __attribute__((format(printf, fmt, arg)))
#define CLEANUP(fn)           __attribute__((cleanup(fn)))

/* For a function off the usual path: inlined there, it would take registers from that path. */
#define ASIDE __attribute__((noinline))

#define LIKELY(x)   __builtin_expect(!!(x), 1)
#define UNLIKELY(x) __builtin_expect(!!(x), 0)

#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

#define ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))

/* The struct whose `member` is at `ptr`. */
#define CONTAINER_OF(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))

#endif
