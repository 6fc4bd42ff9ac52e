/* SPDX-License-Identifier: BSD-3-Clause */
/* The plugin that `qimg serve` has nbdkit load.  Layer: server. */
#ifndef CLI_PLUGIN_FILE_H
#define CLI_PLUGIN_FILE_H

#include <stddef.h>

/* What nbdkit is to be given for it: the file of the same build, which lies beside this
 * program, in `path` (PATH_MAX bytes); or the name by which nbdkit finds an installed one. */
const char *plugin_file(char *path, size_t size);

#endif
