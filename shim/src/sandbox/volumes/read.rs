//! Reading a configuration on the node, whole and of one version.
//!
//! kubelet replaces the link `..data` when a new version is complete, then removes the old one: what was read is of one
//! version if the link leads to the same directory afterwards. Contents are secrets: no type here shows them.

use crate::sandbox::file_id::FileId;
use agent_protocol::VOLUME_FILE;
use agent_protocol::files::{DATA, MAX_ENTRIES, entry_path, link_target};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2, readlinkat};
use sha2::{Digest, Sha256};
use std::ffi::OsStr;
use std::fmt;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use zeroize::Zeroizing;

/// Most bytes of one volume's files.
pub(super) const MAX_VOLUME: u64 = 8 << 20;

/// What reading to the end wants beside the content.
const SPARE: usize = 64;

/// How often a volume may change while it is read.
const ATTEMPTS: usize = 3;
const PAUSE: Duration = Duration::from_millis(100);

/// What a volume holds.
#[derive(Default)]
pub(super) struct Tree {
    pub entries: Vec<Entry>,
    pub bytes: u64,
}

/// One of its files, directories or links, below it.
pub(super) struct Entry {
    pub path: PathBuf,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub what: What,
}

pub(super) enum What {
    /// Wiped when it goes.
    File(Zeroizing<Vec<u8>>),
    Link(PathBuf),
    Directory,
}

impl fmt::Debug for Tree {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (entries, bytes) = (self.entries.len(), self.bytes);
        formatter.debug_struct("Tree").field("entries", &entries).field("bytes", &bytes).finish()
    }
}

impl Tree {
    /// Two trees have the same if they are the same in everything that a container sees.
    pub fn fingerprint(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        let mut field = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        for Entry { path, mode, uid, gid, what } in &self.entries {
            field(path.as_os_str().as_bytes());
            for number in [mode, uid, gid] {
                field(&number.to_le_bytes());
            }
            match what {
                What::File(content) => field(content),
                What::Link(target) => field(target.as_os_str().as_bytes()),
                What::Directory => field(b""),
            }
        }
        hash.finalize().into()
    }
}

/// Why a volume is not read.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error("it is larger than {} MiB, which is the most that is copied into a microVM", MAX_VOLUME >> 20)]
    TooLarge,
    #[error("it has more than {MAX_ENTRIES} files, directories and links")]
    TooMany,
    #[error("{0:?} in it is neither a regular file nor a directory nor a link")]
    Kind(PathBuf),
    #[error("{0:?} in it has a name that is too long")]
    Name(PathBuf),
    #[error("it changes faster than it can be read")]
    Changing,
    /// It is not the one any more that was mounted.
    #[error("it was replaced")]
    Replaced,
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<Errno> for ReadError {
    fn from(errno: Errno) -> Self {
        Self::Io(errno.into())
    }
}

/// Opens a source by its real name, for as long as it is read: kubelet could not unmount it otherwise.
fn open_source(path: &Path, key: FileId, kind: OFlag) -> Result<(File, Metadata), ReadError> {
    let resolve = ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | kind;
    let file = File::from(openat2(AT_FDCWD, path, OpenHow::new().flags(flags).resolve(resolve))?);
    let metadata = file.metadata()?;
    if FileId::of(&metadata) == key { Ok((file, metadata)) } else { Err(ReadError::Replaced) }
}

/// Mode, user and group of a directory.
pub(super) fn owner(path: &Path, key: FileId) -> Result<(u32, u32, u32), ReadError> {
    let metadata = open_source(path, key, OFlag::O_DIRECTORY)?.1;
    Ok((metadata.mode() & 0o7777, metadata.uid(), metadata.gid()))
}

/// A file alone, as the one entry of a volume.
pub(super) fn read_file(path: &Path, key: FileId) -> Result<Tree, ReadError> {
    let (file, metadata) = open_source(path, key, OFlag::empty())?;
    let mut reading = Reading::default();
    reading.file(file, &metadata, VOLUME_FILE.into())?;
    Ok(reading.tree)
}

/// Where the version of a volume is now. `None`: it has not the layout of kubelet's configurations.
pub(super) fn version(path: &Path, key: FileId) -> Result<Option<PathBuf>, ReadError> {
    data_link(&open_source(path, key, OFlag::O_DIRECTORY)?.0)
}

