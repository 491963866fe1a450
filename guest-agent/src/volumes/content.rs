//! What is in a pushed volume, changed as kubelet changes a configuration on the node: the new content is written beside
//! the old one, a link is replaced in one step, then the old content goes. A program that watches the volume sees
//! the same events as on a node.
//!
//! ```text
//! ..2026_11_22/greeting          written while `..data` leads elsewhere
//! ..data -> ..2026_11_22         replaced by a rename
//! greeting -> ..data/greeting    links for users: made and removed after it
//! ```
//! A file at the top is written in place, since it is mounted by itself: its mount is the file that it was.

use crate::error::Error;
use agent_protocol::agent::{FileEntry, file_entry::What};
use agent_protocol::files::{DATA, MAX_ENTRIES, entry_path, link_target};
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2, readlinkat, renameat};
use nix::sys::stat::{Mode, fchmod, mkdirat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, ftruncate, symlinkat, unlinkat};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// A link under this name takes the place of another one by a rename.
const NEW_LINK: &str = "..data_tmp";

#[derive(Debug)]
pub(super) struct Content {
    path: PathBuf,
    root: OwnedFd,
    /// The newest generation that was seen.
    generation: u64,
    draft: Draft,
}

/// A generation that is not complete.
#[derive(Debug, Default)]
struct Draft {
    entries: usize,
    /// Everything at the top that is not a link.
    names: BTreeSet<OsString>,
    /// Links at the top, and where they lead. They are made at the end.
    links: BTreeMap<OsString, PathBuf>,
    /// The file that was written to last: content that follows is appended.
    open: Option<(PathBuf, File)>,
}

impl Content {
    pub fn open(path: &Path) -> nix::Result<Self> {
        let root = open(path, OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW, Mode::empty())?;
        Ok(Self { path: path.to_owned(), root, generation: 0, draft: Draft::default() })
    }

    /// What follows is of this generation. An incomplete older one is given up; its files go with the next complete one.
    pub fn begin(&mut self, generation: u64) -> Result<(), Error> {
        if generation < self.generation {
            let reason = format!("{} has begun", self.generation);
            return Err(Error::invalid("generation", &generation.to_string(), reason));
        }
        if generation > self.generation {
            self.draft = Draft::default();
        }
        self.generation = generation;
        Ok(())
    }

    pub fn put(&mut self, entry: &FileEntry) -> Result<(), Error> {
        let shown = String::from_utf8_lossy(&entry.path);
        let invalid = |reason: &str| Error::invalid("path", &shown, reason);
        let path = entry_path(&entry.path).ok_or_else(|| invalid("it must be relative, short and without `..`"))?;
        let (parent, name) = (path.parent().unwrap_or(Path::new("")), path.file_name().unwrap_or_default());
        if name == NEW_LINK {
            return Err(invalid("the name is taken"));
        }
        if let Some((open, file)) = &mut self.draft.open
            && open == path
            && let Some(What::Content(content)) = &entry.what
        {
            return file.write_all(content).map_err(Error::system("write", path.display()));
        }
        self.draft.finish_file()?;
        self.draft.entries += 1;
        if self.draft.entries > MAX_ENTRIES {
            return Err(Error::Limit { what: "entries of a volume", limit: MAX_ENTRIES });
        }
        let made = match &entry.what {
            Some(What::Directory(_)) => self.make_directory(parent, name, entry),
            Some(What::Content(content)) => self.begin_file(path, entry, content),
            Some(What::Link(target)) => {
                let target = link_target(target).ok_or_else(|| invalid("it leads nowhere"))?;
                if parent.as_os_str().is_empty() {
                    self.draft.links.insert(name.to_owned(), target.to_owned());
                    return Ok(());
                }
                self.make_link(parent, name, target)
            }
            // Generated enums may grow.
            _ => return Err(invalid("it is neither a file, a link nor a directory")),
        };
        made.map_err(Error::system("write", path.display()))?;
        if parent.as_os_str().is_empty() {
            self.draft.names.insert(name.to_owned());
        }
        Ok(())
    }

