/* SPDX-License-Identifier: BSD-3-Clause */
/* The output of `qimg info` as text. */
#include <inttypes.h>
#include <stdbool.h>
#include <string.h>
#include <time.h>

#include "common/json_text.h"
#include "info_print.h"
#include "size.h"

#define INDENT 4

static const char *text_of(const json_t *object, const char *key)
{
    return json_string_value(json_object_get(object, key));
}

static json_int_t number_of(const json_t *object, const char *key)
{
    return json_integer_value(json_object_get(object, key));
}

static bool is_on(const json_t *object, const char *key)
{
    return json_is_true(json_object_get(object, key));
}

static void print_size_lines(const json_t *object, FILE *out)
{
    char text[32];
    json_int_t virtual_size = number_of(object, "virtual-size");

    size_format((uint64_t)virtual_size, text, sizeof text);
    fprintf(out, "virtual size: %s (%" JSON_INTEGER_FORMAT " bytes)\n", text, virtual_size);
    if (json_object_get(object, "actual-size"))
        size_format((uint64_t)number_of(object, "actual-size"), text, sizeof text);
    else
        strcpy(text, "unavailable");
    fprintf(out, "disk size: %s\n", text);
}

static void print_backing(const json_t *object, FILE *out)
{
    const char *name = text_of(object, "backing-filename");
    const char *full = text_of(object, "full-backing-filename");
    const char *format = text_of(object, "backing-filename-format");

    if (!name)
        return;
    fprintf(out, "backing file: %s", name);
    if (full && strcmp(full, name) != 0)
        fprintf(out, " (actual path: %s)", full);
    fputc('\n', out);
    if (format)
        fprintf(out, "backing file format: %s\n", format);
}

static void print_snapshot(const json_t *snapshot, FILE *out)
{
    char size[32], date[32] = "", clock[48], icount[24] = "";
    time_t when = (time_t)number_of(snapshot, "date-sec");
    json_int_t run = number_of(snapshot, "vm-clock-sec");
    struct tm tm;

    size_format((uint64_t)number_of(snapshot, "vm-state-size"), size, sizeof size);
    if (localtime_r(&when, &tm))
        strftime(date, sizeof date, "%Y-%m-%d %H:%M:%S", &tm);
    snprintf(clock, sizeof clock, "%02d:%02d:%02d.%03d", (int)(run / 3600),
             (int)(run / 60 % 60), (int)(run % 60),
             (int)(number_of(snapshot, "vm-clock-nsec") / 1000000));
    if (json_object_get(snapshot, "icount"))
        snprintf(icount, sizeof icount, "%" JSON_INTEGER_FORMAT,
                 number_of(snapshot, "icount"));
    fprintf(out, "%-9s %-16s %8s%20s%13s%11s\n", text_of(snapshot, "id"),
            text_of(snapshot, "name"), size, date, clock, icount);
}

void info_print_snapshots(const json_t *object, FILE *out)
{
    json_auto_t *snapshots = json_plain_copy(json_object_get(object, "snapshots"));

    if (json_array_size(snapshots) == 0)
        return;
    fprintf(out, "Snapshot list:\n%-9s %-16s %8s%20s%13s%11s\n", "ID", "TAG", "VM SIZE",
            "DATE", "VM CLOCK", "ICOUNT");
    for (size_t i = 0; i < json_array_size(snapshots); i++)
        print_snapshot(json_array_get(snapshots, i), out);
}

static void print_scalar(const json_t *value, FILE *out)
{
    if (json_is_string(value))
        fputs(json_string_value(value), out);
    else if (json_is_integer(value))
        fprintf(out, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
    else if (json_is_real(value))
        fprintf(out, "%f", json_real_value(value));
    else
        fputs(json_is_true(value) ? "true" : "false", out);
}

static void print_tree(const json_t *value, int depth, FILE *out);

/* "name: value", or "name:" and the value's members on lines of their own. */
static void print_member(const char *name, const json_t *value, int depth, FILE *out)
{
    fprintf(out, "%*s", depth * INDENT, "");
    for (; *name; name++)
        fputc(*name == '-' ? ' ' : *name, out);
    fputc(':', out);
    if (json_is_object(value) || json_is_array(value)) {
        fputc('\n', out);
        print_tree(value, depth + 1, out);
        return;
    }
    fputc(' ', out);
    print_scalar(value, out);
    fputc('\n', out);
}

/* The members of an object or the elements of an array.  The drivers' objects have few
 * levels. */
static void print_tree(const json_t *value, int depth, FILE *out)
{
    for (size_t i = 0; i < json_array_size(value); i++) {
        char name[24];
        snprintf(name, sizeof name, "[%zu]", i);
        print_member(name, json_array_get(value, i), depth, out);
    }
    const char *key;
    json_t *member;
    json_object_foreach ((json_t *)(uintptr_t)value, key, member)
        print_member(key, member, depth, out);
}

void info_print_human(const json_t *raw, FILE *out)
{
    json_auto_t *object = json_plain_copy(raw);

    fprintf(out, "image: %s\n", text_of(object, "filename"));
    fprintf(out, "file format: %s\n", text_of(object, "format"));
    print_size_lines(object, out);
    if (is_on(object, "encrypted"))
        fputs("encrypted: yes\n", out);
    if (json_object_get(object, "cluster-size"))
        fprintf(out, "cluster_size: %" JSON_INTEGER_FORMAT "\n",
                number_of(object, "cluster-size"));
    if (is_on(object, "dirty-flag"))
        fputs("cleanly shut down: no\n", out);
    print_backing(object, out);
    info_print_snapshots(object, out);

    const json_t *data =
        json_object_get(json_object_get(object, "format-specific"), "data");
    if (json_object_size(data) > 0) {
        fputs("Format specific information:\n", out);
        print_tree(data, 1, out);
    }
}
