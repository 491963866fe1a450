//! The share as a file system: what [`PassthroughFs`] does, with what a pod needs besides.
//!
//! - `.` and `..` are no names: the guest's kernel resolves them itself, so only an attacker sends them.
//! - The guest remembers a bounded number of files ([`Remembered`]).
//! - Requests carry up to 128 KiB instead of one page.
//! - Inode numbers are unique across the file systems of the share ([`InodeNumbers`]).
//! - What only the guest changes stays true for it ([`Freshness`]); closing what was only read asks nothing.
//! - `O_DIRECT` is between a program and the guest's kernel, which then reads and writes past its own cache. Ours are
//!   ordinary reads and writes: the host's `O_DIRECT` wants buffers, lengths and offsets aligned to its disk.
#![expect(unsafe_code, reason = "an option of FUSE that the library does not name")]

use crate::caller::{as_caller, is_refusal, making, on_behalf};
use crate::freshness::{Found, Freshness, SHORT};
use crate::numbers::InodeNumbers;
use crate::remembered::Remembered;
use fuse_backend_rs::abi::fuse_abi::{CreateIn, stat64, statvfs64};
use fuse_backend_rs::api::filesystem::{
    Context, DirEntry, Entry, FileSystem, FsOptions, GetxattrReply, ListxattrReply, OpenOptions, SetattrValid,
    ZeroCopyReader, ZeroCopyWriter,
};
use fuse_backend_rs::passthrough::{CachePolicy, Config, PassthroughFs};
use std::ffi::CStr;
use std::fmt;
use std::io;
use std::thread;
use std::time::Duration;

/// What the guest's kernel may do, besides what the library turns on.
///
/// Without `BIG_WRITES` each write is one page. Locks are left out: all processes that can take them are in the same
/// guest, whose kernel keeps them.
const OPTIONS: FsOptions = FsOptions::ASYNC_READ
    .union(FsOptions::ASYNC_DIO)
    .union(FsOptions::ATOMIC_O_TRUNC)
    .union(FsOptions::AUTO_INVAL_DATA)
    .union(FsOptions::BIG_WRITES)
    .union(FsOptions::CACHE_SYMLINKS)
    .union(FsOptions::PARALLEL_DIROPS);

/// A served directory.
pub struct Share {
    files: PassthroughFs,
    numbers: InodeNumbers,
    freshness: Freshness,
    remembered: Remembered,
}

impl fmt::Debug for Share {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Share").finish_non_exhaustive()
    }
}

impl Share {
    /// Serves `root`, as a process that may have `open_files` files open. `/proc` must be that of this process, now and
    /// later.
    pub fn new(root: &str, open_files: u64) -> io::Result<Self> {
        let files = PassthroughFs::new(Config {
            root_dir: root.into(),
            cache_policy: CachePolicy::Auto,
            attr_timeout: SHORT,
            entry_timeout: SHORT,
            xattr: true,
            killpriv_v2: true,
            // The guest may cache what it wrote, but the host must have it.
            writeback: false,
            // A file handle opens any file of a file system, not only those below the root.
            inode_file_handles: false,
            ..Config::default()
        })?;
        files.import()?;
        let (numbers, freshness) = Default::default();
        Ok(Self { files, numbers, freshness, remembered: Remembered::within(open_files) })
    }

    fn renumber(&self, attributes: &mut stat64) {
        attributes.st_ino = self.numbers.unique(attributes.st_dev, attributes.st_ino);
    }

    /// Asked before something is made, so that it is not made and then refused.
    fn check_room(&self) -> io::Result<()> {
        if self.remembered.has_room() { Ok(()) } else { Err(full()) }
    }

    /// An entry that the library has just made.
    fn made(&self, entry: io::Result<Entry>) -> io::Result<Entry> {
        let entry = entry.map_err(of_server)?;
        self.remembered.add(entry.inode);
        Ok(self.entry(entry))
    }

