/* SPDX-License-Identifier: BSD-3-Clause */
/* A new temporary folder for the files of one test.
 *
 * It is created in $QIMG_TEST_DIR, or else in /var/tmp: unlike /tmp that is seldom a tmpfs,
 * so that O_DIRECT is tested on a real filesystem. */
#ifndef SUPPORT_SCRATCH_H
#define SUPPORT_SCRATCH_H

struct scratch {
    char dir[256];
};

/* Creates the folder; aborts when it can't. */
void scratch_make(struct scratch *scratch);

/* The path of a file of that name in the folder; the caller frees it. */
char *scratch_path(const struct scratch *scratch, const char *name);

/* Removes the folder and everything in it. */
void scratch_remove(struct scratch *scratch);

#endif
