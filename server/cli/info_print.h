/* SPDX-License-Identifier: BSD-3-Clause */
/* What `qimg info` prints for people.  Layer: server. */
#ifndef CLI_INFO_PRINT_H
#define CLI_INFO_PRINT_H

#include <stdio.h>

#include <jansson.h>

/* Prints one image's description, an object of `qimg info --output=json`. */
void info_print_human(const json_t *raw, FILE *out);

/* The list of its snapshots, if it has any. */
void info_print_snapshots(const json_t *object, FILE *out);

#endif
