/* SPDX-License-Identifier: BSD-3-Clause */
/* The output of `qimg info` as text.  Layer: server. */
#ifndef CLI_INFO_PRINT_H
#define CLI_INFO_PRINT_H

#include <stdio.h>

#include <jansson.h>

/* Prints one image's description, which is an object of `qimg info --output=json`. */
void info_print_human(const json_t *raw, FILE *out);

/* Prints the table of its snapshots, if it has any. */
void info_print_snapshots(const json_t *object, FILE *out);

#endif
