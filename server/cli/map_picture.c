/* SPDX-License-Identifier: BSD-3-Clause */
/* The picture has COLUMNS columns, whatever the disk's size.  Each cell (one column of one row)
 * counts the bytes of each kind in its range.  Its colour is that of the most frequent kind,
 * stronger the more of its bytes are allocated.  Neighbouring cells that look alike become one
 * rectangle. */
#include "map_picture.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "block/node.h"
#include "block/snapshot.h"
#include "cli.h"
#include "size.h"

#define COLUMNS    800 /* SVG units, each one wide */
#define LEFT       220 /* space for the rows' names */
#define TOP        56
#define ROW        26 /* distance of rows */
#define BAR        18
#define NAME_SHOWN 30 /* a longer name is cut off at its beginning */
#define SHADES     4

enum kind { KIND_DATA, KIND_COMPRESSED, KIND_ZERO, N_KINDS };

static const struct {
    const char *name, *colour;
} kinds[N_KINDS] = {
    [KIND_DATA] = {"data", "#2563a8"},
    [KIND_COMPRESSED] = {"compressed", "#7a3e9d"},
    [KIND_ZERO] = {"zeroes", "#9aa7b4"},
};

struct row {
    uint64_t total[N_KINDS];
    uint64_t cells[COLUMNS][N_KINDS]; /* bytes of each kind */
};

struct picture {
    uint64_t start, end;
    uint64_t width; /* bytes of a column, rounded up */
    unsigned n_rows;
};

/* ---- filling the cells ---- */

/* The kind of a range; false for ranges that aren't allocated, or for which nothing is known but
 * that they lie behind the file's end: these stay empty. */
static bool kind_of(const struct block_status *st, enum kind *kind)
{
    if (!st->present || (!st->data && !st->zero))
        return false;
    *kind = st->compressed ? KIND_COMPRESSED : st->zero ? KIND_ZERO : KIND_DATA;
    return true;
}

static void add_bytes(const struct picture *p, struct row *row, uint64_t offset,
                      uint64_t length, enum kind kind)
{
    row->total[kind] += length;
    for (uint64_t pos = offset - p->start; length > 0;) {
        uint64_t n = MIN(length, p->width - pos % p->width);
        row->cells[pos / p->width][kind] += n;
        pos += n;
        length -= n;
    }
}

/* rows: one for each depth below n_rows; deeper layers aren't counted. */
static int fill_rows(const struct picture *p, struct node *node, struct row *rows,
                     unsigned n_rows)
{
    uint64_t end = MIN(p->end, node->size);

    for (uint64_t off = p->start; off < end;) {
        struct block_status st;
        enum kind kind;
        int rc = block_status(node, off, end - off, &st);
        if (rc < 0)
            return cli_error("%s: cannot read its metadata: %s", node->filename,
                             strerror(-rc));
        if (st.depth < n_rows && kind_of(&st, &kind))
            add_bytes(p, &rows[st.depth], off, st.length, kind);
        off += st.length;
    }
    return CLI_OK;
}

/* ---- drawing ---- */

/* Names can be anything: XML's special characters become numbers, and everything but printable
 * ASCII becomes '?'. */
static void print_text(const char *text)
{
    size_t length = strlen(text), from = length > NAME_SHOWN ? length - NAME_SHOWN : 0;

    if (from > 0)
        fputs("...", stdout);
    for (const char *c = text + from; *c; c++) {
        if (strchr("<>&\"'", *c))
            printf("&#%d;", *c);
        else
            putchar(*c >= ' ' && *c < 127 ? *c : '?');
    }
}

static const char *without_folder(const char *path)
{
    const char *slash = strrchr(path, '/');

    return slash && slash[1] ? slash + 1 : path;
}

static void print_size(uint64_t bytes)
{
    char text[32];

    size_format(bytes, text, sizeof text);
    fputs(text, stdout);
}

/* How a cell looks: its kind, and its shade from 1 to SHADES; 0: empty. */
struct look {
    enum kind kind;
    unsigned shade;
};

static struct look look_at(const struct picture *p, const uint64_t cell[N_KINDS])
{
    struct look look = {KIND_DATA, 0};
    uint64_t sum = 0;

    for (enum kind k = 0; k < N_KINDS; k++) {
        sum += cell[k];
        if (cell[k] > cell[look.kind])
            look.kind = k;
    }
    if (sum > 0)
        look.shade = 1 + (unsigned)((double)sum / (double)p->width * (SHADES - 1));
    return look;
}

