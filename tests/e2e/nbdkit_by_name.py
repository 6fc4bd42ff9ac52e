# SPDX-License-Identifier: BSD-3-Clause
"""A command `nbdkit` that finds the plugin of the build by its name, "qimg", without installation."""

import pathlib
import shutil
import stat

from harness import PLUGIN

# nbdkit finds an installed plugin by its name.  For the tests this script replaces the name by the path.
SCRIPT = """#!/bin/bash
words=()
for word; do
    if [ "$word" = qimg ]; then word={plugin}; fi
    words+=("$word")
done
exec {nbdkit} "${{words[@]}}"
"""


def nbdkit_by_name(folder):
    """Makes the folder with the script, and returns it.  The caller puts it first into PATH."""
    folder = pathlib.Path(folder)
    folder.mkdir()
    script = folder / "nbdkit"
    script.write_text(SCRIPT.format(plugin=PLUGIN, nbdkit=shutil.which("nbdkit")), encoding="ascii")
    script.chmod(stat.S_IRWXU)
    return folder
