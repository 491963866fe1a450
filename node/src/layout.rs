//! Where things are on a node.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The directory that belongs to Bulkhead alone.
pub const PREFIX: &str = "/opt/bulkhead";

/// What containerd looks for when a pod asks for the runtime `io.containerd.bulkhead.v2`.
pub const SHIM: &str = "containerd-shim-bulkhead-v2";

/// The bundle's files, relative to its root and to [`PREFIX`], with their modes.
pub const FILES: [(&str, u32); 9] = [
    ("bin/containerd-shim-bulkhead-v2", 0o755),
    ("bin/bulkhead-vmm", 0o755),
    ("bin/bulkhead-fsd", 0o755),
    ("bin/bulkhead", 0o755),
    ("share/vmlinux", 0o644),
    ("share/guest.erofs", 0o644),
    ("share/scratch.ext4", 0o644),
    ("LICENSE", 0o644),
    ("VERSION", 0o644),
];

/// A node's paths, below the place where its root directory is seen.
#[derive(Debug, Clone)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_path_buf() }
    }

    /// An absolute path of the node, as this process sees it.
    pub fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// A path below [`PREFIX`].
    pub fn installed(&self, relative: &str) -> PathBuf {
        self.at(PREFIX).join(relative)
    }

    /// The shim's name in a directory that is in every containerd's `PATH`.
    pub fn shim_link(&self) -> PathBuf {
        self.at("/usr/local/bin").join(SHIM)
    }

    pub fn config(&self) -> PathBuf {
        self.at("/etc/bulkhead/config.toml")
    }

    pub fn containerd_config(&self) -> PathBuf {
        self.at("/etc/containerd/config.toml")
    }

    /// There from the time when containerd's configuration was changed until containerd was restarted, or the node.
    pub fn restart_needed(&self) -> PathBuf {
        self.at(bulkhead_config::RUN_DIRECTORY).join("containerd-restart-needed")
    }

    /// Records of direct volumes; gone after a reboot.
    pub fn direct_volumes(&self) -> PathBuf {
        self.at(crate::volume::records())
    }

    /// A program of the node, run there.
    pub fn command(&self, program: &str) -> Command {
        if self.root == Path::new("/") {
            return Command::new(program);
        }
        // This program again, which changes its root before it becomes the other.
        let mut command = Command::new("/proc/self/exe");
        command.arg("in-root").arg(&self.root).arg(program);
        command
    }

    /// What `install` did, for `uninstall`.
    pub fn record(&self) -> PathBuf {
        self.installed("installed.json")
    }
}
