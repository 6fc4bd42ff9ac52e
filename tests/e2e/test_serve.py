# SPDX-License-Identifier: BSD-3-Clause
"""qimg serve from its start to its end: what it prints, when, and what is left."""

import os
import signal
import socket
import subprocess
import unittest

from harness import MIB, kill_quietly, plugin_env, run, wait_until
from test_cli import QIMG, ServeCase


class ServeEnds(ServeCase):
    """The URI is printed as soon as clients are served, and the socket is removed at the server's end."""

    def fails(self, *words, says=(), env=None):
        done = run(QIMG, "serve", *words, check=False, cwd=self.dir, env=env or plugin_env(), timeout=60)
        self.assertEqual((done.returncode, done.stdout), (1, ""), done.stderr)
        for word in says:
            self.assertIn(word, done.stderr)

    def socket_goes(self, path):
        wait_until(lambda: not os.path.exists(self.path(path)), 20, "the end of the socket")

    def test_ports(self):
        """Impossible ports are refused: nbdkit would listen on the lower 16 bits of 70000."""
        self.image()
        for port in ("70000", "65536", "0", "-1", "+1", "1x", "", "99999999999999999999"):
            self.fails("-p", port, "image", says=[f"-p {port}: must be a number from 1 to 65535"])

    def test_threads(self):
        self.image()
        for threads in ("0", "-1", "x", "1025"):
            self.fails("-t", threads, "image", says=[f"-t {threads}: must be a number from 1 to 1024"])

    def test_failures_print_no_uri_and_leave_no_socket(self):
        self.image()
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = str(taken.getsockname()[1])
            self.fails("-p", port, "-a", "127.0.0.1", "image", says=["in use"])
        for words in (["missing"], ["image", "chache=none"], ["image", "format=qcow2"], ["image", "--", "--filter=nosuch"]):
            with self.subTest(words=words):
                self.fails(*words)
                self.socket_goes(f"{words[0]}.sock")
        self.fails("image", env={**plugin_env(), "PATH": self.dir}, says=["cannot run nbdkit"])
        self.socket_goes("image.sock")

    def test_without_an_image(self):
        """dir=, export= and file= in place of an image: the socket lies beside the served file or folder"""
        self.image()
        os.mkdir(self.path("folder"))
        os.rename(self.path("image"), self.path("folder/image"))
        for words, sock, export in ((["dir=folder"], "folder.sock", "image"), (["dir=folder//"], "folder.sock", "image"),
                                    (["export=a:folder/image", "cache=none"], "folder/image.sock", "a"),
                                    (["file=folder/image"], "folder/image.sock", "")):
            with self.subTest(words=words):
                process, uri = self.start(*words)
                self.assertTrue(uri.endswith(sock), uri)
                self.connect(uri.replace("///", f"///{export}")).shutdown()
                self.stop(process)
                self.socket_goes(sock)
        self.fails(says=["dir=FOLDER"])

    def test_the_socket_goes_with_the_server(self):
        """The socket is removed, whatever signal ends the server."""
        self.image()
        for sig in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL):
            with self.subTest(signal=sig):
                process, uri = self.start("image")
                self.connect(uri).shutdown()
                process.send_signal(sig)
                process.wait(30)
                self.socket_goes("image.sock")

    def test_a_socket_of_another_is_left(self):
        """A socket of the same path that another program has made isn't removed."""
        self.image()
        process, _ = self.start("image")
        os.rename(self.path("image.sock"), self.path("old.sock"))
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(self.path("image.sock"))
            self.stop(process)
            self.assertTrue(process.stdout.read() == "" and os.path.exists(self.path("image.sock")))

    def test_ctrl_c(self):
        """Ctrl-C sends SIGINT to the whole process group, also to the process that removes the socket."""
        self.image()
        process = subprocess.Popen([str(QIMG), "serve", "image"], cwd=self.dir, text=True, start_new_session=True,
                                   stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=plugin_env())
        self.addCleanup(process.stdout.close)
        self.addCleanup(kill_quietly, process)
        self.assertIn("image.sock", process.stdout.readline())
        os.killpg(process.pid, signal.SIGINT)
        self.assertEqual(process.wait(30), 0)
        self.socket_goes("image.sock")

    def test_own_pidfile(self):
        self.image()
        process, uri = self.start("image", "--", "-P", self.path("pid"))
        self.assertIn("image.sock", uri)
        wait_until(lambda: os.path.exists(self.path("pid")), 20, "the process id")
        self.stop(process)

    def test_tls(self):
        """The URI begins with nbds if the server requires TLS; a client only has to add its key."""
        self.image()
        with open(self.path("keys"), "w", encoding="ascii") as keys:
            keys.write("alice:" + "a1" * 32 + "\n")
        for options, scheme in ((["--tls=require"], "nbds+unix:"), (["--tls", "require"], "nbds+unix:"),
                                (["--tls=require", "--tls=on"], "nbd+unix:")):
            with self.subTest(options=options):
                process, uri = self.start("image", "--", *options, f"--tls-psk={self.path('keys')}")
                self.assertTrue(uri.startswith(scheme), uri)
                key = f"&tls-psk-file={self.path('keys')}" if scheme == "nbds+unix:" else ""
                size = run("nbdinfo", "--size", uri.replace("://", "://alice@" if key else "://") + key).stdout
                self.assertGreater(int(size), 0)
                self.stop(process)


