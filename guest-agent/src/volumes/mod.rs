//! Volumes that the guest has itself, below [`agent_protocol::VOLUMES`].
//!
//! ```text
//! content    files that the shim sends: configuration of the pod, in a memory file system of its own, bounded in bytes and
//!            files, without devices and set-user-id programs. Nothing of it is ever logged: it holds secrets
//! filesystem disks with a file system that is there before and after the pod
//! writable   memory and disks for containers to write to, and parts of them
//! ```

mod content;
pub mod filesystem;
mod writable;

use crate::error::Error;
use crate::id::VolumeId;
use crate::rootfs::unmount_disk;
use agent_protocol::VOLUME_FILE;
use agent_protocol::agent::{FileEntry, PushedVolume};
use agent_protocol::files::MAX_ENTRIES;
use content::Content;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Far above use: a pod has a few dozen.
const MAX_VOLUMES: usize = 1024;

/// Most bytes of one volume.
const MAX_BYTES: u64 = 1 << 30;

/// What the kernel counts for a file, however short.
const PAGE: u64 = 4096;

/// Every volume of the pod.
#[derive(Debug)]
pub struct Volumes {
    directory: PathBuf,
    all: Mutex<HashMap<VolumeId, Place>>,
}

/// Locked while its volume is mounted or let go: a disk that hangs is waited for by whoever wants this volume, and by nobody else.
type Place = Arc<Mutex<Option<Arc<Volume>>>>;

/// One volume. Calls about it wait for each other.
#[derive(Debug)]
struct Volume {
    path: PathBuf,
    kind: Kind,
    /// `None`: its files are the containers'.
    content: Option<Mutex<Content>>,
}

impl Volume {
    fn content(&self, id: &VolumeId) -> Result<&Mutex<Content>, Error> {
        self.content.as_ref().ok_or_else(|| Error::invalid("volume", id.as_str(), "its files are not the shim's"))
    }
}

impl Volumes {
    pub fn new(directory: PathBuf) -> Self {
        Self { directory, all: Mutex::default() }
    }

    /// The volume is there when this returns. One that was there before keeps its size.
    pub fn prepare(&self, id: &VolumeId, volume: &PushedVolume) -> Result<(), Error> {
        self.prepare_with(id, volume, mount_memory)
    }

    fn prepare_with(
        &self,
        id: &VolumeId,
        volume: &PushedVolume,
        mount: impl FnOnce(&Path, &str) -> nix::Result<()>,
    ) -> Result<(), Error> {
        let options = tmpfs_options(volume)?;
        self.add(id, Kind::Directory, |path| {
            mount(path, &options).map_err(Error::system("mount", path.display()))?;
            Content::open(path).map(Some).map_err(Error::system("open", path.display()))
        })
    }

    /// Makes a place, and has `fill` mount something there. A volume that is there stays as it is.
    fn add(
        &self,
        id: &VolumeId,
        kind: Kind,
        fill: impl FnOnce(&Path) -> Result<Option<Content>, Error>,
    ) -> Result<(), Error> {
        let place = self.place(id)?;
        let mut volume = lock(&place);
        if volume.is_some() {
            return Ok(());
        }
        let path = self.directory.join(id.as_str());
        let made = kind.make(&path).map_err(Error::system("create", path.display())).and_then(|()| fill(&path));
        match made {
            Ok(content) => {
                *volume = Some(Arc::new(Volume { path, kind, content: content.map(Mutex::new) }));
                Ok(())
            }
            Err(error) => {
                remove(&path).ok();
                drop(volume);
                self.forget(id, &place);
                Err(error)
            }
        }
    }

    /// Where a volume is, or is going to be.
    fn place(&self, id: &VolumeId) -> Result<Place, Error> {
        let mut all = lock(&self.all);
        if !all.contains_key(id) && all.len() >= MAX_VOLUMES {
            return Err(Error::Limit { what: "volumes", limit: MAX_VOLUMES });
        }
        Ok(Arc::clone(all.entry(id.clone()).or_default()))
    }

    /// Gives up the place of a volume that is not there, unless somebody else is about to make it.
    fn forget(&self, id: &VolumeId, place: &Place) {
        let mut all = lock(&self.all);
        // Others get theirs from the table, which is locked.
        if Arc::strong_count(place) == 2 && lock(place).is_none() {
            all.remove(id);
        }
    }

    /// Puts entries of a generation into the volume; with `last`, the generation becomes what containers see.
    pub fn put(&self, id: &VolumeId, generation: u64, entries: &[FileEntry], last: bool) -> Result<(), Error> {
        let volume = self.get(id)?;
        let mut content = lock(volume.content(id)?);
        content.begin(generation)?;
        for entry in entries {
            content.put(entry)?;
        }
        if last { content.swap_in() } else { Ok(()) }
    }

