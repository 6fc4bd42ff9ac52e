/* SPDX-License-Identifier: BSD-3-Clause */
/* Runs a fuzz target on files, without libFuzzer: inputs that once caused a failure are tested in
 * every build.
 *
 *     replay_TARGET FILE-OR-FOLDER... */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "fuzz.h"

static unsigned replayed;

static void give_up(const char *path)
{
    fprintf(stderr, "%s: %s\n", path, strerror(errno));
    exit(1);
}

static void replay_file(const char *path, size_t size)
{
    /* Exactly that size, so that the address sanitizer sees a read past the end. */
    uint8_t *data = malloc(size ? size : 1);
    FILE *file = fopen(path, "r");

    if (!data || !file || fread(data, 1, size, file) != size)
        give_up(path);
    fclose(file);
    fprintf(stderr, "%s\n", path);
    LLVMFuzzerTestOneInput(data, size);
    free(data);
    replayed++;
}

static void replay(const char *path);

static void replay_folder(const char *path)
{
    struct dirent **names;
    int n = scandir(path, &names, NULL, alphasort);

    if (n < 0)
        give_up(path);
    for (int i = 0; i < n; i++) {
        CLEANUP_FREE char *below = NULL;
        if (names[i]->d_name[0] != '.') {
            if (asprintf(&below, "%s/%s", path, names[i]->d_name) < 0)
                abort();
            replay(below);
        }
        free(names[i]);
    }
    free(names);
}

static void replay(const char *path)
{
    struct stat sb;

    if (stat(path, &sb) != 0)
        give_up(path);
    if (S_ISDIR(sb.st_mode))
        replay_folder(path);
    else
        replay_file(path, (size_t)sb.st_size);
}

int main(int argc, char **argv)
{
    LLVMFuzzerInitialize(&argc, &argv);
    for (int i = 1; i < argc; i++)
        replay(argv[i]);
    /* A summary in the form of the other test programs, so that they can be added up. */
    printf("Tested: %u | Passing: %u\n", replayed, replayed);
    return replayed ? 0 : 1;
}
