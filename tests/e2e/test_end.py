# SPDX-License-Identifier: BSD-3-Clause
"""Clean ends leave clean images, and the bits in the header are right at any time before.

Requirements: Q-13 to Q-16, Q-19, Q-20, L-02 to L-06, L-08, V-04, V-06.
"""

import os
import signal
import time
import unittest

from harness import *

SIZE = 16 * MIB
MARKED = {"qed": need_check, "qcow2": dirty}  # the formats with a mark in the header while an image changes


def marked_image(path, fmt):
    return create(path, fmt, SIZE, "lazy_refcounts=on" if fmt == "qcow2" else "")


class Ends(Case):
    def written(self, server, model):
        """A client that allocates and overwrites, and doesn't flush."""
        exercise([server.connect(), server.connect()], model, self.rng, 60)

    def clean(self, image, fmt, model):
        check(image, fmt)
        if fmt in MARKED:
            self.assertFalse(MARKED[fmt](image), "the mark is still set")
        model.expect(content(image, fmt), "qemu-img convert")

    def test_signals(self):
        """SIGTERM and SIGINT, with clients that are gone or still connected (Q-14, L-05)."""
        for fmt in MARKED:
            for sig in (signal.SIGTERM, signal.SIGINT):
                for connected in (False, True):
                    with self.part(fmt=fmt, sig=sig.name, connected=connected):
                        image, model = marked_image(self.path("disk"), fmt), Model(bytes(SIZE))
                        server = self.serve(image, fmt=fmt)
                        self.written(server, model)
                        server.stop(sig, disconnect=not connected)
                        self.clean(image, fmt, model)

    def test_clients_that_vanish(self):
        """Clients that die without NBD_CMD_DISC don't prevent a clean end."""
        for fmt in MARKED:
            with self.part(fmt=fmt):
                image, model = marked_image(self.path("disk"), fmt), Model(bytes(SIZE))
                server = self.serve(image, fmt=fmt)
                run("nbdsh", "-u", server.uri, "-c", "h.pwrite(b'gone' * 20000, 5000)", "-c",
                    "import os; os._exit(0)")
                model.data[5000:85000] = b"gone" * 20000
                server.stop()
                self.clean(image, fmt, model)

    @unittest.skipIf(STANDIN or nbdkit_version() < (1, 34),
                     "nbdkit before 1.34 aborts when a client leaves amid its replies")
    def test_clients_that_leave_amid_replies(self):
        """A client that disappears with many reads in flight doesn't disturb other clients."""
        image, model = marked_image(self.path("disk"), "qcow2"), Model(bytes(SIZE))
        server = self.serve(image)
        self.written(server, model)
        for _ in range(50):
            handle = nbd.NBD()
            handle.connect_unix(server.socket)
            for n in range(64):
                handle.aio_pread(nbd.Buffer(256 * KIB), n * 128 * KIB)
            handle.poll(0)
            del handle  # closes the socket, although replies are still to come
        model.compare(server.connect())
        server.stop()
        self.clean(image, "qcow2", model)

    def test_signal_while_requests_run(self):
        """SIGTERM in the middle of writes: the image is clean, and everything that was answered is there."""
        for fmt in MARKED:
            with self.part(fmt=fmt):
                image = marked_image(self.path("disk"), fmt)
                server = self.serve(image, fmt=fmt)
                handle = server.connect()
                expected, off = bytearray(SIZE), 0
                limit = time.monotonic() + 1
                signalled = False
                try:
                    while True:
                        if not signalled and time.monotonic() > limit:
                            server.process.send_signal(signal.SIGTERM)
                            signalled = True
                        payload = self.rng.randbytes(5000)
                        at = self.rng.randrange(SIZE - 5000)
                        handle.pwrite(payload, at)
                        expected[at:at + 5000] = payload
                        off += 1
                except nbd.Error:
                    server.disconnect()
                server.wait()
                check(image, fmt)
                self.assertFalse(MARKED[fmt](image))
                got = content(image, fmt)
                got = got[:at] + bytes(expected[at:at + 5000]) + got[at + 5000:]  # the unanswered write
                Model(expected).expect(got, "qemu-img convert")

    def test_fast_zero_beside_allocations(self):
        """QED tries once whether its file can be zeroed quickly; allocations at the same time lose no cluster."""
        for _ in range(40):
            image = create(self.path("disk"), "qed", MIB, "cluster_size=4096,table_size=2")
            fill(image, "qed", [(0, b"x" * 64 * KIB)])
            server = self.serve(image, fmt="qed")
            handle = server.connect(strict=False)
            handle.aio_zero(4096, 0, flags=nbd.CMD_FLAG_FAST_ZERO)
            for n in range(6):
                handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(b"y" * 4096)), 64 * KIB + n * 4096)
            while handle.aio_in_flight():
                handle.poll(-1)
            server.stop()
            check(image, "qed")

    @unittest.skipIf(STANDIN, "needs nbdkit")
    def test_run(self):
        """Q-14: nbdkit --run ends with its command."""
        for fmt in MARKED:
            with self.part(fmt=fmt):
                image = marked_image(self.path("disk"), fmt)
                script = "nbdsh -u $uri -c 'h.pwrite(b\"run\" * 1000, 70000)'"
                run("nbdkit", "-U", "-", PLUGIN, image, "--run", script, env=plugin_env())
                model = Model(bytes(SIZE))
                model.data[70000:73000] = b"run" * 1000
                self.clean(image, fmt, model)

    @unittest.skipIf(STANDIN, "needs nbdkit")
    def test_exit_with_parent(self):
        """Q-14: --exit-with-parent: the server ends cleanly when its parent dies."""
        for fmt in MARKED:
            with self.part(fmt=fmt):
                image, model = marked_image(self.path("disk"), fmt), Model(bytes(SIZE))
                server = self.serve(image, fmt=fmt, nbdkit=["--exit-with-parent"],
                                    prefix=["sh", "-c", '"$@" & wait', "sh"])
                pid = int(open(server.pidfile).read())
                self.written(server, model)
                server.kill()  # the shell
                wait_until(lambda: not os.path.exists(f"/proc/{pid}") or zombie(pid), 30, "the server's end")
                self.clean(image, fmt, model)

    def test_nobody_wrote(self):
        """A writable session that only reads changes no byte."""
        for fmt in MARKED:
            with self.part(fmt=fmt):
                image = marked_image(self.path("disk"), fmt)
                before = sha256(image)
                server = self.serve(image, fmt=fmt)
                server.connect().pread(MIB, 0)
                server.stop()
                self.assertEqual(sha256(image), before)

    def test_many_sessions(self):
        """Many sessions that start, write and stop: the file doesn't grow a little with each."""
        for fmt in MARKED:
            with self.part(fmt=fmt):
                image, model = marked_image(self.path("disk"), fmt), Model(bytes(SIZE))
                for turn in range(8):
                    server = self.serve(image, fmt=fmt)
                    model.write(server.connect(), turn * 100000, self.rng.randbytes(100000))
                    server.stop()
                    self.clean(image, fmt, model)
                self.assertLess(os.path.getsize(image), 4 * MIB)


