/* SPDX-License-Identifier: BSD-3-Clause */
/* A folder of its own for a test's files.
 *
 * It lies where $QIMG_TEST_DIR says, else in /var/tmp, which unlike /tmp is seldom in
 * memory, so that O_DIRECT means something there. */
#ifndef SUPPORT_SCRATCH_H
#define SUPPORT_SCRATCH_H

struct scratch {
    char dir[256];
};

/* Aborts when there is no place to write to. */
void scratch_make(struct scratch *scratch);

/* The path of a name in the folder; the caller frees it. */
char *scratch_path(const struct scratch *scratch, const char *name);

/* Removes the folder and everything in it. */
void scratch_remove(struct scratch *scratch);

#endif
