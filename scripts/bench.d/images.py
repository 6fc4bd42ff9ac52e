# SPDX-License-Identifier: BSD-3-Clause
"""The images that are measured.  For the server of raw files each has a raw counterpart."""

import contextlib
import dataclasses
import itertools
import json
import mmap
import os
import shutil

import ceph_images
import servers
from processes import Failed, Unavailable

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
CLUSTER = 64 * KIB
LAYERS = 5
PASSPHRASE = "sesame"
SECRET = ["--object", f"secret,id=s,data={PASSPHRASE}"]
LUKS = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"


@dataclasses.dataclass(frozen=True)
class Image:
    """One image; `files`: all files with its content."""
    path: str
    format: str
    size: int
    files: tuple
    shared: bool        # kept for other measurements
    stride: int = 0     # bytes from one place with data to the next; 0: not such an image
    secret: bool = False    # encrypted, with PASSPHRASE
    direct: bool = False    # served with cache=none, so not kept in the page cache
    snapshot: str = ""      # this internal snapshot is served; "": the live disk
    compress: bool = False  # what is written is compressed

    def settle(self):
        """Before a measurement: writes back all dirty pages, and reads the content into the page cache, or drops it.
        Dirty pages of other images, which the server before this one may have left, would be written back during
        the measurement, and count towards the kernel's limit of dirty pages."""
        os.sync()
        for path in self.files:
            with open(path, "rb", buffering=0) as file:
                if self.direct:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                else:
                    _read_data(file)

    def reload(self):
        """Fills the page cache again, page by page, and overwrites everything once, so that each server finds
        the same state.  The page cache keeps a file in folios whose size depends on how they were read, and
        overwriting a part of a large one takes several times as long; so does the first overwrite of each."""
        for path in self.files:
            with open(path, "r+b", buffering=0) as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
                _read_data(file)
                _overwrite_data(file)
                os.fsync(file.fileno())

    def discard(self):
        """After a measurement: removes the image, unless it is kept for others."""
        if not self.shared:
            for path in self.files:
                os.unlink(path)


def _extents(file):
    """Yields (begin, end) of each range with data."""
    size = os.fstat(file.fileno()).st_size
    end = 0
    while end < size:
        try:
            begin = os.lseek(file.fileno(), end, os.SEEK_DATA)
        except OSError:  # the rest is a hole
            return
        end = os.lseek(file.fileno(), begin, os.SEEK_HOLE)
        yield begin, end


def _read_data(file):
    buffer = bytearray(MIB)
    for begin, end in _extents(file):
        os.lseek(file.fileno(), begin, os.SEEK_SET)
        while begin < end:
            begin += file.readinto(buffer) or end


def _overwrite_data(file):
    """Overwrites all data by itself."""
    for begin, end in _extents(file):
        for offset in range(begin, end, MIB):
            data = os.pread(file.fileno(), min(MIB, end - offset), offset)
            os.pwrite(file.fileno(), data, offset)


def _map(path):
    """Maps a file and touches each page with data."""
    with open(path, "rb", buffering=0) as file:
        mapping = mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ)
        for begin, end in _extents(file):
            for page in range(begin, end, mmap.PAGESIZE):
                mapping[page]  # pylint: disable=pointless-statement
    return mapping


