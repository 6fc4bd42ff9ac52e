/* SPDX-License-Identifier: BSD-3-Clause */
/* Creates empty images: header, backing file name, L1 table of zeroes. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/log.h"
#include "base/size.h"
#include "qed/image.h"

const struct create_option_info qed_create_options[] = {
    CREATE_OPTION_SIZE,
    CREATE_OPTION_BACKING_FILE,
    CREATE_OPTION_BACKING_FORMAT,
    {"cluster_size", CREATE_SIZE, .initial = "65536",
     .help = "Size of a cluster, 4 KiB to 64 MiB"},
    {"table_size", CREATE_SIZE, .help = "Clusters that an L1 or L2 table takes, 1 to 16"},
    CREATE_OPTION_NOCOW,
    CREATE_OPTION_EXTENT,
    {0},
};

struct settings {
    uint64_t cluster_size, table_size;
    const char *backing_file, *backing_format;
};

static int take_size(const struct create_request *req, const struct create_option *option,
                     uint64_t *out, struct diag *diag)
{
    if (size_parse(option->value, out))
        return diag_set(diag, EINVAL, "%s: %s '%s': not a size", req->filename, option->key,
                        option->value);
    return 0;
}

static int take_text(const struct create_request *req, const struct create_option *option,
                     const char **out, struct diag *diag)
{
    if (*out && strcmp(*out, option->value) != 0)
        return diag_set(diag, EINVAL, "%s: %s '%s': was already given as '%s'",
                        req->filename, option->key, option->value, *out);
    *out = option->value;
    return 0;
}

static int take_option(const struct create_request *req, const struct create_option *option,
                       struct settings *set, struct diag *diag)
{
    if (strcmp(option->key, "cluster_size") == 0)
        return take_size(req, option, &set->cluster_size, diag);
    if (strcmp(option->key, "table_size") == 0)
        return take_size(req, option, &set->table_size, diag);
    if (strcmp(option->key, "backing_file") == 0)
        return take_text(req, option, &set->backing_file, diag);
    if (strcmp(option->key, "backing_fmt") == 0)
        return take_text(req, option, &set->backing_format, diag);
    return diag_set(
        diag, EINVAL,
        "%s: unknown option '%s': QED has cluster_size, table_size, backing_file "
        "and backing_fmt",
        req->filename, option->key);
}

static int check_settings(const struct create_request *req, const struct settings *set,
                          struct diag *diag)
{
    if (!is_power_of_two(set->cluster_size) || set->cluster_size < QED_MIN_CLUSTER_SIZE ||
        set->cluster_size > QED_MAX_CLUSTER_SIZE)
        return diag_set(diag, EINVAL,
                        "%s: cluster_size %" PRIu64
                        ": must be a power of two from 4k to 64M",
                        req->filename, set->cluster_size);
    if (!is_power_of_two(set->table_size) || set->table_size > QED_MAX_TABLE_SIZE)
        return diag_set(diag, EINVAL,
                        "%s: table_size %" PRIu64
                        ": must be a power of two from 1 to 16 clusters",
                        req->filename, set->table_size);
    if (set->backing_format && !set->backing_file)
        return diag_set(diag, EINVAL, "%s: backing_fmt '%s': there is no backing_file",
                        req->filename, set->backing_format);
    size_t room =
        MIN(set->cluster_size - sizeof(struct qed_disk_header), QED_MAX_BACKING_NAME);
    if (set->backing_file && strlen(set->backing_file) > room)
        return diag_set(diag, EINVAL, "%s: backing_file: its name is longer than %zu bytes",
                        req->filename, room);
    return 0;
}

static int read_settings(const struct create_request *req, struct settings *set,
                         struct diag *diag)
{
    *set = (struct settings){
        .cluster_size = QED_DEFAULT_CLUSTER_SIZE,
        .table_size = QED_DEFAULT_TABLE_SIZE,
        .backing_file = req->backing_file,
        .backing_format = req->backing_format,
    };
    for (size_t i = 0; i < req->n_options; i++) {
        int err = take_option(req, &req->options[i], set, diag);
        if (err < 0)
            return err;
    }
    /* "-o backing_file=" means that there is none. */
    if (set->backing_file && *set->backing_file == '\0')
        set->backing_file = NULL;
    return check_settings(req, set, diag);
}

