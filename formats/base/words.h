/* SPDX-License-Identifier: BSD-3-Clause */
/* A word that isn't one of those there are: what to say.  Layer: base. */
#ifndef BASE_WORDS_H
#define BASE_WORDS_H

#include <stddef.h>

/* The text of a hint; longer ones end in "...". */
struct words_hint {
    char text[640];
};

/* The one of the n words that was most likely meant, by the letters that differ; NULL: none
 * is near. */
const char *words_nearest(const char *word, const char *const *words, size_t n);

/* "did you mean 'cache'? There are: file, format, cache", or only the latter; in out, which
 * is returned. */
const char *words_hint(struct words_hint *out, const char *word, const char *const *words,
                       size_t n);

#endif
