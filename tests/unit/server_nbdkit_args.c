/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests finding -r among nbdkit's arguments: it must not be overlooked; in doubt it is assumed. */
#include <criterion/criterion.h>

#include "nbdkit_args.h"

#define LOOKS(args) nbdkit_args_look_read_only(args, sizeof(args))

Test(nbdkit_args, read_only)
{
    cr_expect(LOOKS("nbdkit\0-r\0plugin.so\0disk"));
    cr_expect(LOOKS("nbdkit\0-fr\0plugin.so\0disk"));
    cr_expect(LOOKS("nbdkit\0-rU\0sock\0plugin.so"));
    cr_expect(LOOKS("nbdkit\0--readonly\0plugin.so"));
    cr_expect(LOOKS("nbdkit\0--read-only\0plugin.so"));
    cr_expect(LOOKS("nbdkit\0--rea\0plugin.so"));
    cr_expect(LOOKS("nbdkit\0plugin.so\0disk\0-r"));
}

Test(nbdkit_args, not_read_only)
{
    cr_expect_not(LOOKS("nbdkit\0-f\0-U\0/run/sock\0-P\0/run/pid\0plugin.so\0file=-r.img"));
    cr_expect_not(LOOKS("nbdkit\0--run\0qemu-img info -r\0--foreground\0plugin.so\0r"));
    cr_expect_not(LOOKS("nbdkit\0--filter=readahead\0-v\0-t\0\x31\0plugin.so\0\0"));
}

/* If the arguments are missing or incomplete, -r is assumed. */
Test(nbdkit_args, unknown)
{
    cr_expect(nbdkit_args_look_read_only("", 0));
    cr_expect(nbdkit_args_look_read_only("nbdkit\0-U", 9), "cut off");
}
