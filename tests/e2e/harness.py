# SPDX-License-Identifier: BSD-3-Clause
"""Shared by the end-to-end tests: a server that is started and stopped, a flat model of a disk, and
helpers that call QEMU's tools to judge images.

Environment: QIMG_BUILD   folder of the build (nbdkit-qimg-plugin.so, qimg); build/debug
             QIMG_TMPDIR  where images go; must not be tmpfs (O_DIRECT, holes); /var/tmp
             QIMG_LONG    1: the full matrices and longer runs
             QIMG_ROUNDS  rounds of each test that repeats itself, with other random numbers each time
             QIMG_SEED    seed of all random numbers, printed by every test that fails
             QIMG_STANDIN qemu-nbd: serve with it instead of the plugin, to test the tests themselves
"""

import contextlib
import faulthandler
import hashlib
import json
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import unittest

import nbd

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("QIMG_BUILD", ROOT / "build" / "debug")).resolve()
PLUGIN = BUILD / "nbdkit-qimg-plugin.so"
LONG = os.environ.get("QIMG_LONG", "") not in ("", "0")
SEED = int(os.environ.get("QIMG_SEED", "0")) or int.from_bytes(os.urandom(3), "big")
STANDIN = os.environ.get("QIMG_STANDIN", "")
QIMG = "qemu-img" if STANDIN else BUILD / "qimg"

# tests/tools has a qemu-img with a finer clock (see tests/support/qemu_img); nbdsh needs the system's Python.
os.environ["PATH"] = f"{BUILD / 'tests' / 'tools'}:/usr/bin:{os.environ['PATH']}"

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
SECTOR = 512
START_TIMEOUT = 20  # seconds; a server that neither listens nor ends by then hangs
STOP_TIMEOUT = 60
TMPFS_MAGIC = 0x01021994
ACCEPTS = 1 << 16  # a listening socket, among the flags of /proc/net/unix (__SO_ACCEPTCON)
COMPLAINT = 99  # exit status of a server in which a sanitizer found an error


def tmp_root():
    """The folder for images: the first writable one that isn't in memory."""
    wished = os.environ.get("QIMG_TMPDIR")
    for folder in [wished] if wished else ["/var/tmp", "/tmp", str(BUILD)]:
        kind = subprocess.run(["stat", "-f", "-c", "%t", folder], capture_output=True, text=True)
        if kind.returncode == 0 and int(kind.stdout, 16) != TMPFS_MAGIC:
            return folder
    raise RuntimeError("no folder on a real filesystem; set QIMG_TMPDIR")


# A preloaded library.  Its constructor allocates, so that the sanitizer is initialised before other
# libraries' constructors run: if that happens inside glibc's newlocale(), a lock of glibc stays taken
# and the process hangs when it exits.  Its dlclose() keeps the plugin loaded to the end, so that the
# leak report can name the plugin's functions.
EARLY = r"""
#include <stdlib.h>
void *volatile qimg_e2e_early;
int dlclose(void *handle);
int dlclose(void *handle)
{
    (void)handle;
    return 0;
}
__attribute__((constructor)) static void early(void)
{
    qimg_e2e_early = malloc(1);
}
"""


def sanitizer_env():
    """The environment for a plugin built with a sanitizer: nbdkit itself isn't, so the run-time library is
    preloaded."""
    if STANDIN or not PLUGIN.exists():
        return {}
    needed = subprocess.run(["ldd", PLUGIN], capture_output=True, text=True, check=True).stdout
    found = re.search(r"=> (\S*lib(asan|tsan)\S*)", needed)
    if not found:
        return {}
    early = BUILD / "e2e-early.so"
    if not early.exists():
        mine = f"{early}.{os.getpid()}"
        subprocess.run(["gcc", "-shared", "-fPIC", "-Wl,-z,initfirst", "-o", mine, "-x", "c", "-"],
                       input=EARLY, text=True, check=True)
        os.rename(mine, early)
    return {
        "LD_PRELOAD": f"{found[1]}:{early}",
        "ASAN_OPTIONS": f"exitcode={COMPLAINT}",
        "LSAN_OPTIONS": "detect_leaks=0",  # only servers look for leaks: see Server
        "TSAN_OPTIONS": f"exitcode={COMPLAINT}",
    }


