# SPDX-License-Identifier: BSD-3-Clause
"""The measurements: functions that take a Measurement, of one server on one image, and return the figure.
The functions at the end make such functions from parameters, so that workloads can share them."""

import contextlib
import dataclasses
import itertools
import json
import os
import random
import re
import statistics
import threading
import time

import ceph_images
import servers
from images import CLUSTER, KIB, Image
from processes import Failed, Nursery, describe_end
from qmp import Qmp, QmpError

WARM_UP = 0.5       # seconds before a timed run counts
STARTS = 11         # in one measurement of starts
MIRROR_TIMEOUT = 120
REPLY_TIMEOUT = 60
PAUSE = 0.5         # seconds between actions that run beside the clients
STEADY = 5000       # requests per second, where the load is the same for all servers


@dataclasses.dataclass
class Measurement:
    """One measurement of one server on one image.  Records the server's peak memory."""
    nursery: Nursery
    server: servers.Server
    image: Image
    seconds: float
    memory: int = 0

    @contextlib.contextmanager
    def serving(self, wait=True, **how):
        """Runs the server.  If it dies, that is the reported failure, not the client's error."""
        running = servers.start(self.nursery, self.server, self.image, **how)
        try:
            try:
                if wait:
                    running.wait_until_it_listens()
                yield running
            except Failed:
                if running.died():
                    raise running.death() from None
                raise
            self.memory = max(self.memory, running.peak_memory())
            running.stop()
        finally:
            running.kill()


# ---- fio ----

def _fio(measurement, running, rw, bs, depth, once=False, **more):
    """Runs fio and returns its results for the reads, writes or trims.  `once`: each block is used only once, so
    that all writes to a fresh image allocate."""
    job = _fio_job(measurement, running, rw, bs, depth, once, **more)
    return next(job[kind] for kind in ("read", "write", "trim") if kind in rw)


def _fio_job(measurement, running, rw, bs, depth, once=False, **more):
    """Runs fio and returns all of its results."""
    words = {"name": "bench", "ioengine": "nbd", "uri": running.uri, "rw": rw, "bs": bs,
             "iodepth": depth, "size": measurement.image.size, "runtime": measurement.seconds,
             "output-format": "json", **more}
    flags = ["--thread", "--group_reporting"]
    if not once:
        words["ramp_time"] = WARM_UP
        flags += ["--time_based", "--norandommap"]
    if measurement.image.stride:
        words["blockalign"] = measurement.image.stride
    out = measurement.nursery.run(["fio", *flags, *(f"--{key}={words[key]}" for key in words)],
                                  timeout=measurement.seconds + 60, server=running)
    job = json.loads(out[out.index("{"):])["jobs"][0]
    if job["error"]:
        raise Failed("failed", f"fio: error {job['error']}")
    return job


# ---- trim and write zeroes: fio knows no zeroes, and doesn't flush after a trim ----

def _connect(running):
    """Connects a client of our own, without fio."""
    import nbd  # python3-libnbd; not at the start of the file, because the bench may have to install it first
    handle = nbd.NBD()
    handle.connect_unix(running.place.socket)
    return handle


def _send_each(handle, method, length, offsets, depth, seconds):
    """Sends requests to these offsets until the time is over, and then a flush, so that work which the server has
    postponed is included.  Returns the number of requests."""
    errors = []

    def completed(error):
        errors.append(error.value)
        return 1

    send, deadline = getattr(handle, method), time.monotonic() + seconds
    while offsets and time.monotonic() < deadline:
        while offsets and handle.aio_in_flight() < depth:
            send(length, offsets.pop(), completed, 0)
        _poll(handle)
    while handle.aio_in_flight():
        _poll(handle)
    handle.flush()
    if any(errors):
        raise Failed("failed", f"{method}: {os.strerror(max(errors))}")
    return len(errors)


def _shuffled(offsets):
    offsets = list(offsets)
    random.Random(1).shuffle(offsets)
    return offsets


def _once_everywhere(measurement, running, method, length, depth):
    """Sends a request to each part of the image once, in random order; returns requests per second."""
    import nbd
    offsets = _shuffled(range(0, measurement.image.size, length))
    try:
        handle = _connect(running)
        began = time.monotonic()
        sent = _send_each(handle, method, length, offsets, depth, measurement.seconds)
        passed = time.monotonic() - began
        handle.shutdown()
    except nbd.Error as error:
        raise Failed("failed", f"{method}: {error}") from None
    return sent / passed