NO_LOCKS = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <sys/syscall.h>
#include <unistd.h>
int fcntl(int fd, int command, ...)
{
    va_list ap;
    va_start(ap, command);
    void *argument = va_arg(ap, void *);
    va_end(ap);
    if (command == F_OFD_SETLK || command == F_OFD_GETLK) {
        errno = ENOLCK;
        return -1;
    }
    return (int)syscall(SYS_fcntl, fd, command, argument);
}
int fcntl64(int fd, int command, ...) __attribute__((alias("fcntl")));
"""


class NoLocks(ServeCase):
    """A filesystem without locks: the message names the remedy (lock=off, -U), and it works."""

    def test_remedies(self):
        self.image()
        shim = self.path("no-locks.so")
        run("gcc", "-shared", "-fPIC", "-o", shim, "-x", "c", "-", stdin=None, input=NO_LOCKS)
        env = plugin_env()
        env["LD_PRELOAD"] = f"{env.get('LD_PRELOAD', '')} {shim}".strip()
        for words in (["serve", "--run", "true", "image"], ["info", "image"], ["map", "image"], ["check", "image"]):
            done = run(QIMG, *words, check=False, cwd=self.dir, env=env)
            self.assertEqual((done.returncode, done.stdout), (1, ""), done.stderr)
            self.assertRegex(done.stderr, "image'?: lock: taking a (read|write) lock: No locks available: .*lock=off, or -U")
        for words in (["serve", "--run", "true", "image", "lock=off"], ["info", "-U", "image"], ["map", "-U", "image"],
                      ["check", "-U", "image"]):
            self.assertEqual(run(QIMG, *words, cwd=self.dir, env=env).returncode, 0)


class Activated(ServeCase):
    """Socket activation: sockets that systemd or a similar program passes on."""

    def activated(self, listener, *words):
        """Runs qimg serve by exec from a shell, because LISTEN_PID must be its own process id."""
        script = 'exec 3<&"$1"; shift; export LISTEN_FDS=1 LISTEN_PID=$$; exec "$@"'
        process = subprocess.Popen(["bash", "-c", script, "bash", str(listener.fileno()), str(QIMG), "serve", *words],
                                   cwd=self.dir, text=True, pass_fds=[listener.fileno()], stdin=subprocess.DEVNULL,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=plugin_env())
        self.addCleanup(process.stderr.close)
        self.addCleanup(process.stdout.close)
        self.addCleanup(kill_quietly, process)
        return process, process.stdout.readline().strip()

    def uses(self, process, uri):
        handle = self.connect(uri)
        handle.pwrite(b"x" * 512, MIB)
        handle.shutdown()
        self.stop(process)

    def test_unix(self):
        self.image()
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self.path("passed on"))
            listener.listen()
            process, uri = self.activated(listener, "image")
            self.assertEqual(uri, f"nbd+unix:///?socket={self.dir}/passed%20on")
            self.uses(process, uri)
        self.assertTrue(os.path.exists(self.path("passed on")), "it is who made it that removes it")
        self.assertFalse(os.path.exists(self.path("image.sock")))

    def test_tcp_socket(self):
        self.image()
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            process, uri = self.activated(listener, "image")
            self.assertEqual(uri, f"nbd://127.0.0.1:{listener.getsockname()[1]}")
            self.uses(process, uri)

    def test_not_with_a_place_of_its_own(self):
        self.image()
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            for words in (["-p", "10809"], ["-s", "sock"], ["--run", "true"]):
                process, uri = self.activated(listener, *words, "image")
                self.assertEqual((uri, process.wait(30)), ("", 1))
                self.assertIn("LISTEN_FDS", process.stderr.read())

    def test_for_another_process(self):
        """Sockets passed to another process (LISTEN_PID) are ignored."""
        self.image()
        done = run(QIMG, "serve", "--run", "true", "image", cwd=self.dir,
                   env={**plugin_env(), "LISTEN_FDS": "1", "LISTEN_PID": "1"})
        self.assertEqual(done.returncode, 0)


if __name__ == "__main__":
    unittest.main()
