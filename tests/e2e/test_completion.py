# SPDX-License-Identifier: BSD-3-Clause
"""Completion of qimg's command line in bash and zsh."""

import os
import pty
import re
import select
import shutil
import subprocess
import time
import unittest

from harness import BUILD, ROOT, STANDIN, Case, kill_quietly, plugin_env, run
from nbdkit_by_name import nbdkit_by_name

FOLDER = ROOT / "packaging" / "completion"

# Does what bash does when the Tab key is pressed: it also splits the line at "=".
BASH = """
. {script}
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
_qimg 2>/dev/null
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def help_of(command):
    return run(BUILD / "qimg", *([command] if command else []), "--help").stdout


class InAFolder(Case):
    def setUp(self):
        super().setUp()
        self.env = plugin_env(PATH=f"{nbdkit_by_name(self.path('bin'))}:{BUILD}:{os.environ['PATH']}")
        os.mkdir(self.path("work"))
        for name in ("disk.qcow2", "disk.qed"):
            open(self.path(f"work/{name}"), "w", encoding="ascii").close()


@unittest.skipIf(STANDIN, "needs the command")
class Bash(InAFolder):
    def complete(self, *words):
        done = run("bash", "-c", BASH.format(script=FOLDER / "qimg.bash"), "bash", *words, env=self.env,
                   cwd=self.path("work"))
        self.assertEqual(done.stderr, "")
        return sorted(done.stdout.split())

    def test_commands(self):
        listed = re.findall(r"^  ([a-z]+) ", help_of("").split("Commands", 1)[1], re.M)
        self.assertEqual(self.complete("qimg", ""), sorted([*listed, "--help", "--version"]))
        self.assertEqual(self.complete("qimg", "inf"), ["info"])

    def test_every_option(self):
        for command in re.findall(r"^  ([a-z]+) ", help_of("").split("Commands", 1)[1], re.M):
            with self.subTest(command=command):
                told = re.findall(r"^  (?:(-\w)(?:, | |$))?(--[a-z-]+=?)?", help_of(command), re.M)
                told = sorted({word for pair in told for word in pair if word})
                self.assertIn("--help", told)
                self.assertEqual(sorted(set(self.complete("qimg", command, "-"))), told)

    def test_values(self):
        formats = sorted(re.search(r"in the formats ([^:]*):", help_of(""))[1].split(", "))
        for words, expected in {
            ("info", "-f", ""): formats,
            ("info", "--format", "=", "q"): ["qcow2", "qed"],
            ("info", "--output", "="): ["human", "json"],
            ("create", "-f", "qcow2", "-o", "compr"): ["compression_type="],
            ("create", "-f", "qed", "-o", "table"): ["table_size="],
            ("job", "--control", "=", "disk.qe"): ["disk.qed"],
        }.items():
            with self.subTest(words=words):
                self.assertEqual(self.complete("qimg", *words), expected)

    def test_operands(self):
        for words, expected in {
            ("info", "-U", ""): ["disk.qcow2", "disk.qed"],
            ("job", "m"): ["mirror"],
            ("serve", "disk.qed", "need"): ["need-check-delay="],
            ("serve", "disk.qc"): ["disk.qcow2"],
        }.items():
            with self.subTest(words=words):
                self.assertEqual(self.complete("qimg", *words), expected)


@unittest.skipIf(STANDIN, "needs the command")
@unittest.skipUnless(shutil.which("zsh"), "no zsh")
class Zsh(InAFolder):
    """A zsh at a pseudo terminal, which gets keys."""

    def setUp(self):
        super().setUp()
        self.master, slave = pty.openpty()
        self.addCleanup(os.close, self.master)
        process = subprocess.Popen(["zsh", "-f", "-i"], stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
                                   cwd=self.path("work"), env={**self.env, "TERM": "dumb"})
        self.addCleanup(kill_quietly, process)
        os.close(slave)
        self.press(f"fpath=({FOLDER} $fpath); autoload -U compinit; compinit -D -u; PS1='> '; unsetopt zle_bracketed_paste; "
                   "print re''ady\n", "ready")

    def press(self, keys, expected):
        """Sends keys, and waits until the expected text appears."""
        os.write(self.master, keys.encode())
        seen, limit = "", time.monotonic() + 10
        while expected not in seen:
            if time.monotonic() > limit:
                self.fail(f"{keys!r}: not {expected!r} but {seen!r}")
            if select.select([self.master], [], [], 0.1)[0]:
                seen += os.read(self.master, 4096).decode(errors="replace")
        return seen

    def test_at_a_terminal(self):
        for keys, expected in {
            "qimg inf": "info ",
            "qimg info --back": "--backing-chain",
            "qimg info --output=j": "json",
            "qimg create -f qcow2 -o compr": "compression_type=",
            "qimg job --control=x comp": "complete",
            "qimg serve disk.qed need": "need-check-delay=",
            "qimg info disk.qe": "disk.qed",
        }.items():
            with self.subTest(keys=keys):
                self.press(keys, keys[-2:])
                self.press("\t", expected[len(keys.split()[-1].split("=")[-1]):])
                self.press("\x15", "")


if __name__ == "__main__":
    unittest.main()
