# SPDX-License-Identifier: BSD-3-Clause
"""What packagers do: a build without a preset, prefixes, and the plugin's folder."""

import os
import pathlib
import re
import shutil
import unittest

from harness import ROOT, STANDIN, Case, run

PLUGINDIR = run("pkg-config", "--variable=plugindir", "nbdkit").stdout.strip()
PREFIX = run("pkg-config", "--variable=prefix", "nbdkit").stdout.strip()
BELOW_PREFIX = os.path.relpath(PLUGINDIR, PREFIX)


@unittest.skipIf(STANDIN, "builds the plugin")
class Packaging(Case):
    def configure(self, *words):
        run("cmake", "-S", ROOT, "-B", self.path("build"), "-G", "Ninja", "-DQIMG_TESTS=OFF", *words)

    def installed(self, *words, **env):
        """Installs; returns the folder of each installed file, by its name."""
        run("cmake", "--install", self.path("build"), *words, env={**os.environ, **env})
        root = pathlib.Path(self.path("root"))
        return {path.name: "/" + str(path.parent.relative_to(root)) for path in root.rglob("*")
                if path.is_file() and path.parent.name != "completions"}  # has a file named like the command

    def test_build_and_install(self):
        """CMake's own build type, its prefixes, and DESTDIR."""
        self.configure("-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_COMPILE_WARNING_AS_ERROR=ON")
        run("cmake", "--build", self.path("build"), timeout=600)
        root = self.path("root")
        plugin = "nbdkit-qimg-plugin.so"
        found = self.installed(DESTDIR=root)
        self.assertEqual((found["qimg"], found["qimg.1"], found[plugin]),
                         ("/usr/local/bin", "/usr/local/share/man/man1", PLUGINDIR))
        ways = {
            "a prefix at installation": ([], ["--prefix", root + "/opt"], {}, f"/opt/{BELOW_PREFIX}"),
            "a prefix, staged": (["-DCMAKE_INSTALL_PREFIX=/opt/q"], [], {"DESTDIR": root}, f"/opt/q/{BELOW_PREFIX}"),
            "nbdkit's prefix": ([f"-DCMAKE_INSTALL_PREFIX={PREFIX}"], ["--strip"], {"DESTDIR": root}, PLUGINDIR),
            "a folder": (["-DNBDKIT_PLUGINDIR=/srv/plugins"], [], {"DESTDIR": root}, "/srv/plugins"),
            "a folder below the prefix": (["-DNBDKIT_PLUGINDIR=plugins"], ["--prefix", root + "/p"], {}, "/p/plugins"),
        }
        for way, (configure, install, env, folder) in ways.items():
            with self.subTest(way=way):
                run("rm", "-rf", root)
                self.configure("-DCMAKE_INSTALL_PREFIX=/usr/local", "-DNBDKIT_PLUGINDIR=", *configure)
                self.assertEqual(self.installed(*install, **env)[plugin], folder)
        self.runs(root + "/p/bin/qimg", root + "/p/plugins/nbdkit-qimg-plugin.so")

    def runs(self, command, plugin):
        self.assertTrue(run(command, "--version").stdout.startswith("qimg version"))
        self.assertIn("qimg_formats=", run("nbdkit", plugin, "--dump-plugin").stdout)


class Versions(Case):
    """All files have the same version, and the packages' lists are complete."""

    def text(self, name):
        return (ROOT / name).read_text(encoding="utf-8")

    def test_one_version(self):
        version = re.search(r"project\(qimg VERSION (\S+)", self.text("CMakeLists.txt"))[1]
        for name, pattern in {
            "packaging/debian/changelog": r"\Aqimg \((.*?)\)",
            "packaging/rpm/qimg.spec": r"^Version: *(\S+)$",
            "CHANGELOG.md": r"^## \[(\d.*?)\]",
        }.items():
            with self.subTest(file=name):
                self.assertEqual(re.search(pattern, self.text(name), re.M)[1], version)

    def test_every_page_is_packaged(self):
        """The RPM spec lists every manual page.  (Debian's tools check that themselves.)"""
        pages = re.findall(r"^qimg_manual\(\S*?([\w-]+)\.pod (\d)\)", self.text("CMakeLists.txt"), re.M)
        self.assertGreater(len(pages), 3)
        for name, section in pages:
            self.assertIn(f"/man{section}/{name}.{section}*\n", self.text("packaging/rpm/qimg.spec"))

    def test_build_needs_the_same(self):
        """the scripts install the packages that the Debian package's build needs"""
        listed = re.search(r"build_packages=\((.*?)\)", self.text("scripts/lib.sh"), re.S)[1].split()
        control = re.search(r"^Build-Depends:\n(.*?)^\S", self.text("packaging/debian/control"), re.M | re.S)[1]
        asked = set(re.findall(r"^ ([a-z0-9.-]+)", control, re.M))
        essential = {"gcc", "libc6-dev", "pkg-config", "nbdkit"}  # in build-essential, named otherwise, or not needed for the build
        optional = {"librbd-dev"}  # a build works without it, the packages have it
        self.assertEqual(set(listed) - essential, asked - optional - {"debhelper-compat", "pkgconf"})
        self.assertLessEqual(optional, set(re.search(r"package_packages=\((.*?)\)", self.text("scripts/lib.sh"), re.S)[1].split()))

    @unittest.skipUnless(shutil.which("rpmspec"), "no rpmspec")
    def test_rpm_spec(self):
        self.assertIn("Name:           qimg", run("rpmspec", "-P", ROOT / "packaging/rpm/qimg.spec").stdout)


if __name__ == "__main__":
    unittest.main()