    /// What the volume's one file holds, the last `limit` bytes of it, and whether there is more.
    pub fn take_file(&self, id: &VolumeId, limit: usize) -> Result<(Vec<u8>, bool), Error> {
        let volume = self.get(id)?;
        volume.content(id)?;
        let path = volume.path.join(VOLUME_FILE);
        let read = || -> std::io::Result<(Vec<u8>, bool)> {
            let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
            let mut file = File::options().read(true).custom_flags(flags).open(&path)?;
            let before = file.metadata()?.len().saturating_sub(limit as u64);
            file.seek(SeekFrom::Start(before))?;
            let mut content = Vec::new();
            file.take(limit as u64).read_to_end(&mut content)?;
            Ok((content, before > 0))
        };
        read().map_err(Error::system("read", path.display()))
    }

    /// Forgets a volume. Containers that still mount it keep its files. What was written to a file system has reached
    /// its disk when this returns.
    pub fn release(&self, id: &VolumeId) -> Result<(), Error> {
        let place = lock(&self.all).get(id).cloned();
        let Some(place) = place else { return Ok(()) };
        let result = lock(&place).take().map_or(Ok(()), let_go);
        self.forget(id, &place);
        result
    }

    /// Writes back what containers have written to the file systems of the node's drivers. Each on a thread of its own: one whose disk hangs
    /// must not cost the others their data.
    pub fn write_back(&self) {
        let disks = self.present().into_iter().filter(|(_, volume)| volume.kind == Kind::Disk);
        std::thread::scope(|scope| {
            for (id, volume) in disks {
                scope.spawn(move || {
                    if let Err(error) = write_back(&volume.path) {
                        tracing::warn!(volume = id.as_str(), %error, "a volume is not written back");
                    }
                });
            }
        });
    }

    /// Those that nobody waits for.
    fn present(&self) -> Vec<(VolumeId, Arc<Volume>)> {
        let all = lock(&self.all);
        let present = all.iter().filter_map(|(id, place)| Some((id.clone(), place.try_lock().ok()?.clone()?)));
        present.collect()
    }

    /// For the guest's shutdown: file systems of the node's drivers are clean afterwards.
    pub fn shut_down(&self) {
        for (id, volume) in self.present() {
            // Parts of them too: a file system ends with the last place that it is mounted at.
            if let Err(error) = umount2(&volume.path, MntFlags::empty())
                && volume.kind == Kind::Disk
            {
                tracing::warn!(volume = id.as_str(), %error, "a volume stays mounted");
            }
        }
    }

    fn get(&self, id: &VolumeId) -> Result<Arc<Volume>, Error> {
        let place = lock(&self.all).get(id).cloned();
        place.and_then(|place| lock(&place).clone()).ok_or_else(|| Error::NoVolume(id.clone()))
    }
}

fn write_back(path: &Path) -> std::io::Result<()> {
    File::open(path).and_then(|place| Ok(nix::unistd::syncfs(&place)?))
}

/// Unmounts a volume and removes its place.
fn let_go(volume: Arc<Volume>) -> Result<(), Error> {
    let (path, kind) = (volume.path.clone(), volume.kind);
    // Its descriptor goes first: what is in use can't be unmounted.
    drop(volume);
    if kind == Kind::Disk {
        // Unmounting does it only where nobody else has it mounted: a container that ends may take its time.
        let written = write_back(&path);
        let unmounted = unmount_disk(&path);
        written.map_err(Error::system("write back", path.display())).and(unmounted)?;
    }
    remove(&path).map_err(Error::system("remove", path.display()))
}

/// Two contents have room: the old one is there until the new one is swapped in.
fn tmpfs_options(volume: &PushedVolume) -> Result<String, Error> {
    let PushedVolume { limit, entries, mode, uid, gid, .. } = volume;
    if *limit > MAX_BYTES || *entries as usize > MAX_ENTRIES {
        let asked = format!("{limit} bytes, {entries} entries");
        return Err(Error::invalid("volume size", &asked, format!("at most {MAX_BYTES} bytes, {MAX_ENTRIES} entries")));
    }
    let files = u64::from(*entries);
    // The top directory, `..data_tmp`, and both contents.
    let (bytes, files) = (2 * (limit + files * PAGE), 2 * files + 4);
    let mode = mode & 0o7777;
    Ok(format!("size={bytes},nr_inodes={files},mode={mode:o},uid={uid},gid={gid}"))
}

fn mount_memory(path: &Path, options: &str) -> nix::Result<()> {
    mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some(options))
}

/// What a volume looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Directory,
    File,
    /// The directory that a disk is mounted on.
    Disk,
}

impl Kind {
    fn make(self, path: &Path) -> std::io::Result<()> {
        match self {
            Self::Directory | Self::Disk => std::fs::create_dir_all(path),
            Self::File => {
                path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
                File::create(path).map(drop)
            }
        }
    }
}

fn remove(path: &Path) -> std::io::Result<()> {
    let remove = |path: &Path| match std::fs::remove_dir(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => std::fs::remove_file(path),
        result => result,
    };
    match remove(path) {
        Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => {
            umount2(path, MntFlags::MNT_DETACH)?;
            remove(path)
        }
        result => result,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
