"""How jobs end when their target doesn't play along, and what is told of it: a job that says it is
completed has done what it was asked for."""

import os
import unittest

from harness import MIB, parametrised, wait_until
from test_mirror import MirrorCase


@parametrised
class DeadTarget(MirrorCase):
    """a target that went away, or hangs, while nothing was to be written to it"""

    def alive(self):
        """Clients are served from the source, and always were."""
        self.same(bytes(self.disk.pread(self.SIZE, 0)), "the disk")
        self.write(MIB, b"goes on" * 100)
        self.disk.flush()
        self.assertEqual(self.client.cmd("query-block")[0]["inserted"]["file"], self.image)

    def script(self, can_flush, flush="true"):
        """A target that swallows what is written to it."""
        path = self.path("script")
        with open(path, "w", encoding="ascii") as script:
            script.write(f"""#!/bin/sh
                case "$1" in
                get_size) echo {self.SIZE} ;; thread_model) echo parallel ;; can_write | open) ;;
                can_flush) exit {0 if can_flush else 3} ;;
                can_fua) echo none ;; can_multi_conn | can_zero | can_trim) exit 3 ;;
                pread) head -c "$3" /dev/zero ;; pwrite) cat > /dev/null ;;
                flush) {flush} ;;
                *) exit 2 ;; esac""")
        os.chmod(path, 0o700)
        return self.peer("sh", path)

    cases_idle = {f"{how} {verb}{'' if flushes else ' without flush'}": (how, verb, flushes)
                  for how, verb, flushes in (("kill", "complete", True), ("kill", "cancel", True),
                                             ("freeze", "complete", True), ("kill", "finalize", True),
                                             ("kill", "complete", False))}

    def check_idle(self, how, verb, flushes):
        """the job fails, and nobody else notices"""
        self.begin()
        target = self.memory() if flushes else self.script(False)
        self.mirror(target.uri, auto_finalize=verb != "finalize", mode="existing")
        self.ready()
        if verb == "finalize":
            self.client.cmd("block-job-complete", device="job")
            self.expect_event("BLOCK_JOB_PENDING")
        getattr(target, how)()
        self.addCleanup(target.thaw if how == "freeze" else lambda: None)
        self.client.cmd(f"block-job-{verb}", **{"id" if verb == "finalize" else "device": "job"})
        if verb != "finalize":
            self.io_error(operation="write", action="report")
        self.ended(error=r"copying from .*disk\.qcow2 to nbd.*: \w+")
        self.alive()
        self.source_is_good()

    def test_a_target_that_comes_back(self):
        """the user mends what is wrong, and the switch takes place"""
        self.begin()
        path = self.path("target.raw")
        with open(path, "wb") as file:
            file.truncate(self.SIZE)
        target = self.peer("file", path)
        self.mirror(target.uri, on_target_error="stop")
        self.ready()
        target.kill()
        self.client.cmd("block-job-complete", device="job")
        self.io_error(operation="write", action="stop")
        self.alive()
        target.start()
        self.client.cmd("block-job-resume", device="job")
        self.ended()
        self.same(bytes(self.disk.pread(self.SIZE, 0)), "the disk")
        self.disk.flush()
        self.server.stop()
        self.same(target.content())

    def test_a_forced_cancel_while_it_waits(self):
        """for the answer of a target that is about to be served from"""
        self.begin()
        target = self.memory()
        self.mirror(target.uri)
        self.ready()
        target.freeze()
        self.addCleanup(target.thaw)
        self.client.cmd("block-job-complete", device="job")
        self.forced()
        self.alive()
        self.source_is_good()

    def test_it_hangs_with_clients_held_back(self):
        """at the last flush: they are let go, and the job fails"""
        self.begin()
        count = self.path("count")
        # The first flush is that of READY, the second that before clients are held back.
        target = self.script(True, f"echo >> {count}; sleep $(sed -n $(wc -l < {count})p {count}.naps)")
        with open(f"{count}.naps", "w", encoding="ascii") as naps:
            naps.write("0\n1\n60\n")

        def flushes(number):
            wait_until(lambda: os.path.exists(count) and os.path.getsize(count) == number, 20, f"flush {number}")

        self.mirror(target.uri)
        self.ready()
        self.client.cmd("block-job-complete", device="job")
        flushes(2)
        self.write(0, b"left to be copied")
        flushes(3)
        self.write(0, b"held back for seconds")
        self.forced()
        self.alive()
        self.source_is_good()


if __name__ == "__main__":
    unittest.main()
