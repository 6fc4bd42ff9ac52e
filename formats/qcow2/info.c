/* SPDX-License-Identifier: BSD-3-Clause */
/* An image's own words of itself, under the names that qemu-img has for them. */
#include "qcow2/internal.h"

static void add(json_t *object, const char *key, json_t *value)
{
    json_object_set_new(object, key, value);
}

static void add_flag(json_t *object, const char *key, uint64_t bits)
{
    add(object, key, json_boolean(bits != 0));
}

static void add_data_file(const struct qcow2_header *h, json_t *data)
{
    if (!(h->incompatible & INCOMPAT_DATA_FILE))
        return;
    if (h->data_file) {
        json_t *name = json_string(h->data_file);
        add(data, "data-file", name ? name : json_string("?")); /* not UTF-8 */
    }
    add_flag(data, "data-file-raw", h->autoclear & AUTOCLEAR_DATA_RAW);
}

static void add_encryption(struct qcow2 *q, json_t *object, json_t *data)
{
    if (q->header.crypt_method == 0)
        return;
    add(object, "encrypted", json_true());
    json_t *encrypt = json_object();
    if (q->header.crypt_method == 2)
        qcow2_describe_luks(q, encrypt);
    else
        add(encrypt, "format", json_string("aes"));
    add(data, "encrypt", encrypt);
}

/* In the order in which qemu-img's text has them. */
static json_t *describe(struct qcow2 *q, json_t *object)
{
    const struct qcow2_header *h = &q->header;
    json_t *data = json_object();

    add(data, "compat", json_string(h->version < 3 ? "0.10" : "1.1"));
    add(data, "compression-type", json_string(h->compression_type ? "zstd" : "zlib"));
    if (h->version >= 3)
        add_flag(data, "lazy-refcounts", h->compatible & COMPAT_LAZY_REFCOUNTS);
    qcow2_list_bitmaps(q, data);
    add(data, "refcount-bits", json_integer(1 << h->refcount_order));
    add_data_file(h, data);
    add_encryption(q, object, data);
    if (h->version >= 3) {
        add_flag(data, "corrupt", h->incompatible & INCOMPAT_CORRUPT);
        add_flag(data, "extended-l2", h->incompatible & INCOMPAT_EXTENDED_L2);
    }
    return data;
}

void qcow2_info(struct node *node, json_t *object)
{
    struct qcow2 *q = qcow2_of(node);
    LOCK_GUARD(&q->header_lock);

    if (q->n_snapshots)
        qcow2_list_snapshots(q, object);
    add_flag(object, "dirty-flag", q->header.incompatible & INCOMPAT_DIRTY);
    json_t *specific = json_object();
    add(specific, "type", json_string("qcow2"));
    add(specific, "data", describe(q, object));
    add(object, "format-specific", specific);
}
