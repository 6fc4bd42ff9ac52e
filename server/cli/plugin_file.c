/* SPDX-License-Identifier: BSD-3-Clause */
/* Finds the plugin of the same build. */
#include "plugin_file.h"

#include <string.h>
#include <unistd.h>

#define PLUGIN_FILE "nbdkit-qimg-plugin.so"

const char *plugin_file(char *path, size_t size)
{
    ssize_t n = readlink("/proc/self/exe", path, size - sizeof PLUGIN_FILE);
    if (n > 0) {
        path[n] = '\0';
        char *slash = strrchr(path, '/');
        if (slash) {
            strcpy(slash + 1, PLUGIN_FILE);
            if (access(path, R_OK) == 0)
                return path;
        }
    }
    return "qimg";
}
