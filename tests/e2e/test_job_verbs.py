# SPDX-License-Identifier: BSD-3-Clause
"""The commands by which current libvirt and Proxmox control jobs, and the texts that they look for in replies.  M-50"""

from harness import KIB, MIB, SEED, wait_until
from test_mirror import MirrorCase
from writers import Writers


class Verbs(MirrorCase):
    def test_a_mirror_by_its_id(self):
        """all job-* commands, in the order of a mirror that pivots; M-37"""
        self.begin()
        self.mirror(speed=MIB, auto_finalize=False, auto_dismiss=False)
        self.client.cmd("job-pause", id="job")
        self.client.event("JOB_STATUS_CHANGE", id="job", status="paused")
        self.fails("GenericError", self.client, "job-pause", "Job is already paused", id="job")
        self.client.cmd("job-resume", id="job")
        self.fails("GenericError", self.client, "job-resume", "Can't resume a job that was not paused", id="job")
        self.client.cmd("block-job-set-speed", device="job", speed=0)
        self.ready()
        self.client.cmd("job-complete", id="job")
        self.expect_event("BLOCK_JOB_PENDING")
        self.client.cmd("job-finalize", id="job")
        self.expect_event("BLOCK_JOB_COMPLETED")
        self.client.cmd("job-dismiss", id="job")
        self.client.event("JOB_STATUS_CHANGE", id="job", status="null")
        self.assertIsNone(self.job())
        self.assertEqual(self.client.cmd("query-block")[0]["inserted"]["file"], self.path("target.raw"))

    def test_job_cancel_is_by_force(self):
        """job-cancel of a ready mirror discards the copy, unlike block-job-cancel"""
        self.begin()
        self.mirror()
        self.ready()
        self.client.cmd("job-pause", id="job")  # so that the job can't end before the cancel
        self.client.event("JOB_STATUS_CHANGE", id="job", status="standby")
        self.client.cmd("job-cancel", id="job")
        self.client.event("BLOCK_JOB_CANCELLED", device="job")

    def test_what_tools_look_for(self):
        """error classes and texts are QEMU's"""
        self.begin()
        for verb in ("cancel", "complete", "pause", "resume", "finalize", "dismiss"):
            self.fails("GenericError", self.client, f"job-{verb}", "^Job not found$", id="other")
            self.fails("DeviceNotActive", self.client, f"block-job-{verb}", "^Block job 'other' not found$", device="other")
        self.mirror("one.raw", job_id="one", speed=64 * KIB)
        self.fails("GenericError", self.client, "block-job-complete",
                   "^Job 'one' in state 'running' cannot accept command verb 'complete'$", device="one")
        self.client.cmd("block-job-set-speed", device="one", speed=0)
        self.ready()
        self.mirror("two.raw", job_id="two", auto_finalize=False)
        self.ready()
        self.client.cmd("job-complete", id="two")
        self.fails("GenericError", self.client, "job-complete", "^The active block job 'one' cannot be completed", id="one")
        self.fails("GenericError", self.client, "job-complete", "Parameter 'device' is unexpected", device="one")

    def test_change(self):
        """copy_mode changes from background to write-blocking and back while clients write; the target is a copy"""
        self.begin()
        target = self.mirror(granularity=4 * KIB)
        self.ready()
        self.assertIs(self.job()["actively-synced"], False)
        writers = Writers(self.server, self.content, SEED)
        try:
            for mode in ("write-blocking", "background", "write-blocking"):
                self.client.cmd("block-job-change", id="job", type="mirror", copy_mode=mode)
                writers.some(40)
            self.client.cmd("block-job-change", id="job", type="mirror", copy_mode="write-blocking")  # no change
            wait_until(lambda: self.job()["actively-synced"], 20, "synced")
        finally:
            self.content = writers.stop()
        self.client.cmd("block-job-change", id="job", type="mirror", copy_mode="background")
        wait_until(lambda: not self.job()["actively-synced"], 20, "not any more")
        self.client.cmd("block-job-cancel", device="job")
        self.ended()
        self.expect_content(target, "raw")

    def test_no_place_left(self):
        """only four jobs can be write-blocking: a fifth mirror can't be changed to that"""
        self.begin()
        for number in range(5):
            self.mirror(f"t{number}.raw", job_id=f"j{number}")
        for _ in range(5):
            self.ready()
        self.fails("GenericError", self.client, "block-job-change", "only 4 jobs", id="j4", type="mirror",
                   copy_mode="write-blocking")
        self.client.cmd("block-job-change", id="j3", type="mirror", copy_mode="write-blocking")
        self.fails("GenericError", self.client, "block-job-change", "'type' does not accept value 'commit', expected: mirror", id="j3", type="commit",
                   copy_mode="write-blocking")
        self.write(0, b"for all")
        for number in range(5):
            self.client.cmd("block-job-cancel", device=f"j{number}")
            self.ended()
            self.expect_content(self.path(f"t{number}.raw"), "raw")


class Proxmox(MirrorCase):
    def test_a_move_to_another_host(self):
        """as Proxmox's older versions send it: nbd:unix:..., with format nbd"""
        self.begin()
        target = self.memory()
        self.client.cmd("drive-mirror", job_id="job", device="drive0", sync="full", mode="existing", format="nbd",
                        target=f"nbd:unix:{target.socket}:exportname=")
        self.ready()
        self.client.cmd("block-job-complete", device="job")
        self.ended()
        self.write(0, b"over there")
        self.disk.flush()
        self.same(target.content(), "the target")

    def test_a_move_to_another_storage(self):
        self.begin()
        path = self.path("new.raw")
        with open(path, "wb") as file:
            file.truncate(self.SIZE)
        self.client.cmd("drive-mirror", job_id="drive-scsi0", device="drive0", sync="full", mode="existing",
                        format="raw", target=f"zeroinit:{path}")
        self.ready()
        self.client.cmd("block-job-complete", device="drive-scsi0")
        self.ended()
        self.server.stop()
        self.expect_content(path, "raw")
