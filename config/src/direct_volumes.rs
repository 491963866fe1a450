//! Records of direct volumes: file systems on a device of the node that pods mount in their own kernel.
//!
//! One file for each volume in [`DIRECTORY`] below the run directory, written by a CSI driver or by `bulkhead volume`.
//! docs/direct-volumes.md has the format for those who write it.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt;
use std::fs::{DirBuilder, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Where the records are, below [`crate::RUN_DIRECTORY`].
pub const DIRECTORY: &str = "direct-volumes";

/// Of the format.
const VERSION: u64 = 1;

/// The longest record that is read, in bytes.
const MAX_LENGTH: u64 = 16 * 1024;

/// The bits of everybody but the owner, who is root.
const OTHERS: u32 = 0o077;

/// What one record says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DirectVolume {
    version: u64,
    /// The directory that pods mount, by its real name: what kubelet publishes the volume at.
    pub volume_path: PathBuf,
    pub device: PathBuf,
    pub fs_type: FileSystem,
    #[serde(default)]
    pub read_only: bool,
}

/// What may be on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileSystem {
    Ext4,
    Xfs,
}

impl fmt::Display for FileSystem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        })
    }
}

/// What is wrong with a record. Each names it, and the volume where that is known.
#[derive(Debug, thiserror::Error)]
#[error("the record {}{} cannot be used: {reason}", record.display(), of(volume.as_deref()))]
pub struct RecordError {
    record: PathBuf,
    volume: Option<PathBuf>,
    reason: String,
}

fn of(volume: Option<&Path>) -> String {
    volume.map_or_else(String::new, |volume| format!(" of the direct volume {}", volume.display()))
}

impl DirectVolume {
    pub fn new(volume_path: PathBuf, device: PathBuf, fs_type: FileSystem, read_only: bool) -> Self {
        Self { version: VERSION, volume_path, device, fs_type, read_only }
    }

    /// The record of a volume, whether or not there is one.
    pub fn file(directory: &Path, volume_path: &Path) -> PathBuf {
        let hash = Sha256::digest(volume_path.as_os_str().as_bytes());
        let name: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        directory.join(format!("{name}.json"))
    }

    /// The record of a volume. `None`: there is none.
    pub fn find(directory: &Path, volume_path: &Path) -> Result<Option<Self>, RecordError> {
        let record = Self::file(directory, volume_path);
        match read(&record) {
            Ok(text) => Self::parse(&record, Some(volume_path), &text).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(RecordError { record, volume: Some(volume_path.into()), reason: error.to_string() }),
        }
    }

    /// Every record, good or not, in the order of their names.
    pub fn all(directory: &Path) -> io::Result<Vec<Result<Self, RecordError>>> {
        let entries = match std::fs::read_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut records = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
        // What starts with a dot is not written yet.
        records.retain(|record| !record.file_name().unwrap_or_default().as_bytes().starts_with(b"."));
        records.sort();
        let unreadable = |record: &Path, error: io::Error| RecordError {
            record: record.into(),
            volume: None,
            reason: error.to_string(),
        };
        Ok(records
            .iter()
            .map(|record| {
                let text = read(record).map_err(|error| unreadable(record, error))?;
                Self::parse(record, None, &text)
            })
            .collect())
    }

    fn parse(record: &Path, expected: Option<&Path>, text: &[u8]) -> Result<Self, RecordError> {
        #[derive(Deserialize)]
        struct Version {
            version: u64,
        }
        let wrong = |volume: Option<&Path>, reason: String| RecordError {
            record: record.into(),
            volume: volume.map(Path::to_owned),
            reason,
        };
        let malformed = |error: serde_json::Error| wrong(expected, format!("it is malformed: {error}"));
        let Version { version } = serde_json::from_slice(text).map_err(malformed)?;
        if version != VERSION {
            return Err(wrong(expected, format!("it is of version {version}, and {VERSION} is known")));
        }
        let volume: Self = serde_json::from_slice(text).map_err(malformed)?;
        let path = expected.unwrap_or(&volume.volume_path);
        if volume.volume_path != path {
            let other = volume.volume_path.display();
            return Err(wrong(expected, format!("it is about {other}, for which it has the wrong name")));
        }
        let name = Self::file(Path::new(""), path);
        if record.file_name() != Some(name.as_os_str()) {
            return Err(wrong(Some(path), format!("its name has to be {}", name.display())));
        }
        if !volume.device.is_absolute() {
            return Err(wrong(Some(path), "its device is not an absolute path".to_owned()));
        }
        Ok(volume)
    }

    /// Records the volume: whole or not at all, for the node's root alone.
    pub fn write(&self, directory: &Path) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let record = Self::file(directory, &self.volume_path);
        let scratch = record.with_file_name(format!(".{}.new", std::process::id()));
        let write = || -> io::Result<()> {
            let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&scratch)?;
            file.set_permissions(Permissions::from_mode(0o600))?;
            file.write_all(&serde_json::to_vec(self)?)?;
            std::fs::rename(&scratch, &record)
        };
        write().inspect_err(|_| drop(std::fs::remove_file(&scratch)))
    }

    /// Whether there was a record.
    pub fn remove(directory: &Path, volume_path: &Path) -> io::Result<bool> {
        match std::fs::remove_file(Self::file(directory, volume_path)) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Only the node's root may say what a device of the node is for.
fn read(record: &Path) -> io::Result<Vec<u8>> {
    let refused = |reason: &str| Err(io::Error::new(io::ErrorKind::InvalidData, reason));
    // A FIFO would wait for its other end.
    let file = File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(record)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return refused("it is not a regular file");
    }
    if metadata.uid() != 0 || metadata.mode() & OTHERS != 0 {
        return refused("it has to belong to root, with mode 0600");
    }
    let mut text = Vec::new();
    file.take(MAX_LENGTH + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_LENGTH { refused("it is longer than 16 KiB") } else { Ok(text) }
}

#[cfg(test)]
mod tests;
