# SPDX-License-Identifier: BSD-3-Clause
"""The manual pages and the programs have the same options and parameters."""

import pathlib
import re
import unittest

from harness import BUILD, PLUGIN, ROOT, Case, plugin_env, run
from qmp import Qmp

QIMG = BUILD / "qimg"
POD_OF_QIMG = (ROOT / "server" / "cli" / "qimg.pod").read_text(encoding="utf-8")
POD_OF_PLUGIN = (ROOT / "server" / "nbdkit-qimg-plugin.pod").read_text(encoding="utf-8")
POD_OF_CONTROL = (ROOT / "server" / "qimg-control.pod").read_text(encoding="utf-8")


def section(pod, title):
    """The text from a heading to the next one of the same or a higher level."""
    level = int(re.search(rf"^=head(\d) {re.escape(title)}$", pod, re.M)[1])
    tail = pod.split(f"=head{level} {title}\n", 1)[1]
    return re.split(rf"^=head[1-{level}] ", tail, maxsplit=1, flags=re.M)[0]


def commands():
    listing = run(QIMG, "--help").stdout.split("Commands;", 1)[1]
    return re.findall(r"^  ([a-z]+) ", listing, re.M)


def options_in_help(command):
    found = set()
    for line in run(QIMG, command, "--help").stdout.splitlines():
        if line.startswith("  -"):
            found.update(re.findall(r"(?<![\w-])(--?[a-z][a-z-]*|-[A-Za-z])\b", line[:30], re.I))
    return found - {"-h", "--help"}


def options_in_pod(text):
    items = re.findall(r"^=item (.*)$", text, re.M)
    return {o for item in items for o in re.findall(r"B<(--?[A-Za-z-]+)>", item)}


def parameters_in_pod():
    items = re.findall(r"^=item (.*)$", section(POD_OF_PLUGIN, "PARAMETERS"), re.M)
    return {re.search(r"B<([a-z-]+)(?:\.N)?=", item)[1] for item in items if "B<" in item}


class Manual(Case):
    def test_every_command(self):
        for command in commands():
            with self.subTest(command=command):
                self.assertIn(f"=head2 qimg {command}\n", POD_OF_QIMG)
                self.assertRegex(section(POD_OF_QIMG, "SYNOPSIS"), rf"\n qimg {command} ")
        told = re.findall(r"^=head2 qimg ([a-z]+)$", POD_OF_QIMG, re.M)
        self.assertEqual(sorted(told), sorted(commands()))

    def test_every_option(self):
        for command in commands():
            with self.subTest(command=command):
                self.assertEqual(options_in_pod(section(POD_OF_QIMG, f"qimg {command}")),
                                 options_in_help(command))

    def test_every_create_option(self):
        told = set(re.findall(r"^=item B<([a-z0-9_.-]+)>=", section(POD_OF_QIMG, "CREATE OPTIONS"), re.M))
        known = set()
        for fmt in ("raw", "qed", "qcow2"):
            lines = run(QIMG, "create", "-f", fmt, "-o", "help").stdout
            known |= set(re.findall(r"^  ([a-z0-9_.-]+)=", lines, re.M))
        self.assertEqual(told, known)

    def test_every_parameter(self):
        """the plugin's parameters, from nbdkit's help, whose lines begin with a parameter's name"""
        done = run("nbdkit", PLUGIN, "--help", env=plugin_env())
        ours = done.stdout.split("plugin: qimg", 1)[1]
        known = set(re.findall(r"^\[?([a-z][a-z-]*)=", ours, re.M))
        self.assertEqual(parameters_in_pod(), known)

    def test_synopsis_of_the_plugin(self):
        synopsis = section(POD_OF_PLUGIN, "SYNOPSIS")
        found = set(re.findall(r"\[?\b([a-z-]+)=\]?", synopsis))
        self.assertEqual(found, parameters_in_pod())

    def test_every_command_of_the_control_socket(self):
        """M-22: every command and its arguments, as in the schema"""
        image = self.path("disk.raw")
        with open(image, "wb") as file:
            file.truncate(1 << 20)
        self.serve(image, "format=raw", f"control={self.path('control')}")
        with Qmp(self.path("control")) as client:
            schema = {entity["name"]: entity for entity in client.cmd("query-qmp-schema")}
            known = {c["name"]: self.arguments(schema, c["name"]) for c in client.cmd("query-commands")}
        headings = re.findall(r"^=head2 (.+)$", section(POD_OF_CONTROL, "COMMANDS"), re.M)
        told = [name for heading in headings for name in heading.split(", ")]
        self.assertEqual(sorted(told), sorted(known))
        self.assertEqual(told, list(known), "the order")
        for command, arguments in known.items():
            with self.subTest(command=command):
                self.assertEqual(self.arguments_in_pod(command), arguments)

    def arguments(self, schema, command):
        """a command's arguments, including those of each variant"""
        takes = schema[schema[command]["arg-type"]]
        objects = [takes] + [schema[variant["type"]] for variant in takes.get("variants", [])]
        return {member["name"] for entity in objects for member in entity["members"]}

    def arguments_in_pod(self, command):
        """the items of the command's section, without those that describe the returned value"""
        title = re.search(rf"^=head2 (.*\b{command}\b.*)$", POD_OF_CONTROL, re.M)[1]
        if command not in title.split(", "):
            title = command
        text = section(POD_OF_CONTROL, title)
        if command == "query-block":
            return set()
        items = re.findall(r"^=item (.*)$", text, re.M)
        return {name for item in items for name in re.findall(r"[a-z][a-z0-9_-]*", item)} - {"or"}

    def test_pod_is_valid(self):
        for pod in (ROOT / "server").rglob("*.pod"):
            with self.subTest(pod=pod.name):
                done = run("podchecker", pathlib.Path(pod), check=False)
                self.assertEqual(done.returncode, 0, done.stderr)
                self.assertNotIn("WARNING", done.stderr)


if __name__ == "__main__":
    unittest.main()