    fn make_directory(&self, parent: &Path, name: &OsStr, entry: &FileEntry) -> std::io::Result<()> {
        let parent = self.directory(parent)?;
        match mkdirat(&parent, name, Mode::S_IRWXU) {
            // Of an attempt before, or a place for a mount, which every content has.
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
        own(&open_at(&parent, Path::new(name), OFlag::O_DIRECTORY)?, entry)
    }

    fn begin_file(&mut self, path: &Path, entry: &FileEntry, content: &[u8]) -> std::io::Result<()> {
        let file = open_at(&self.root, path, OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_NONBLOCK)?;
        own(&file, entry)?;
        let mut file = File::from(file);
        file.write_all(content)?;
        self.draft.open = Some((path.to_owned(), file));
        Ok(())
    }

    fn make_link(&self, parent: &Path, name: &OsStr, target: &Path) -> std::io::Result<()> {
        match symlinkat(target, &self.directory(parent)?, name) {
            Ok(()) | Err(Errno::EEXIST) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Has the volume's users see the generation.
    pub fn swap_in(&mut self) -> Result<(), Error> {
        self.draft.finish_file()?;
        let draft = std::mem::take(&mut self.draft);
        let shown = self.path.display().to_string();
        let swap = || -> std::io::Result<()> {
            if let Some(target) = draft.links.get(OsStr::new(DATA)) {
                self.link(DATA.as_ref(), target)?;
            }
            for (name, target) in &draft.links {
                self.link(Path::new(name), target)?;
            }
            self.remove_others(&draft)
        };
        swap().map_err(Error::system("swap in the content of", shown))
    }

    fn link(&self, name: &Path, target: &Path) -> nix::Result<()> {
        match readlinkat(&self.root, name) {
            Ok(old) if old == target.as_os_str() => return Ok(()),
            Err(Errno::ENOENT) if name != Path::new(DATA) => return symlinkat(target, &self.root, name),
            // A link that leads elsewhere, or the first `..data`; what is no link is in the way and the rename says so.
            _ => {}
        }
        match unlinkat(&self.root, NEW_LINK, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno) => return Err(errno),
        }
        symlinkat(target, &self.root, NEW_LINK)?;
        renameat(&self.root, NEW_LINK, &self.root, name)
    }

    /// Links first: a program that follows one finds what it leads to, or no link.
    fn remove_others(&self, draft: &Draft) -> std::io::Result<()> {
        let mut others = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            let entry = entry?;
            let name = entry.file_name();
            if !draft.names.contains(&name) && !draft.links.contains_key(&name) {
                others.push((entry.file_type()?.is_dir(), entry.path()));
            }
        }
        others.sort();
        for (is_directory, path) in others {
            if is_directory { std::fs::remove_dir_all(path)? } else { std::fs::remove_file(path)? }
        }
        Ok(())
    }

    fn directory(&self, path: &Path) -> nix::Result<OwnedFd> {
        let here = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        open_at(&self.root, here, OFlag::O_DIRECTORY)
    }
}

impl Draft {
    /// A file that was longer before ends where the new content does.
    fn finish_file(&mut self) -> Result<(), Error> {
        let Some((path, mut file)) = self.open.take() else { return Ok(()) };
        let cut = file.stream_position().and_then(|end| Ok(ftruncate(&file, end.try_into().unwrap_or(i64::MAX))?));
        cut.map_err(Error::system("write", path.display()))
    }
}

/// Follows no link: a container that may write to the volume could have made one.
fn open_at(directory: &OwnedFd, path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
    let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_XDEV;
    let mode = if flags.contains(OFlag::O_CREAT) { Mode::S_IRUSR | Mode::S_IWUSR } else { Mode::empty() };
    openat2(directory, path, OpenHow::new().flags(flags | OFlag::O_CLOEXEC).mode(mode).resolve(resolve))
}

/// The mode comes last: a new owner takes bits of it away.
fn own(file: &OwnedFd, entry: &FileEntry) -> std::io::Result<()> {
    fchown(file, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))?;
    Ok(fchmod(file, Mode::from_bits_truncate(entry.mode & 0o7777))?)
}
