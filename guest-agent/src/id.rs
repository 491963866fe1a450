//! Names that the shim gives, checked once at the door.
//!
//! The agent trusts its shim, but a name ends up in paths and on command lines: a mistake there must not
//! become a surprise in the file system.

use crate::error::Error;
use agent_protocol::{MAX_ID, SHARE_MOUNT};
use std::fmt;
use std::path::{Component, Path, PathBuf};

/// A container's name: also the name of its bundle directory and of its cgroup.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContainerId(String);

/// The name of a process that was added to a container.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExecId(String);

impl ContainerId {
    pub fn parse(text: &str) -> Result<Self, Error> {
        check_id("container id", text).map(Self)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl ExecId {
    pub fn parse(text: &str) -> Result<Self, Error> {
        check_id("exec id", text).map(Self)
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn check_id(what: &'static str, text: &str) -> Result<String, Error> {
    let ok = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    if text.len() > MAX_ID {
        return Err(Error::invalid(what, text, "it is too long"));
    }
    if !text.starts_with(|first: char| first.is_ascii_alphanumeric()) || !text.bytes().all(ok) {
        return Err(Error::invalid(
            what,
            text,
            "it must be letters, digits, `_`, `.` and `-`, a letter or digit first",
        ));
    }
    Ok(text.to_owned())
}

/// Which process is meant: a container's first one, or one that was added to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessName {
    pub container: ContainerId,
    pub exec: Option<ExecId>,
}

impl ProcessName {
    /// An empty `exec_id` names the container's first process.
    pub fn parse(container_id: &str, exec_id: &str) -> Result<Self, Error> {
        let exec = if exec_id.is_empty() { None } else { Some(ExecId::parse(exec_id)?) };
        Ok(Self { container: ContainerId::parse(container_id)?, exec })
    }
}

impl fmt::Display for ProcessName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.exec {
            None => write!(f, "container `{}`", self.container),
            Some(exec) => write!(f, "process `{}` of container `{}`", exec.0, self.container),
        }
    }
}

/// A PCI function's address in the form of sysfs: `0000:00:04.0`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PciAddress(String);

impl PciAddress {
    pub fn parse(text: &str) -> Result<Self, Error> {
        const SHAPE: &[u8] = b"hhhh:hh:hh.h";
        let fits = |(&byte, &shape): (&u8, &u8)| match shape {
            b'h' => byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte),
            other => byte == other,
        };
        if text.len() != SHAPE.len() || !text.as_bytes().iter().zip(SHAPE).all(fits) {
            return Err(Error::invalid("PCI address", text, "the form is 0000:00:04.0"));
        }
        Ok(Self(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The name of a volume: `v` and a number.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct VolumeId(String);

impl VolumeId {
    pub fn parse(text: &str) -> Result<Self, Error> {
        let digits = text.strip_prefix('v').unwrap_or_default();
        if digits.is_empty() || digits.len() > 20 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(Error::invalid("volume", text, "the form is v7"));
        }
        Ok(Self(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A path in the pod's file share, as the guest sees it. It can't leave the share by its spelling.
pub fn share_path(text: &str) -> Result<PathBuf, Error> {
    let path = Path::new(text);
    let below = path.strip_prefix(SHARE_MOUNT).unwrap_or(path);
    let mut parts = below.components();
    if below.as_os_str().is_empty() || !parts.all(|part| matches!(part, Component::Normal(_))) {
        return Err(Error::invalid("shared path", text, "it must be below the file share, without `..`"));
    }
    Ok(Path::new(SHARE_MOUNT).join(below))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containerds_ids_are_accepted() {
        for id in ["web", "0f3a", "a_b.c-d", &"x".repeat(MAX_ID)] {
            assert_eq!(ContainerId::parse(id).unwrap().as_str(), id);
        }
    }

    #[test]
    fn ids_that_could_become_paths_or_options_are_refused() {
        for id in ["", ".", "..", "-rm", "_a", "a/b", "a b", "é", "a\0", &"x".repeat(MAX_ID + 1)] {
            assert!(ContainerId::parse(id).is_err(), "{id:?}");
        }
    }

    #[test]
    fn an_empty_exec_id_names_the_first_process() {
        assert_eq!(ProcessName::parse("web", "").unwrap().exec, None);
        assert_eq!(ProcessName::parse("web", "e1").unwrap().to_string(), "process `e1` of container `web`");
    }

    #[test]
    fn pci_addresses_have_one_spelling() {
        assert!(PciAddress::parse("0000:00:1f.7").is_ok());
        for text in ["", "00:04.0", "0000:00:04.0/", "0000:00:0G.0", "0000:00:04:0", "../../00:04.0"] {
            assert!(PciAddress::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn volumes_are_numbered() {
        assert_eq!(VolumeId::parse("v7").unwrap().as_str(), "v7");
        for text in ["", "v", "7", "v-1", "v1/..", "vv1", "v1 ", "../v1"] {
            assert!(VolumeId::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn shared_paths_stay_below_the_share() {
        let expected = PathBuf::from("/run/bulkhead/share/web/rootfs");
        assert_eq!(share_path("web/rootfs").unwrap(), expected);
        assert_eq!(share_path("/run/bulkhead/share/web/rootfs").unwrap(), expected);
        for text in ["", "/", ".", "..", "a/../..", "/etc", "/run/bulkhead/share", "/run/bulkhead/share/../x"] {
            assert!(share_path(text).is_err(), "{text:?}");
        }
    }
}
