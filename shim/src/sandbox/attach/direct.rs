//! Direct volumes: file systems on devices of the node, which the guest mounts itself, once for all containers of the pod.
//!
//! Whoever prepares the volume on the node records its device instead of mounting it (docs/direct-volumes.md).

use super::super::agent::WRITE_BACK;
use super::super::policy::{Admitted, Resolved};
use super::super::{AgentError, Inner, SandboxError};
use super::devices::{Hold, LOOKS, PAUSE, open};
use super::{Disk, SOURCES, blocking, until};
use crate::identifier::Identifier;
use agent_protocol::VOLUMES;
use agent_protocol::agent::prepare_volume_request::Kind;
use agent_protocol::agent::{BlockVolume, FilesystemVolume, PartOfVolume, VolumeGroup};
use bulkhead_config::direct_volumes::DirectVolume;
use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// The bit of a directory whose files belong to its group: kubelet's mark of a volume with a group.
const SET_GROUP: u32 = 0o2000;

/// For something to reach a device while a volume on it is unmounted: a device that hangs must not keep its pod.
const STALLED: Duration = Duration::from_secs(30);

/// The volumes that are in the guest, by their directories on the node.
pub(in super::super) type DirectVolumes = HashMap<PathBuf, Mounted>;

#[derive(Debug)]
pub(in super::super) struct Mounted {
    volume: String,
    disk: Disk,
    /// The device's number on the node.
    number: u64,
    /// The containers that mount it, each with those volumes of the guest that are parts of it. Never empty.
    users: HashMap<Identifier, Vec<String>>,
}

/// What of which direct volume a mount's source is.
#[derive(Debug)]
pub(super) struct DirectMount {
    volume: DirectVolume,
    /// For errors: the volume and its record.
    what: String,
    /// Empty: all of it.
    below: PathBuf,
    /// That the volume belongs to.
    group: Option<u32>,
    /// Of the directory that kubelet has made for a part.
    part: Metadata,
}

impl DirectMount {
    /// Looks for a record of a source, or of a directory above it. Takes as long as their file systems do.
    pub fn find(records: &Path, Admitted { source: found, names }: &Admitted) -> Result<Option<Self>, SandboxError> {
        // Most nodes have none.
        if std::fs::read_dir(records).map_or(true, |mut entries| entries.next().is_none()) {
            return Ok(None);
        }
        for name in names {
            for directory in name.ancestors() {
                let Some(volume) = DirectVolume::find(records, directory)? else { continue };
                let record = DirectVolume::file(records, directory);
                let what = format!("direct volume {} (record {})", directory.display(), record.display());
                let look = || -> io::Result<Self> {
                    let root = Resolved::open(directory)?.metadata()?;
                    let group = (root.mode() & SET_GROUP != 0).then(|| root.gid());
                    let below = name.strip_prefix(directory).map_err(io::Error::other)?.to_owned();
                    Ok(Self { volume, what: what.clone(), below, group, part: found.metadata()? })
                };
                return look().map(Some).map_err(SandboxError::host("attach", &what));
            }
        }
        Ok(None)
    }

    fn filesystem(&self, disk: Disk) -> Kind {
        let options = if self.volume.read_only { vec!["ro".to_owned()] } else { Vec::new() };
        let disk = BlockVolume {
            pci_address: disk.address.to_string(),
            filesystem: self.volume.fs_type.to_string(),
            options,
            ..BlockVolume::default()
        };
        // What is read-only keeps the group that it has.
        let group = self.group.filter(|_| !self.volume.read_only);
        let group = group.map(|gid| VolumeGroup { gid, ..VolumeGroup::default() });
        Kind::Filesystem(FilesystemVolume {
            disk: Some(disk).into(),
            group: group.into(),
            ..FilesystemVolume::default()
        })
    }
}

impl Inner {
    /// Returns where the guest has the volume, or the part of it that is meant.
    pub(super) async fn place_direct(
        &self,
        container: &Identifier,
        found: &DirectMount,
    ) -> Result<String, SandboxError> {
        // Held to the end: another container waits for the volume.
        let mut volumes = self.direct_volumes.lock().await;
        let path = &found.volume.volume_path;
        if !volumes.contains_key(path) {
            let mounted = self.mount_direct(found).await?;
            volumes.insert(path.clone(), mounted);
        }
        let Some(mounted) = volumes.get_mut(path) else { return Err(gone(found)) };
        let parts = mounted.users.entry(container.clone()).or_default();
        if found.below.as_os_str().is_empty() {
            return Ok(format!("{VOLUMES}/{}", mounted.volume));
        }
        let part = self.configuration.next_id().await;
        // Before it is made: whoever detaches the container finds it.
        parts.push(part.clone());
        let kind = Kind::Part(PartOfVolume {
            volume: mounted.volume.clone(),
            path: found.below.as_os_str().as_bytes().to_vec(),
            mode: found.part.mode() & 0o7777,
            uid: found.part.uid(),
            gid: found.part.gid(),
            ..PartOfVolume::default()
        });
        self.prepare_direct(&part, kind, found).await?;
        Ok(format!("{VOLUMES}/{part}"))
    }

    async fn mount_direct(&self, found: &DirectMount) -> Result<Mounted, SandboxError> {
        let (device, read_only, what) = (found.volume.device.clone(), found.volume.read_only, found.what.clone());
        let open = move || open_device(&device, read_only).map_err(SandboxError::host("attach", &what));
        let file = until(Instant::now() + SOURCES, format!("opening the device of {}", found.what), blocking(open));
        let file = file.await?;
        let number = file.metadata().map_err(SandboxError::host("inspect the device of", &found.what))?.rdev();
        let disk = self.plug(&found.what, &file, read_only).await?;
        let volume = self.configuration.next_id().await;
        if let Err(error) = self.prepare_direct(&volume, found.filesystem(disk), found).await {
            if let Err(error) = self.detach_disk(disk).await {
                tracing::warn!(%error, "a disk that the guest could not mount stays");
            }
            return Err(error);
        }
        Ok(Mounted { volume, disk, number, users: HashMap::new() })
    }