/// A configuration, all of one version. `None`: it has not the layout of kubelet's configurations.
pub(super) fn read_volume(path: &Path, key: FileId) -> Result<Option<Tree>, ReadError> {
    let root = open_source(path, key, OFlag::O_DIRECTORY)?.0;
    for _ in 0..ATTEMPTS {
        let Some(data) = data_link(&root)? else { return Ok(None) };
        let mut reading = Reading::default();
        match reading.directory(&root, Path::new(""), Some(&data)) {
            Ok(()) if data_link(&root)?.as_ref() == Some(&data) => return Ok(Some(reading.tree)),
            // The old version went away under us.
            Ok(()) => {}
            Err(ReadError::Io(error)) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        std::thread::sleep(PAUSE);
    }
    Err(ReadError::Changing)
}

fn data_link(root: &File) -> Result<Option<PathBuf>, ReadError> {
    match readlinkat(root, DATA) {
        Ok(target) => {
            let target = PathBuf::from(target);
            let plain = entry_path(target.as_os_str().as_bytes()).is_some() && target.components().count() == 1;
            Ok(plain.then_some(target))
        }
        Err(Errno::ENOENT | Errno::EINVAL) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

#[derive(Default)]
struct Reading {
    tree: Tree,
}

impl Reading {
    /// Reads what is in `directory`, whose path below the volume is `path`. At the top, only the version `data` counts.
    fn directory(&mut self, directory: &File, path: &Path, data: Option<&Path>) -> Result<(), ReadError> {
        for name in list(directory)? {
            let entry = path.join(&name);
            let bytes = name.as_bytes();
            let is_link_of_swap = data.is_some() && bytes == b"..data_tmp";
            if is_link_of_swap || (data.is_some_and(|data| data != name) && is_version(directory, &name)?) {
                continue;
            }
            if entry_path(entry.as_os_str().as_bytes()).is_none() {
                return Err(ReadError::Name(entry));
            }
            self.entry(directory, &name, entry)?;
        }
        Ok(())
    }

    fn entry(&mut self, directory: &File, name: &OsStr, path: PathBuf) -> Result<(), ReadError> {
        // Looked at before it is opened: opening a device or a FIFO may do something.
        let looked = File::from(open_below(directory, Path::new(name), OFlag::O_PATH | OFlag::O_NOFOLLOW)?);
        let metadata = looked.metadata()?;
        if metadata.is_symlink() {
            let target = PathBuf::from(readlinkat(&looked, "")?);
            if link_target(target.as_os_str().as_bytes()).is_none() {
                return Err(ReadError::Name(path));
            }
            self.add(path, &metadata, What::Link(target))
        } else if metadata.is_dir() {
            self.add(path.clone(), &metadata, What::Directory)?;
            let below = File::from(open_below(directory, Path::new(name), OFlag::O_RDONLY | OFlag::O_DIRECTORY)?);
            self.directory(&below, &path, None)
        } else {
            let file = || open_below(directory, Path::new(name), OFlag::O_RDONLY | OFlag::O_NONBLOCK);
            if !metadata.is_file() {
                return Err(ReadError::Kind(path));
            }
            self.file(File::from(file()?), &metadata, path)
        }
    }

    fn file(&mut self, file: File, metadata: &Metadata, path: PathBuf) -> Result<(), ReadError> {
        if !file.metadata()?.is_file() {
            return Err(ReadError::Kind(path));
        }
        let room = MAX_VOLUME - self.tree.bytes;
        // Enough from the start: a buffer that grows leaves copies behind. The file may grow as well, up to kubelet's next version.
        let expected = usize::try_from(metadata.len().min(room)).unwrap_or(0) + SPARE;
        let mut content = Zeroizing::new(Vec::with_capacity(expected));
        file.take(room + 1).read_to_end(&mut content)?;
        let length = content.len() as u64;
        if length > room {
            return Err(ReadError::TooLarge);
        }
        self.tree.bytes += length;
        self.add(path, metadata, What::File(content))
    }

    fn add(&mut self, path: PathBuf, metadata: &Metadata, what: What) -> Result<(), ReadError> {
        if self.tree.entries.len() >= MAX_ENTRIES {
            return Err(ReadError::TooMany);
        }
        let (mode, uid, gid) = (metadata.mode() & 0o7777, metadata.uid(), metadata.gid());
        self.tree.entries.push(Entry { path, mode, uid, gid, what });
        Ok(())
    }
}

/// Sorted, so that the same tree is always read in the same order.
fn list(directory: &File) -> Result<Vec<std::ffi::OsString>, ReadError> {
    let mut names = Vec::new();
    let mut listing = nix::dir::Dir::from_fd(open_below(directory, Path::new("."), OFlag::O_RDONLY)?)?;
    for entry in listing.iter() {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name == "." || name == ".." {
            continue;
        }
        if names.len() > MAX_ENTRIES {
            return Err(ReadError::TooMany);
        }
        names.push(name.to_owned());
    }
    names.sort();
    Ok(names)
}

/// Whether it is a version of the volume: a directory with a name of kubelet's.
fn is_version(directory: &File, name: &OsStr) -> Result<bool, ReadError> {
    if !name.as_bytes().starts_with(b"..") {
        return Ok(false);
    }
    match open_below(directory, Path::new(name), OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_DIRECTORY) {
        Ok(_) => Ok(true),
        Err(Errno::ENOTDIR | Errno::ENOENT | Errno::ELOOP) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

fn open_below(directory: &impl AsFd, path: &Path, flags: OFlag) -> nix::Result<std::os::fd::OwnedFd> {
    let mut resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    if !flags.contains(OFlag::O_PATH) {
        resolve |= ResolveFlag::RESOLVE_NO_SYMLINKS;
    }
    openat2(directory, path, OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(resolve))
}

#[cfg(test)]
mod tests;