SANITIZER_ENV = sanitizer_env()


def complaints(errors):
    """The sanitizers' reports about our code in a server's stderr.  Leaks of nbdkit itself are left out,
    and handles of connections that are open at the end: nbdkit doesn't call the plugin's close for these."""
    def is_ours(leak):
        """Judged by the first caller that isn't in a library."""
        for caller in re.findall(r"#\d+ 0x\w+ (.*)", leak):
            if not re.search(r"interceptor|/lib[a-z]+[-0-9.]*\.so|^in (malloc|strdup|json_)", caller):
                return "nbdkit+" not in caller and not caller.startswith("in qimg_open ")
        return False

    parts = re.split(r"(?m)^(?=Direct leak|Indirect leak|SUMMARY: |=+\d+=+ERROR: )", errors)
    leaks = [part for part in parts if part.startswith("Direct leak")]
    others = [part for part in parts if re.search(r"(Address|Thread|UndefinedBehavior)Sanitizer: (?!\d+ byte)|runtime error: ", part)]
    return "".join(others + [leak for leak in leaks if is_ours(leak)])


def run(*argv, timeout=120, check=True, **kwargs):
    """Runs a command with captured text output.  An exit status other than 0 is an AssertionError with
    its output, unless check is False."""
    argv = [str(a) for a in argv]
    kwargs.setdefault("stdin", subprocess.DEVNULL)
    done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout, **kwargs)
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(argv)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def plugin_env(**more):
    return {**os.environ, **SANITIZER_ENV, **more}


def nbdkit_version():
    """For example (1, 32)."""
    return tuple(map(int, re.search(r"(\d+)\.(\d+)", run("nbdkit", "--version").stdout).groups()))


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


class StartFailed(Exception):
    """The server ended, or hung, before it listened."""

    def __init__(self, code, errors):
        super().__init__(f"server ended with {code} before it listened:\n{errors}")
        self.code, self.errors = code, errors


class Server:
    """One nbdkit with the plugin, in the foreground, on its own Unix socket.  keys: parameters of the
    plugin; nbdkit: options of nbdkit; prefix: a command that runs it (strace); fmt: for qemu-nbd only."""

    def __init__(self, folder, image, *keys, nbdkit=(), prefix=(), fmt=None, env=None):
        self.folder = tempfile.mkdtemp(prefix="s", dir=folder)
        self.socket = os.path.join(self.folder, "sock")
        self.uri = f"nbd+unix:///?socket={self.socket}"
        self.pidfile = os.path.join(self.folder, "pid")
        self.errors_path = os.path.join(self.folder, "stderr")
        self.handles = []
        self.returncode = None
        if STANDIN:
            argv = ["qemu-nbd", "-t", "-e16", "-k", self.socket, f"--pid-file={self.pidfile}",
                    "--discard=unmap", *(["-f", fmt] if fmt else []),
                    *(["-r"] if "-r" in nbdkit else []), str(image)]
        else:
            argv = ["nbdkit", "-f", "-U", self.socket, "-P", self.pidfile, *nbdkit, PLUGIN,
                    *([f"file={image}"] if image else []), *keys]
        with open(self.errors_path, "wb") as errors:
            self.process = subprocess.Popen(
                [*map(str, prefix), *map(str, argv)], stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=errors, env=plugin_env(LSAN_OPTIONS="detect_leaks=1", **(env or {})))
        self._await_listening()

    def _await_listening(self):
        limit = time.monotonic() + START_TIMEOUT
        while not (os.path.exists(self.pidfile) and os.path.getsize(self.pidfile)):
            if self.process.poll() is not None:
                self.returncode = self.process.returncode
                raise StartFailed(self.returncode, self.errors)
            if time.monotonic() > limit:
                self.kill()
                raise StartFailed("a hang", self.errors)
            time.sleep(0.003)

    @property
    def errors(self):
        return pathlib.Path(self.errors_path).read_text(errors="replace")

    @property
    def alive(self):
        return self.process.poll() is None

    def connect(self, export="", strict=not STANDIN):
        """A new connection, closed by stop().  strict=False: libnbd also sends requests that it would refuse
        itself."""
        handle = nbd.NBD()
        handle.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
        handle.set_export_name(export)
        if not strict:
            handle.set_strict_mode(0)
        handle.connect_unix(self.socket)
        self.handles.append(handle)
        return handle

    def exports(self):
        """What the server lists: the name of each export, and its description."""
        found, handle = {}, nbd.NBD()
        handle.set_opt_mode(True)
        handle.connect_unix(self.socket)
        handle.opt_list(lambda name, description: found.update({name: description}) or 0)
        handle.opt_abort()
        return found

    def disconnect(self):
        """Ends all connections with NBD_CMD_DISC."""
        for handle in self.handles:
            with contextlib.suppress(nbd.Error):
                handle.shutdown()
        self.handles.clear()

    def stop(self, sig=signal.SIGTERM, disconnect=True):
        """Ends the server by a signal.  It must exit with status 0, without a sanitizer's report."""
        if disconnect:
            self.disconnect()
        self.process.send_signal(sig)
        self.wait()

    def wait(self):
        try:
            self.returncode = self.process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"server did not stop in {STOP_TIMEOUT} s\n{self.errors}") from None
        if self.returncode == COMPLAINT and SANITIZER_ENV and not complaints(self.errors):
            self.returncode = 0
        if self.returncode != 0:
            raise AssertionError(f"server ended with {self.returncode}\n{self.errors}")

    def kill(self):
        """kill -9, like a crash of the process."""
        if self.process.poll() is None:
            self.process.kill()
        self.returncode = self.process.wait()
        self.handles.clear()


