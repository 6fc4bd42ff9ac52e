# SPDX-License-Identifier: BSD-3-Clause
"""qimg version: the versions of the program, its libraries, nbdkit and the plugin."""

import json
import os
import re
import unittest

from harness import BUILD, PLUGIN, STANDIN, Case, nbdkit_version, plugin_env, run
from nbdkit_by_name import nbdkit_by_name

QIMG = BUILD / "qimg"


def of_package(name):
    """A library's version according to pkg-config."""
    return run("pkg-config", "--modversion", name).stdout.strip()


@unittest.skipIf(STANDIN, "needs the command")
class Version(Case):
    def about(self, **env):
        return json.loads(run(QIMG, "version", "--output=json", env=plugin_env(**env)).stdout)

    def test_as_it_is(self):
        """The versions are the same as those from pkg-config, nbdkit and the plugin."""
        about = self.about()
        dump = dict(line.split("=", 1) for line in
                    run("nbdkit", PLUGIN, "--dump-plugin", env=plugin_env()).stdout.splitlines() if "=" in line)
        self.assertEqual(about["version"], dump["qimg_version"])
        self.assertEqual(about["formats"], dump["qimg_formats"].split(", "))
        self.assertTrue(about["features"]["zstd"])
        for name, present in about["features"].items():
            self.assertEqual(dump[f"qimg_{name}"], "yes" if present else "no")
        packages = {"libnbd": "libnbd", "libdeflate": "libdeflate", "zlib": "zlib", "zstd": "libzstd",
                    "jansson": "jansson", "libmicrohttpd": "libmicrohttpd", "openssl": "libcrypto"}
        self.assertLessEqual(set(packages), set(about["libraries"]))
        for name, package in packages.items():
            self.assertEqual(about["libraries"][name].split("-")[0], of_package(package), name)
        self.assertRegex(about["nbdkit"]["version"], r"^%d\.%d\b" % nbdkit_version())
        self.assertEqual(about["nbdkit"]["plugin"], {"version": about["version"], "path": str(PLUGIN)})

    def test_words(self):
        """The text output has the same versions, with each spelling of the command."""
        texts = {run(QIMG, *words, env=plugin_env()).stdout for words in (["version"], ["--version"], ["-V"])}
        self.assertEqual(len(texts), 1, texts)
        text = texts.pop()
        about = self.about()
        self.assertEqual(text.splitlines()[0], f"qimg version {about['version']}")
        for name, version in about["libraries"].items():
            self.assertRegex(text, rf"(?m)^libraries:.*\b{name} {re.escape(version)}(,|$)")
        self.assertIn(f"nbdkit: {about['nbdkit']['version']}, with plugin {about['version']}: {PLUGIN}\n", text)
        self.assertEqual(json.loads(run(QIMG, "--version", "--output=json", env=plugin_env()).stdout), about)

    def test_without(self):
        """There is no nbdkit, or one that doesn't find the plugin."""
        os.mkdir(self.path("empty"))
        self.assertIsNone(self.about(PATH=self.path("empty"))["nbdkit"])
        done = run(QIMG, "version", env=plugin_env(PATH=self.path("empty")))
        self.assertIn("nbdkit: not found", done.stdout)
        nbdkit = self.path("empty/nbdkit")
        with open(nbdkit, "w", encoding="ascii") as file:
            file.write('#!/bin/sh\n[ "$1" = --version ] && echo nbdkit 9.8.7\n')
        os.chmod(nbdkit, 0o755)
        self.assertEqual(self.about(PATH=f"{self.path('empty')}:/bin")["nbdkit"], {"version": "9.8.7", "plugin": None})

    def test_installed(self):
        """If the plugin isn't beside the command, it is found by its name."""
        path = f"{nbdkit_by_name(self.path('bin'))}:{os.environ['PATH']}"
        run("cp", QIMG, self.path("qimg"))
        about = json.loads(run(self.path("qimg"), "version", "--output=json", env=plugin_env(PATH=path)).stdout)
        self.assertEqual(about["nbdkit"]["plugin"]["version"], about["version"])

    def test_refused(self):
        done = run(QIMG, "version", "now", check=False)
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertRegex(done.stderr, "^qimg: version takes no operands: now\n")


if __name__ == "__main__":
    unittest.main()