def zombie(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


class Marks(Case):
    def test_set_by_the_first_allocation(self):
        """Q-13, L-03: the mark is in the file before the first allocating write is answered; reads don't set it."""
        for fmt, marked in MARKED.items():
            with self.part(fmt=fmt):
                image = marked_image(self.path("disk"), fmt)
                server = self.serve(image, fmt=fmt)
                handle = server.connect()
                handle.pread(MIB, 0)
                handle.flush()
                self.assertFalse(marked(image))
                handle.pwrite(b"x" * 100, 0)
                self.assertTrue(marked(image))
                server.stop()
                self.assertFalse(marked(image))

    def test_not_set_by_writes_in_place(self):
        """Q-19: only allocating writes set the mark."""
        for fmt, marked in MARKED.items():
            with self.part(fmt=fmt):
                image = marked_image(self.path("disk"), fmt)
                fill(image, fmt, [(0, b"x" * MIB)])
                server = self.serve(image, fmt=fmt)
                handle = server.connect()
                handle.pwrite(b"y" * 100000, 70000)
                handle.flush()
                self.assertFalse(marked(image))
                server.stop()
                check(image, fmt)

    def test_stays_after_kill(self):
        """Q-14: SIGKILL leaves the mark set; the next session repairs, and all flushed data is there."""
        repairs = self.accepts("repair=auto")
        for fmt, marked in MARKED.items():
            with self.part(fmt=fmt):
                image, model = marked_image(self.path("disk"), fmt), Model(bytes(SIZE))
                server = self.serve(image, fmt=fmt)
                handle = server.connect()
                exercise([handle], model, self.rng, 50)
                model.write(handle, SIZE - 5000, b"allocates")
                handle.flush()
                server.kill()
                self.assertTrue(marked(image))
                if not repairs:
                    repair(image, fmt)
                server = self.serve(image, "writable=now", fmt=fmt)
                self.assertFalse(marked(image))
                model.compare(server.connect(), what="after the repair")
                server.stop()
                check(image, fmt, allow_leaks=fmt == "qed" and not repairs)
                model.expect(content(image, fmt), "qemu-img convert")

    def test_cleared_when_idle(self):
        """Q-19, L-08: the mark is cleared some time after the last allocation, not earlier; writes in place don't delay
        that; a new allocation sets it again."""
        for fmt, marked in MARKED.items():
            with self.part(fmt=fmt):
                image, model = marked_image(self.path("disk"), fmt), Model(bytes(SIZE))
                server = self.serve(image, "need-check-delay=1.5", fmt=fmt)
                handle = server.connect()
                for turn in range(2):
                    for step in range(6):  # 1.8 s of allocations, each of which restarts the timer
                        model.write(handle, (turn * 6 + step) * MIB, self.rng.randbytes(3000))
                        time.sleep(0.3)
                        self.assertTrue(marked(image), "cleared while allocations went on")
                    last = time.monotonic()
                    while marked(image):
                        handle.pwrite(bytes(model.data[:1000]), 0)  # in place
                        self.assertLess(time.monotonic() - last, 8, "never cleared")
                        time.sleep(0.05)
                    check(image, fmt, allow_leaks=True, served=True)  # clusters reserved in advance
                    model.expect(content(image, fmt, served=True), "the file while it is served")
                server.stop()
                check(image, fmt)

    def test_default_delay_is_five_seconds(self):
        """Q-20: the cleared mark is in the file within 5 s plus the time of a flush, and not before 4 s."""
        image = marked_image(self.path("disk"), "qed")
        server = self.serve(image, fmt="qed")
        server.connect().pwrite(b"x" * 100000, 0)
        began = time.monotonic()
        time.sleep(3.9)
        self.assertTrue(need_check(image))
        wait_until(lambda: not need_check(image), 10, "clearing")
        self.assertLess(time.monotonic() - began, 8)
        server.stop()

    def test_delay_zero_means_only_at_the_end(self):
        for fmt, marked in MARKED.items():
            with self.part(fmt=fmt):
                image = marked_image(self.path("disk"), fmt)
                server = self.serve(image, "need-check-delay=0", fmt=fmt)
                server.connect().pwrite(b"x" * 100000, 0)
                time.sleep(1.5)
                self.assertTrue(marked(image))
                server.stop()
                self.assertFalse(marked(image))

    def test_volatile_keeps_it_for_the_session(self):
        """V-06: in a volatile session the timer doesn't clear the mark; the clean end does."""
        for fmt, marked in MARKED.items():
            with self.part(fmt=fmt):
                image = marked_image(self.path("disk"), fmt)
                server = self.serve(image, "cache=volatile", "need-check-delay=0.2", fmt=fmt)
                handle = server.connect()
                handle.pwrite(b"x" * 100000, 0)
                time.sleep(1)
                handle.flush()
                self.assertTrue(marked(image))
                server.stop()
                self.assertFalse(marked(image))
                check(image, fmt)

    def test_volatile_survives_a_crash_of_the_process(self):
        """V-04: flushed data is in the page cache, and so in the file after SIGKILL."""
        for fmt in MARKED:
            with self.part(fmt=fmt):
                image, model = marked_image(self.path("disk"), fmt), Model(bytes(SIZE))
                server = self.serve(image, "cache=volatile", fmt=fmt)
                handle = server.connect()
                exercise([handle], model, self.rng, 60)
                handle.flush()
                server.kill()
                repair(image, fmt)
                model.expect(content(image, fmt), "qemu-img convert")

    def test_volatile_warns(self):
        """V-05: the start-up log says what may be lost."""
        server = self.serve(marked_image(self.path("disk"), "qed"), "cache=volatile", fmt="qed")
        server.connect()
        server.stop()
        self.assertRegex(server.errors, re.compile("volatile|unsafe|lost|unusable", re.I))

    def test_images_with_backing_file_have_no_need_check(self):
        """Q-16: QED over a backing file never gets the bit, and is consistent without it."""
        base = create(self.path("base"), "raw", SIZE)
        image = create(self.path("disk"), "qed", SIZE, "", base, "raw")
        server = self.serve(image, fmt="qed")
        handle = server.connect()
        model = Model(bytes(SIZE))
        for turn in range(30):
            model.write(handle, self.rng.randrange(SIZE - 5000), self.rng.randbytes(5000))
            self.assertFalse(need_check(image))
        handle.flush()
        server.kill()
        check(image, "qed", allow_leaks=True)
        model.expect(content(image, "qed"), "qemu-img convert")

    def test_eager_refcounts_have_no_dirty_bit(self):
        """qcow2 without lazy refcounts: no bit, and no error after SIGKILL, at most leaks."""
        for options in ("compat=1.1", "compat=0.10"):
            with self.part(options=options):
                image, model = create(self.path("disk"), "qcow2", SIZE, options), Model(bytes(SIZE))
                server = self.serve(image, fmt="qcow2")
                handle = server.connect()
                exercise([handle], model, self.rng, 60)
                if "1.1" in options:
                    self.assertFalse(dirty(image))
                handle.flush()
                server.kill()
                check(image, "qcow2", allow_leaks=True)
                model.expect(content(image, "qcow2"), "qemu-img convert")

    def test_lazy_refcounts_bit_is_kept(self):
        """L-02: the image's lazy refcounts bit stays as its creator set it, whatever lazy-refcounts= is."""
        for key in ("lazy-refcounts=off", "lazy-refcounts=on"):
            for options in ("lazy_refcounts=on", "lazy_refcounts=off"):
                with self.part(key=key, options=options):
                    image = create(self.path("disk"), "qcow2", SIZE, options)
                    before = header(image, 80, 8, "big")
                    server = self.serve(image, key, fmt="qcow2")
                    server.connect().pwrite(b"x" * 100000, 0)
                    self.assertEqual(dirty(image), key.endswith("on"))
                    server.stop()
                    self.assertEqual(header(image, 80, 8, "big"), before)
                    check(image, "qcow2")


if __name__ == "__main__":
    unittest.main()
