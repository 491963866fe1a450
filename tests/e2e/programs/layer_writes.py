"""Tries to change the disks that hold image layers and the guest's own image, from a container that may do everything to
its guest.

Prints `tried <device> <way>: <what came of it>` for each way and device, and at last, for each disk, `same <device>` when it
reads as it did before, else `CHANGED <device>`.
"""

import ctypes, fcntl, hashlib, mmap, os, stat, struct

LIBC = ctypes.CDLL(None, use_errno=True)
BLOCKS = "/sys/class/block"
BLKPG = 0x1269
BLKROSET = 0x125D
BLKDISCARD = 0x1277
BLKSECDISCARD = 0x127D
BLKZEROOUT = 0x127F
LENGTH = 1 << 20
JUNK = b"changed by the guest".ljust(4096, b"!")


def attribute(name, attribute):
    try:
        return open(f"{BLOCKS}/{name}/{attribute}").read().strip()
    except OSError:
        return ""


def node(name):
    path = f"/tmp/{name}"
    if not os.path.exists(path):
        major, minor = attribute(name, "dev").split(":")
        os.mknod(path, 0o600 | stat.S_IFBLK, os.makedev(int(major), int(minor)))
    return path


def opened(name, flags):
    return os.open(node(name), flags)


def page():
    """O_DIRECT wants memory that begins at a page."""
    memory = mmap.mmap(-1, 4096)
    memory[:] = JUNK
    return memory


def digest(name):
    """Of the disk's first bytes, past every cache of the guest."""
    fd = opened(name, os.O_RDONLY | os.O_DIRECT)
    memory = mmap.mmap(-1, LENGTH)
    try:
        length = min(LENGTH, int(attribute(name, "size")) * 512)
        done = os.preadv(fd, [memoryview(memory)[:length]], 0)
        return hashlib.sha256(memory[:done]).hexdigest()
    finally:
        os.close(fd)


def buffered(name):
    fd = opened(name, os.O_RDWR)
    try:
        os.pwrite(fd, JUNK, 0)
        os.fsync(fd)
    finally:
        os.close(fd)


def direct(name):
    fd = opened(name, os.O_RDWR | os.O_DIRECT)
    try:
        os.pwritev(fd, [page()], 0)
        os.fsync(fd)
    finally:
        os.close(fd)


def mapped(name):
    fd = opened(name, os.O_RDWR)
    try:
        memory = mmap.mmap(fd, 4096)
        memory[:] = JUNK
        memory.flush()
    finally:
        os.close(fd)


def control(request, argument):
    def act(name):
        for flags in (os.O_RDWR, os.O_RDONLY):
            try:
                fd = opened(name, flags)
                break
            except OSError:
                if flags == os.O_RDONLY:
                    raise
        try:
            fcntl.ioctl(fd, request, argument)
        finally:
            os.close(fd)

    return act


def mounted(name):
    os.makedirs("/tmp/mounted", exist_ok=True)
    source, place, kind = node(name).encode(), b"/tmp/mounted", b"erofs"
    if LIBC.mount(source, place, kind, 0, None) < 0:
        raise OSError(ctypes.get_errno(), "mount")
    try:
        MS_REMOUNT = 32
        LIBC.mount(source, place, kind, MS_REMOUNT, None)
        open("/tmp/mounted/changed", "w").write("changed")
    finally:
        LIBC.umount2(place, 2)


def partitioned(name):
    """What is mounted cannot be opened for writing; a partition of the same bytes could."""
    number = 200
    partition = ctypes.create_string_buffer(struct.pack("qqi128x4x", 0, 4096, number))

    def change(operation):
        fd = opened(name, os.O_RDONLY)
        try:
            address = ctypes.addressof(partition)
            fcntl.ioctl(fd, BLKPG, struct.pack("iii4xQ", operation, 0, len(partition.raw) - 1, address))
        finally:
            os.close(fd)

    change(1)
    try:
        part = f"{name}{'p' if name[-1].isdigit() else ''}{number}"
        fcntl_result = None
        for way in (direct, buffered):
            try:
                way(part)
            except OSError as error:
                fcntl_result = error
        os.unlink(node(part))
        if fcntl_result:
            raise fcntl_result
    finally:
        change(2)


WAYS = [
    ("BLKROSET", control(BLKROSET, struct.pack("i", 0))),
    ("buffered write", buffered),
    ("direct write", direct),
    ("mapped write", mapped),
    ("BLKDISCARD", control(BLKDISCARD, struct.pack("QQ", 0, 4096))),
    ("BLKSECDISCARD", control(BLKSECDISCARD, struct.pack("QQ", 0, 4096))),
    ("BLKZEROOUT", control(BLKZEROOUT, struct.pack("QQ", 0, 4096))),
    ("mount for writing", mounted),
    ("write to another partition", partitioned),
]


def is_part(name):
    return os.path.exists(f"{BLOCKS}/{name}/partition")


names = sorted(name for name in os.listdir(BLOCKS) if name.startswith(("vd", "pmem")))
# The disk for what the container writes is neither read-only nor memory.
names = [name for name in names if name.startswith("pmem") or attribute(name, "ro") == "1"]
disks = [name for name in names if not is_part(name)]
before = {name: digest(name) for name in disks}

for name in names:
    for what, way in WAYS:
        if way is partitioned and is_part(name):
            continue
        try:
            way(name)
            result = "done"
        except (OSError, ValueError) as error:
            result = str(error)
        print(f"tried {name} {what}: {result}", flush=True)

os.sync()
open("/proc/sys/vm/drop_caches", "w").write("3")
for name in disks:
    print("same" if digest(name) == before[name] else "CHANGED", name, flush=True)
