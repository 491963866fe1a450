//! Which node: the Debian suite decides the versions of containerd and of the kernel.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// A generation of node that Bulkhead supports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edition {
    /// Debian 13: containerd 1.7, kernel 6.12.
    Trixie,
    /// The coming Debian 14: containerd 2.x and a recent kernel.
    Forky,
}

impl Edition {
    pub const ALL: [Edition; 2] = [Edition::Trixie, Edition::Forky];

    /// The Debian suite's name.
    pub fn suite(self) -> &'static str {
        match self {
            Edition::Trixie => "trixie",
            Edition::Forky => "forky",
        }
    }
}

impl fmt::Display for Edition {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.suite())
    }
}

impl FromStr for Edition {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = Edition::ALL.into_iter().find(|edition| edition.suite() == name);
        known.ok_or_else(|| format!("no node edition is called {name:?}; there are trixie and forky"))
    }
}

/// What a node boots from.
#[derive(Clone, Debug)]
pub struct NodeImage {
    pub kernel: PathBuf,
    pub initrd: PathBuf,
    /// The root disk. It is not changed, except by [`crate::Builder::keep_root_changes`].
    pub disk: PathBuf,
    pub disk_format: DiskFormat,
}

/// How the root disk's file is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskFormat {
    Raw,
    /// Changes on top of another file, which it names.
    Qcow2,
}
