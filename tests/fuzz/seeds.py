#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Makes the fuzzers' seed corpora: small real images of every kind, made by qemu-img,
qemu-io and qimg, and texts of every kind.

    seeds.py QIMG FOLDER NAME
"""

import os
import struct
import subprocess
import sys
import tempfile
import zlib

PROGRAM_BYTES = 64


def run(*words):
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def try_run(*words):
    """Runs qemu-io, which exits with an error when it is told to abort."""
    subprocess.run(words, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def io(fmt, path, *commands):
    words = [word for command in commands for word in ("-c", command)]
    try_run("qemu-io", "-f", fmt, *words, path)


# ---- images ----

# Name, options for create, size, commands for qemu-io, commands for qemu-img afterwards.
QCOW2 = [
    ("empty", "cluster_size=512", "64K", [], []),
    ("some", "cluster_size=512", "128K", ["write 0 1k", "write 3000 2k", "write 100k 512"], []),
    ("v2", "cluster_size=512,compat=0.10", "64K", ["write 1k 3k"], []),
    ("zeroes", "cluster_size=512", "64K", ["write 0 4k", "write -z 1k 2k", "write -z 32k 1k"], []),
    ("holes", "cluster_size=512", "64K", ["write 0 8k", "discard 1k 3k", "discard 6k 512"], []),
    ("4k", "cluster_size=4k", "1M", ["write 0 4k", "write 9k 1k"], []),
    ("lazy", "cluster_size=512,lazy_refcounts=on", "64K", ["write 0 1k"], []),
    ("dirty", "cluster_size=512,lazy_refcounts=on", "64K", ["write 0 2k", "flush", "abort"], []),
    ("refcounts-1", "cluster_size=512,refcount_bits=1", "64K", ["write 0 1k"], []),
    ("refcounts-64", "cluster_size=512,refcount_bits=64", "64K", ["write 0 5k"], []),
    ("large", "cluster_size=512", "64M", [], []),
    ("snapshots", "cluster_size=512", "64K", ["write 0 2k", "write 33k 512"],
     [["snapshot", "-c", "first"], ["snapshot", "-c", "second"]]),
    ("extended", "cluster_size=16k,extended_l2=on", "1M",
     ["write 0 1k", "write -z 16k 2k", "write -c 32k 16k", "write 48k 16k"], []),
    ("bitmap", "cluster_size=512", "64K", ["write 0 2k"],
     [["bitmap", "--add", "-g", "512"]]),
]
# QEMU can't open QED images with tables of one cluster.
QED = [
    ("empty", "cluster_size=4k,table_size=2", "1M", []),
    ("some", "cluster_size=4k,table_size=2", "1M", ["write 0 5k", "write 100k 1k"]),
    ("table-4", "cluster_size=4k,table_size=4", "4M", ["write 1M 4k"]),
    ("dirty", "cluster_size=4k,table_size=2", "1M", ["write 0 4k", "flush", "abort"]),
    ("large", "cluster_size=4k,table_size=2", "1G", ["write 0 512"]),
]


def make_qcow2(folder):
    for name, options, size, writes, after in QCOW2:
        path = f"{folder}/{name}"
        run("qemu-img", "create", "-f", "qcow2", "-o", options, path, size)
        if writes:
            io("qcow2", path, *writes)
        for words in after:
            extra = ["name"] if words[0] == "bitmap" else []
            run("qemu-img", *words, path, *extra)
        if name == "snapshots":
            io("qcow2", path, "write 1k 1k")
        yield path
    plain, overlay = f"{folder}/some", f"{folder}/overlay"
    run("qemu-img", "create", "-f", "qcow2", "-o", "cluster_size=512", "-b", plain, "-F", "qcow2",
        "-u", overlay, "64K")
    io("qcow2", overlay, "write 512 512")
    yield overlay
    run("qemu-img", "convert", "-c", "-O", "qcow2", "-o", "cluster_size=512", plain,
        f"{folder}/compressed")
    yield f"{folder}/compressed"


def make_qed(folder, qimg):
    for name, options, size, writes in QED:
        path = f"{folder}/qed-{name}"
        run("qemu-img", "create", "-f", "qed", "-o", options, path, size)
        if writes:
            io("qed", path, *writes)
        yield path
    overlay = f"{folder}/qed-overlay"
    run(qimg, "create", "-f", "qed", "-o", "cluster_size=4k,table_size=2", "-b",
        f"{folder}/qed-some", "-F", "qed", overlay, "1M")
    yield overlay
    zeroes = f"{folder}/qed-zeroes"
    run(qimg, "create", "-f", "qed", "-o", "cluster_size=4k,table_size=2", "-b",
        f"{folder}/qed-some", "-F", "qed", zeroes, "1M")
    io("qed", zeroes, "write -z 0 64k", "write 4k 4k")
    yield zeroes


def programs():
    """A program: options, and steps (what, how, where); see support/image_input.h."""
    read_only = [(1, 12, 0), (2, 0x8f, 0), (3, 12, 0), (1, 3, 0x8004)]
    write = [(2, 5, 0), (1, 12, 0), (6, 0, 0), (3, 9, 8), (4, 0x45, 2), (7, 0x8f, 0), (5, 9, 0),
             (10, 2, 0), (2, 0xc6, 16), (4, 0x0d, 30), (6, 0, 0), (2, 3, 0x8002), (8, 8, 50)]
    grow = [(2, 8, 3), (9, 10, 100), (2, 10, 0x8100), (5, 13, 0), (6, 0, 0), (2, 10, 7)]
    yield bytes([0x01, 0]), read_only
    yield bytes([0x20, 0]), write
    yield bytes([0x60, 20]), grow
    yield bytes([0x34, 0]), write[::-1]
    yield bytes([0xc2, 0]), write


def pack(options, steps):
    words = b"".join(bytes([what, how, where & 255, where >> 8]) for what, how, where in steps)
    return (options.ljust(4, b"\0") + words).ljust(PROGRAM_BYTES, b"\0")[:PROGRAM_BYTES]


def image_seeds(which, qimg):
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        if which != "qed":
            paths += make_qcow2(folder)
        if which != "qcow2":
            paths += make_qed(folder, qimg)
        for path in paths:
            with open(path, "rb") as file:
                image = file.read()
            for i, (options, steps) in enumerate(programs()):
                yield f"{os.path.basename(path)}-{i}", pack(options, steps) + image


# ---- texts ----

URIS = [
    "nbd://localhost", "nbd://127.0.0.1:10809/", "nbd://[::1]:1234/disk%201", "nbds://host.example/a/b",
    "nbd+unix:///?socket=/tmp/sock", "nbd+unix:///export?socket=relative%2Fsock", "nbd://:65535/x",
    "nbd+unix:///?socket=/a&socket=/b", "nbd://user@host/", "nbd://h/#f", "nbds+unix:///?socket=/x",
    "nbd://h?tls-certificates=/x", "nbd:unix:/tmp/s:exportname=x",
]
NAMES = [
    "qcow2\nbase.qcow2", "\nbase.qcow2", "qed\nbelow/base.qed", "qcow2\n../outside/secret.qcow2",
    "qcow2\nlink", "qcow2\nway-out/secret.qcow2", "qcow2\nloop.qcow2", "qcow2\nimage",
    "raw\nfile:base.qcow2", "raw\njson:{\"driver\":\"file\"}", "raw\nnbd://localhost/", "auto\n./below/..//base.qcow2",
    "raw\njson:{\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\",\"filename\":\"base.qcow2\"}}",
    "raw\njson:{\"file.driver\":\"nbd\",\"file.server.type\":\"unix\",\"file.server.path\":\"/s\"}",
    "raw\nnbd:unix:/s:exportname=x", "raw\nfile:nbd:x", "raw\n/etc/hostname", "qcow2\n",
]
COMMANDS = [
    '{"execute":"query-version"}', '{"execute":"query-commands"}', '{"execute":"query-status","id":[1]}',
    '{"execute":"query-block"}', '{"execute":"query-named-block-nodes","arguments":{"flat":true}}',
    '{"execute":"drive-mirror","arguments":{"device":"disk0","target":"t","sync":"full","format":"raw"}}',
    '{"execute":"drive-mirror","arguments":{"job-id":"j","device":"disk0","target":"full","sync":"top",'
    '"format":"qcow2","mode":"existing","on-target-error":"stop","copy-mode":"write-blocking"}}',
    '{"execute":"drive-mirror","arguments":{"job-id":"k","device":"disk0","target":"x","sync":"none",'
    '"mode":"existing","granularity":4096,"buf-size":1,"unmap":false,"speed":1000,"auto-finalize":false,'
    '"auto-dismiss":false}}',
    '{"execute":"drive-mirror","arguments":{"device":"disk0","target":"t","sync":"incremental","bitmap":"b"}}',
    '{"execute":"block-commit","arguments":{"device":"disk0","base":"/nowhere/base","top":"/nowhere/image"}}',
    '{"execute":"query-jobs"}', '{"execute":"query-block-jobs"}',
    '{"execute":"block-job-pause","arguments":{"device":"disk0"}}',
    '{"execute":"block-job-resume","arguments":{"device":"disk0"}}',
    '{"execute":"block-job-complete","arguments":{"device":"disk0"}}',
    '{"execute":"block-job-set-speed","arguments":{"device":"k","speed":0}}',
    '{"execute":"block-job-cancel","arguments":{"device":"disk0","force":true}}',
    '{"execute":"block-job-finalize","arguments":{"id":"k"}}', '{"execute":"block-job-dismiss","arguments":{"id":"k"}}',
    '{"execute":"block-dirty-bitmap-add","arguments":{"node":"disk0","name":"b","granularity":512}}',
    '{"execute":"block-dirty-bitmap-add","arguments":{"node":"disk0","name":"c","disabled":true}}',
    '{"execute":"block-dirty-bitmap-merge","arguments":{"node":"disk0","target":"c","bitmaps":["b",'
    '{"node":"disk0","name":"c"}]}}',
    '{"execute":"block-dirty-bitmap-clear","arguments":{"node":"disk0","name":"b"}}',
    '{"execute":"block-dirty-bitmap-disable","arguments":{"node":"disk0","name":"b"}}',
    '{"execute":"block-dirty-bitmap-enable","arguments":{"node":"disk0","name":"b"}}',
    '{"execute":"block-dirty-bitmap-remove","arguments":{"node":"disk0","name":"b"}}',
    '{"execute":"query-qmp-schema"}', '{"execute":"query-blockstats","arguments":{"query-nodes":true}}',
    '{"execute":"query-block-exports"}',
    '{"execute":"blockdev-add","arguments":{"driver":"file","node-name":"f","filename":"/f","aio":"native",'
    '"auto-read-only":true,"discard":"unmap","cache":{"direct":true,"no-flush":false},"detect-zeroes":"unmap"}}',
    '{"execute":"blockdev-add","arguments":{"driver":"qcow2","node-name":"n","file":"f","backing":null}}',
    '{"execute":"blockdev-add","arguments":{"driver":"raw","node-name":"r","file":{"driver":"nbd","export":"x",'
    '"server":{"type":"unix","path":"/s"}},"read-only":true}}',
    '{"execute":"blockdev-add","arguments":{"driver":"qcow2","node-name":"o","file":{"driver":"file","filename":"/o",'
    '"locking":"off"},"backing":{"driver":"raw","file":{"driver":"host_device","filename":"/b"}}}}',
    '{"execute":"x-qimg-handover","arguments":{"exports":[{"name":"e","device":1,"inode":2}],"folder":{"device":1,"inode":3}}}',
    '{"execute":"blockdev-del","arguments":{"node-name":"r"}}',
    '{"execute":"blockdev-create","arguments":{"job-id":"c","options":{"driver":"file","filename":"/c","size":1,'
    '"preallocation":"full","nocow":true,"extent-size-hint":1048576}}}',
    '{"execute":"blockdev-create","arguments":{"job-id":"d","options":{"driver":"qcow2","file":{"driver":"file",'
    '"filename":"/d"},"size":1048576,"version":"v3","cluster-size":4096,"backing-file":"/b","backing-fmt":"qcow2",'
    '"lazy-refcounts":true,"refcount-bits":1,"extended-l2":false,"compression-type":"zstd"}}}',
    '{"execute":"blockdev-create","arguments":{"job-id":"e","options":{"driver":"qed","file":"f","size":512,'
    '"table-size":4}}}', '{"execute":"job-dismiss","arguments":{"id":"c"}}',
    '{"execute":"blockdev-mirror","arguments":{"job-id":"m","device":"disk0","target":"n","sync":"full",'
    '"target-is-zero":true,"replaces":"disk0","auto-dismiss":false,"copy-mode":"write-blocking"}}',
    '{"execute":"block-stream","arguments":{"job-id":"s","device":"disk0","backing-mask-protocol":true}}',
    '{"execute":"block-stream","arguments":{"job-id":"s","device":"disk0","base-node":"disk0#1"}}',
    '{"execute":"blockdev-backup","arguments":{"job-id":"u","device":"disk1","target":"n","sync":"none",'
    '"x-perf":{"max-workers":2,"max-chunk":65536},"on-cbw-error":"break-snapshot","cbw-timeout":1}}',
    '{"execute":"drive-backup","arguments":{"job-id":"v","device":"disk1","target":"t","sync":"full","format":"qcow2"}}',
    '{"execute":"block-job-change","arguments":{"id":"m","type":"mirror","copy-mode":"background"}}',
    '{"execute":"job-pause","arguments":{"id":"m"}}', '{"execute":"job-resume","arguments":{"id":"m"}}',
    '{"execute":"job-complete","arguments":{"id":"m"}}', '{"execute":"job-cancel","arguments":{"id":"u"}}',
    '{"execute":"job-finalize","arguments":{"id":"m"}}', '{"execute":"job-dismiss","arguments":{"id":"m"}}',
    '{"execute":"block-export-add","arguments":{"type":"nbd","id":"e","node-name":"o","name":"e","writable":true}}',
    '{"execute":"block-export-add","arguments":{"type":"nbd","id":"p","node-name":"n","name":"p","bitmaps":["b"]}}',
    '{"execute":"blockdev-add","arguments":{"driver":"zeroinit","node-name":"z","file":"n"}}',
    '{"execute":"blockdev-add","arguments":{"driver":"qcow2","node-name":"s","file":"f","backing":"disk0"}}',
    '{"execute":"block-export-del","arguments":{"id":"e","mode":"hard"}}',
    '{"execute":"blockdev-snapshot-internal-sync","arguments":{"device":"disk0","name":"i"}}',
    '{"execute":"blockdev-snapshot-delete-internal-sync","arguments":{"device":"disk0","name":"i"}}',
    '{"execute":"blockdev-snapshot-sync","arguments":{"device":"disk1","snapshot-file":"/top","snapshot-node-name":"t"}}',
    '{"execute":"blockdev-snapshot","arguments":{"node":"disk0","overlay":"n"}}',
    '{"execute":"block_resize","arguments":{"device":"disk0","size":524288}}',
    '{"execute":"blockdev-reopen","arguments":{"options":[{"driver":"qcow2","node-name":"disk0","file":"f",'
    '"discard":"unmap","throttling":{"bps-total":1000000}}]}}',
    '{"execute":"block_set_io_throttle","arguments":{"id":"disk0","bps":0,"bps_rd":0,"bps_wr":0,"iops":1000,"iops_rd":0,'
    '"iops_wr":0}}',
    '{"execute":"nbd-server-start","arguments":{"addr":{"type":"inet","data":{"host":"h","port":"1"}}}}',
    '{"execute":"nbd-server-add","arguments":{"device":"disk0","name":"disk0"}}', '{"execute":"nbd-server-stop"}',
    '{"execute":"nbd-server-remove","arguments":{"name":"e","mode":"safe"}}',
    '{"execute":"transaction","arguments":{"actions":[{"type":"block-dirty-bitmap-add","data":{"node":"disk0",'
    '"name":"x"}},{"type":"block-dirty-bitmap-merge","data":{"node":"disk0","target":"x","bitmaps":[{"node":"disk0",'
    '"name":"x"}]}},{"type":"blockdev-backup","data":{"device":"disk0","target":"n","sync":"bitmap","bitmap":"x",'
    '"bitmap-mode":"never"}}],"properties":{"completion-mode":"individual"}}}',
    '{"execute":"transaction","arguments":{"actions":[{"type":"blockdev-snapshot","data":{"node":"disk0","overlay":"n"}},'
    '{"type":"abort","data":{}}]}}',
    '{"execute":"quit"}',
]
JUNK = ['[1,2', '{"a":', 'x', '"\\u00e9"', '{"execute":1}', '[true,false,null,-1.5e3]', '{"a":{"b":[[]]}}']
NEGOTIATE = '{"execute":"qmp_capabilities"}'
ANSWERS = [
    '{"return":{}}', '{"return":[]}', '{"error":{"class":"GenericError","desc":"no"}}', '{"error":{}}',
    '{"event":"JOB_STATUS_CHANGE","data":{"id":"j","status":"ready"},"timestamp":{}}', '[]', '1', '{"error":7}',
    '{"QMP":{"version":{},"capabilities":[]}}', 'x',
]


def conversations():
    for command in COMMANDS:
        yield f"{NEGOTIATE}\n{command}\n"
    yield "\n".join([NEGOTIATE, *COMMANDS[:-1]])
    yield "\nx\n".join([NEGOTIATE, *COMMANDS[5:18]])
    yield "\nx\n".join([NEGOTIATE, *COMMANDS[19:22], *COMMANDS[5:9], *COMMANDS])


RBD_NAMES = ["rbd:p/i", "rbd:p/n/i@s", "rbd:p/i:id=me:conf=/etc/ceph/ceph.conf", "rbd:p\\/q/i\\@x@s\\:t",
             "rbd:p/i@s:mon_host=[v2\\:127.0.0.1\\:3300/0]:a\\=b=c", "rbd:p/i:id=a@b", "rbd:p//i@"]


def text_seeds(which):
    if which == "nbd_uri":
        return URIS
    if which == "rbd_name":
        return RBD_NAMES
    if which == "backing":
        return NAMES
    if which == "qmp_client":
        return [f"{a}\r\n{b}\r\n" for a in ANSWERS for b in ANSWERS[:3]]
    if which == "json":
        return COMMANDS + JUNK + [" ".join(JUNK) + "\n" + "".join(COMMANDS), '["' + "x" * 66000]
    return list(conversations())


# ---- compressed clusters and LUKS headers ----

def zstd_frames():
    """Small compressed clusters made here, and one that qemu-img made, from an image."""
    magic = b"\x28\xb5\x2f\xfd"

    def frame(size, kind, body):
        header = magic + b"\xa0" + struct.pack("<I", size)
        return header + (1 | kind << 1 | size << 3).to_bytes(3, "little") + body

    yield frame(512, 0, bytes(range(256)) * 2)
    yield frame(512, 1, b"x")
    yield frame(200, 1, b"x") + b"\x50\x2a\x4d\x18\x02\0\0\0ab" + frame(312, 1, b"y")
    with tempfile.TemporaryDirectory() as folder:
        raw, packed = f"{folder}/raw", f"{folder}/packed"
        with open(raw, "wb") as file:
            file.write((b"some words, and %d numbers\n" % 7 * 3000)[:65536])
        run("qemu-img", "convert", "-c", "-O", "qcow2", "-o", "compression_type=zstd,cluster_size=4k",
            raw, packed)
        with open(packed, "rb") as file:
            data = file.read()
        start = data.find(magic)
        yield data[start:start + 700]


def deflate_streams():
    words = b"".join(b"word %d, " % (i * 7919 % 1000) for i in range(3000))
    for level, strategy in ((0, zlib.Z_DEFAULT_STRATEGY), (6, zlib.Z_DEFAULT_STRATEGY), (6, zlib.Z_FIXED)):
        for size in (512, 4096):
            for end in (zlib.Z_FINISH, zlib.Z_SYNC_FLUSH):
                c = zlib.compressobj(level, zlib.DEFLATED, -12, 9, strategy)
                yield c.compress(words[:size]) + c.flush(end)


def codec_seeds():
    for codec, streams in enumerate((deflate_streams(), zstd_frames())):
        for stream in streams:
            for size in (0, 3):
                yield bytes([codec, size]) + stream


def luks_header(mode=b"xts-plain64", digest=b"sha256", key_bytes=64, iterations=1000, slots=1):
    each = -(-key_bytes * 4000 // 4096) * 8
    out = b"LUKS\xba\xbe\0\1" + b"aes".ljust(32, b"\0") + mode.ljust(32, b"\0") + digest.ljust(32, b"\0")
    out += struct.pack(">II", 8 + 8 * each, key_bytes) + bytes(52) + struct.pack(">I", iterations)
    out += b"7a0c2ae9-c31a-44cc-8f84-f0bb7033bc5d".ljust(40, b"\0")
    for i in range(8):
        out += struct.pack(">II32xII", 0x00ac71f3 if i < slots else 0x0000dead, iterations, 8 + i * each, 4000)
    return out


def luks_seeds():
    for header in (luks_header(), luks_header(b"cbc-essiv:sha256", b"sha1", 16),
                   luks_header(b"xts-plain", b"sha512", 48), luks_header(b"cbc-essiv:sha1", b"md5", 24),
                   luks_header(slots=8), luks_header(iterations=2**32 - 1)):
        yield b"\0" + header
        yield b"\1" + header + bytes(5000)


def entry_seeds():
    copied, packed = 1 << 63, 1 << 62
    for kind in range(8):
        for bits in (0, 5, 7, 12):
            for entry, bitmap in ((0, 0), (1, 0), (copied | 5 << 21, 1), (5 << 21 | 1, 0), (packed | 3 << 48 | 5000, 0),
                                  (copied | 7 << 21, 0xff00000000), (0, 3 << 32), (copied | 7 << 21, 1 << 32 | 1)):
                yield struct.pack(">BBQQ", kind, bits, entry, bitmap)


MADE = {"codec": codec_seeds, "luks": luks_seeds, "entry": entry_seeds}


def main():
    qimg, folder, which = sys.argv[1:]
    os.makedirs(folder, exist_ok=True)
    if which in ("qcow2", "qed", "check", "info"):
        seeds = image_seeds(which, qimg)
    elif which in MADE:
        seeds = ((f"{i:03}", data) for i, data in enumerate(MADE[which]()))
    else:
        seeds = ((f"{i:03}", text.encode()) for i, text in enumerate(text_seeds(which)))
    for name, data in seeds:
        with open(f"{folder}/{name}", "wb") as file:
            file.write(data)


if __name__ == "__main__":
    main()