    async fn prepare_direct(&self, volume: &str, kind: Kind, found: &DirectMount) -> Result<(), SandboxError> {
        let prepared = self.agent.mount_volume(volume, kind).await;
        prepared.map_err(|error| SandboxError::host("mount", &found.what)(io::Error::other(error)))
    }

    /// Returns when all that was written to the volume has reached its device, when nothing more gets there, or at `end`.
    async fn unmount(&self, mounted: &Mounted, end: Instant) -> Result<(), AgentError> {
        let mut unmounting = pin!(self.agent.unmount_volume(mounted.volume.clone()));
        // The VMM writes to the node's page cache, so that either goes on while the other rests.
        let progress = || (self.vmm.process().written(), sectors_written(mounted.number));
        let mut before = progress();
        loop {
            let pause = end.min(Instant::now() + STALLED);
            if let Ok(result) = timeout_at(pause, &mut unmounting).await {
                return result;
            }
            let now = progress();
            if now == before || pause == end {
                let limit = if now == before { STALLED } else { WRITE_BACK };
                return Err(AgentError::Deadline { call: "release_volume", limit });
            }
            before = now;
        }
    }

    /// Lets go of what nobody but `container` used, once it has reached the device. Goes on after an error; tells the first.
    /// All of it has [`WRITE_BACK`].
    pub(in super::super) async fn detach_direct(
        &self,
        container: &Identifier,
        alive: bool,
    ) -> Result<(), SandboxError> {
        let mut volumes = self.direct_volumes.lock().await;
        let used = volumes.iter_mut().filter_map(|(path, mounted)| {
            let parts = mounted.users.remove(container)?;
            Some((path.clone(), parts))
        });
        let used: Vec<_> = used.collect();
        let end = Instant::now() + WRITE_BACK;
        let mut result = Ok(());
        for (path, parts) in used {
            let unused = volumes.get(&path).is_some_and(|mounted| mounted.users.is_empty());
            let mounted = if unused { volumes.remove(&path) } else { None };
            if !alive {
                continue;
            }
            for part in parts {
                // Nothing is written back for a part.
                let _ = timeout_at(end, self.agent.forget_volume(&part)).await;
            }
            if let Some(mounted) = mounted {
                if let Err(error) = self.unmount(&mounted, end).await {
                    tracing::error!(path = %path.display(), %error, "a direct volume was not unmounted: what was not written back is lost");
                }
                result = result.and(self.detach_disk(mounted.disk).await);
            }
        }
        result
    }
}

/// Of the device, since the node's start (`Documentation/block/stat.rst`). `None` when it is gone.
fn sectors_written(number: u64) -> Option<u64> {
    let (major, minor) = (libc::major(number), libc::minor(number));
    let stat = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat")).ok()?;
    stat.split_whitespace().nth(6)?.parse().ok()
}

fn gone(found: &DirectMount) -> SandboxError {
    SandboxError::host("mount", &found.what)(io::Error::from(io::ErrorKind::NotFound))
}

/// A device that nobody else writes to: it is locked for as long as the VMM, which gets the same open file, has it.
fn open_device(device: &Path, read_only: bool) -> io::Result<File> {
    let refused = |kind, reason: &str| Err(io::Error::new(kind, format!("{} {reason}", device.display())));
    let found = Resolved::open(device)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", device.display())))?;
    let metadata = found.metadata()?;
    if !metadata.file_type().is_block_device() {
        return refused(io::ErrorKind::InvalidInput, "is not a block device");
    }
    let (major, minor) = (libc::major(metadata.rdev()), libc::minor(metadata.rdev()));
    let hold = if read_only { Hold::Together } else { Hold::Alone };
    let mut file = open(major, minor, read_only, hold)?;
    if file.seek(SeekFrom::End(0))? == 0 {
        return refused(io::ErrorKind::InvalidInput, "is empty");
    }
    // Programs of the node take such a lock for a moment when they look what is on a device.
    for _ in 0..LOOKS {
        let locked = if read_only { file.try_lock_shared() } else { file.try_lock() };
        if locked.is_ok() {
            return Ok(file);
        }
        std::thread::sleep(PAUSE);
    }
    refused(io::ErrorKind::ResourceBusy, "is in use by another pod")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_counts_what_reaches_a_device() {
        let devices = std::fs::read_dir("/sys/dev/block").expect("sysfs");
        let device = devices.map(|entry| entry.unwrap().file_name().into_string().unwrap()).next().expect("a device");
        let (major, minor) = device.split_once(':').unwrap();
        let number = libc::makedev(major.parse().unwrap(), minor.parse().unwrap());
        assert!(sectors_written(number).is_some());
        assert_eq!(sectors_written(libc::makedev(4000, 0)), None);
    }

    #[test]
    fn only_block_devices_are_opened() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("image"), [0; 512]).unwrap();
        for path in [root.path().to_owned(), root.path().join("image"), "/dev/null".into()] {
            let error = open_device(&path, true).unwrap_err().to_string();
            assert_eq!(error, format!("{} is not a block device", path.display()));
        }
        let error = open_device(&root.path().join("none"), true).unwrap_err().to_string();
        assert!(error.contains("/none: No such file"), "{error}");
    }
}
