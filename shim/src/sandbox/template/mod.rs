//! A template: a booted, tenant-free machine that pods are made from, with the memory that they start with.
//!
//! ```text
//! /var/lib/bulkhead/templates/current.json     which one is valid, and for which files; written last
//! /var/lib/bulkhead/templates/<number>/memory  the guest's memory, mapped privately by every VMM
//! /var/lib/bulkhead/templates/<number>/state   everything else
//! ```
//!
//! A template fits one kernel, one guest image, one VMM and one kernel of the node. A pod's start compares what the file system
//! says of these files, which costs nothing; the VMM compares the processor and the state's checksum. Whatever does not fit,
//! and whatever goes wrong before the restored agent answers: the pod boots the slow way, with one warning.

mod build;
mod remake;

pub(super) use build::build;
pub(super) use remake::remake;

use super::SandboxError;
use super::boot::Resources;
use super::host::Host;
use super::size::Size;
use bulkhead_config::Config;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

const RECORD: &str = "current.json";
const MEMORY: &str = "memory";
const STATE: &str = "state";

/// How many processors its guest knows of. It runs on the first until a pod wants more. Each one that is known costs memory and
/// a little time at every change of a cgroup, whether it runs or not.
const PROCESSORS: u8 = 4;

const MAX_RECORD: u64 = 16 * 1024;

/// What the file system says of a file; another content has another stamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    device: u64,
    inode: u64,
    length: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(file: &File) -> io::Result<Self> {
        let status = file.metadata()?;
        Ok(Self {
            device: status.dev(),
            inode: status.ino(),
            length: status.len(),
            modified: (status.mtime(), status.mtime_nsec()),
            changed: (status.ctime(), status.ctime_nsec()),
        })
    }
}

/// What a template was made with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Made {
    version: String,
    memory_mib: u32,
    processors: u8,
    kernel: Stamp,
    root_image: Stamp,
    vmm: Stamp,
    /// `uname -r` and `-v` of the node: another KVM may have other registers.
    node: String,
}

/// `current.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    number: u32,
    made: Made,
    memory: Stamp,
    /// SHA-256 of the memory file. The state file has its own.
    memory_digest: [u8; 32],
    state: Stamp,
}

/// Files of the installation that a template depends on, open.
#[derive(Clone, Copy, Debug)]
pub(super) struct Inputs<'a> {
    pub kernel: &'a File,
    pub root_image: &'a File,
}

impl Made {
    fn now(host: &Host, inputs: Inputs<'_>, memory_mib: u32) -> io::Result<Self> {
        let uname = nix::sys::utsname::uname()?;
        Ok(Self {
            version: vmm_protocol::VERSION.to_owned(),
            memory_mib,
            processors: PROCESSORS,
            kernel: Stamp::of(inputs.kernel)?,
            root_image: Stamp::of(inputs.root_image)?,
            vmm: Stamp::of(&File::open(host.vmm())?)?,
            node: format!("{} {}", uname.release().to_string_lossy(), uname.version().to_string_lossy()),
        })
    }
}

/// A valid template, open.
#[derive(Debug)]
pub(super) struct Template {
    pub memory: File,
    pub state: File,
    record: Record,
}

/// Why a template that is there is not used; one sentence.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    #[error("cannot read {path}: {error}")]
    Read { path: PathBuf, error: io::Error },
    #[error("{0} is not what was recorded: run `bulkhead template build`")]
    Changed(PathBuf),
    #[error("it was made with another Bulkhead or another kernel of this node: run `bulkhead template build`")]
    Stale,
}

/// The template for a machine of this size. `None`: there is none, or it is not wanted, or not for this size.
pub(super) fn open(host: &Host, inputs: Inputs<'_>, size: Size, config: &Config) -> Result<Option<Template>, Unusable> {
    // What debugging is to show happens before a template is made.
    if !config.templates || config.debug || size.vcpus > PROCESSORS {
        return Ok(None);
    }
    let directory = host.templates();
    let Some(record) = read_record(&directory)? else { return Ok(None) };
    if record.made.memory_mib != size.memory_mib {
        return Ok(None);
    }
    let now = Made::now(host, inputs, size.memory_mib);
    if now.map_err(|error| Unusable::Read { path: host.vmm(), error })? != record.made {
        return Err(Unusable::Stale);
    }
    let place = directory.join(record.number.to_string());
    let file = |name: &str, stamp: Stamp| {
        let path = place.join(name);
        let read = |error| Unusable::Read { path: path.clone(), error };
        let file = File::open(&path).map_err(read)?;
        if Stamp::of(&file).map_err(read)? == stamp { Ok(file) } else { Err(Unusable::Changed(path.clone())) }
    };
    Ok(Some(Template { memory: file(MEMORY, record.memory)?, state: file(STATE, record.state)?, record }))
}

/// Whether there is one.
pub(super) fn exists(host: &Host, config: &Config) -> Result<bool, SandboxError> {
    Ok(matches!(of_default_size(host, config)?, Ok(Some(_))))
}

/// Says for which pods there is one, or what is wrong with it.
pub(super) fn check(host: &Host, config: &Config) -> Result<String, SandboxError> {
    match of_default_size(host, config)?.map_err(SandboxError::Template)? {
        Some(template) => verify(host, &template),
        None => Ok("none, so that pods boot".to_owned()),
    }
}

/// Looks at its memory too, which is too long to be read for each pod.
fn verify(host: &Host, Template { memory, record, .. }: &Template) -> Result<String, SandboxError> {
    let path = host.templates().join(record.number.to_string()).join(MEMORY);
    if digest(memory).map_err(SandboxError::host("read", &path.display()))? != record.memory_digest {
        return Err(SandboxError::Template(Unusable::Changed(path)));
    }
    let Made { memory_mib, processors, .. } = record.made;
    Ok(format!("pods with {memory_mib} MiB of memory or more and up to {processors} vCPUs start from it"))
}

fn of_default_size(host: &Host, config: &Config) -> Result<Result<Option<Template>, Unusable>, SandboxError> {
    let resources = Resources::open(host)?;
    let inputs = Inputs { kernel: &resources.kernel, root_image: &resources.root_image };
    let size = Size::smallest(config);
    let config = Config { debug: false, templates: true, ..config.clone() };
    Ok(open(host, inputs, size, &config))
}

/// Of a file's content.
fn digest(file: &File) -> io::Result<[u8; 32]> {
    let mut hash = Sha256::new();
    let mut piece = vec![0; 1 << 20];
    let mut position = 0;
    loop {
        let length = file.read_at(&mut piece, position)?;
        if length == 0 {
            return Ok(hash.finalize().into());
        }
        hash.update(&piece[..length]);
        position += length as u64;
    }
}

fn read_record(directory: &Path) -> Result<Option<Record>, Unusable> {
    let path = directory.join(RECORD);
    let read = || -> io::Result<Option<Record>> {
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let mut bytes = Vec::new();
        file.take(MAX_RECORD).read_to_end(&mut bytes)?;
        Ok(Some(serde_json::from_slice(&bytes)?))
    };
    read().map_err(|error| Unusable::Read { path: path.clone(), error })
}

#[cfg(test)]
mod tests;
