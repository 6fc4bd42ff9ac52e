# SPDX-License-Identifier: BSD-3-Clause
"""nbdkit finds the plugin that was built by its name."""

import pathlib
import shutil
import stat

from harness import PLUGIN

# Who installs the plugin has it found by its name; here a script in front of nbdkit does that.
SCRIPT = """#!/bin/bash
words=()
for word; do
    if [ "$word" = qimg ]; then word={plugin}; fi
    words+=("$word")
done
exec {nbdkit} "${{words[@]}}"
"""


def nbdkit_by_name(folder):
    """Makes the folder, which is to be the first of the PATH, and returns it."""
    folder = pathlib.Path(folder)
    folder.mkdir()
    script = folder / "nbdkit"
    script.write_text(SCRIPT.format(plugin=PLUGIN, nbdkit=shutil.which("nbdkit")), encoding="ascii")
    script.chmod(stat.S_IRWXU)
    return folder
