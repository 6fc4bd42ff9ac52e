/* SPDX-License-Identifier: BSD-3-Clause */
/* A store in memory, sparse, for fast tests.
 *
 * A *memory* is what holds the bytes; a storage is a handle on it.  A test keeps a handle
 * of its own, so that it can look at the bytes after the image under test closed the other:
 *
 *     struct storage *mine = mem_storage_new(0);
 *     node_open(..., mem_storage_share(mine), ...);
 *
 * The contract is that of storage.h: zero and discard are there (both free pages), growth
 * reads as zeroes.  A storage whose fixed_size is set by the test refuses to grow.
 * Functions abort when memory is short: a test can't go on then.
 *
 * Threads: every function from any thread. */
#ifndef SUPPORT_MEM_STORAGE_H
#define SUPPORT_MEM_STORAGE_H

#include <stdbool.h>
#include <stdint.h>

#include "storage/storage.h"

/* Granularity of holes. */
#define MEM_PAGE_BYTES 4096u

/* An empty memory of that size, and a handle on it. */
struct storage *mem_storage_new(uint64_t size);

/* Another handle on the memory of st, which must be a mem storage. */
struct storage *mem_storage_share(struct storage *st);

/* A memory of its own with the same contents; pages are shared until one side writes. */
struct storage *mem_storage_clone(struct storage *st);

/* With the contents of a file, and the other way round (holes stay holes).  0 or -errno. */
int mem_storage_load(const char *path, struct storage **out) MUST_USE;
int mem_storage_save(struct storage *st, const char *path) MUST_USE;

/* Writes that need more pages than `bytes` hold fail with -ENOSPC, having written what
 * fitted; UINT64_MAX is no limit. */
void mem_storage_limit(struct storage *st, uint64_t bytes);

/* Are the two equal in size and bytes?  If not and where isn't NULL, *where is the first
 * difference. */
bool mem_storage_equal(struct storage *a, struct storage *b, uint64_t *where);

#endif