def fsync_beside_trims(measurement):
    """The 99th percentile, in milliseconds, of a write of 4 KiB with a flush, while another client trims every
    second cluster of the image in random order, and after that, when the server may still be punching holes."""
    size, failures, times = measurement.image.size, [], []

    def trim(handle):
        try:
            _send_each(handle, "aio_trim", CLUSTER, _shuffled(range(0, size, 2 * CLUSTER)), 8,
                       measurement.seconds)
        except Exception as error:  # pylint: disable=broad-except
            failures.append(error)

    with measurement.serving() as running:
        handle, trimmer = _connect(running), _connect(running)
        places = itertools.cycle(_shuffled(range(CLUSTER, size, 2 * CLUSTER)))
        thread = threading.Thread(target=trim, args=(trimmer,))
        thread.start()
        deadline = time.monotonic() + measurement.seconds
        while time.monotonic() < deadline:
            began = time.monotonic()
            handle.pwrite(bytes(4 * KIB), next(places))
            handle.flush()
            times.append(time.monotonic() - began)
        thread.join()
        handle.shutdown()
        trimmer.shutdown()
    if failures:
        raise Failed("failed", str(failures[0]))
    return 1000 * statistics.quantiles(times, n=100)[98]


def _poll(handle):
    if handle.poll(REPLY_TIMEOUT * 1000) == 0:
        raise Failed("hung", "no reply")


# ---- start and stop ----

def _first_reply(running):
    """Connects as soon as that is possible, and reads."""
    import nbd
    deadline = time.monotonic() + servers.START_TIMEOUT
    while True:
        handle = nbd.NBD()
        try:
            handle.connect_unix(running.place.socket)
            handle.pread(4 * KIB, 0)
            handle.shutdown()
            return
        except nbd.Error as error:
            if running.process.poll() is not None or time.monotonic() > deadline:
                raise Failed("failed", f"no reply: {error}") from None
            time.sleep(0.0001)


def start_and_stop(measurement):
    """Milliseconds for the start of the program, its first reply and its end."""
    times = []
    for _ in range(STARTS):
        began = time.monotonic()
        with measurement.serving(wait=False) as running:
            _first_reply(running)
        times.append(time.monotonic() - began)
    return 1000 * statistics.median(times)


# ---- whole programs ----

def copy_all(measurement):
    """MB/s of nbdcopy, which is repeated until the time is over."""
    with measurement.serving() as running:
        copied, began = 0, time.monotonic()
        while True:
            measurement.nursery.run(["nbdcopy", running.uri, "null:"], server=running)
            copied += measurement.image.size
            passed = time.monotonic() - began
            if passed >= measurement.seconds:
                return copied / passed / 1e6


def offline(words):
    """A function that measures the seconds of an offline command.  In the words, "IMAGE" is the image, "OTHER" the
    last of its files, "OUT" a file that doesn't exist, and "NONE" an empty word.  The memory includes that of this
    program at the time of the fork, so smaller figures can't be measured."""
    def measure(measurement):
        log, out = measurement.nursery.path("offline.log"), measurement.nursery.path("offline.out")
        names = {"IMAGE": measurement.image.path, "OTHER": measurement.image.files[-1], "OUT": out,
                 "NONE": ""}
        command = [measurement.server.tool, *(names.get(word, word) for word in words.split())]
        try:
            began = time.monotonic()
            with open(log, "wb") as output:
                child = measurement.nursery.start(command, stdout=output, stderr=output)
                _, status, usage = os.wait4(child.pid, 0)
            passed = time.monotonic() - began
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(out)
        child.returncode = os.waitstatus_to_exitcode(status)
        measurement.memory = usage.ru_maxrss * KIB
        if child.returncode != 0:
            with open(log, encoding="utf-8", errors="replace") as output:
                told = output.read().strip()
            raise Failed("failed",
                         f"{words}: {(told.splitlines() or [describe_end(child)])[-1]}")
        return passed
    return measure


