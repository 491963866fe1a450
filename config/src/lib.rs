//! The node's `config.toml`: what an operator may set, and one sentence for everything that is wrong with it.
//!
//! The shim reads it for each pod; the operator command reads it to check a node. Keys are read one by one rather
//! than derived, so that every error can name the file and the key.

#![forbid(unsafe_code)]

pub mod direct_volumes;

use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use toml::{Table, Value};
use vmm_protocol::{MAX_MEMORY_MIB, MAX_VCPUS, MIN_MEMORY_MIB};

/// Where the file is unless a runtime class names another.
pub const DEFAULT_PATH: &str = "/etc/bulkhead/config.toml";

/// Runtime state of the node's pods; gone after a reboot. A pod's is in `pods/<namespace>/<id>` below it.
pub const RUN_DIRECTORY: &str = "/run/bulkhead";

/// What survives a reboot: templates.
pub const STATE_DIRECTORY: &str = "/var/lib/bulkhead";

/// User ids that VMMs run under, from [`Config::first_uid`] on.
pub const UID_COUNT: u32 = 65_536;

/// What `disk_mib_per_second` may be, and the annotation that lowers it.
pub const DISK_MIB: RangeInclusive<u32> = 1..=1 << 20;

/// What `disk_operations_per_second` may be. Fewer than ten would end a guest that writes back its memory.
pub const DISK_OPERATIONS: RangeInclusive<u32> = 10..=1 << 30;

/// Below this, ids belong to the node's own users.
const MIN_FIRST_UID: u32 = 100_000;

/// What `scratch_mib` may be, and the annotations that lower it: every file system of a node holds sparse files of 8 TiB.
pub const SCRATCH_MIB: RangeInclusive<u32> = 16..=8 << 20;

/// The longest file that is read, in bytes.
const MAX_LENGTH: u64 = 64 * 1024;

/// Settings of a node or a runtime class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Guest memory, in MiB, of a pod without a memory limit.
    pub memory_mib: u32,
    /// vCPUs of a pod without a CPU limit.
    pub vcpus: u8,
    /// Shows the guest kernel's messages from its first instruction on.
    pub debug: bool,
    /// Writes what a pod's start took into its directory below [`RUN_DIRECTORY`].
    pub trace: bool,
    /// Makes pods of the default size from a machine that has booted already, where the node has one.
    pub templates: bool,
    /// Most that a pod reads from and writes to one of its disks in a second, in MiB; `None` is no limit.
    pub disk_mib_per_second: Option<u32>,
    /// Most requests of a pod to one of its disks in a second.
    pub disk_operations_per_second: Option<u32>,
    /// Guests map image layers that fit their memory, so that pods of one image share its pages. `false`: all layers are disks.
    pub map_layers: bool,
    /// First of the [`UID_COUNT`] user ids that VMM processes run under, one for each pod.
    pub first_uid: u32,
    /// Directories and files of the node that pods may mount, with what is below them.
    pub host_paths: Vec<PathBuf>,
    /// Stream sockets of the node that pods may connect to, and directories of such.
    pub host_sockets: Vec<PathBuf>,
    /// Largest disk that containers write to, in MiB: an emptyDir's, and the writable layer's of a container whose root
    /// filesystem is disks of layers.
    pub scratch_mib: u32,
    /// Where kubelet keeps the volumes of pods.
    pub kubelet_directory: PathBuf,
    /// containerd's `root` and `state`, where its CRI plugin keeps files for pods.
    pub containerd_directories: Vec<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            memory_mib: 512,
            vcpus: 1,
            debug: false,
            trace: false,
            templates: true,
            disk_mib_per_second: None,
            disk_operations_per_second: None,
            map_layers: true,
            first_uid: 2_000_000_000,
            host_paths: Vec::new(),
            host_sockets: Vec::new(),
            scratch_mib: 10_240,
            kubelet_directory: "/var/lib/kubelet".into(),
            containerd_directories: vec!["/var/lib/containerd".into(), "/run/containerd".into()],
        }
    }
}

/// Why there is no configuration. Each is one sentence for the operator.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {path}: {error}")]
    Read { path: PathBuf, error: io::Error },
    #[error("{path} is longer than {MAX_LENGTH} bytes")]
    TooLong { path: PathBuf },
    #[error("{path} line {line} is not TOML: {message}")]
    Syntax { path: PathBuf, line: usize, message: String },
    #[error("{path} has the unknown key {key:?}")]
    UnknownKey { path: PathBuf, key: String },
    #[error("{path}: {key} must be {wanted}, not {found}")]
    Value { path: PathBuf, key: &'static str, wanted: String, found: String },
}