class Store:
    """Makes images in the nursery's folder, and keeps those that can be used again.  `folder`: keep them
    there, also for the next run."""

    def __init__(self, nursery, size, folder=None):
        self.nursery, self.size, self.folder = nursery, size, folder
        self._kept, self._numbers = {}, itertools.count()
        self._mappings = {}

    def warm_memory(self):
        """Makes the machine allocate as much memory as a file of the common size takes in the page cache.
        A virtual machine may have to get it from its host, which would only cost the first server time."""
        path = self.nursery.path("warm")
        write_noise(path, self.size)
        os.unlink(path)

    def empty(self, form, size):
        """A fresh image for one measurement."""
        path = self.nursery.path(f"fresh{next(self._numbers)}.{form}")
        self._create(path, form, size)
        return Image(path, form, size, (path,), shared=False)

    def fresh(self, form):
        """An empty image of the common size."""
        return self.empty(form, self.size)

    def full(self, form):
        """Every cluster is allocated, in order."""
        def make(path):
            if form == "raw":
                write_noise(path, self.size)
            else:
                self.nursery.run(["qemu-img", "convert", "-f", "raw", "-O", form,
                                  self.full("raw").path, path])
            return Image(path, form, self.size, (path,), shared=True)
        return self._keep(f"full-{self.size}", form, make)

    def rbd(self, form):
        """Raw and full, on Ceph."""
        cluster = ceph_images.cluster(self.nursery, 4 * self.size)
        if not cluster.is_there("full"):
            cluster.create("full", self.size)
            cluster.run("rbd", "bench", "--io-type", "write", "--io-size", "4M", "--io-total",
                        str(self.size), "rbd/full", timeout=600)
        return Image("rbd:rbd/full", form, self.size, (), shared=True)

    def full_copy(self, form):
        """Like full, for workloads that change what is allocated."""
        source = self.full(form)
        path = self.nursery.path(f"copy{next(self._numbers)}.{form}")
        self.nursery.run(["cp", "--reflink=never", source.path, path])
        return dataclasses.replace(source, path=path, files=(path,), shared=False)

    def full_twice(self, form):
        """Like full, with a raw image of the same content as the last of its files."""
        image = self.full(form)
        return dataclasses.replace(image, files=(image.path, self.full("raw").path))

    def half_full(self, form):
        """Like full_copy, and then grown to twice the size."""
        image = self.full_copy(form)
        self.nursery.run(["qemu-img", "resize", "-q", "-f", form, image.path, str(2 * image.size)])
        return dataclasses.replace(image, size=2 * image.size)

    def programs(self, form):
        """Like full, with the content of a system's disk: this machine's own files."""
        def make(path):
            _write_programs(path, self.size)
            return Image(path, form, self.size, (path,), shared=True)
        assert form == "raw"
        return self._keep(f"programs-{self.size}", form, make)

    def compressed(self, kind):
        """A maker of images whose clusters are all compressed with this method."""
        def image(form):
            if form == "raw":
                return self.programs(form)
            return self._converted(f"compressed-{kind}", form, self.programs("raw"), "-c", "-o",
                                   f"compression_type={kind}")
        return image

    def clusters(self, size):
        """A maker of full images with clusters of that size, as qemu-img says it."""
        def image(form):
            return self.full(form) if form == "raw" else \
                self._converted(f"clusters-{size}", form, self.full("raw"), "-o", f"cluster_size={size}")
        return image

    def fresh_clusters(self, size):
        """A maker of empty images with clusters of this size."""
        return lambda form: self._fresh_with(form, f"cluster_size={size}")

    def fresh_compressing(self, form):
        """An empty image; all that is written is to be compressed."""
        return dataclasses.replace(self.fresh(form), compress=True)

    def with_bitmap(self, form):
        """Like full_copy, with a dirty bitmap that is stored in the image."""
        image = self.full_copy(form)
        if form != "raw":
            self.nursery.run(["qemu-img", "bitmap", "--add", image.path, "bench"])
        return image

    def with_snapshot(self, form):
        """Like full_copy, with an internal snapshot, which is served."""
        image = self.full_copy(form)
        self.nursery.run(["qemu-img", "snapshot", "-q", "-c", "bench", image.path])
        return dataclasses.replace(image, snapshot="bench")

    def luks(self, form):
        """Like full, and encrypted."""
        if form == "raw":
            return self.full(form)
        image = self._converted("luks", form, self.full("raw"), *SECRET, "-o", LUKS)
        return dataclasses.replace(image, secret=True)

    def _converted(self, kind, form, source, *how, direct=False):
        def make(path):
            self.nursery.run(["qemu-img", "convert", *how, "-f", "raw", "-O", form, source.path,
                              path])
            return Image(path, form, self.size, (path,), shared=True, direct=direct)
        return self._keep(f"{kind}-{self.size}", form, make)

    def direct(self, form):
        """Like full, without any of it in the page cache."""
        return self._converted("direct", form, self.full("raw"), direct=True)

    def fresh_direct(self, form):
        """An empty image of the common size, not in the page cache."""
        return dataclasses.replace(self.fresh(form), direct=True)

    def fresh_luks(self, form):
        """An empty image of the common size, encrypted."""
        return self._fresh_with(form, LUKS, secret=True)

    def fresh_extended(self, form):
        """An empty image of the common size with subclusters."""
        return self._fresh_with(form, "extended_l2=on")

    def fresh_with_data_file(self, form):
        """An empty image of the common size with an external data file."""
        data = self.nursery.path(f"fresh{next(self._numbers)}.data")
        return self._fresh_with(form, f"data_file={data}", data)

    def _fresh_with(self, form, options, *more_files, secret=False):
        if form == "raw":
            return self.fresh(form)
        path = self.nursery.path(f"fresh{next(self._numbers)}.{form}")
        self._create(path, form, self.size, *(SECRET if secret else ()), "-o", options)
        return Image(path, form, self.size, (path, *more_files), shared=False, secret=secret)

    def chain(self, form, layers=LAYERS):
        """A full image below overlays; an equal share of the clusters is visible from each layer."""
        if form == "raw":
            return self.full(form)

        def make(path):
            below = self.full(form)
            for layer in range(1, layers):
                name = path if layer == layers - 1 else f"{path}.{layer}"
                self._create(name, form, self.size, "-b", below.path, "-F", form)
                below = Image(name, form, self.size, (name, *below.files), shared=True)
                self._write_places(below, layer * CLUSTER, layers * CLUSTER, CLUSTER)
            return below
        return self._keep(f"chain-{layers}-{self.size}", form, make)

    def empty_overlay(self, form):
        """An empty overlay of a full raw image."""
        return self._overlay(form, self.full("raw"))

    def overlay(self, form):
        """An overlay with every fourth cluster, of a full raw image that isn't shared."""
        image = self._overlay(form, self.full_copy("raw"))
        self._write_places(image, 0, 4 * CLUSTER, CLUSTER)
        return image

    def _overlay(self, form, below):
        path = self.nursery.path(f"over{next(self._numbers)}.{form}")
        self._create(path, form, self.size, "-b", below.path, "-F", below.format)
        own = () if below.shared else below.files
        return Image(path, form, self.size, (path, *own), shared=False)

    def places(self, size, count):
        """A maker of sparse images with data at `count` evenly spread places."""
        def image(form):
            def make(path):
                self._create(path, form, size)
                made = Image(path, form, size, (path,), shared=True, stride=size // count)
                self._write_places(made, 0, size // count, 4 * KIB)
                return made
            return self._keep(f"places-{size}-{count}", form, make)
        return image

    def preallocated(self, size, direct=False):
        """A maker of images with all metadata and no data."""
        def image(form):
            def make(path):
                how = [] if form == "raw" else ["-o", "preallocation=metadata"]
                self._create(path, form, size, *how)
                return Image(path, form, size, (path,), shared=True, direct=direct)
            return self._keep(f"preallocated{'-direct' if direct else ''}-{size}", form, make)
        return image

    def _keep(self, kind, form, make):
        key = f"{kind}.{form}"
        if key not in self._kept:
            self._kept[key] = self._find_or_make(key, make)
            if not self._kept[key].direct:
                self._kept[key].reload()
                self._hold(self._kept[key])
        return self._kept[key]

    def _hold(self, image):
        """Keeps the image in the page cache for the rest of the run by mapping it.  A virtual machine may
        return memory to its host at any time, beginning with pages that no process maps; then the image
        would be read from the disk again in the middle of a measurement."""
        for path in image.files:
            if path not in self._mappings:
                self._mappings[path] = _map(path)

    def _find_or_make(self, key, make):
        if not self.folder:
            return make(self.nursery.path(key))
        path = os.path.join(self.folder, key)
        try:
            with open(f"{path}.json", encoding="ascii") as file:
                return Image(**json.load(file))
        except FileNotFoundError:
            made = make(path)
            with open(f"{path}.json", "w", encoding="ascii") as file:
                json.dump(dataclasses.asdict(made), file)
            return made

    def _create(self, path, form, size, *how):
        if form != "raw":
            self.nursery.run(["qemu-img", "create", "-q", "-f", form, *how, path, str(size)])
            return
        with open(path, "wb") as file:
            try:
                file.truncate(size)
            except OSError as error:
                os.unlink(path)
                raise Unavailable(f"no raw file of {size // TIB} TiB: {error.strerror}") from None

    def _write_places(self, image, first, stride, length):
        """Writes `length` bytes at each stride.  A server that isn't measured does it, so that none of the
        measured ones has made the layout."""
        if image.format == "raw":
            with open(image.path, "r+b", buffering=0) as file:
                for offset in range(first, image.size, stride):
                    os.pwrite(file.fileno(), os.urandom(length), offset)
            return
        with _filling(self.nursery, image) as server:
            self.nursery.run([
                "fio", "--name=fill", "--ioengine=nbd", f"--uri={server.uri}", "--thread",
                f"--rw=write:{stride - length}", f"--bs={length}", "--iodepth=16",
                f"--offset={first}", f"--size={image.size - first}",
                f"--io_size={len(range(first, image.size, stride)) * length}"], server=server)


@contextlib.contextmanager
def _filling(nursery, image):
    """A qemu-nbd that never flushes, to fill an image."""
    def serve(image, place, _control):
        return ["qemu-nbd", "-t", "-k", place.socket, "--pid-file", place.pidfile,
                "-f", image.format, "--cache=unsafe", image.path]

    running = servers.start(nursery, servers.Server("fill", "peer", serve), image)
    try:
        running.wait_until_it_listens()
        yield running
        running.stop()
    finally:
        running.kill()


def _check_space(path, size):
    if shutil.disk_usage(os.path.dirname(path)).free < 6 * size:
        raise Failed("failed", "not enough space for the images; set QIMG_TMPDIR or --size")


def write_noise(path, size):
    """Writes a file of random bytes, which can't be compressed."""
    noise = os.urandom(MIB)
    _check_space(path, size)
    with open(path, "wb") as file:
        for begin in range(0, size, MIB):
            file.write(noise[:size - begin])


def _write_programs(path, size):
    """Writes a file of this size with the files below /usr one after the other, repeated if necessary."""
    _check_space(path, size)
    names = sorted(os.path.join(folder, name) for folder, _, names in os.walk("/usr")
                   for name in names)
    names = [name for name in names if os.path.isfile(name) and not os.path.islink(name)]
    with open(path, "wb") as file:
        while file.tell() < size:
            for name in names:
                if file.tell() >= size:
                    break
                with open(name, "rb") as source:
                    shutil.copyfileobj(source, file)
        file.truncate(size)