def futexes(measurement):
    """Futex calls of the server per 1000 random reads; only these calls are traced."""
    counts = measurement.nursery.path("futexes")
    tracer = ["strace", "-f", "--seccomp-bpf", "-c", "-e", "trace=futex", "-o", counts]
    with measurement.serving(wrapper=tracer) as running:
        reads = _fio(measurement, running, "randread", "4k", 32, ramp_time=0)["total_ios"]
    with open(counts, encoding="ascii") as file:
        # % time, seconds, usecs/call, calls, errors (may be empty), name
        found = re.search(r"^ *\S+ +\S+ +\S+ +(\d+) .*\bfutex$", file.read(), re.MULTILINE)
    return 1000 * int(found[1]) / reads if found else 0.0


@contextlib.contextmanager
def _mirror_target(measurement):
    """The URI of an empty raw file that nbdkit serves."""
    target = measurement.nursery.path("target.raw")
    with open(target, "wb") as file:
        file.truncate(measurement.image.size)
    to = servers.Server("target", "file",
                        lambda image, place, _: servers.nbdkit(place, "file", target))
    try:
        with Measurement(measurement.nursery, to, measurement.image, 0).serving() as sink:
            yield sink.uri
    finally:
        os.unlink(target)


def mirror(measurement):
    """Seconds from the command until the mirror is ready."""
    with _mirror_target(measurement) as uri, measurement.serving(control=True) as running:
        return _mirror_to(measurement, running, uri)


def read_beside_mirror(measurement):
    """The 99.9th percentile, in milliseconds, of 4 KiB reads, one at a time, during a mirror whose speed is set so that
    it would need twice the time."""
    with _mirror_target(measurement) as uri, measurement.serving(control=True) as running:
        with Qmp(running.place.control, MIRROR_TIMEOUT) as qmp:
            job = measurement.server.mirror(qmp, uri)
            qmp.command("block-job-set-speed", {
                "device": job, "speed": int(measurement.image.size / (2 * (measurement.seconds + WARM_UP)))})
            done = _fio(measurement, running, "randread", "4k", 1)
            qmp.command("block-job-cancel", {"device": job, "force": True})
            qmp.wait_for("BLOCK_JOB_CANCELLED", job)
    return _worst(done)


def mirror_to_rbd(measurement):
    """Seconds until a mirror to a new image on Ceph RBD is ready."""
    size = measurement.image.size
    cluster = ceph_images.cluster(measurement.nursery, 4 * size)
    cluster.create("target", size)
    try:
        with measurement.serving(control=True) as running:
            return _mirror_to(measurement, running, "rbd:rbd/target")
    finally:
        cluster.purge("target")


def _mirror_to(measurement, running, uri):
    with Qmp(running.place.control, MIRROR_TIMEOUT) as qmp:
        began = time.monotonic()
        try:
            job = measurement.server.mirror(qmp, uri)
        except QmpError as error:
            raise Failed("failed", str(error)) from None
        qmp.wait_for("BLOCK_JOB_READY", job)
        passed = time.monotonic() - began
        qmp.command("block-job-cancel", {"device": job})
        qmp.wait_for("BLOCK_JOB_COMPLETED", job)  # a ready mirror completes when it is cancelled
        return passed


def write_beside_backup(measurement):
    """Random overwrites, in thousands per second, while a backup goes to a target of 1 MB/s."""
    size = str(measurement.image.size)
    to = servers.Server("target", "file", lambda image, place, _: servers.nbdkit(
        place, "--filter=rate", "memory", size, "rate=8M"))
    with Measurement(measurement.nursery, to, measurement.image, 0).serving() as sink:
        with measurement.serving(control=True) as running:
            with Qmp(running.place.control, MIRROR_TIMEOUT) as qmp:
                qmp.command("drive-backup", {"job-id": "backup", "device": "drive0", "target": sink.uri,
                                             "format": "raw", "mode": "existing", "sync": "full"})
                try:
                    return _fio(measurement, running, "randwrite", "4k", 32)["iops"] / 1000
                finally:
                    qmp.command("block-job-cancel", {"device": "backup", "force": True})
                    qmp.wait_for("BLOCK_JOB_CANCELLED", "backup")


@contextlib.contextmanager
def _meanwhile(step):
    """Calls step(number) repeatedly, with PAUSE in between, until the block ends.  An error of step() is raised at the
    end."""
    over, failures = threading.Event(), []

    def work():
        try:
            for number in itertools.count():
                if over.wait(PAUSE):
                    return
                step(number)
        except (Failed, QmpError) as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    if failures:
        raise Failed("failed", str(failures[0]))


