/* SPDX-License-Identifier: BSD-3-Clause */
/* The input of the fuzz targets for images:
 *
 *     program (64 bytes) | the image's bytes
 *
 * The program's first 32-bit word holds options; each other word is a step, a request to the
 * opened image.  The program has a fixed size so that mutations of it don't move the image. */
#ifndef SUPPORT_IMAGE_INPUT_H
#define SUPPORT_IMAGE_INPUT_H

#include "block/driver.h"
#include "block/node.h"
#include "fuzz.h"

#define PROGRAM_BYTES 64u
#define PROGRAM_STEPS (PROGRAM_BYTES / 4 - 1)

/* The limit of an image's memory in bytes. */
#define MAX_MEMORY (16u << 20)

/* Bits of the first byte of the options. */
enum image_option {
    OPTION_READ_ONLY = 0x01,
    OPTION_FIXED_SIZE = 0x02,
    OPTION_LAZY = 0x04, /* lazy refcounts, whatever the image says */
    OPTION_DISCARD_IGNORE = 0x08,
    OPTION_DETECT_ZEROES = 0x10,
    OPTION_CHECK = 0x20, /* if the image is sound, check that requests do the right thing */
    OPTION_REPAIR_ALL = 0x40,
    OPTION_KEEP_MAPPINGS = 0x80,
};

struct image_step {
    uint8_t what, how;
    uint16_t where;
};

struct image_input {
    uint8_t options;
    uint8_t log_size; /* the file is enlarged by a hole to 2^log_size bytes; 0: it isn't */
    struct image_step steps[PROGRAM_STEPS];
    const uint8_t *bytes;
    size_t n;
};

/* False: the input is too short. */
bool image_input_parse(const uint8_t *data, size_t size, struct image_input *out);

/* A mem storage with the image.  Its size is at most the larger of max_size and the number of
 * bytes. */
struct storage *image_input_storage(const struct image_input *in, uint64_t max_size);

/* Opens the image, runs the program's steps, closes it and opens it again. */
void image_session(const struct image_input *in, const struct driver *driver);

struct image_check {
    enum check_repair repair;
    bool keep_mappings;
    /* The results: */
    struct check_result result;
    struct diag diag;
    bool gave_up; /* a message said that not everything can be repaired */
};

/* Checks the image, and repairs it as check->repair says.  0 or -errno.  Figures without a message,
 * or bad messages, are a finding. */
int image_check(const struct driver *driver, struct storage *st, struct image_check *check);

/* Does a check find nothing at all, not even leaks? */
bool image_is_sound(const struct driver *driver, struct storage *st);

#endif