impl Config {
    /// Reads `named`, which must exist, or else the default file, whose absence means the defaults.
    pub fn load(named: Option<&Path>) -> Result<Self, ConfigError> {
        match named {
            Some(path) => Self::read(path),
            None => match Self::read(Path::new(DEFAULT_PATH)) {
                Err(ConfigError::Read { error, .. }) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
                result => result,
            },
        }
    }

    /// Reads one file.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let unreadable = |error| ConfigError::Read { path: path.to_owned(), error };
        if std::fs::metadata(path).map_err(unreadable)?.len() > MAX_LENGTH {
            return Err(ConfigError::TooLong { path: path.to_owned() });
        }
        Self::parse(&std::fs::read_to_string(path).map_err(unreadable)?, path)
    }

    /// Parses a file's text; `path` is for the errors.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let table: Table = text.parse().map_err(|error: toml::de::Error| ConfigError::Syntax {
            path: path.to_owned(),
            line: 1 + error.span().map_or(0, |span| newlines(text, span.start)),
            message: error.message().to_owned(),
        })?;
        let mut config = Self::default();
        for (key, value) in &table {
            let at = Location { path, value };
            match key.as_str() {
                "memory_mib" => config.memory_mib = at.number("memory_mib", MIN_MEMORY_MIB..=MAX_MEMORY_MIB)?,
                "vcpus" => config.vcpus = at.number("vcpus", 1..=MAX_VCPUS)?,
                "disk_mib_per_second" => {
                    config.disk_mib_per_second = Some(at.number("disk_mib_per_second", DISK_MIB)?);
                }
                "disk_operations_per_second" => {
                    config.disk_operations_per_second = Some(at.number("disk_operations_per_second", DISK_OPERATIONS)?);
                }
                "map_layers" => config.map_layers = at.boolean("map_layers")?,
                "debug" => config.debug = at.boolean("debug")?,
                "trace" => config.trace = at.boolean("trace")?,
                "templates" => config.templates = at.boolean("templates")?,
                "first_uid" => config.first_uid = at.number("first_uid", MIN_FIRST_UID..=u32::MAX - UID_COUNT)?,
                "host_paths" => config.host_paths = at.paths("host_paths")?,
                "host_sockets" => config.host_sockets = at.paths("host_sockets")?,
                "kubelet_directory" => config.kubelet_directory = at.path("kubelet_directory")?,
                "containerd_directories" => config.containerd_directories = at.paths("containerd_directories")?,
                "scratch_mib" => config.scratch_mib = at.number("scratch_mib", SCRATCH_MIB)?,
                _ => return Err(ConfigError::UnknownKey { path: path.to_owned(), key: key.clone() }),
            }
        }
        Ok(config)
    }
}

fn newlines(text: &str, end: usize) -> usize {
    text.bytes().take(end).filter(|&byte| byte == b'\n').count()
}

/// A value, and the file that an error about it names.
struct Location<'a> {
    path: &'a Path,
    value: &'a Value,
}

impl Location<'_> {
    fn number<T>(&self, key: &'static str, range: RangeInclusive<T>) -> Result<T, ConfigError>
    where
        T: TryFrom<i64> + PartialOrd + std::fmt::Display,
    {
        self.value
            .as_integer()
            .and_then(|number| T::try_from(number).ok())
            .filter(|number| range.contains(number))
            .ok_or_else(|| self.wanted(key, format!("a number from {} to {}", range.start(), range.end())))
    }

    fn boolean(&self, key: &'static str) -> Result<bool, ConfigError> {
        self.value.as_bool().ok_or_else(|| self.wanted(key, "true or false".to_owned()))
    }

    fn path(&self, key: &'static str) -> Result<PathBuf, ConfigError> {
        plain_path(self.value).ok_or_else(|| self.wanted(key, ABSOLUTE.to_owned()))
    }

    fn paths(&self, key: &'static str) -> Result<Vec<PathBuf>, ConfigError> {
        let paths = self.value.as_array().and_then(|values| values.iter().map(plain_path).collect());
        paths.ok_or_else(|| self.wanted(key, format!("a list, each {ABSOLUTE}")))
    }

    fn wanted(&self, key: &'static str, wanted: String) -> ConfigError {
        let found = self.value.to_string().chars().take(64).collect();
        ConfigError::Value { path: self.path.to_owned(), key, wanted, found }
    }
}

/// What [`plain_path`] takes.
const ABSOLUTE: &str = "an absolute path without \".\", \"..\" and doubled or final slashes, and not \"/\"";

/// A path that is compared as it is written.
fn plain_path(value: &Value) -> Option<PathBuf> {
    let path = value.as_str()?;
    let plain = |name: &str| !["", ".", ".."].contains(&name) && !name.contains('\0');
    path.strip_prefix('/')?.split('/').all(plain).then(|| path.into())
}

#[cfg(test)]
mod tests;
