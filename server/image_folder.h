/* SPDX-License-Identifier: BSD-3-Clause */
/* The images below a folder, by their names there: "disk.qcow2", "vm7/root.qed".  Names come from
 * clients, and nothing outside of the folder is reached by any (storage/folder.h).
 *
 * Threads: any, once it is open.  Layer: server. */
#ifndef SERVER_IMAGE_FOLDER_H
#define SERVER_IMAGE_FOLDER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/compiler.h"
#include "base/diag.h"

struct block_shared;
struct image_folder;
struct plugin_config;
struct served_export;

/* The config (of which `dir` is the path, and the rest how images are opened) and what is shared
 * are borrowed.  0 or -errno with diag. */
int image_folder_open(const struct plugin_config *config, const struct block_shared *shared,
                      struct image_folder **out, struct diag *diag) MUST_USE;
/* When none of its images is open.  NULL is allowed. */
void image_folder_close(struct image_folder *folder);

/* Absolute; for messages. */
const char *image_folder_path(const struct image_folder *folder);

/* Is there a file of the name (whatever it holds)?  May wait for the disk. */
bool image_folder_has(const struct image_folder *folder, const char *name);

/* Does the name lead to another file than the one of that identity (storage_identity), or to none
 * any more?  May wait for the disk. */
bool image_folder_has_other(const struct image_folder *folder, const char *name,
                            uint64_t device, uint64_t inode);

/* Opens the image of the export's name and starts it; give_up: as in struct chain_options.  0 or
 * -errno with diag; then the export isn't open. */
int image_folder_open_image(struct image_folder *folder, struct served_export *exp,
                            const _Atomic bool *give_up, struct diag *diag) MUST_USE;

/* Tells of each file that looks like an image, in no order; of every file, when the format is raw.
 * What can't be looked at is left out.  Stops, and returns what tell does, when that isn't 0.
 * -ENOMEM. */
typedef int image_folder_tell(void *opaque, const char *name);
int image_folder_list(const struct image_folder *folder, image_folder_tell *tell,
                      void *opaque) MUST_USE;

#endif