class Model:
    """What the disk must read as: a flat array.  Its write, zero and trim change the disk, too."""

    def __init__(self, content):
        self.data = bytearray(content)

    def __len__(self):
        return len(self.data)

    def write(self, handle, off, payload, flags=0):
        handle.pwrite(payload, off, flags)
        self.data[off:off + len(payload)] = payload

    def zero(self, handle, off, length, flags=0):
        handle.zero(length, off, flags)
        self.data[off:off + length] = bytes(length)

    def trim(self, handle, off, length, flags=0):
        """After a trim each sector may read as before or as zeroes; the model takes over what it reads as."""
        handle.trim(length, off, flags)
        now, pos = bytes(handle.pread(length, off)), 0
        while pos < length:
            step = min(SECTOR - (off + pos) % SECTOR, length - pos)
            got, old = now[pos:pos + step], self.data[off + pos:off + pos + step]
            if got != old and any(got):
                raise AssertionError(f"trim of {off}+{length}: byte {off + pos} reads as "
                                     f"{got[:16].hex()}: neither what it was nor zero")
            pos += step
        self.data[off:off + length] = now

    def expect(self, actual, what, base=0):
        """Fails if `actual` differs from the model at offset `base`; reports the first difference."""
        expected = self.data[base:base + len(actual)] if base or len(actual) != len(self) else self.data
        if actual == expected:
            return
        if len(actual) != len(expected):
            raise AssertionError(f"{what}: {len(actual)} bytes instead of {len(expected)}")
        at = next(i for i in range(len(actual)) if actual[i] != expected[i])
        raise AssertionError(f"{what}: byte {base + at} is {bytes(actual[at:at + 16]).hex()} instead "
                             f"of {bytes(expected[at:at + 16]).hex()}")

    def compare(self, handle, off=0, length=None, what="read over NBD"):
        length = len(self) - off if length is None else length
        while length:
            step = min(length, 8 * MIB)
            self.expect(handle.pread(step, off), what, off)
            off, length = off + step, length - step


