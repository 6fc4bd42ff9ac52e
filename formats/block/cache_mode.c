/* SPDX-License-Identifier: BSD-3-Clause */
/* The table of cache modes. */
#include <stddef.h>
#include <string.h>

#include "block/cache_mode.h"

static const struct cache_mode modes[] = {
    {.name = "writeback"},
    {.name = "writethrough", .write_through = true},
    {.name = "none", .direct = true},
    {.name = "directsync", .direct = true, .write_through = true},
    {.name = "volatile", .no_flush = true},
};

const struct cache_mode *cache_mode_find(const char *name)
{
    if (strcmp(name, "unsafe") == 0)
        name = "volatile";
    for (size_t i = 0; i < ARRAY_LEN(modes); i++)
        if (strcmp(modes[i].name, name) == 0)
            return &modes[i];
    return NULL;
}

const struct cache_mode *cache_mode_of(bool direct, bool no_flush, bool write_through)
{
    for (size_t i = 0; i < sizeof modes / sizeof modes[0]; i++)
        if (modes[i].direct == direct && modes[i].no_flush == no_flush &&
            modes[i].write_through == write_through)
            return &modes[i];
    return NULL;
}

const char *cache_mode_names(void)
{
    return "writeback, writethrough, none, directsync, volatile";
}