static int make_header(const struct create_request *req, const struct settings *set,
                       struct qed_header *header, struct diag *diag)
{
    uint64_t size;
    uint64_t max =
        qed_max_image_size((uint32_t)set->cluster_size, (uint32_t)set->table_size);

    if (add_overflows(req->size, QED_SECTOR_SIZE - 1, &size) ||
        (size = align_down(size, QED_SECTOR_SIZE)) > max)
        return diag_set(diag, EFBIG,
                        "%s: size %" PRIu64 ": clusters of %" PRIu64
                        " bytes and tables of %" PRIu64 " clusters map %" PRIu64
                        " bytes at most",
                        req->filename, req->size, set->cluster_size, set->table_size, max);
    *header = (struct qed_header){
        .cluster_size = (uint32_t)set->cluster_size,
        .table_size = (uint32_t)set->table_size,
        .header_size = 1,
        .l1_table_offset = set->cluster_size,
        .image_size = size,
    };
    if (set->backing_file) {
        header->features = QED_F_BACKING_FILE;
        if (set->backing_format && strcmp(set->backing_format, "raw") == 0)
            header->features |= QED_F_BACKING_FORMAT_NO_PROBE;
        header->backing_filename_offset = sizeof(struct qed_disk_header);
        header->backing_filename_size = (uint32_t)strlen(set->backing_file);
    }
    return 0;
}

/* The header comes last: without it the file isn't recognised as an image. */
static int write_image(struct storage *file, const struct qed_header *header,
                       const char *backing)
{
    uint64_t l1_bytes = (uint64_t)header->table_size * header->cluster_size;
    uint8_t raw[sizeof(struct qed_disk_header)];

    /* QED has no reference counts: the length of the file tells what is allocated. */
    int err = storage_truncate(file, header->l1_table_offset + l1_bytes);
    if (err)
        return err;
    err = storage_zero(file, header->l1_table_offset, l1_bytes, 0);
    if (err)
        return err;
    if (backing)
        err = storage_write(file, backing, header->backing_filename_offset,
                            header->backing_filename_size, 0);
    if (err)
        return err;
    qed_header_encode(header, raw);
    err = storage_write(file, raw, 0, sizeof raw, 0);
    return err ? err : storage_flush(file);
}

/* Such images are valid by the specification, and qemu-img creates them, too. */
static void warn_of_small_tables(const struct create_request *req,
                                 const struct settings *set)
{
    if (set->table_size == 1)
        log_warning("%s: table_size 1: QEMU doesn't open images with tables of one cluster",
                    req->filename);
}

static int plan_image(const struct create_request *req, struct settings *set,
                      struct qed_header *header, struct diag *diag)
{
    int err = read_settings(req, set, diag);

    return err ? err : make_header(req, set, header, diag);
}

int qed_check_create(const struct create_request *req, struct diag *diag)
{
    struct settings set;
    struct qed_header header;

    return plan_image(req, &set, &header, diag);
}

int qed_create(struct storage *st, struct storage *data, const struct create_request *req,
               struct diag *diag)
{
    CLEANUP_STORAGE struct storage *file = st;
    struct settings set;
    (void)data; /* QED images have no data file */
    struct qed_header header;

    int err = plan_image(req, &set, &header, diag);
    if (err)
        return err;
    if (file->fixed_size)
        return diag_set(
            diag, ENOTSUP,
            "%s: a QED image can't be created on a block device: the format grows "
            "by extending its file",
            req->filename);
    err = write_image(file, &header, set.backing_file);
    if (err)
        return diag_errno(diag, -err, "%s: writing the image", req->filename);
    warn_of_small_tables(req, &set);
    return 0;
}