    /// An entry as the guest sees it.
    fn entry(&self, mut entry: Entry) -> Entry {
        self.renumber(&mut entry.attr);
        entry.attr_timeout = self.freshness.of(entry.attr.st_dev);
        entry.entry_timeout = entry.attr_timeout;
        entry
    }

    /// The same of an entry that was found by name.
    fn found(&self, context: &Context, parent: u64, name: &[u8], entry: Entry) -> Entry {
        let found = Found { parent, name, inode: entry.inode, device: entry.attr.st_dev };
        let parent_device = || {
            let parent = on_behalf(context, |context| self.files.getattr(context, parent, None));
            parent.ok().map(|(parent, _)| parent.st_dev)
        };
        let entry_timeout = self.freshness.learn(found, parent_device);
        Entry { entry_timeout, ..self.entry(entry) }
    }

    /// Whether a directory has nothing but files that are removed. A removed file that is open keeps a name on NFS.
    fn holds_only_removed(&self, context: &Context, parent: u64, name: &CStr) -> io::Result<bool> {
        let inode = on_behalf(context, |context| self.files.lookup(context, parent, name))?.inode;
        let mut only_removed = true;
        let mut look = |entry: DirEntry<'_>| {
            only_removed = entry.name.starts_with(b".nfs");
            Ok(only_removed.into())
        };
        let opened = on_behalf(context, |context| self.files.opendir(context, inode, libc::O_RDONLY.cast_unsigned()));
        let listed = opened.and_then(|(handle, _)| {
            let handle = handle.unwrap_or_default();
            let listed = on_behalf(context, |context| self.files.readdir(context, inode, handle, 4096, 0, &mut look));
            self.files.releasedir(context, inode, 0, handle).and(listed)
        });
        self.files.forget(context, inode, 1);
        listed.map(|()| only_removed)
    }

    fn attributes(&self, (mut attributes, _): (stat64, Duration)) -> (stat64, Duration) {
        self.renumber(&mut attributes);
        (attributes, self.freshness.of(attributes.st_dev))
    }
}

/// How long the removal of a directory waits for other threads, which may still have to let go of what the guest has forgotten.
const PAUSES: [Duration; 3] = [Duration::from_millis(1), Duration::from_millis(4), Duration::from_millis(16)];

/// `FOPEN_NOFLUSH`: there is nothing to write back when the file is closed.
fn no_flush() -> OpenOptions {
    // SAFETY: the type is a set of bits that goes to the guest as it is; it has no invariant.
    unsafe { OpenOptions::from_bits_unchecked(1 << 5) }
}

/// What holds of the flags of a file, which the guest gives at each use, for the host's file. `O_TMPFILE` and `O_PATH`
/// make something else of it, signals of `O_ASYNC` would be ours.
fn host_flags(flags: u32) -> u32 {
    const KEPT: i32 = libc::O_ACCMODE
        | libc::O_CREAT
        | libc::O_EXCL
        | libc::O_TRUNC
        | libc::O_APPEND
        | libc::O_NONBLOCK
        | libc::O_DSYNC
        | libc::O_SYNC
        | libc::O_DIRECTORY
        | libc::O_NOFOLLOW
        | libc::O_NOATIME;
    flags & KEPT.cast_unsigned()
}

fn reads_only(flags: u32) -> bool {
    flags & libc::O_ACCMODE.cast_unsigned() == libc::O_RDONLY.cast_unsigned()
}

/// Reads a part of a directory by a function that notes whether there was an entry. The library stops at one that it cannot look at.
/// When that is the first, there is an error, or nothing: to the guest, the end of the directory.
///
/// So what ends without an entry is read again: when it is not for root to look at, as the caller; when the node has removed the
/// entry, the next attempt starts with another one.
fn list(caller: &Context, mut read: impl FnMut(&Context, &mut bool) -> io::Result<()>) -> io::Result<()> {
    const ATTEMPTS: usize = 4;
    let mut result = Ok(());
    for _ in 0..ATTEMPTS {
        let mut found = false;
        result = read(caller, &mut found);
        let unclear = result.as_ref().map_or_else(is_refusal, |()| !found);
        if unclear && as_caller(caller, |context| read(context, &mut found)).is_ok() {
            result = Ok(());
        }
        match &result {
            Ok(()) if !found => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            _ => break,
        }
    }
    result.map_err(of_server)
}

