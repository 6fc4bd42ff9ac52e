# SPDX-License-Identifier: BSD-3-Clause
"""The examples of the manual pages run as they are printed, in order."""

import json
import re
import unittest

from examples import Examples, pod_blocks, pod_section
from harness import MIB, ROOT, STANDIN, create
from qmp import Qmp

# Makes the images, keys and names that the examples use.
PLUGIN_FINDS = """
qimg create -q -f qcow2 disk.qcow2 64M
qimg create -q -f qcow2 untrusted.qcow2 64M
qimg create -q -f raw disk.img 64M
mkdir images keys
qimg create -q -f raw images/base.raw 64M
qimg create -q -f qed -b images/base.raw -F raw overlay.qed
mv images/base.raw images/moved.raw; qimg create -q -f raw images/base.raw 64M
for key in base secret; do printf "of $key" > keys/$key; done
luks=encrypt.format=luks,encrypt.iter-time=10,encrypt.key-secret=k
qimg create -q -f qcow2 --object secret,id=k,file=keys/base -o $luks base.qcow2 64M
qimg create -q -f qcow2 --object secret,id=k,file=keys/secret -o $luks,backing_file=base.qcow2,backing_fmt=qcow2 secret.qcow2 64M
"""


def pod(name):
    return (ROOT / "server" / name).read_text(encoding="utf-8")


def examples_of(name):
    return "\n".join(pod_blocks(pod_section(pod(name), "EXAMPLES"))) + "\n"


def in_other_terminals(script):
    """Puts servers that run in the foreground into the background, and waits until each has printed its URI, as a
    reader with several terminals would."""
    number = 0

    def elsewhere(match):
        nonlocal number
        number += 1
        return (f"{match[0]} > {number}.uri &\necho $! > {number}.pid\n"
                f"until [ -s {number}.uri ]; do kill -0 $!; sleep 0.05; done")
    return re.sub(r"^qimg serve (?!.*--run).*$", elsewhere, script, flags=re.M)


