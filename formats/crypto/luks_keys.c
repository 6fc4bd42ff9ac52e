/* SPDX-License-Identifier: BSD-3-Clause */
/* Changing the passphrases of a container. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "crypto/internal.h"
#include "crypto/secret.h"

/* ---- slots ---- */

/* The first free slot; false: there is none. */
static bool find_free_slot(const struct luks_header *h, unsigned *slot)
{
    for (*slot = 0; *slot < LUKS_SLOTS; ++*slot)
        if (!h->slot[*slot].active)
            return true;
    return false;
}

/* *slot: the slot to fill, `wanted` or the first free one. */
static int choose_slot(const struct luks_io *io, const struct luks_header *h, int wanted,
                       bool force, unsigned *slot, struct diag *diag)
{
    if (wanted != LUKS_ANY_SLOT) {
        if (wanted < 0 || wanted >= (int)LUKS_SLOTS)
            return diag_set(diag, EINVAL, "%s: key slot %d: there are 0 to %u", io->name,
                            wanted, LUKS_SLOTS - 1);
        *slot = (unsigned)wanted;
        if (h->slot[*slot].active && !force)
            return diag_set(diag, EEXIST, "%s: key slot %u is in use", io->name, *slot);
        return 0;
    }
    return find_free_slot(h, slot)
               ? 0
               : diag_set(diag, ENOSPC, "%s: all %u key slots are in use", io->name,
                          LUKS_SLOTS);
}

/* A new passphrase, and the master key that it will give. */
struct new_key {
    const void *passphrase;
    size_t len;
    const uint8_t *key;
    uint32_t iter_time_ms;
};

static int write_slot(const struct luks_io *io, struct luks_header *h, unsigned slot,
                      const struct new_key *new, struct diag *diag)
{
    int err = luks_fill_slot(io, h, slot, new->iter_time_ms, new->key, new->passphrase,
                             new->len, diag);

    return err ? err : luks_write_header(io, h, diag);
}

static int refuse_to_lose_all(const struct luks_io *io, struct diag *diag)
{
    return diag_set(diag, EPERM,
                    "%s: no other key slot is in use: without this one the data is lost",
                    io->name);
}

/* Writes the header first: an active slot whose material is gone would look as if it could open
 * the container. */
static int erase_slots(const struct luks_io *io, struct luks_header *h, const bool *chosen,
                       struct diag *diag)
{
    for (unsigned i = 0; i < LUKS_SLOTS; i++) {
        if (!chosen[i])
            continue;
        h->slot[i].active = false;
        h->slot[i].iterations = 0;
        memset(h->slot[i].salt, 0, sizeof h->slot[i].salt);
    }
    int err = luks_write_header(io, h, diag);
    for (unsigned i = 0; i < LUKS_SLOTS && !err; i++)
        if (chosen[i])
            err = luks_wipe_material(io, h, i, diag);
    return err;
}

int luks_erase_slot(const struct luks_io *io, unsigned slot, bool force, struct diag *diag)
{
    bool chosen[LUKS_SLOTS] = {false};
    struct luks_header h;
    int err = luks_read_header(io, &h, diag);

    if (err)
        return err;
    if (slot >= LUKS_SLOTS)
        return diag_set(diag, EINVAL, "%s: key slot %u: there are 0 to %u", io->name, slot,
                        LUKS_SLOTS - 1);
    if (!h.slot[slot].active && !force)
        return diag_set(diag, ENOENT, "%s: key slot %u is not in use", io->name, slot);
    if (h.slot[slot].active && luks_active_slots(&h) == 1 && !force)
        return refuse_to_lose_all(io, diag);
    chosen[slot] = true;
    return erase_slots(io, &h, chosen, diag);
}

/* The passphrase opens only `slot`, and no slot is free: if overwriting the slot were
 * interrupted, the caller could be left with neither the old nor the new passphrase. */
static int refuse_to_lose_own(const struct luks_io *io, unsigned slot, struct diag *diag)
{
    return diag_set(diag, EPERM,
                    "%s: all %u key slots are in use, and the passphrase opens none but "
                    "slot %u: a failure while that is overwritten could leave neither "
                    "passphrase; another slot has to be erased before, or another "
                    "passphrase given as the old one",
                    io->name, LUKS_SLOTS, slot);
}

/* Does the passphrase open another slot than `first`, the first one that it opens?  Returns 0:
 * yes, or -EKEYREJECTED. */
