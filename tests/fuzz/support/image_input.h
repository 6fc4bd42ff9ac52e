/* SPDX-License-Identifier: BSD-3-Clause */
/* The input of the targets for images:
 *
 *     program (64 bytes) | the image's bytes
 *
 * The program's first word has options, each other word is a step: a request to the opened
 * image.  It has a place of its own so that mutations of the one don't move the other. */
#ifndef SUPPORT_IMAGE_INPUT_H
#define SUPPORT_IMAGE_INPUT_H

#include "block/driver.h"
#include "block/node.h"
#include "fuzz.h"

#define PROGRAM_BYTES 64u
#define PROGRAM_STEPS (PROGRAM_BYTES / 4 - 1)

/* No image grows over this. */
#define MAX_MEMORY (16u << 20)

/* The options' first byte. */
enum image_option {
    OPTION_READ_ONLY = 0x01,
    OPTION_FIXED_SIZE = 0x02,
    OPTION_LAZY = 0x04, /* lazy refcounts, whatever the image says */
    OPTION_DISCARD_IGNORE = 0x08,
    OPTION_DETECT_ZEROES = 0x10,
    OPTION_CHECK = 0x20, /* when the image is sound, what is done to it has to be right */
    OPTION_REPAIR_ALL = 0x40,
    OPTION_KEEP_MAPPINGS = 0x80,
};

struct image_step {
    uint8_t what, how;
    uint16_t where;
};

struct image_input {
    uint8_t options;
    uint8_t log_size; /* of the file, which ends in a hole; 0: it has none */
    struct image_step steps[PROGRAM_STEPS];
    const uint8_t *bytes;
    size_t n;
};

/* False: the input is too short. */
bool image_input_parse(const uint8_t *data, size_t size, struct image_input *out);

/* The image in memory; the file's size is at most max_size or that of the bytes. */
struct storage *image_input_storage(const struct image_input *in, uint64_t max_size);

/* Opens, uses as the program says, closes and opens again. */
void image_session(const struct image_input *in, const struct driver *driver);

struct image_check {
    enum check_repair repair;
    bool keep_mappings;
    /* What became of it: */
    struct check_result result;
    struct diag diag;
    bool gave_up; /* it said that it can't repair everything */
};

/* Checks, and repairs as asked; messages that contradict results are a finding. */
int image_check(const struct driver *driver, struct storage *st, struct image_check *check);

/* Is nothing at all wrong with it? */
bool image_is_sound(const struct driver *driver, struct storage *st);

#endif
