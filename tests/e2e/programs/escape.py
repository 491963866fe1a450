"""Tries to get from a container to files of the node beside those that it was given, case by case.

Arguments: the node's path of a file that the container must not see, and `root` in a container that may do everything to its
guest. /data is a volume, /readonly another one that is read-only, and the node changes /data/swing as it likes.

Prints `ok <name>` for a case that ends in the error that it must, else `FAILED <name>` and what came of it.
"""

import ctypes, errno, os, socket, stat, struct, sys, threading, time

SECRET = sys.argv[1]
BESIDE = "../secret/file"
LIBC = ctypes.CDLL(None, use_errno=True)
NOWHERE = (errno.ENOENT,)
REFUSED = (errno.EPERM, errno.EACCES)
READ_ONLY = (errno.EROFS,)

# Python's own link() leaves links as they are, whatever it is told.
AT_SYMLINK_FOLLOW = 0x400


def call(function, *arguments):
    result = getattr(LIBC, function)(*arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), function)
    return result


def read(path, **named):
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK, **named)
    try:
        return os.read(fd, 100)
    finally:
        os.close(fd)


def write(path, flags=os.O_CREAT):
    fd = os.open(path, os.O_WRONLY | flags)
    try:
        return os.write(fd, b"changed by the guest")
    finally:
        os.close(fd)


def through(target, action=read):
    """Acts on a symbolic link with this target, in the volume."""

    def act():
        link = f"/data/link-{time.monotonic_ns()}"
        os.symlink(target, link)
        try:
            return action(link)
        finally:
            os.unlink(link)

    return act


def device(kind, major, minor, flags=os.O_RDWR, place="/data"):
    def act():
        path = f"{place}/device-{kind}-{major}-{minor}"
        os.mknod(path, kind | 0o666, os.makedev(major, minor))
        return os.read(os.open(path, flags | os.O_NONBLOCK), 512)

    return act


def deep_and_moved():
    """A directory that is moved up while a process is in it: its `..` is now another one."""
    os.makedirs("/data/one/two/three")
    here = os.open("/data/one/two/three", os.O_RDONLY)
    os.rename("/data/one/two/three", "/data/three")
    try:
        return read(BESIDE, dir_fd=here)
    finally:
        os.close(here)
        os.rename("/data/three", "/data/one/two/three")


def by_descriptor():
    here = os.open("/data", os.O_RDONLY)
    return read("../../../.." + SECRET, dir_fd=here)


def chroot_and_climb():
    if os.fork() == 0:
        try:
            os.makedirs("/data/jail", exist_ok=True)
            outside = os.open("/data", os.O_RDONLY)
            os.chroot("/data/jail")
            os.fchdir(outside)
            for _ in range(50):
                os.chdir("..")
            os.chroot(".")
            read(SECRET)
            os._exit(0)
        except OSError as error:
            os._exit(error.errno)
    code = os.waitstatus_to_exitcode(os.wait()[1])
    if code:
        raise OSError(code, "after the climb")
    return "the secret"


def handle(number):
    """The file with this inode number of the share, as only the file server's own kernel would ask."""

    def act():
        found = {}
        mount = os.open("/data", os.O_RDONLY)
        # handle_bytes, handle_type, then the inode's number in two halves and its generation.
        for kind in (0x81, 0x82, 1):
            body = struct.pack("IiQI", 12, kind, number, 0)
            try:
                fd = call("open_by_handle_at", mount, ctypes.create_string_buffer(body), os.O_RDONLY)
                found[kind] = os.readlink(f"/proc/self/fd/{fd}")
            except OSError as error:
                last = error
        if found:
            return found
        raise last

    return act


def remount_writable():
    call("mount", None, b"/readonly", None, 0x20 | 0x1000, None)
    return write("/readonly/file")


def mount_share_again():
    os.makedirs("/again", exist_ok=True)
    call("mount", b"share", b"/again", b"virtiofs", 0, None)
    return read("/again/../.." + SECRET)


def connect(path):
    client = socket.socket(socket.AF_UNIX)
    client.connect(path)
    return "connected"


def bind_above():
    os.makedirs("/above", exist_ok=True)
    call("mount", b"/data/..", b"/above", None, 0x1000, None)
    return read("/above" + SECRET)


def race(seconds, change, path):
    """Reads a path while it is changed: what is read is never the secret."""

    def act():
        end = time.monotonic() + seconds
        stop = threading.Event()

        def changing():
            while not stop.is_set():
                try:
                    change()
                except OSError:
                    pass

        thread = threading.Thread(target=changing)
        thread.start()
        tries, last = 0, None
        try:
            while time.monotonic() < end or last is None:
                tries += 1
                try:
                    content = read(path)
                    if b"inside" not in content:
                        return content
                except OSError as error:
                    last = error
        finally:
            stop.set()
            thread.join()
        raise last

    return act


