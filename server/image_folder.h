/* SPDX-License-Identifier: BSD-3-Clause */
/* The images in a folder and its subfolders, by relative name: "disk.qcow2", "vm7/root.qed".
 * Names come from clients; none of them reaches anything outside of the folder (storage/folder.h).
 *
 * Threads: any, after opening.  Layer: server. */
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

/* config->dir is the path; the rest of config says how images are opened.  config and shared are
 * borrowed until image_folder_close.  0 or -errno with diag. */
int image_folder_open(const struct plugin_config *config, const struct block_shared *shared,
                      struct image_folder **out, struct diag *diag) MUST_USE;
/* None of its images may be open.  NULL is allowed. */
void image_folder_close(struct image_folder *folder);

/* The absolute path, for messages. */
const char *image_folder_path(const struct image_folder *folder);

/* Is there a file of that name, whatever its contents?  May wait for the disk. */
bool image_folder_has(const struct image_folder *folder, const char *name);

/* Does the name lead to another file than the one with this identity (storage_identity), or to
 * none?  May wait for the disk. */
bool image_folder_has_other(const struct image_folder *folder, const char *name,
                            uint64_t device, uint64_t inode);

/* Opens the image of the export's name, and starts it.  give_up: as in struct chain_options.  On
 * failure, -errno with diag, the export isn't open. */
int image_folder_open_image(struct image_folder *folder, struct served_export *exp,
                            const _Atomic bool *give_up, struct diag *diag) MUST_USE;

/* Calls tell for each file that looks like an image, in no order; for every file if the format is
 * raw.  Files that can't be read are left out.  Stops when tell returns non-zero, and returns
 * that.  0 or -ENOMEM otherwise. */
typedef int image_folder_tell(void *opaque, const char *name);
int image_folder_list(const struct image_folder *folder, image_folder_tell *tell,
                      void *opaque) MUST_USE;

#endif