@unittest.skipIf(STANDIN, "needs the plugin")
class ManualPages(Examples):
    def test_qimg(self):
        """`complete` is repeated until the job is ready, as the text says; then the job's end is awaited, because the
        old disk is read afterwards."""
        script = in_other_terminals(examples_of("cli/qimg.pod"))
        script = re.sub(r"^(qimg job (\S+) complete (\S+))$",
                        r"until \1; do sleep 0.1; done\nwhile qimg job \2 list | grep \3; do sleep 0.1; done", script,
                        flags=re.M)
        self.assertIn("while qimg job", script)
        self.assertGreater(script.count("qimg "), 8)
        self.run_script(script)

    def test_plugin(self):
        """Servers that go to the background get a pid file."""
        script = examples_of("nbdkit-qimg-plugin.pod")
        script = re.sub(r"^nbdkit (?!.*--run)", lambda match: f"nbdkit -P $((++n)).pid ", script, flags=re.M)
        self.assertGreater(script.count("nbdkit "), 6)
        self.run_script(script, before=PLUGIN_FINDS)

    def test_control(self):
        """The client's messages are sent to real servers, and the printed events must come."""
        text = pod_section(pod("qimg-control.pod"), "EXAMPLES")
        steps = re.findall(r"^ (->|<-) (.*(?:\n   .*)*)", text, re.M)
        self.assertGreater(len(steps), 6)
        source, target = (create(self.path(name), "raw", MIB) for name in ("source", "target"))
        other = self.serve(target, "format=raw")
        self.serve(source, "format=raw", f"control={self.path('qmp')}")
        with Qmp(self.path("qmp"), negotiate=False) as client:
            for side, message in steps:
                if side == "->":
                    message = message.replace("nbd://other/disk", other.uri).replace("/images", self.path("."))
                    command = json.loads(message)
                    answer = client.cmd(command["execute"], **command.get("arguments", {}))
                    self.assertEqual(answer, {})
                elif event := re.search(r'"event": "(\w+)"', message):
                    client.event(event[1], **dict(re.findall(r'"(status)": "(\w+)"', message)))

    def test_control_elsewhere(self):
        """Sends the commands that are printed outside of EXAMPLES.  The incremental backup comes before the transaction
        that continues from it, and the backup for clients that pull, which doesn't end, comes last."""
        text = pod("qimg-control.pod").replace(pod_section(pod("qimg-control.pod"), "EXAMPLES"), "")
        found = [re.sub(r"^(->|<-) ", "", re.split(r"^<- ", block, flags=re.M)[0].strip()) for block in pod_blocks(text)]
        commands = sorted((json.loads(block) for block in found if '"execute"' in block),
                          key=lambda one: (one["execute"] == "block-export-add", one["execute"] == "transaction",
                                           "scratch" in str(one), "overlay" in str(one), "disk-only" in str(one),
                                           "tuesday" in str(one)))
        create(self.path("scratch.qcow2"), "qcow2", MIB)
        self.assertGreater(len(commands), 3)
        greeting = [json.loads(block) for block in found if block.startswith('{"QMP"')]
        self.serve(create(self.path("disk"), "qcow2", MIB), f"control={self.path('qmp')}")
        with Qmp(self.path("qmp")) as client:
            self.assertEqual([client.greeting], greeting)
            client.cmd("blockdev-add", node_name="over", driver="qcow2", backing=None, file={
                "driver": "file", "filename": create(self.path("over"), "qcow2", MIB)})
            for command in commands:
                client.send(json.loads(json.dumps(command).replace("/images", self.path("."))))
                answer = next(message for message in iter(client.receive, None) if "event" not in message)
                self.assertEqual(answer, {"return": {}}, command)

    def test_plugin_elsewhere(self):
        """The examples in the section NOTES: a remote base, a key in a URI, --dump-plugin."""
        notes = pod_section(pod("nbdkit-qimg-plugin.pod"), "NOTES")
        blocks = pod_blocks(notes)
        base = self.serve(create(self.path("base"), "raw", 20 << 30), "format=raw")
        (remote,) = [block for block in blocks if "images.example" in block]
        remote = remote.replace("nbd://images.example/debian-12", f"'{base.uri}'").replace("/run/", "")
        (dump,) = [block for block in blocks if "--dump-plugin" in block]
        (key,) = [block for block in blocks if "storage.example" in block]
        with open(self.path("keys.psk"), "w", encoding="ascii") as keys:
            keys.write("alice:" + "a1" * 32 + "\n")
        create(self.path("secret"), "raw", MIB)
        create(self.path("over.qcow2"), "qcow2", MIB)
        key = key.replace("nbds://alice@storage.example/disk?", f"nbds+unix://alice@/disk?socket={self.path('tls')}&")
        key = key.replace("/etc/qimg/keys.psk", self.path("keys.psk")).strip()
        self.run_script(f"""{remote.replace("nbdkit", "nbdkit -P remote.pid")}
kill $(cat remote.pid)
{dump}
nbdkit -P tls.pid -U {self.path("tls")} --tls=require --tls-psk={self.path("keys.psk")} qimg export=disk:{self.path("secret")} format=raw
nbdkit -U - qimg {self.path("over.qcow2")} {key} backing-format=raw --run 'nbdinfo "$uri"'
kill $(cat tls.pid)
""")

    def test_backup(self):
        (example,) = [block for block in pod_blocks(pod("cli/qimg.pod")) if "/backups/disk" in block and "--keep" in block]
        self.run_script(f"""qimg create -q -f qcow2 disk.qcow2 64M
mkdir backups
nbdkit -P disk.pid -U disk.sock qimg disk.qcow2 control=disk.qmp
{example.replace("/backups", "backups")}
qimg backup --list backups/disk | grep full
kill $(cat disk.pid)
""")


if __name__ == "__main__":
    unittest.main()
