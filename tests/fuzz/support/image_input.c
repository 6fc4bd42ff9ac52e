/* SPDX-License-Identifier: BSD-3-Clause */
/* Takes an input apart, and checks images; see image_input.h. */
#include "image_input.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "mem_storage.h"

static void must(int err)
{
    if (err)
        abort();
}

bool image_input_parse(const uint8_t *data, size_t size, struct image_input *out)
{
    if (size <= PROGRAM_BYTES)
        return false;
    *out = (struct image_input){
        .options = data[0],
        .log_size = data[1] & 63,
        .bytes = data + PROGRAM_BYTES,
        .n = size - PROGRAM_BYTES,
    };
    for (size_t i = 0; i < PROGRAM_STEPS; i++) {
        const uint8_t *p = data + 4 + 4 * i;
        out->steps[i] =
            (struct image_step){p[0], p[1], (uint16_t)(p[2] | (unsigned)p[3] << 8)};
    }
    return true;
}

struct storage *image_input_storage(const struct image_input *in, uint64_t max_size)
{
    struct storage *st = mem_storage_new(0);
    uint64_t size = MIN(UINT64_C(1) << in->log_size, max_size);

    must(storage_write(st, in->bytes, 0, in->n, 0));
    if (in->log_size && size > in->n)
        must(storage_truncate(st, size));
    mem_storage_limit(st, MAX_MEMORY);
    st->fixed_size = in->options & OPTION_FIXED_SIZE;
    return st;
}

/* ---- checks ---- */

struct witness {
    struct image_check *check;
    uint64_t messages;
};

static void hear(void *opaque, const char *text)
{
    struct witness *witness = opaque;

    fuzz_check(text[0] && !strchr(text, '\n'), "message '%s'", text);
    if (fuzz_verbose)
        fprintf(stderr, "  %s\n", text);
    witness->messages++;
    /* qcow2: the whole image can't be repaired, or a refcount would need more bits.  QED: two
     * entries refer to the same cluster. */
    if (strstr(text, "nothing is repaired") || strstr(text, "than a refcount can say") ||
        strstr(text, "are in use elsewhere"))
        witness->check->gave_up = true;
}

static void look_at_progress(void *opaque, uint64_t done, uint64_t total)
{
    (void)opaque;
    fuzz_check(done <= total, "%ju of %ju is done", (uintmax_t)done, (uintmax_t)total);
}

int image_check(const struct driver *driver, struct storage *st, struct image_check *check)
{
    struct witness witness = {.check = check};
    struct check_result *result = &check->result;
    const struct check_options options = {
        .repair = check->repair,
        .keep_mappings = check->keep_mappings,
        .progress = look_at_progress,
        .message = hear,
        .opaque = &witness,
    };

    if (fuzz_verbose)
        fprintf(stderr, "check, repair %d:\n", (int)check->repair);
    *result = (struct check_result){0};
    check->diag = (struct diag){0};
    check->gave_up = false;
    int err = driver->check(st, &options, result, &check->diag);
    fuzz_check_diag(err, &check->diag);
    if (!err && (result->corruptions || result->leaks || result->check_errors))
        fuzz_check(witness.messages > 0, "findings, and nothing is said of them");
    return err;
}

bool image_is_sound(const struct driver *driver, struct storage *st)
{
    struct image_check check = {.repair = REPAIR_NONE};

    return image_check(driver, st, &check) == 0 && !check.result.corruptions &&
           !check.result.leaks && !check.result.check_errors;
}