def _worst_write(measurement, running):
    """The latency of random overwrites at a fixed rate.  Without one, a slower server would have fewer requests that
    can be delayed."""
    return _worst(_fio(measurement, running, "randwrite", "4k", 4, rate_iops=STEADY))


def _worst(done):
    """The 99.9th percentile of the latency, in milliseconds."""
    return done["clat_ns"]["percentile"]["99.900000"] / 1e6


def write_latency_beside_overlays(measurement):
    """The 99.9th percentile of the latency of random overwrites, in milliseconds, while a new image is put
    on top of the disk every half second."""
    overlays = []
    try:
        with measurement.serving(control=True) as running, \
                Qmp(running.place.control, MIRROR_TIMEOUT) as qmp:
            def put_on_top(number):
                overlays.append(f"{measurement.image.path}.{number}")
                measurement.server.overlay(qmp, overlays[-1], number)

            with _meanwhile(put_on_top):
                return _worst_write(measurement, running)
    finally:
        for path in overlays:
            if os.path.exists(path):
                os.unlink(path)


def write_latency_beside_snapshots(measurement):
    """The same while every half second an internal snapshot is made and the one before is deleted."""
    with measurement.serving(control=True) as running, \
            Qmp(running.place.control, MIRROR_TIMEOUT) as qmp:
        def take(number):
            qmp.command("blockdev-snapshot-internal-sync", {"device": "drive0", "name": f"s{number}"})
            if number > 0:
                qmp.command("blockdev-snapshot-delete-internal-sync",
                            {"device": "drive0", "name": f"s{number - 1}"})

        with _meanwhile(take):
            return _worst_write(measurement, running)


def read_beside_check(measurement):
    """The 99.9th percentile, in milliseconds, of 4 KiB reads, one at a time, while the image is checked repeatedly,
    with half a second between the checks."""
    tool = measurement.server.tool or "qemu-img"
    with measurement.serving() as running:
        def check(_):
            measurement.nursery.run([tool, "check", "-q", "-U", "-f", measurement.image.format,
                                     measurement.image.path], server=running)

        with _meanwhile(check):
            return _worst(_fio(measurement, running, "randread", "4k", 1))


# ---- makers ----

def random_io(rw, depth, bs="4k", **more):
    """Thousands of requests per second."""
    def measure(measurement):
        with measurement.serving() as running:
            return _fio(measurement, running, rw, bs, depth, **more)["iops"] / 1000
    return measure


def sequential_io(rw, depth=8, bs="1M", **more):
    """MB/s."""
    def measure(measurement):
        with measurement.serving() as running:
            return _fio(measurement, running, rw, bs, depth, **more)["bw_bytes"] / 1e6
    return measure


def worst_latency(rw, depth=8, bs="1M", **more):
    """The 99.9th percentile of a request's latency, in milliseconds."""
    def measure(measurement):
        with measurement.serving() as running:
            return _worst(_fio(measurement, running, rw, bs, depth, **more))
    return measure


def worst_beside_writer(rw, what, **more):
    """The 99.9th percentile, in milliseconds, of 4 KiB requests to the first half of the image, one at a time, while
    another client allocates the second half as fast as it can.  `what`: which of fio's figures."""
    def measure(measurement):
        half, failures = measurement.image.size // 2, []

        def write(running):
            try:
                _fio(measurement, running, "write", "1M", 8, once=True, offset=half, size=half)
            except Failed as failure:
                failures.append(failure)

        with measurement.serving() as running:
            thread = threading.Thread(target=write, args=(running,))
            thread.start()
            job = _fio_job(measurement, running, rw, "4k", 1, size=half, ramp_time=0, **more)
            thread.join()
        if failures:
            raise failures[0]
        latency = job["sync"]["lat_ns"] if what == "sync" else job[what]["clat_ns"]
        return latency["percentile"]["99.900000"] / 1e6
    return measure


def once_everywhere(method, length=64 * KIB, depth=8):
    """Thousands of such requests per second."""
    def measure(measurement):
        with measurement.serving() as running:
            return _once_everywhere(measurement, running, method, length, depth) / 1000
    return measure