def swap_a_link():
    """/data/swap is a directory, a link to beside the share, and a link to the whole path, in turn."""
    os.rename("/data/swap", "/data/away")
    os.rename("/data/swap-up", "/data/swap")
    os.rename("/data/swap", "/data/swap-up")
    os.rename("/data/swap-whole", "/data/swap")
    os.rename("/data/swap", "/data/swap-whole")
    os.rename("/data/away", "/data/swap")


def exchange_ancestors():
    call("renameat2", -100, b"/data/outer", -100, b"/data/swap-up", 2)


def full_name():
    os.mkdir("/data/" + "n" * 256)


def set_flags(path, request, value):
    fd = os.open(path, os.O_RDONLY)
    buffer = ctypes.create_string_buffer(struct.pack("Q", value))
    return call("ioctl", fd, ctypes.c_ulong(request), buffer)


ORDINARY = [
    # Paths.
    ("a path up from the volume", lambda: read("/data/../secret/file"), NOWHERE),
    ("a path up from the read-only volume", lambda: read("/readonly/../secret/file"), NOWHERE),
    ("a path up very far", lambda: read("/data" + "/.." * 500 + SECRET), NOWHERE),
    ("the node's own path", lambda: read(SECRET), NOWHERE),
    ("a path from a descriptor", by_descriptor, NOWHERE),
    ("the directory moved while one is in it", deep_and_moved, NOWHERE),
    ("a path of 5000 bytes", lambda: read("/data/" + "x/" * 2500), (errno.ENAMETOOLONG,)),
    ("a name of 256 bytes", full_name, (errno.ENAMETOOLONG,)),
    ("a path through a file", lambda: read("/data/file/../../secret/file"), (errno.ENOTDIR,)),
    # Symbolic links.
    ("a link up", through(BESIDE), NOWHERE),
    ("a link up very far", through("../" * 500 + SECRET), NOWHERE),
    ("a link to the node's own path", through(SECRET), NOWHERE),
    ("a link to the secret, written", through(SECRET, lambda link: write(link, 0)), NOWHERE),
    ("a link to the secret, created", through(SECRET, write), NOWHERE),
    ("a link to the secret, truncated", through(SECRET, lambda link: os.truncate(link, 0)), NOWHERE),
    ("a link to the secret, its mode", through(SECRET, lambda link: os.chmod(link, 0o777)), NOWHERE),
    ("a link to the secret, its owner", through(SECRET, lambda link: os.chown(link, 1, 1)), NOWHERE),
    ("a link to the secret, its times", through(SECRET, lambda link: os.utime(link, (1, 1))), NOWHERE),
    ("a link to the secret, its attributes", through(SECRET, lambda link: os.setxattr(link, "user.x", b"1")), NOWHERE),
    ("a link to the secret, a hard link", through(SECRET, lambda link: call("linkat", -100, link.encode(), -100, b"/data/hard", AT_SYMLINK_FOLLOW)), NOWHERE),
    ("a link that the node made", lambda: read("/data/nodes-link"), NOWHERE),
    ("a link that the node made, written", lambda: write("/data/nodes-link", 0), NOWHERE),
    ("a link to itself", through("/data/loop", lambda link: (os.symlink("loop", "/data/loop"), read("/data/loop"))), (errno.ELOOP,)),
    ("links swapped while they are read", race(5, swap_a_link, "/data/swap/file"), (*NOWHERE, errno.ENOTDIR, errno.ELOOP)),
    ("ancestors exchanged while they are read", race(5, exchange_ancestors, "/data/outer/inner/file"), (*NOWHERE, errno.ENOTDIR)),
    ("what the node swaps while it is read", race(5, lambda: time.sleep(0.01), "/data/swing/file"), (*NOWHERE, errno.ENOTDIR, errno.ESTALE, errno.EBADF)),
    # Magic links.
    ("the root of process 1", lambda: read("/proc/1/root" + SECRET), NOWHERE),
    ("the own root, and up", lambda: read("/proc/self/root/../.." + SECRET), NOWHERE),
    ("the working directory, and up", lambda: (os.chdir("/data"), read("/proc/self/cwd/../secret/file"))[1], NOWHERE),
    ("a descriptor of the volume, and up", lambda: read(f"/proc/self/fd/{os.open('/data', os.O_RDONLY)}/../secret/file"), NOWHERE),
    ("a link in the volume to a magic link", through("/proc/self/root" + SECRET), NOWHERE),
    # Links and renames across what is mounted.
    ("a hard link to another volume", lambda: os.link("/data/file", "/readonly/hard"), (errno.EXDEV, *READ_ONLY)),
    ("a hard link from another volume", lambda: os.link("/readonly/file", "/data/hard"), (errno.EXDEV,)),
    ("a hard link from the root filesystem", lambda: os.link("/etc/passwd", "/data/hard"), (errno.EXDEV,)),
    # Not one that a race before left as a link.
    ("a hard link to a directory", lambda: os.link("/data/one", "/data/hard"), REFUSED),
    ("a rename out of the volume", lambda: os.rename("/data/file", "/data/../file"), (errno.EXDEV,)),
    ("a rename of the volume", lambda: os.rename("/data", "/moved"), (errno.EXDEV, errno.EBUSY)),
    ("a rename into the read-only volume", lambda: os.rename("/data/file", "/readonly/file"), (errno.EXDEV,)),
    ("the volume removed", lambda: os.rmdir("/data"), (errno.EBUSY, errno.ENOTEMPTY)),
    # The read-only volume.
    ("read-only: write", lambda: write("/readonly/file"), READ_ONLY),
    ("read-only: create", lambda: write("/readonly/new"), READ_ONLY),
    ("read-only: remove", lambda: os.unlink("/readonly/file"), READ_ONLY),
    ("read-only: mode", lambda: os.chmod("/readonly/file", 0o777), READ_ONLY),
    ("read-only: owner", lambda: os.chown("/readonly/file", 1, 1), READ_ONLY),
    ("read-only: times", lambda: os.utime("/readonly/file", (1, 1)), READ_ONLY),
    ("read-only: attributes", lambda: os.setxattr("/readonly/file", "user.x", b"1"), READ_ONLY),
    ("read-only: truncate", lambda: os.truncate("/readonly/file", 0), READ_ONLY),
    ("read-only: directory", lambda: os.mkdir("/readonly/new"), READ_ONLY),
    ("read-only: device", device(stat.S_IFCHR, 1, 3, place="/readonly"), READ_ONLY),
    # Device nodes, which name the guest's devices at most.
    ("a device: the first loop", device(stat.S_IFBLK, 7, 0), REFUSED),
    ("a device: a SCSI disk", device(stat.S_IFBLK, 8, 0), REFUSED),
    ("a device: a virtio disk", device(stat.S_IFBLK, 253, 0), REFUSED),
    ("a device: memory", device(stat.S_IFCHR, 1, 1), REFUSED),
    ("a device: ports", device(stat.S_IFCHR, 1, 4), REFUSED),
    ("a device: KVM", device(stat.S_IFCHR, 10, 232), REFUSED),
    # The rest.
    ("a handle of the share's own directory", handle(1), REFUSED),
    ("an attribute of an overlay", lambda: os.setxattr("/data/file", "trusted.overlay.opaque", b"y"), (*REFUSED, errno.EOPNOTSUPP)),
    ("a file that cannot be changed", lambda: set_flags("/data/file", 0x40086602, 0x10), (*REFUSED, errno.ENOTTY, errno.ENOSYS, errno.EOPNOTSUPP)),
    ("a socket that the node listens on", lambda: connect("/data/nodes-socket"), (errno.ECONNREFUSED,)),
    ("a file that is too big", lambda: os.truncate("/data/file", 1 << 62), (errno.EFBIG, errno.EINVAL)),
    ("a mount", lambda: call("mount", b"share", b"/mnt", b"virtiofs", 0, None), REFUSED),
]

