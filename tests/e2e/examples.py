# SPDX-License-Identifier: BSD-3-Clause
"""Runs the examples of documents as they are printed."""

import os
import pathlib
import re
import signal
import subprocess

from harness import BUILD, Case, plugin_env
from nbdkit_by_name import nbdkit_by_name

# These commands need a virtual machine, a kernel module or a running systemd.
NOT_RUN = ("qemu-system", "sudo ")


def pod_blocks(text, where=""):
    """The verbatim paragraphs of a pod that follow "=for test WHERE".  where="": those without such a line, which are
    most of them.  Paragraphs that aren't to be run follow "=for test none"."""
    blocks, found = [], ""
    for paragraph in re.split(r"\n\s*\n", text):
        if paragraph.startswith("=for test "):
            found = paragraph.split()[2]
        elif paragraph[:1] in (" ", "\t"):
            if found == where:
                blocks.append(re.sub(r"^ ", "", paragraph, flags=re.M))
        else:
            found = ""
    return blocks


def pod_section(text, title):
    tail = text.split(f"=head1 {title}\n", 1)[1]
    return re.split(r"^=head1 ", tail, maxsplit=1, flags=re.M)[0]


def without_unrun(script):
    """The script without the commands that can't run in a test.  A command may continue over lines that end with a
    backslash."""
    lines = re.findall(r"(?:.*\\\n)*.*\n?", script)
    return "".join(line for line in lines if not line.startswith(NOT_RUN))


class Examples(Case):
    """Runs scripts in the folder "work".  They find the commands and the plugin as if these were installed."""

    def end_all(self):
        """Kills the servers that a failed script left running, by their pid files."""
        for pid in pathlib.Path(self.path("work")).glob("*.pid"):
            try:
                os.kill(int(pid.read_text()), signal.SIGKILL)
            except (ProcessLookupError, ValueError):
                pass

    def run_script(self, script, before=""):
        path = f"{nbdkit_by_name(self.path('bin'))}:{BUILD}:{os.environ['PATH']}"
        os.makedirs(self.path("work"), exist_ok=True)
        self.addCleanup(self.end_all)
        with open(self.path("log"), "w+", encoding="utf-8") as log:
            done = subprocess.run(["bash", "-x", "-c", f"set -e\n{before}\n{without_unrun(script)}"],
                                  cwd=self.path("work"), timeout=240, check=False, stdin=subprocess.DEVNULL,
                                  stdout=log, stderr=subprocess.STDOUT, env=plugin_env(PATH=path))
            log.seek(0)
            self.assertEqual(done.returncode, 0, log.read())
            log.seek(0)
            return log.read()
