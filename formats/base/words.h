/* SPDX-License-Identifier: BSD-3-Clause */
/* Hints for a word that isn't one of the expected ones.  Layer: base. */
#ifndef BASE_WORDS_H
#define BASE_WORDS_H

#include <stddef.h>

/* A hint's text.  A longer one is cut and ends in "...". */
struct words_hint {
    char text[640];
};

/* The word of `words` that was most likely meant, by edit distance; NULL: none is similar. */
const char *words_nearest(const char *word, const char *const *words, size_t n);

/* Writes "did you mean 'cache'? There are: file, format, cache" to out, or only "there are:
 * ..." when none is similar.  Returns out->text. */
const char *words_hint(struct words_hint *out, const char *word, const char *const *words,
                       size_t n);

#endif
