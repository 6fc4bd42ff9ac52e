/* SPDX-License-Identifier: BSD-3-Clause */
/* Which libraries a layer uses, for whoever wants to know what a program is made of.
 * Layer: base. */
#ifndef BASE_LIBRARY_H
#define BASE_LIBRARY_H

/* Called for each library.  version: of the one that runs, as it says itself, valid during
 * the call; NULL: it isn't on this machine. */
typedef void library_sink(void *opaque, const char *name, const char *version);

#endif