def exercise(handles, model, rng, count, cluster=64 * KIB, trim=True):
    """Sends `count` random requests, spread over the connections, to the disk and the model.  A failure
    lists the last of them."""
    log = []
    size = len(model)
    unit = max(1, handles[0].get_block_size(nbd.SIZE_MINIMUM)) if handles[0].get_strict_mode() else 1

    def place():
        """A random offset and length, often at the edges of clusters."""
        shape = rng.random()
        if shape < 0.4:
            length = rng.randint(1, 4 * KIB)
        elif shape < 0.7:
            length = rng.randint(1, min(3 * cluster, 512 * KIB))
        else:
            length = rng.randint(1, max(1, min(4, 512 * KIB // cluster))) * cluster
        length = min(length, size)
        off = rng.randrange(size - length + 1)
        if rng.random() < 0.4:
            off = off // cluster * cluster
        elif rng.random() < 0.5:
            off = off // SECTOR * SECTOR
        return off // unit * unit, -(-length // unit) * unit

    def one(kind, handle):
        off, length = place()
        fua = nbd.CMD_FLAG_FUA if rng.random() < 0.1 else 0
        log.append(f"{kind} {off}+{length} fua={bool(fua)}")
        if kind == "write":
            model.write(handle, off, rng.randbytes(length), fua)
        elif kind == "zero":
            model.zero(handle, off, length, fua)
        elif kind == "zero-keep":
            model.zero(handle, off, length, fua | nbd.CMD_FLAG_NO_HOLE)
        elif kind == "zero-fast":
            with contextlib.suppress(nbd.Error):  # it may refuse because it would be slow
                model.zero(handle, off, length, nbd.CMD_FLAG_FAST_ZERO)
        elif kind == "trim":
            model.trim(handle, off, length, fua)
        elif kind == "read":
            model.compare(handle, off, length)
        else:
            handle.flush()

    kinds = {"write": 50, "zero": 14, "zero-keep": 6, "zero-fast": 4, "trim": 14, "read": 14, "flush": 3}
    if not trim:
        del kinds["trim"]
    try:
        for kind in rng.choices(list(kinds), kinds.values(), k=count):
            one(kind, rng.choice(handles))
        model.compare(handles[0])
    except (AssertionError, nbd.Error) as error:
        raise AssertionError(f"{error}\nlast requests: " + "; ".join(log[-12:])) from error


# ---- QEMU's tools ----

def create(path, fmt, size, options="", backing=None, backing_fmt=None, tool="qemu-img"):
    """Makes an image by `qemu-img create`, or by `qimg create` with the same arguments (tool="qimg")."""
    argv = [QIMG if tool == "qimg" else tool, "create", "-q", "-f", fmt]
    if options:
        argv += ["-o", options]
    if backing:
        argv += ["-b", backing, "-F", backing_fmt]
    run(*argv, path, *([] if size is None else [size]))
    return path


def create_encrypted(path, size, options, fmt="qcow2", **kwargs):
    """Makes an encrypted image; its options name the passphrase as the secret "s"."""
    run("qemu-img", "create", "-q", "--object", "secret,id=s,data=sesame", "-f", fmt, "-o", options, path, size,
        **kwargs)


def fill(path, fmt, pieces):
    """Writes pieces, (offset, bytes), into an image by qemu-io."""
    with tempfile.TemporaryDirectory(dir=os.path.dirname(path)) as folder:
        argv = ["qemu-io", "-f", fmt]
        for number, (off, payload) in enumerate(pieces):
            source = os.path.join(folder, str(number))
            pathlib.Path(source).write_bytes(payload)
            argv += ["-c", f"write -q -s {source} {off} {len(payload)}"]
        run(*argv, path)


def check(path, fmt, allow_leaks=False, served=False):
    """qemu-img check must find neither errors nor leaks.  served: a server has the image open."""
    if fmt == "raw":
        return
    done = run("qemu-img", "check", *(["-U"] if served else []), "--output=json", "-f", fmt, path, check=False)
    if done.returncode not in ((0, 3) if allow_leaks else (0,)):
        raise AssertionError(f"qemu-img check {path}: exit {done.returncode}\n{done.stdout}{done.stderr}")


def repair(path, fmt):
    """qemu-img check -r all must repair everything, except for leaks of QED, which it never repairs."""
    done = run("qemu-img", "check", "-r", "all", "-f", fmt, path, check=False)
    if done.returncode not in ((0, 3) if fmt == "qed" else (0,)):
        raise AssertionError(f"qemu-img check -r all {path}: exit {done.returncode}\n{done.stdout}{done.stderr}")


def content(path, fmt, served=False):
    """The whole disk as qemu-img reads it.  served: a server has the image open."""
    with tempfile.TemporaryDirectory(dir=tmp_root()) as folder:
        flat = os.path.join(folder, "flat")
        run("qemu-img", "convert", *(["-U"] if served else []), "-f", fmt, "-O", "raw", path, flat)
        return pathlib.Path(flat).read_bytes()


def snapshot_rows(match):
    """A snapshot list as QEMU up to version 8 prints it, from the match of a newer one."""
    rows = re.findall(r"^(\S+) +(\S.*?) +(\S+ ?B|VM_SIZE) +(\S+ \S+|DATE) +(?:00(?=\d\d:))?(\S+) +(\S+)$", match[1], re.M)
    rows = [[word.replace("VM_", "VM ") for word in row] for row in rows]
    return "Snapshot list:\n" + "".join(f"{r[0]:<9} {r[1]:<16} {r[2]:>8}{r[3]:>20}{r[4]:>13}{r[5]:>11}\n" for r in rows)


def qemu_text(text):
    """The output of qemu-img in the form of older versions.  Newer ones also print the file below the format, whether
    the LUKS header is detached, and "compressed": false; and their lists of snapshots have other columns."""
    text = re.sub(r"Child node '/[^']*':\n(?:    .*\n)+", "", text)
    text = re.sub(r"^Snapshot list:\n(ID .*VM_SIZE.*\n(?:\S+ .*\n)*)", snapshot_rows, text, flags=re.M)
    return text.replace(', "compressed": false', "").replace("        detached header: false\n", "")


def qemu_json(value):
    """The same for JSON output."""
    if isinstance(value, str):
        return qemu_json(json.loads(value))
    if isinstance(value, list):
        return [qemu_json(v) if isinstance(v, (dict, list)) else v for v in value]
    return {key: qemu_json(v) if isinstance(v, (dict, list)) else v for key, v in value.items()
            if key not in ("children", "detached-header") and (key, v) != ("compressed", False)}


def qemu_version():
    return tuple(map(int, re.search(r"version (\d+)\.(\d+)", run("qemu-img", "--version").stdout).groups()))


def info(path, fmt):
    return qemu_json(run("qemu-img", "info", "-U", "--output=json", "-f", fmt, path).stdout)


def header(path, off, length, order):
    """An unsigned integer in the image file."""
    with open(path, "rb") as file:
        file.seek(off)
        return int.from_bytes(file.read(length), order)


def patch(path, off, payload):
    with open(path, "r+b") as file:
        file.seek(off)
        file.write(payload)


def need_check(path):
    """Is QED's NEED_CHECK bit set in the file?"""
    return bool(header(path, 16, 8, "little") & 2)


def dirty(path):
    """Is qcow2's dirty bit set in the file?"""
    return bool(header(path, 72, 8, "big") & 1)


def kill_quietly(process):
    """kill -9 for cleaning up; the process may have ended already."""
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    process.wait()


def free_port():
    """A TCP port of the loopback address that nobody listens on, for the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(condition, timeout, what):
    limit = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > limit:
            raise AssertionError(f"{what}: not within {timeout} s")
        time.sleep(0.01)


def await_listener(path, timeout=20):
    """Waits until a process listens at a Unix socket.  The file may exist before that; and a trial connection could be
    the only one that the server accepts."""
    def listens():
        with open("/proc/net/unix", encoding="utf-8", errors="replace") as sockets:
            words = [line.rstrip("\n").split(None, 7) for line in sockets]
        return any(len(w) == 8 and w[7] == str(path) and int(w[3], 16) & ACCEPTS for w in words[1:])
    wait_until(listens, timeout, f"who listens at {path}")


def freeze(process):
    """Stops a child by SIGSTOP and waits until none of its threads runs any more."""
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)


class Case(unittest.TestCase):
    """A test with its own folder.  Its servers are killed at its end, and it fails after TIMEOUT seconds."""

    TIMEOUT = 300

    def setUp(self):
        self.servers = []
        faulthandler.dump_traceback_later(self.TIMEOUT * (10 if LONG else 1), exit=True)
        self.addCleanup(faulthandler.cancel_dump_traceback_later)
        self.dir = tempfile.mkdtemp(prefix="qimg-e2e-", dir=tmp_root())
        self.addCleanup(shutil.rmtree, self.dir, ignore_errors=True)
        self.addCleanup(self._end_servers)
        self.rng = random.Random(f"{SEED} {self.id()}")

    def run(self, result=None):
        before = len(result.failures) + len(result.errors)
        super().run(result)
        if len(result.failures) + len(result.errors) > before:
            print(f"{self.id()}: seed QIMG_SEED={SEED}", flush=True)

    def _end_servers(self):
        servers, self.servers = self.servers, []
        for server in servers:
            server.kill()
        for server in servers:
            if SANITIZER_ENV and complaints(server.errors):
                raise AssertionError(complaints(server.errors))

    @contextlib.contextmanager
    def part(self, **params):
        """One of several similar parts of a test: the others run even if it fails.  Afterwards the servers are
        ended and the folder is emptied."""
        with self.subTest(**params):
            yield
        self._end_servers()
        for name in os.listdir(self.dir):
            path = self.path(name)
            shutil.rmtree(path) if os.path.isdir(path) and not os.path.islink(path) else os.unlink(path)

    def path(self, name):
        return os.path.join(self.dir, name)

    def serve(self, image, *keys, **kwargs):
        server = Server(self.dir, image, *keys, **kwargs)
        self.servers.append(server)
        return server

    def refused(self, image, *keys, words=(), nbdkit=(), name=True):
        """The server must refuse to start: exit status 1 and one error message, which names the file (unless
        name=False) and matches all the words (regular expressions, any case).  Returns the message."""
        with self.assertRaises(StartFailed, msg="the server started") as caught:
            self.serve(image, *keys, nbdkit=nbdkit)
        errors = caught.exception.errors
        self.assertEqual(caught.exception.code, 1, errors)
        lines = [line for line in errors.splitlines() if "error:" in line]
        self.assertEqual(len(lines), 1, f"not one message:\n{errors}")
        for word in [*([re.escape(os.path.basename(str(image)))] if name else []), *words]:
            self.assertRegex(lines[0], re.compile(word, re.I))
        return lines[0]

    def accepts(self, key, image=None):
        """Does the plugin know this parameter?  Used to skip tests of what isn't built."""
        if STANDIN:
            return False
        if image is None:
            image = self.path("probe.raw")
            with open(image, "wb") as file:
                file.truncate(MIB)
        try:
            self.serve(image, "format=raw", key).stop()
        except StartFailed as failed:
            if re.search("unknown|not (yet )?(supported|built|known)", failed.errors, re.I):
                return False
        return True

    def errno(self, number, call, *args):
        """The call must fail with this error number, or one of a tuple."""
        numbers = number if isinstance(number, tuple) else (number,)
        with self.assertRaises(nbd.Error) as caught:
            call(*args)
        self.assertIn(caught.exception.errnum, numbers, caught.exception)


def parametrised(cls):
    """Class decorator: adds a test for each row of each `cases_NAME` table (a dict, name -> arguments),
    which calls the method `check_NAME` with the row's arguments."""
    for table in [name for name in vars(cls) if name.startswith("cases_")]:
        subject = table[len("cases_"):]
        for row, args in getattr(cls, table).items():
            def test(self, args=args, method=f"check_{subject}"):
                getattr(self, method)(*args)
            name = f"test_{subject}_" + re.sub(r"\W+", "_", row)
            assert not hasattr(cls, name), name
            test.__doc__ = f"{getattr(cls, f'check_{subject}').__doc__ or subject}: {row}"
            test.__name__ = name
            setattr(cls, name, test)
    return cls
