/* SPDX-License-Identifier: BSD-3-Clause */
/* The plugin that `qimg serve` passes to nbdkit.  Layer: server. */
#ifndef CLI_PLUGIN_FILE_H
#define CLI_PLUGIN_FILE_H

#include <stddef.h>

/* The plugin's file beside this program, which is of the same build, written to `path`
 * (PATH_MAX bytes).  If there is none: the name by which nbdkit finds an installed plugin. */
const char *plugin_file(char *path, size_t size);

#endif
