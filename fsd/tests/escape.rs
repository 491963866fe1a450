//! What a guest sends whose kernel is in an attacker's hands, to get at files beside the share.
//!
//! Each case ends in an error, and nothing beside the share has changed afterwards. It lies in a tree of its own, which is
//! hashed before and after; what the share has, a case may change. Then the server answers as before.
#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod support;

use std::fs;
use std::os::unix::fs::symlink;
use support::Server;
use support::raw::*;
use support::sentinel::Sentinel;

/// What the cases act on. The share:
///
/// ```text
///  file       "inside"
///  other      another file
///  directory/ with a file
///  up         symbolic link to ../beside, away to the same by its whole path
///  magic      symbolic link to /proc/self/root, cwd to /proc/self/cwd
///  fifo
/// ```
struct Fixture {
    server: Server,
    sentinel: Sentinel,
    file: u64,
    other: u64,
    directory: u64,
    up: u64,
    away: u64,
    magic: u64,
    fifo: u64,
    handle: u64,
    /// Of the directory.
    listing: u64,
}

impl Fixture {
    fn new() -> Option<Self> {
        let server = Server::greeted()?;
        let share = server.share();
        let sentinel = Sentinel::beside(&server);
        fs::write(share.join("file"), "inside").unwrap();
        fs::write(share.join("other"), "other").unwrap();
        fs::create_dir(share.join("directory")).unwrap();
        fs::write(share.join("directory/file"), "").unwrap();
        symlink("../beside", share.join("up")).unwrap();
        symlink(sentinel.path(), share.join("away")).unwrap();
        symlink("/proc/self/root", share.join("magic")).unwrap();
        nix::unistd::mkfifo(&share.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let node = |entry: &str| server.lookup(ROOT, entry);
        let (file, other, directory) = (node("file"), node("other"), node("directory"));
        let (up, away, magic, fifo) = (node("up"), node("away"), node("magic"), node("fifo"));
        let handle = server.open(file);
        let (_, listing) = server.exchange(OPENDIR, directory, &[0; 8]);
        let listing = number(&listing);
        Some(Self { server, sentinel, file, other, directory, up, away, magic, fifo, handle, listing })
    }

    fn error(&self, opcode: u32, node: u64, body: &[u8]) -> i32 {
        self.server.exchange(opcode, node, body).0
    }

    /// Error of a lookup.
    fn lookup(&self, parent: u64, entry: &str) -> i32 {
        self.error(LOOKUP, parent, &name(entry))
    }

    fn rename2(&self, from: &str, to_parent: u64, to: &str, flags: u32) -> i32 {
        let body = [longs(&[to_parent]), words(&[flags, 0]), name(from), name(to)].concat();
        self.error(RENAME2, ROOT, &body)
    }

    fn create(&self, entry: &str, flags: i32) -> i32 {
        let body = [words(&[flags.cast_unsigned(), 0o644, 0, 0]), name(entry)].concat();
        self.error(CREATE, ROOT, &body)
    }

    fn write(&self, node: u64, handle: u64, size: u32, content: &[u8]) -> i32 {
        let body = [longs(&[handle, 0]), words(&[size, 0]), longs(&[0]), words(&[0, 0]), content.to_vec()].concat();
        self.error(WRITE, node, &body)
    }

    fn read(&self, node: u64, handle: u64, offset: u64) -> i32 {
        let body = [longs(&[handle, offset]), words(&[4096, 0]), longs(&[0]), words(&[0, 0])].concat();
        self.error(READ, node, &body)
    }

    /// Sets the size to zero through `handle`, if there is one.
    fn truncate(&self, node: u64, handle: Option<u64>) -> i32 {
        const SIZE: u32 = 1 << 3;
        const HANDLE: u32 = 1 << 6;
        let valid = SIZE | if handle.is_some() { HANDLE } else { 0 };
        let mut body = [words(&[valid, 0]), longs(&[handle.unwrap_or_default()])].concat();
        body.resize(88, 0);
        self.error(SETATTR, node, &body)
    }

    fn open(&self, node: u64, flags: i32) -> i32 {
        self.error(OPEN, node, &words(&[flags.cast_unsigned(), 0]))
    }

    fn list(&self, opcode: u32, node: u64, handle: u64) -> i32 {
        let body = [longs(&[handle, 0]), words(&[4096, 0]), longs(&[0]), words(&[0, 0])].concat();
        self.error(opcode, node, &body)
    }

    fn link(&self, old: u64, new: &str) -> i32 {
        self.error(LINK, ROOT, &[longs(&[old]), name(new)].concat())
    }

    fn make(&self, opcode: u32, entry: &str) -> i32 {
        let start = match opcode {
            MKDIR => words(&[0o755, 0]),
            MKNOD => words(&[libc::S_IFREG | 0o644, 0, 0, 0]),
            _ => Vec::new(),
        };
        self.error(opcode, ROOT, &[start, name(entry)].concat())
    }

    fn symlink(&self, entry: &str, target: &str) -> i32 {
        self.error(SYMLINK, ROOT, &[name(entry), name(target)].concat())
    }

    fn set_attribute(&self, node: u64, attribute: &str, size: u32, value: &[u8]) -> i32 {
        self.error(SETXATTR, node, &[words(&[size, 0]), name(attribute), value.to_vec()].concat())
    }

    /// Sends what may have no reply, and asks afterwards.
    fn blind(&self, packet: &[u8]) {
        self.server.send(packet);
        self.server.settle();
    }
}

/// What came of it, and what must: one of these errors.
type Case = (&'static str, fn(&Fixture) -> i32, &'static [i32]);

const CASES: &[Case] = &[
    // Names that lead elsewhere.
    ("look up ..", |f| f.lookup(ROOT, ".."), &[libc::EINVAL]),
    ("look up .", |f| f.lookup(ROOT, "."), &[libc::EINVAL]),
    ("look up .. of a directory", |f| f.lookup(f.directory, ".."), &[libc::EINVAL]),
    ("look up a path", |f| f.lookup(ROOT, "../beside/secret"), &[libc::EINVAL]),
    ("look up a path below", |f| f.lookup(ROOT, "directory/file"), &[libc::EINVAL]),
    ("look up an absolute path", |f| f.lookup(ROOT, "/proc"), &[libc::EINVAL]),
    ("look up nothing", |f| f.lookup(ROOT, ""), &[libc::EINVAL]),
    ("look up a name without an end", |f| f.error(LOOKUP, ROOT, b"file"), &[libc::EINVAL, libc::EIO]),
    (
        "look up a name with more behind it",
        |f| f.error(LOOKUP, ROOT, b"nothing\0/../beside\0"),
        &[libc::EINVAL, libc::EIO, libc::ENOENT],
    ),
    ("look up a huge name", |f| f.lookup(ROOT, &"x".repeat(100_000)), &[libc::ENAMETOOLONG]),
    ("look up the longest name and one", |f| f.lookup(ROOT, &"x".repeat(256)), &[libc::ENAMETOOLONG]),
    ("make a directory above", |f| f.make(MKDIR, "../made"), &[libc::EINVAL]),
    ("make .. ", |f| f.make(MKDIR, ".."), &[libc::EINVAL]),
    ("make a file above", |f| f.make(MKNOD, "../made"), &[libc::EINVAL]),
    ("make a link above", |f| f.symlink("../made", "target"), &[libc::EINVAL]),
    ("create a file above", |f| f.create("../made", libc::O_RDWR), &[libc::EINVAL]),
    ("create a file in a linked directory", |f| f.create("up/made", libc::O_RDWR), &[libc::EINVAL]),
    (
        "create by a name with no end",
        |f| f.error(CREATE, ROOT, &[words(&[2, 0o644, 0, 0]), b"x".to_vec()].concat()),
        &[libc::EINVAL, libc::EIO],
    ),
    ("remove a file above", |f| f.make(UNLINK, "../beside/secret"), &[libc::EINVAL]),
    ("remove a directory above", |f| f.make(RMDIR, "../beside/directory"), &[libc::EINVAL]),
    ("remove the share", |f| f.make(RMDIR, "."), &[libc::EINVAL]),
    ("rename to above", |f| f.rename2("file", ROOT, "../made", 0), &[libc::EINVAL]),
    ("rename from above", |f| f.rename2("../beside/secret", ROOT, "mine", 0), &[libc::EINVAL]),
    ("exchange with above", |f| f.rename2("file", ROOT, "../beside/secret", libc::RENAME_EXCHANGE), &[libc::EINVAL]),
    ("link to above", |f| f.link(f.file, "../made"), &[libc::EINVAL]),
    // Symbolic links lead the guest's kernel, not the server.
    ("look up below a link", |f| f.lookup(f.up, "secret"), &[libc::ENOTDIR, libc::ELOOP]),
    ("look up below a link to a whole path", |f| f.lookup(f.away, "secret"), &[libc::ENOTDIR, libc::ELOOP]),
    ("look up below a magic link", |f| f.lookup(f.magic, "etc"), &[libc::ENOTDIR, libc::ELOOP]),
    ("open a link", |f| f.open(f.away, libc::O_RDONLY), &[libc::EBADF]),
    ("open a link as a path", |f| f.open(f.away, libc::O_PATH), &[libc::EBADF]),
    ("open a link as a directory", |f| f.error(OPENDIR, f.away, &[0; 8]), &[libc::EBADF]),
    ("truncate a link", |f| f.truncate(f.up, None), &[libc::EBADF]),
    ("create over a link", |f| f.create("away", libc::O_RDWR | libc::O_TRUNC), &[libc::EBADF]),
    ("create over a link, exclusively", |f| f.create("away", libc::O_RDWR | libc::O_EXCL), &[libc::EEXIST]),
    ("attributes of what a link names", |f| f.set_attribute(f.up, "user.mine", 1, b"1"), &[libc::EPERM]),
    ("read a link that is none", |f| f.error(READLINK, f.file, &[]), &[libc::ENOENT, libc::EINVAL]),
    (
        "make something below a link",
        |f| f.error(MKDIR, f.up, &[words(&[0o755, 0]), name("made")].concat()),
        &[libc::ENOTDIR],
    ),
    ("remove something below a link", |f| f.error(UNLINK, f.up, &name("secret")), &[libc::ENOTDIR]),
    // Numbers that the guest was never given.
    ("an inode that nobody has", |f| f.error(GETATTR, 1 << 40, &[0; 16]), &[libc::EBADF]),
    ("inode 0", |f| f.lookup(0, "file"), &[libc::EBADF]),
    ("the last inode", |f| f.lookup(u64::MAX, "file"), &[libc::EBADF]),
    ("a parent that is a file", |f| f.lookup(f.file, "x"), &[libc::ENOTDIR]),
    ("rename to a forged parent", |f| f.rename2("file", 1 << 50, "x", 0), &[libc::EBADF]),
    ("link a forged inode", |f| f.link(1 << 50, "x"), &[libc::EBADF]),
    (
        "an inode that was forgotten",
        |f| {
            f.blind(&request(FORGET, 8, f.other, &longs(&[u64::MAX])));
            f.open(f.other, libc::O_RDONLY)
        },
        &[libc::EBADF],
    ),
    (
        "inodes that were forgotten at once, with a count that lies",
        |f| {
            f.blind(&request(BATCH_FORGET, 8, 0, &[words(&[u32::MAX, 0]), longs(&[f.other, 9])].concat()));
            f.blind(&request(BATCH_FORGET, 8, 0, &[words(&[1, 0]), longs(&[f.other, 9])].concat()));
            f.open(f.other, libc::O_RDONLY)
        },
        &[libc::EBADF],
    ),
    ("a handle that nobody has", |f| f.read(f.file, 1 << 40, 0), &[libc::EBADF]),
    ("a handle of another file, read", |f| f.read(f.other, f.handle, 0), &[libc::EBADF]),
    ("a handle of another file, written", |f| f.write(f.other, f.handle, 1, b"x"), &[libc::EBADF]),
    ("a handle of another file, truncated", |f| f.truncate(f.other, Some(f.handle)), &[libc::EBADF]),
    ("a handle of another file, released", |f| f.error(RELEASE, f.other, &longs(&[f.handle, 0, 0])), &[libc::EBADF]),
    (
        "a handle that was released",
        |f| {
            assert_eq!(f.error(RELEASE, f.file, &longs(&[f.handle, 0, 0])), 0);
            f.read(f.file, f.handle, 0)
        },
        &[libc::EBADF],
    ),
    (
        "a handle that was released twice",
        |f| {
            assert_eq!(f.error(RELEASE, f.file, &longs(&[f.handle, 0, 0])), 0);
            f.error(RELEASE, f.file, &longs(&[f.handle, 0, 0]))
        },
        &[libc::EBADF],
    ),
    (
        "a handle from before the end of the session",
        |f| {
            f.server.send(&request(DESTROY, 8, 0, &[]));
            f.server.receive();
            f.read(f.file, f.handle, 0)
        },
        &[libc::EBADF],
    ),
    ("a directory's handle, read as a file", |f| f.read(f.directory, f.listing, 0), &[libc::EISDIR]),
    ("a directory's handle, written", |f| f.write(f.directory, f.listing, 1, b"x"), &[libc::EBADF]),
    ("a file's handle, listed", |f| f.list(READDIR, f.file, f.handle), &[libc::ENOTDIR]),
    ("a file's handle, listed with attributes", |f| f.list(READDIRPLUS, f.file, f.handle), &[libc::ENOTDIR]),
    ("another directory's handle", |f| f.list(READDIR, ROOT, f.listing), &[libc::EBADF]),
    // What is opened.
    ("open a FIFO", |f| f.open(f.fifo, libc::O_RDONLY), &[libc::EBADF]),
    (
        "open a device that the guest made",
        |f| {
            let device = [words(&[libc::S_IFBLK | 0o666, 0x700, 0, 0]), name("device")].concat();
            assert_eq!(f.error(MKNOD, ROOT, &device), 0);
            f.open(f.server.lookup(ROOT, "device"), libc::O_RDWR)
        },
        &[libc::EBADF],
    ),
    ("an unnamed file", |f| f.open(f.directory, libc::O_TMPFILE | libc::O_RDWR), &[libc::EISDIR]),
    (
        "an unnamed file, by its own request",
        |f| f.error(TMPFILE, f.directory, &[words(&[2, 0o644, 0, 0]), name("x")].concat()),
        &[libc::ENOSYS],
    ),
    ("a directory to write", |f| f.open(f.directory, libc::O_WRONLY), &[libc::EISDIR]),
    (
        "write to what was opened to read",
        |f| {
            let (_, opened) = f.server.exchange(OPEN, f.file, &[0; 8]);
            f.write(f.file, number(&opened), 1, b"x")
        },
        &[libc::EBADF],
    ),
    // Renames and links.
    ("a directory into itself", |f| f.rename2("directory", f.directory, "inner", 0), &[libc::EINVAL]),
    (
        "exchange and do not replace",
        |f| f.rename2("file", ROOT, "other", libc::RENAME_EXCHANGE | libc::RENAME_NOREPLACE),
        &[libc::EINVAL],
    ),
    (
        "exchange and leave a whiteout",
        |f| f.rename2("file", ROOT, "other", libc::RENAME_EXCHANGE | libc::RENAME_WHITEOUT),
        &[libc::EINVAL],
    ),
    ("exchange with nothing", |f| f.rename2("file", ROOT, "nothing", libc::RENAME_EXCHANGE), &[libc::ENOENT]),
    ("all flags", |f| f.rename2("file", ROOT, "other", u32::MAX), &[libc::EINVAL]),
    ("rename with one name", |f| f.error(RENAME, ROOT, &[longs(&[ROOT]), name("file")].concat()), &[libc::EIO]),
    (
        "rename with names without an end",
        |f| f.error(RENAME, ROOT, &[longs(&[ROOT]), b"file\0x".to_vec()].concat()),
        &[libc::EIO, libc::EINVAL],
    ),
    ("a hard link to a directory", |f| f.link(f.directory, "hard"), &[libc::EPERM]),
    ("a hard link to the share", |f| f.link(ROOT, "hard"), &[libc::EPERM]),
    ("a hard link over a file", |f| f.link(f.file, "other"), &[libc::EEXIST]),
    // Attributes that are the host's.
    (
        "an attribute of an overlay",
        |f| f.set_attribute(f.file, "trusted.overlay.redirect", 7, b"/beside"),
        &[libc::EPERM],
    ),
    ("an attribute of a security module", |f| f.set_attribute(f.file, "security.ima", 1, b"1"), &[libc::EPERM]),
    ("an attribute of no known kind", |f| f.set_attribute(f.file, "mine", 1, b"1"), &[libc::EOPNOTSUPP]),
    ("an attribute longer than its request", |f| f.set_attribute(f.file, "user.mine", 1 << 30, b"1"), &[libc::EIO]),
    ("a huge attribute", |f| f.set_attribute(f.file, "user.mine", 70_000, &[1; 70_000]), &[libc::E2BIG]),
    ("an attribute without a name", |f| f.set_attribute(f.file, "", 1, b"1"), &[libc::ERANGE, libc::EINVAL]),
    (
        "read an attribute of the host",
        |f| f.error(GETXATTR, f.file, &[words(&[100, 0]), name("trusted.x")].concat()),
        &[libc::ENODATA],
    ),
    ("remove an attribute of the host", |f| f.error(REMOVEXATTR, f.file, &name("trusted.x")), &[libc::EPERM]),
    (
        "remove the attribute of a name with no end",
        |f| f.error(REMOVEXATTR, f.file, b"user.x"),
        &[libc::EINVAL, libc::EIO],
    ),
    // What is not served.
    (
        "ioctl",
        |f| {
            f.error(
                IOCTL,
                f.file,
                &[longs(&[f.handle]), words(&[0, 0x4008_6602]), longs(&[0]), words(&[0, 8])].concat(),
            )
        },
        &[libc::ENOSYS, libc::ENOTTY],
    ),
    (
        "ioctl with more input than there is",
        |f| {
            f.error(
                IOCTL,
                f.file,
                &[longs(&[f.handle]), words(&[1, 1]), longs(&[0]), words(&[u32::MAX, u32::MAX])].concat(),
            )
        },
        &[libc::ENOTTY],
    ),
    (
        "copy between files",
        |f| f.error(COPY_FILE_RANGE, f.file, &longs(&[f.handle, 0, f.other, f.handle, 0, 100, 0])),
        &[libc::ENOSYS],
    ),
    ("map a file", |f| f.error(SETUPMAPPING, f.file, &longs(&[f.handle, 0, 4096, 1, 0])), &[libc::ENOSYS]),
    ("unmap", |f| f.error(REMOVEMAPPING, f.file, &longs(&[1, 0, 4096])), &[libc::ENOSYS]),
    ("sync all of the host", |f| f.error(SYNCFS, ROOT, &[0; 8]), &[libc::ENOSYS]),
    ("blocks of the disk", |f| f.error(BMAP, f.file, &longs(&[0, 4096])), &[libc::ENOSYS]),
    ("poll", |f| f.error(POLL, f.file, &[longs(&[f.handle, 1]), words(&[0, 0])].concat()), &[libc::ENOSYS]),
    ("a lock", |f| f.error(SETLK, f.file, &[0; 48]), &[libc::ENOSYS]),
    ("ask for a lock", |f| f.error(GETLK, f.file, &[0; 48]), &[libc::ENOSYS]),
    ("a request that nobody knows", |f| f.error(4000, ROOT, &[0; 64]), &[libc::ENOSYS]),
    ("the last request number", |f| f.error(u32::MAX, ROOT, &[]), &[libc::ENOSYS]),
    ("request 0", |f| f.error(0, ROOT, &[]), &[libc::ENOSYS]),
    // Messages that lie about their length, and numbers at their ends.
    ("a cut write", |f| f.error(WRITE, f.file, &longs(&[f.handle])), &[libc::EIO]),
    ("a cut read", |f| f.error(READ, f.file, &longs(&[f.handle])), &[libc::EIO]),
    ("a cut change", |f| f.error(SETATTR, f.file, &[0; 20]), &[libc::EIO]),
    ("an empty open", |f| f.error(OPEN, f.file, &[]), &[libc::EIO]),
    ("an empty link", |f| f.error(LINK, ROOT, &[]), &[libc::EIO]),
    ("an empty greeting", |f| f.error(INIT, 0, &[]), &[libc::EIO]),
    ("a greeting of another age", |f| f.error(INIT, 0, &words(&[6, 0, 0, 0])), &[libc::EPROTO]),
    (
        "a header that says more than there is",
        |f| {
            let mut packet = request(GETATTR, 8, ROOT, &[0; 16]);
            packet[..4].copy_from_slice(&u32::MAX.to_le_bytes());
            f.blind(&packet);
            f.lookup(ROOT, "..")
        },
        &[libc::EINVAL],
    ),
    (
        "a header that says less than there is",
        |f| {
            let mut packet = request(UNLINK, 8, ROOT, &name("file"));
            packet[..4].copy_from_slice(&40_u32.to_le_bytes());
            f.blind(&packet);
            assert!(f.server.share().join("file").exists());
            f.lookup(ROOT, "..")
        },
        &[libc::EINVAL],
    ),
    (
        "packets longer than any request",
        |f| {
            f.blind(&request(WRITE, 8, f.file, &vec![1; 140_000]));
            f.lookup(ROOT, "..")
        },
        &[libc::EINVAL],
    ),
    (
        "an answer to a question that was not asked",
        |f| {
            f.server.send(&request(NOTIFY_REPLY, 8, ROOT, &[0; 40]));
            f.server.settle();
            f.lookup(ROOT, "..")
        },
        &[libc::EINVAL],
    ),
    (
        "an interruption of everything",
        |f| {
            f.blind(&request(INTERRUPT, 8, ROOT, &longs(&[u64::MAX])));
            f.lookup(ROOT, "..")
        },
        &[libc::EINVAL],
    ),
    ("read beyond every file", |f| f.read(f.file, f.handle, u64::MAX), &[libc::EINVAL]),
    (
        "seek to nowhere",
        |f| f.error(LSEEK, f.file, &[longs(&[f.handle, u64::MAX]), words(&[99, 0])].concat()),
        &[libc::EINVAL],
    ),
    (
        "reserve more than there is",
        |f| f.error(FALLOCATE, f.file, &[longs(&[f.handle, u64::MAX, u64::MAX]), words(&[0, 0])].concat()),
        &[libc::EINVAL],
    ),
    (
        "reserve in a way that nobody knows",
        |f| f.error(FALLOCATE, f.file, &[longs(&[f.handle, 0, 1]), words(&[u32::MAX, 0])].concat()),
        &[libc::EOPNOTSUPP, libc::EINVAL],
    ),
    (
        "a size that is negative",
        |f| {
            let mut body = [words(&[1 << 3, 0]), longs(&[0, u64::MAX])].concat();
            body.resize(88, 0);
            f.error(SETATTR, f.file, &body)
        },
        &[libc::EINVAL],
    ),
    (
        "sync a file by a handle that is none",
        |f| f.error(FSYNC, f.file, &[longs(&[99]), words(&[0, 0])].concat()),
        &[libc::EBADF],
    ),
    ("flush a file by a handle that is none", |f| f.error(FLUSH, f.file, &longs(&[99, 0, 0])), &[libc::EBADF]),
    ("room of a file system of nobody", |f| f.error(STATFS, 1 << 33, &[]), &[libc::EBADF]),
    ("rights to a file of nobody", |f| f.error(ACCESS, 1 << 33, &[0; 8]), &[libc::EBADF]),
    ("attributes of a file of nobody", |f| f.error(LISTXATTR, 1 << 33, &words(&[u32::MAX, 0])), &[libc::EBADF]),
];

#[test]
fn no_request_reaches_beside_the_share() {
    if Fixture::new().is_none() {
        return;
    }
    let mut wrong = Vec::new();
    for (case, attack, expected) in CASES {
        let fixture = Fixture::new().unwrap();
        let error = attack(&fixture);
        if !expected.contains(&error) {
            wrong.push(format!("{case}: error {error}, not {expected:?}"));
        }
        if let Err(change) = fixture.sentinel.check() {
            wrong.push(format!("{case}: {change}"));
        }
        assert_eq!(fixture.server.exchange(GETATTR, ROOT, &[0; 16]).0, 0, "after {case}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(CASES.len() >= 40);
}

#[test]
fn a_write_of_more_than_it_carries_writes_what_it_carries() {
    let Some(fixture) = Fixture::new() else { return };
    assert_eq!(fixture.write(fixture.file, fixture.handle, u32::MAX, b"ou"), 0);
    assert_eq!(fs::read_to_string(fixture.server.share().join("file")).unwrap(), "ouside");
}
