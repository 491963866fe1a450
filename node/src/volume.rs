//! `bulkhead volume`: records which device of the node a pod's volume is on, so that the pod's own kernel mounts it.
//!
//! A CSI driver may write the record itself (docs/direct-volumes.md).

use anyhow::{Context, Result, bail};
use bulkhead_config::RUN_DIRECTORY;
use bulkhead_config::direct_volumes::{DIRECTORY, DirectVolume, FileSystem};
use clap::{Subcommand, ValueEnum};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

#[derive(Debug, Subcommand)]
pub enum Volume {
    /// Have pods that mount a directory of this node mount the file system of a device instead.
    Add {
        /// The directory: where kubelet publishes the volume.
        #[arg(long)]
        path: PathBuf,
        /// A block device that is not mounted.
        #[arg(long)]
        device: PathBuf,
        /// What is on it.
        #[arg(long)]
        fs_type: Kind,
        #[arg(long)]
        read_only: bool,
    },
    /// Forget it. Pods that run keep what they have mounted.
    Remove {
        #[arg(long)]
        path: PathBuf,
    },
    /// One line for each record.
    List,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Kind {
    Ext4,
    Xfs,
}

impl From<Kind> for FileSystem {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Ext4 => Self::Ext4,
            Kind::Xfs => Self::Xfs,
        }
    }
}

/// Where this node's records are.
pub fn records() -> PathBuf {
    Path::new(RUN_DIRECTORY).join(DIRECTORY)
}

/// True if nothing is wrong with the records.
pub fn run(command: Volume, records: &Path) -> Result<bool> {
    match command {
        Volume::Add { path, device, fs_type, read_only } => {
            add(records, &path, &device, fs_type.into(), read_only).map(|()| true)
        }
        Volume::Remove { path } => remove(records, &path).map(|()| true),
        Volume::List => list(records),
    }
}

fn add(records: &Path, path: &Path, device: &Path, fs_type: FileSystem, read_only: bool) -> Result<()> {
    let place = fs::canonicalize(path).with_context(|| format!("cannot find {}", path.display()))?;
    if !place.is_dir() {
        bail!("{} is not a directory", place.display());
    }
    let found = fs::metadata(device).with_context(|| format!("cannot find {}", device.display()))?;
    if !found.file_type().is_block_device() || !device.is_absolute() {
        bail!("{} is not the absolute path of a block device", device.display());
    }
    let volume = DirectVolume::new(place, device.to_owned(), fs_type, read_only);
    match DirectVolume::find(records, &volume.volume_path)? {
        Some(present) if present == volume => return Ok(()),
        Some(present) => {
            let (path, device) = (present.volume_path.display(), present.device.display());
            bail!("{path} is recorded for {device} already: remove that first");
        }
        None => {}
    }
    volume.write(records).with_context(|| format!("cannot write to {}", records.display()))
}

fn remove(records: &Path, path: &Path) -> Result<()> {
    // The driver may have removed the directory first.
    let place = match fs::canonicalize(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => path.to_owned(),
        place => place.with_context(|| format!("cannot find {}", path.display()))?,
    };
    let removed = DirectVolume::remove(records, &place);
    if !removed.with_context(|| format!("cannot remove the record of {}", place.display()))? {
        println!("{} is not recorded; nothing to do.", place.display());
    }
    Ok(())
}

fn list(records: &Path) -> Result<bool> {
    let all = DirectVolume::all(records).with_context(|| format!("cannot read {}", records.display()))?;
    for record in &all {
        match record {
            Ok(volume) => println!("{}", line(volume)),
            Err(error) => eprintln!("bulkhead: {error}"),
        }
    }
    Ok(all.iter().all(Result::is_ok))
}

fn line(volume: &DirectVolume) -> String {
    let access = if volume.read_only { "ro" } else { "rw" };
    let gone = if volume.volume_path.is_dir() { "" } else { " (the directory is gone)" };
    let DirectVolume { volume_path, device, fs_type, .. } = volume;
    format!("{}\t{}\t{fs_type}\t{access}{gone}", volume_path.display(), device.display())
}

/// For `bulkhead check`. Nothing here keeps a node from running pods: a bad record is told by the pod that needs it.
pub fn summary(records: &Path) -> Result<String, String> {
    let all = DirectVolume::all(records).map_err(|error| format!("cannot read {}: {error}", records.display()))?;
    let bad = all.iter().filter_map(|record| record.as_ref().err()).map(ToString::to_string);
    let left = all.iter().flatten().filter(|volume| !volume.volume_path.is_dir());
    let left = left.map(|volume| format!("{} is recorded and gone", volume.volume_path.display()));
    let notes: Vec<String> = [format!("{} recorded", all.len())].into_iter().chain(bad).chain(left).collect();
    Ok(notes.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEVICE: &str = "/dev/loop0";

    #[test]
    fn what_is_no_volume_is_not_recorded() {
        let root = tempfile::tempdir().unwrap();
        let records = root.path().join("records");
        let file = root.path().join("file");
        fs::write(&file, "").unwrap();
        let refusal = |path: &Path, device: &Path| {
            let error = add(&records, path, device, FileSystem::Ext4, false).unwrap_err();
            format!("{error:#}")
        };
        assert!(refusal(&root.path().join("none"), Path::new(DEVICE)).starts_with("cannot find "));
        assert!(refusal(&file, Path::new(DEVICE)).ends_with("is not a directory"));
        let error = refusal(root.path(), &file);
        assert!(error.ends_with("is not the absolute path of a block device"), "{error}");
        assert!(!records.exists());
        remove(&records, &file).unwrap();
        assert!(list(&records).unwrap());
    }

    #[test]
    fn a_leftover_is_told_and_keeps_no_pod_from_running() {
        let root = tempfile::tempdir().unwrap();
        let volume = |path: PathBuf| DirectVolume::new(path, DEVICE.into(), FileSystem::Xfs, true);
        assert_eq!(summary(root.path()), Ok("0 recorded".into()));
        let gone = root.path().join("gone");
        let volume = volume(gone.clone());
        volume.write(root.path()).unwrap();
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED: records belong to root");
            return;
        }
        assert_eq!(summary(root.path()), Ok(format!("1 recorded; {} is recorded and gone", gone.display())));
        assert_eq!(line(&volume), format!("{}\t{DEVICE}\txfs\tro (the directory is gone)", gone.display()));
        fs::write(root.path().join("junk.json"), "{").unwrap();
        assert!(!list(root.path()).unwrap());
        assert!(summary(root.path()).unwrap().contains("junk.json"));
        remove(root.path(), &gone).unwrap();
        assert!(summary(root.path()).unwrap().starts_with("1 recorded; the record "));
    }
}