static int opens_another(const struct luks_io *io, const struct luks_header *h,
                         unsigned first, const void *passphrase, size_t len, uint8_t *key,
                         struct diag *diag)
{
    int err = -EKEYREJECTED;

    for (unsigned i = first + 1; i < LUKS_SLOTS && err == -EKEYREJECTED; i++)
        err = luks_try_slot(io, h, i, passphrase, len, key, diag);
    return err;
}

/* Gets the master key.  The passphrase must still open the container if the change of `slot` is
 * interrupted, so that it can be tried again. */
static int unlock_for_change(const struct luks_io *io, const struct luks_header *h,
                             unsigned slot, const void *passphrase, size_t len,
                             uint8_t *key, struct diag *diag)
{
    unsigned opened = 0;

    int err = luks_unlock(io, h, passphrase, len, key, &opened, diag);
    if (err || opened != slot || luks_active_slots(h) < LUKS_SLOTS)
        return err;
    err = opens_another(io, h, slot, passphrase, len, key, diag);
    return err == -EKEYREJECTED ? refuse_to_lose_own(io, slot, diag) : err;
}

/* Overwrites an active slot.  From the overwriting of its material until the new header is
 * written, the slot opens nothing; meanwhile a free slot has the new key as well.  If none is
 * free, the caller's passphrase opens another slot. */
static int replace_slot(const struct luks_io *io, struct luks_header *h, unsigned slot,
                        const struct new_key *new, struct diag *diag)
{
    bool chosen[LUKS_SLOTS] = {false};
    unsigned spare;
    bool has_spare = find_free_slot(h, &spare);

    int err = has_spare ? write_slot(io, h, spare, new, diag) : 0;
    if (!err)
        err = write_slot(io, h, slot, new, diag);
    if (err || !has_spare)
        return err;
    chosen[spare] = true;
    return erase_slots(io, h, chosen, diag);
}

int luks_add_key(const struct luks_io *io, const void *old_passphrase, size_t old_len,
                 const void *new_passphrase, size_t new_len, int wanted,
                 uint32_t iter_time_ms, bool force, struct diag *diag)
{
    CLEANUP_SECRET uint8_t *key = secret_alloc(CIPHER_MAX_KEY_BYTES);
    struct luks_header h;
    unsigned slot = 0;

    if (!key)
        return diag_errno(diag, ENOMEM, "%s: a key", io->name);
    int err = luks_read_header(io, &h, diag);
    if (!err)
        err = choose_slot(io, &h, wanted, force, &slot, diag);
    if (!err)
        err = unlock_for_change(io, &h, slot, old_passphrase, old_len, key, diag);
    if (err)
        return err;
    const struct new_key new = {new_passphrase, new_len, key, iter_time_ms};
    return h.slot[slot].active ? replace_slot(io, &h, slot, &new, diag)
                               : write_slot(io, &h, slot, &new, diag);
}

/* Finds all slots that the passphrase opens. */
static int find_slots(const struct luks_io *io, const struct luks_header *h,
                      const void *passphrase, size_t len, bool *opened, unsigned *n,
                      struct diag *diag)
{
    CLEANUP_SECRET uint8_t *key = secret_alloc(CIPHER_MAX_KEY_BYTES);

    if (!key)
        return diag_errno(diag, ENOMEM, "%s: a key", io->name);
    *n = 0;
    for (unsigned i = 0; i < LUKS_SLOTS; i++) {
        if (!h->slot[i].active)
            continue;
        int err = luks_try_slot(io, h, i, passphrase, len, key, diag);
        if (err && err != -EKEYREJECTED)
            return err;
        opened[i] = err == 0;
        *n += err == 0;
    }
    return 0;
}

int luks_erase_passphrase(const struct luks_io *io, const void *passphrase, size_t len,
                          bool force, struct diag *diag)
{
    bool opened[LUKS_SLOTS] = {false};
    struct luks_header h;
    unsigned n = 0;
    int err = luks_read_header(io, &h, diag);

    if (!err)
        err = find_slots(io, &h, passphrase, len, opened, &n, diag);
    if (err)
        return err;
    if (n == 0)
        return diag_set(diag, EKEYREJECTED,
                        "%s: the passphrase opens none of the %u key slots", io->name,
                        luks_active_slots(&h));
    if (n == luks_active_slots(&h) && !force)
        return refuse_to_lose_all(io, diag);
    return erase_slots(io, &h, opened, diag);
}
