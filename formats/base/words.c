/* SPDX-License-Identifier: BSD-3-Clause */
/* Finds the word that the user meant to type. */
#include <stdio.h>
#include <string.h>

#include "base/compiler.h"
#include "base/words.h"

/* Of longer words only the beginnings are compared, by this many characters. */
#define LONGEST 40

/* The smallest number of letters to insert, delete, replace or swap with their neighbour that
 * makes one word the other.  d[i][j] is that number for the first i letters of a and j of b. */
static unsigned edit_distance(const char *a, const char *b)
{
    size_t n = strnlen(a, LONGEST), m = strnlen(b, LONGEST);
    unsigned d[LONGEST + 1][LONGEST + 1];

    for (size_t i = 0; i <= n; i++)
        d[i][0] = (unsigned)i;
    for (size_t j = 0; j <= m; j++)
        d[0][j] = (unsigned)j;
    for (size_t i = 1; i <= n; i++) {
        for (size_t j = 1; j <= m; j++) {
            unsigned best = d[i - 1][j - 1] + (a[i - 1] != b[j - 1]);
            best = MIN(best, d[i - 1][j] + 1);
            best = MIN(best, d[i][j - 1] + 1);
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
                best = MIN(best, d[i - 2][j - 2] + 1);
            d[i][j] = best;
        }
    }
    return d[n][m];
}

const char *words_nearest(const char *word, const char *const *words, size_t n)
{
    /* The shorter the word, the fewer differences are allowed. */
    unsigned least = (unsigned)strnlen(word, LONGEST) / 3 + 1;
    const char *nearest = NULL;

    for (size_t i = 0; i < n; i++) {
        unsigned now = edit_distance(word, words[i]);
        if (now >= least || now >= strlen(words[i]))
            continue;
        least = now;
        nearest = words[i];
    }
    return nearest;
}

const char *words_hint(struct words_hint *out, const char *word, const char *const *words,
                       size_t n)
{
    const size_t size = sizeof out->text;
    const char *nearest = words_nearest(word, words, n);
    size_t used = 0;

    if (nearest)
        used += (size_t)snprintf(out->text, size, "did you mean '%s'? ", nearest);
    used += (size_t)snprintf(out->text + used, size - used,
                             "%s are: ", nearest ? "There" : "there");
    for (size_t i = 0; i < n && used < size; i++)
        used += (size_t)snprintf(out->text + used, size - used, "%s%s", i ? ", " : "",
                                 words[i]);
    if (used >= size)
        strcpy(out->text + size - 4, "...");
    return out->text;
}