/// What a request for one file too many gets.
fn full() -> io::Error {
    io::Error::from_raw_os_error(libc::ENFILE)
}

/// That this process has too many open files is, to a process in the guest, that the system has.
fn of_server(error: io::Error) -> io::Error {
    if error.raw_os_error() == Some(libc::EMFILE) { full() } else { error }
}

/// A name is one component that leads down.
fn check_name(name: &CStr) -> io::Result<()> {
    let bytes = name.to_bytes();
    if bytes.is_empty() || bytes == b"." || bytes == b".." || bytes.contains(&b'/') {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    Ok(())
}

impl FileSystem for Share {
    type Inode = u64;
    type Handle = u64;

    fn init(&self, capable: FsOptions) -> io::Result<FsOptions> {
        Ok(self.files.init(capable)? | OPTIONS)
    }

    fn destroy(&self) {
        self.files.destroy();
        self.remembered.clear();
    }

    fn lookup(&self, context: &Context, parent: u64, name: &CStr) -> io::Result<Entry> {
        check_name(name)?;
        let entry = on_behalf(context, |context| self.files.lookup(context, parent, name)).map_err(of_server)?;
        if !self.remembered.add_if_room(entry.inode) {
            self.files.forget(context, entry.inode, 1);
            return Err(full());
        }
        Ok(self.found(context, parent, name.to_bytes(), entry))
    }

    fn forget(&self, context: &Context, inode: u64, count: u64) {
        self.remembered.remove(inode, count);
        self.files.forget(context, inode, count);
    }

    fn batch_forget(&self, context: &Context, requests: Vec<(u64, u64)>) {
        for (inode, count) in &requests {
            self.remembered.remove(*inode, *count);
        }
        self.files.batch_forget(context, requests);
    }

    fn getattr(&self, context: &Context, inode: u64, handle: Option<u64>) -> io::Result<(stat64, Duration)> {
        Ok(self.attributes(on_behalf(context, |context| self.files.getattr(context, inode, handle))?))
    }

    fn setattr(
        &self,
        context: &Context,
        inode: u64,
        attributes: stat64,
        handle: Option<u64>,
        valid: SetattrValid,
    ) -> io::Result<(stat64, Duration)> {
        let changed = on_behalf(context, |context| self.files.setattr(context, inode, attributes, handle, valid));
        Ok(self.attributes(changed.map_err(of_server)?))
    }

    fn readlink(&self, context: &Context, inode: u64) -> io::Result<Vec<u8>> {
        on_behalf(context, |context| self.files.readlink(context, inode))
    }

    fn symlink(&self, context: &Context, target: &CStr, parent: u64, name: &CStr) -> io::Result<Entry> {
        check_name(name)?;
        self.check_room()?;
        self.made(making(context, |context| self.files.symlink(context, target, parent, name)))
    }

    fn mknod(
        &self,
        context: &Context,
        parent: u64,
        name: &CStr,
        mode: u32,
        rdev: u32,
        umask: u32,
    ) -> io::Result<Entry> {
        check_name(name)?;
        self.check_room()?;
        self.made(making(context, |context| self.files.mknod(context, parent, name, mode, rdev, umask)))
    }

    fn mkdir(&self, context: &Context, parent: u64, name: &CStr, mode: u32, umask: u32) -> io::Result<Entry> {
        check_name(name)?;
        self.check_room()?;
        self.made(making(context, |context| self.files.mkdir(context, parent, name, mode, umask)))
    }

    fn unlink(&self, context: &Context, parent: u64, name: &CStr) -> io::Result<()> {
        check_name(name)?;
        on_behalf(context, |context| self.files.unlink(context, parent, name))
    }

    fn rmdir(&self, context: &Context, parent: u64, name: &CStr) -> io::Result<()> {
        check_name(name)?;
        let remove = || on_behalf(context, |context| self.files.rmdir(context, parent, name));
        let mut removed = remove();
        for pause in PAUSES {
            let not_empty = removed.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::ENOTEMPTY));
            if !not_empty || !self.holds_only_removed(context, parent, name).unwrap_or(false) {
                break;
            }
            thread::sleep(pause);
            removed = remove();
        }
        removed
    }

    fn rename(
        &self,
        context: &Context,
        parent: u64,
        name: &CStr,
        new_parent: u64,
        new_name: &CStr,
        flags: u32,
    ) -> io::Result<()> {
        check_name(name)?;
        check_name(new_name)?;
        on_behalf(context, |context| self.files.rename(context, parent, name, new_parent, new_name, flags))
    }

    fn link(&self, context: &Context, inode: u64, new_parent: u64, new_name: &CStr) -> io::Result<Entry> {
        check_name(new_name)?;
        self.made(making(context, |context| self.files.link(context, inode, new_parent, new_name)))
    }

    fn open(
        &self,
        context: &Context,
        inode: u64,
        flags: u32,
        fuse_flags: u32,
    ) -> io::Result<(Option<u64>, OpenOptions, Option<u32>)> {
        let flags = host_flags(flags);
        let opened = on_behalf(context, |context| self.files.open(context, inode, flags, fuse_flags));
        let (handle, options, passthrough) = opened.map_err(of_server)?;
        let options = if reads_only(flags) { options | no_flush() } else { options };
        Ok((handle, options, passthrough))
    }

    fn create(
        &self,
        context: &Context,
        parent: u64,
        name: &CStr,
        mut arguments: CreateIn,
    ) -> io::Result<(Entry, Option<u64>, OpenOptions, Option<u32>)> {
        check_name(name)?;
        self.check_room()?;
        arguments.flags = host_flags(arguments.flags);
        let created = making(context, |context| self.files.create(context, parent, name, arguments));
        let (entry, handle, options, passthrough) = created.map_err(of_server)?;
        Ok((self.made(Ok(entry))?, handle, options, passthrough))
    }

    fn read(
        &self,
        context: &Context,
        inode: u64,
        handle: u64,
        target: &mut dyn ZeroCopyWriter,
        size: u32,
        offset: u64,
        lock_owner: Option<u64>,
        flags: u32,
    ) -> io::Result<usize> {
        self.files.read(context, inode, handle, target, size, offset, lock_owner, host_flags(flags))
    }

    fn write(
        &self,
        context: &Context,
        inode: u64,
        handle: u64,
        source: &mut dyn ZeroCopyReader,
        size: u32,
        offset: u64,
        lock_owner: Option<u64>,
        delayed: bool,
        flags: u32,
        fuse_flags: u32,
    ) -> io::Result<usize> {
        let flags = host_flags(flags);
        self.files.write(context, inode, handle, source, size, offset, lock_owner, delayed, flags, fuse_flags)
    }

    fn flush(&self, context: &Context, inode: u64, handle: u64, lock_owner: u64) -> io::Result<()> {
        let flushed = self.files.flush(context, inode, handle, lock_owner);
        match flushed.as_ref().map_err(io::Error::raw_os_error) {
            // It takes a descriptor, and closing a file must not fail for want of one.
            Err(Some(libc::EMFILE)) => self.files.fsync(context, inode, false, handle),
            _ => flushed,
        }
    }

    fn fsync(&self, context: &Context, inode: u64, data_only: bool, handle: u64) -> io::Result<()> {
        self.files.fsync(context, inode, data_only, handle)
    }

    fn fallocate(
        &self,
        context: &Context,
        inode: u64,
        handle: u64,
        mode: u32,
        offset: u64,
        length: u64,
    ) -> io::Result<()> {
        on_behalf(context, |context| self.files.fallocate(context, inode, handle, mode, offset, length))
    }

    fn release(
        &self,
        context: &Context,
        inode: u64,
        flags: u32,
        handle: u64,
        flush: bool,
        flock_release: bool,
        lock_owner: Option<u64>,
    ) -> io::Result<()> {
        self.files.release(context, inode, flags, handle, flush, flock_release, lock_owner)
    }

    fn statfs(&self, context: &Context, inode: u64) -> io::Result<statvfs64> {
        on_behalf(context, |context| self.files.statfs(context, inode))
    }

    fn setxattr(&self, context: &Context, inode: u64, name: &CStr, value: &[u8], flags: u32) -> io::Result<()> {
        on_behalf(context, |context| self.files.setxattr(context, inode, name, value, flags))
    }

    fn getxattr(&self, context: &Context, inode: u64, name: &CStr, size: u32) -> io::Result<GetxattrReply> {
        on_behalf(context, |context| self.files.getxattr(context, inode, name, size))
    }

    fn listxattr(&self, context: &Context, inode: u64, size: u32) -> io::Result<ListxattrReply> {
        on_behalf(context, |context| self.files.listxattr(context, inode, size))
    }

    fn removexattr(&self, context: &Context, inode: u64, name: &CStr) -> io::Result<()> {
        on_behalf(context, |context| self.files.removexattr(context, inode, name))
    }

    fn opendir(&self, context: &Context, inode: u64, flags: u32) -> io::Result<(Option<u64>, OpenOptions)> {
        on_behalf(context, |context| self.files.opendir(context, inode, host_flags(flags))).map_err(of_server)
    }

    /// Entries with the inode numbers that `getattr` tells, which the library's own `readdir` does not give.
    fn readdir(
        &self,
        context: &Context,
        inode: u64,
        handle: u64,
        size: u32,
        offset: u64,
        add: &mut dyn FnMut(DirEntry) -> io::Result<usize>,
    ) -> io::Result<()> {
        let mut add = |mut name: DirEntry<'_>, entry: Entry| {
            name.ino = self.numbers.unique(entry.attr.st_dev, entry.attr.st_ino);
            let added = add(name);
            // An entry that was not added is forgotten by the library.
            if !matches!(added, Ok(0)) {
                self.files.forget(context, entry.inode, 1);
            }
            added
        };
        list(context, |context, found| {
            self.files.readdirplus(context, inode, handle, size, offset, &mut |name, entry| {
                *found = true;
                add(name, entry)
            })
        })
    }

    fn readdirplus(
        &self,
        context: &Context,
        inode: u64,
        handle: u64,
        size: u32,
        offset: u64,
        add: &mut dyn FnMut(DirEntry, Entry) -> io::Result<usize>,
    ) -> io::Result<()> {
        let mut add = |mut name: DirEntry<'_>, entry: Entry| {
            let mut entry = self.found(context, inode, name.name, entry);
            let number = entry.inode;
            name.ino = entry.attr.st_ino;
            let told = self.remembered.has_plenty() && self.remembered.add_if_room(number);
            if !told {
                // A name, of which the guest learns nothing else.
                entry.inode = 0;
            }
            let added = add(name, entry);
            match added {
                // It did not fit. The library forgets it by itself.
                Ok(0) if told => self.remembered.remove(number, 1),
                Ok(1..) if !told => self.files.forget(context, number, 1),
                _ => {}
            }
            added
        };
        list(context, |context, found| {
            self.files.readdirplus(context, inode, handle, size, offset, &mut |name, entry| {
                *found = true;
                add(name, entry)
            })
        })
    }

    fn fsyncdir(&self, context: &Context, inode: u64, data_only: bool, handle: u64) -> io::Result<()> {
        self.files.fsyncdir(context, inode, data_only, handle)
    }

    fn releasedir(&self, context: &Context, inode: u64, flags: u32, handle: u64) -> io::Result<()> {
        self.files.releasedir(context, inode, flags, handle)
    }

    fn access(&self, context: &Context, inode: u64, mask: u32) -> io::Result<()> {
        self.files.access(context, inode, mask)
    }

    fn lseek(&self, context: &Context, inode: u64, handle: u64, offset: u64, whence: u32) -> io::Result<u64> {
        on_behalf(context, |context| self.files.lseek(context, inode, handle, offset, whence))
    }
}