static void print_bar(const struct picture *p, const struct row *row, unsigned y)
{
    printf("<rect x=\"%d\" y=\"%u\" width=\"%d\" height=\"%d\" fill=\"#eef1f4\"/>\n", LEFT,
           y, COLUMNS, BAR);
    for (unsigned x = 0, next; x < COLUMNS; x = next) {
        struct look look = look_at(p, row->cells[x]);
        for (next = x + 1; next < COLUMNS; next++) {
            struct look other = look_at(p, row->cells[next]);
            if (other.kind != look.kind || other.shade != look.shade)
                break;
        }
        if (look.shade > 0)
            printf("<rect x=\"%u\" y=\"%u\" width=\"%u\" height=\"%d\" fill=\"%s\" "
                   "fill-opacity=\"%.2f\"/>\n",
                   LEFT + x, y, next - x, BAR, kinds[look.kind].colour,
                   (double)look.shade / SHADES);
    }
}

static void print_row(struct picture *p, const struct row *row, const char *what,
                      const char *name)
{
    unsigned y = TOP + ROW * p->n_rows++;

    printf("<g><title>%s ", what);
    print_text(name);
    for (enum kind k = 0; k < N_KINDS; k++) {
        if (row->total[k] == 0)
            continue;
        printf(", %s ", kinds[k].name);
        print_size(row->total[k]);
    }
    printf("</title>\n<text x=\"%d\" y=\"%u\" text-anchor=\"end\">", LEFT - 8, y + 14);
    print_text(name);
    puts("</text>");
    print_bar(p, row, y);
    puts("</g>");
}

static void print_head(const struct picture *p, const struct node *node, unsigned rows)
{
    unsigned height = TOP + ROW * rows + 34;

    printf("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%u\" "
           "viewBox=\"0 0 %d %u\" font-family=\"sans-serif\" font-size=\"12\">\n",
           LEFT + COLUMNS + 20, height, LEFT + COLUMNS + 20, height);
    printf("<rect width=\"100%%\" height=\"100%%\" fill=\"#ffffff\"/>\n"
           "<text x=\"%d\" y=\"24\" font-size=\"15\">",
           LEFT);
    print_text(without_folder(node->filename));
    printf(": %s, ", node->driver->name);
    print_size(node->size);
    printf("</text>\n<text x=\"%d\" y=\"46\">", LEFT);
    print_size(p->start);
    printf("</text>\n<text x=\"%d\" y=\"46\" text-anchor=\"end\">", LEFT + COLUMNS);
    print_size(p->end);
    puts("</text>");
}

static void print_legend(const struct picture *p)
{
    unsigned y = TOP + ROW * p->n_rows + 10, x = LEFT;

    for (enum kind k = 0; k < N_KINDS; k++, x += 120)
        printf("<rect x=\"%u\" y=\"%u\" width=\"12\" height=\"12\" fill=\"%s\"/>"
               "<text x=\"%u\" y=\"%u\">%s</text>\n",
               x, y, kinds[k].colour, x + 18, y + 10, kinds[k].name);
    puts("</svg>");
}

/* ---- rows ---- */

static unsigned count_layers(struct node *node)
{
    unsigned n = 0;

    for (; node; node = node->backing)
        n++;
    return n;
}

static int draw_layers(struct picture *p, struct node *node, struct row *rows, unsigned n)
{
    int code = fill_rows(p, node, rows, n);

    if (code != CLI_OK)
        return code;
    for (unsigned depth = 0; depth < n; depth++, node = node->backing)
        print_row(p, &rows[depth], depth ? "backing file" : "image",
                  without_folder(node->filename));
    return CLI_OK;
}

static int draw_snapshot(struct picture *p, struct node *node, const char *name)
{
    CLEANUP_FREE struct row *row = calloc(1, sizeof *row);
    struct node *snapshot;
    struct diag diag = {0};

    if (!row)
        return cli_error("out of memory");
    if (node_open_snapshot(node, name, &snapshot, &diag))
        return cli_diag(&diag);
    int code = fill_rows(p, snapshot, row, 1);
    node_close_snapshot(snapshot);
    if (code == CLI_OK)
        print_row(p, row, "snapshot", name);
    return code;
}

int map_picture_print(struct node *node, uint64_t start, uint64_t end)
{
    CLEANUP_SNAPSHOT_LIST struct snapshot_list snapshots = {0};
    unsigned layers = count_layers(node);
    struct picture p = {.start = start, .end = end};

    p.width = (end - start) / COLUMNS + 1;
    CLEANUP_FREE struct row *rows = calloc(layers, sizeof *rows);
    if (!rows || node_snapshots(node, &snapshots))
        return cli_error("out of memory");
    print_head(&p, node, layers + (unsigned)snapshots.n);
    int code = draw_layers(&p, node, rows, layers);
    for (size_t i = 0; i < snapshots.n && code == CLI_OK; i++) {
        const char *name = snapshot_export_name(&snapshots, i);
        if (name)
            code = draw_snapshot(&p, node, name);
    }
    print_legend(&p);
    return code;
}
