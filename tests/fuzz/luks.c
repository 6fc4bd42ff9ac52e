/* SPDX-License-Identifier: BSD-3-Clause */
/* Fuzzes LUKS headers.  In a header that is accepted all areas must be inside the container, it
 * must be encoded to the same bytes again, and a passphrase can be tried on it.
 *
 * The input: a byte for the size of the container (that of the input, or larger, with zeroes
 * behind it), and the container's bytes. */
#include <errno.h>
#include <string.h>

#include "base/checked.h"
#include "crypto/luks.h"
#include "fuzz.h"

#define LARGE (3u << 20)

/* Headers with more iterations aren't tried with a passphrase: that would take too long. */
#define MAX_ITERATIONS 3000u

struct container {
    const uint8_t *bytes;
    size_t n;
    uint64_t limit;
};

static int read_container(void *opaque, void *buf, uint64_t off, size_t len)
{
    const struct container *c = opaque;
    uint8_t *out = buf;

    fuzz_check(range_inside(off, len, c->limit), "%zu bytes at %llu", len,
               (unsigned long long)off);
    memset(out, 0, len);
    if (off < c->n)
        memcpy(out, c->bytes + off, MIN(len, c->n - off));
    return 0;
}

static void check_places(const struct luks_header *h, uint64_t limit)
{
    uint64_t len = luks_material_bytes(h->key_bytes);
    uint64_t payload = (uint64_t)h->payload_sector * CIPHER_SECTOR;

    fuzz_check(payload <= limit, "payload");
    for (unsigned i = 0; i < LUKS_SLOTS; i++) {
        uint64_t at = (uint64_t)h->slot[i].material_sector * CIPHER_SECTOR;
        fuzz_check(at >= LUKS_AREA_BYTES && range_inside(at, len, payload), "slot %u", i);
        for (unsigned k = 0; k < i; k++)
            fuzz_check(!ranges_overlap(at, len,
                                       (uint64_t)h->slot[k].material_sector * CIPHER_SECTOR,
                                       len),
                       "slots %u and %u", i, k);
    }
}

static void check_accepted(const struct luks_header *h, uint64_t limit)
{
    uint8_t bytes[LUKS_HEADER_BYTES], again[LUKS_HEADER_BYTES];
    struct luks_header second;
    struct diag diag = {0};

    fuzz_check(cipher_key_bytes(&h->spec) == h->key_bytes, "key bytes");
    check_places(h, limit);
    luks_header_serialise(h, bytes);
    int err = luks_header_parse(&second, bytes, sizeof bytes, limit, "again", &diag);
    fuzz_check(err == 0, "%s", diag.text);
    luks_header_serialise(&second, again);
    fuzz_check(memcmp(bytes, again, sizeof bytes) == 0, "written back otherwise");
}

static bool is_quick(const struct luks_header *h)
{
    uint64_t iterations = h->digest_iterations;

    for (unsigned i = 0; i < LUKS_SLOTS; i++)
        iterations += h->slot[i].active ? h->slot[i].iterations : 0;
    return luks_active_slots(h) <= 1 && iterations <= MAX_ITERATIONS;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct luks_header h;
    struct luks *luks = NULL;
    struct diag diag = {0};

    if (size < 1)
        return 0;
    struct container c = {data + 1, size - 1, size - 1};
    if (data[0] & 1)
        c.limit = MAX(c.limit, LARGE);
    int err = luks_header_parse(&h, c.bytes, c.n, c.limit, "fuzz", &diag);
    fuzz_check_diag(err, &diag);
    if (err)
        return 0;
    check_accepted(&h, c.limit);
    if (!is_quick(&h))
        return 0;
    const struct luks_io io = {read_container, NULL, NULL, &c, c.limit, "fuzz"};
    err = luks_open(&luks, &io, "passphrase", 10, &diag);
    if (err)
        fuzz_check_diag(err, &diag);
    luks_close(luks);
    return 0;
}
