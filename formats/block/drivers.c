/* SPDX-License-Identifier: BSD-3-Clause */
/* The table of formats, set by the registry; finding one by name or magic. */
#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "base/checked.h"
#include "block/driver.h"

static const struct driver *const none[] = {NULL};
static const struct driver *const *drivers = none;

static void assert_has_its_operations(const struct driver *driver)
{
    (void)driver; /* unused in builds without assertions */
    assert((driver->open != NULL) == (driver->settle != NULL));
    assert(driver_can(driver, DRIVER_CLUSTERS) == (driver->reserve != NULL));
    assert(driver_can(driver, DRIVER_CLUSTERS) == (driver->link != NULL));
    assert(driver_can(driver, DRIVER_CLUSTERS) == (driver->release != NULL));
    assert(driver_can(driver, DRIVER_BACKING) == (driver->set_backing != NULL));
    assert(driver_can(driver, DRIVER_GROWS) == (driver->grow != NULL));
    assert(driver_can(driver, DRIVER_SHRINKS) == (driver->shrink != NULL));
    assert(driver_can(driver, DRIVER_CHECKS) == (driver->check != NULL));
    assert(driver_can(driver, DRIVER_MARKS) == (driver->clear_mark != NULL));
    assert(driver_can(driver, DRIVER_SNAPSHOTS) == (driver->snapshots != NULL));
    assert(driver_can(driver, DRIVER_SNAPSHOTS) == (driver->open_snapshot != NULL));
    assert(driver_can(driver, DRIVER_SNAPSHOTS) == (driver->close_snapshot != NULL));
    assert(driver_can(driver, DRIVER_SNAPSHOTS) == (driver->begin_snapshot != NULL));
    assert(driver_can(driver, DRIVER_SNAPSHOTS) == (driver->abort_snapshot != NULL));
    assert(driver_can(driver, DRIVER_SNAPSHOTS) == (driver->prepare_snapshot != NULL));
    assert(driver_can(driver, DRIVER_SNAPSHOTS) == (driver->commit_snapshot != NULL));
    assert(driver_can(driver, DRIVER_SNAPSHOTS) == (driver->finish_snapshot != NULL));
    assert(driver_can(driver, DRIVER_BITMAPS) == (driver->keep_bitmaps != NULL));
}

void drivers_set(const struct driver *const *table)
{
    for (size_t i = 0; table[i]; i++)
        assert_has_its_operations(table[i]);
    drivers = table;
}

const struct driver *driver_find(const char *name)
{
    for (size_t i = 0; drivers[i]; i++)
        if (strcmp(drivers[i]->name, name) == 0)
            return drivers[i];
    return NULL;
}

const struct driver *driver_find_recorded(const char *format)
{
    bool is_plain = strcmp(format, "file") == 0 || strcmp(format, "host_device") == 0;

    return driver_find(is_plain ? "raw" : format);
}

const struct driver *driver_probe(const uint8_t *head, size_t n)
{
    for (size_t i = 0; drivers[i]; i++)
        if (drivers[i]->probe && drivers[i]->probe(head, n))
            return drivers[i];
    return NULL;
}

const struct driver *driver_at(size_t i)
{
    return drivers[i];
}

const char *driver_names(struct driver_names_text *out)
{
    size_t used = 0;

    out->text[0] = 0;
    for (size_t i = 0; drivers[i] && used < sizeof out->text; i++)
        used += (size_t)snprintf(out->text + used, sizeof out->text - used, "%s%s",
                                 i ? ", " : "", drivers[i]->name);
    return out->text;
}

uint64_t driver_place_name(uint64_t used, uint64_t old, uint64_t old_len, uint64_t len,
                           uint64_t limit)
{
    uint64_t behind = align_up(MAX(used, old + old_len), 8);

    if (behind + len <= limit)
        return behind;
    /* The old name may be overwritten only if one write replaces the whole header. */
    bool before = used + len <= old, over = used + len <= limit && limit <= 512;
    return before || over ? used : 0;
}
