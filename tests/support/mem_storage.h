/* SPDX-License-Identifier: BSD-3-Clause */
/* A sparse storage in memory, for fast tests.
 *
 * The bytes are held by a *memory*; a storage is a handle on one.  A test keeps a handle of
 * its own, so that it can look at the bytes after the image under test has closed the other:
 *
 *     struct storage *mine = mem_storage_new(0);
 *     node_open(..., mem_storage_share(mine), ...);
 *
 * It keeps the contract of storage.h: zero and discard are supported (both free pages), and
 * growth reads as zeroes.  If the test sets fixed_size, the storage refuses to grow.
 * Functions abort when memory is short.
 *
 * Threads: every function may be called from any thread. */
#ifndef SUPPORT_MEM_STORAGE_H
#define SUPPORT_MEM_STORAGE_H

#include <stdbool.h>
#include <stdint.h>

#include "storage/storage.h"

/* Memory is allocated, and holes are reported, in pages of this size. */
#define MEM_PAGE_BYTES 4096u

/* A handle on a new memory of that size, which reads as zeroes. */
struct storage *mem_storage_new(uint64_t size);

/* Another handle on the memory of st, which must be a mem storage. */
struct storage *mem_storage_share(struct storage *st);

/* A handle on a new memory with the same contents (copy on write). */
struct storage *mem_storage_clone(struct storage *st);

/* Load: a new memory with the contents of a file.  Save: the reverse.  Holes stay holes.
 * 0 or -errno. */
int mem_storage_load(const char *path, struct storage **out) MUST_USE;
int mem_storage_save(struct storage *st, const char *path) MUST_USE;

/* Limits the pages of the memory to `bytes` in all, as a filesystem that fills up: a write
 * that needs more writes what fits and fails with -ENOSPC.  UINT64_MAX: no limit. */
void mem_storage_limit(struct storage *st, uint64_t bytes);

/* Are the two equal in size and bytes?  If they aren't, *where (unless `where` is NULL) is
 * set to the offset of the first difference. */
bool mem_storage_equal(struct storage *a, struct storage *b, uint64_t *where);

#endif