# With every capability: all of the guest is theirs, and still nothing of the node.
ROOT = [
    ("the share's own directory, and up", chroot_and_climb, NOWHERE),
    ("the share mounted again", mount_share_again, (*NOWHERE, errno.EINVAL, errno.EBUSY)),
    ("what is above the volume", bind_above, NOWHERE),
    ("the read-only volume, made writable", remount_writable, READ_ONLY),
    *((f"a handle of inode {number}", handle(number), (errno.ESTALE, errno.EINVAL, errno.EOPNOTSUPP)) for number in (1 << 40, 0, 1 << 63)),
    ("an attribute of an overlay", lambda: os.setxattr("/data/file", "trusted.overlay.redirect", SECRET.encode()), (*REFUSED, errno.EOPNOTSUPP)),
    ("an attribute of the root's overlay", lambda: os.setxattr("/etc", "trusted.overlay.opaque", b"y"), (*REFUSED, errno.EOPNOTSUPP)),
    ("an attribute of a security module", lambda: os.setxattr("/data/file", "security.ima", b"1"), (*REFUSED, errno.EOPNOTSUPP)),
    ("the root of process 1", lambda: read("/proc/1/root" + SECRET), NOWHERE),
    ("a file that cannot be changed", lambda: set_flags("/data/file", 0x40086602, 0x10), (*REFUSED, errno.ENOTTY, errno.ENOSYS, errno.EOPNOTSUPP)),
]


def prepare():
    for path in ("/data/swap", "/data/outer/inner"):
        os.makedirs(path, exist_ok=True)
        with open(f"{path}/file", "w") as file:
            file.write("inside")
    for path, target in (("/data/swap-up", "../secret"), ("/data/swap-whole", os.path.dirname(SECRET))):
        os.symlink(target, path)


def main():
    cases = ROOT if "root" in sys.argv else ORDINARY
    if cases is ORDINARY:
        prepare()
    failed = 0
    for name, action, expected in cases:
        try:
            outcome = f"gave {action()!r}"
        except OSError as error:
            outcome = errno.errorcode.get(error.errno, str(error.errno))
            if error.errno in expected:
                print("ok", name, flush=True)
                continue
        failed += 1
        print("FAILED", name, outcome, flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
