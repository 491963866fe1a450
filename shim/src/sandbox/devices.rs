//! Devices that a container may ask for: those that are the same in every Linux, and block devices of the node, which
//! become disks of the guest. All others belong to the node. Pure.

use super::oci::{Device, Linux};
use super::spec::{SpecError, shown};
use serde_json::{Map, Value};

/// Character devices with their numbers, which say what a node is; its path is only a name.
const GUEST_DEVICES: [(&str, u64, u64); 10] = [
    ("/dev/console", 5, 1),
    ("/dev/full", 1, 7),
    ("/dev/fuse", 10, 229),
    ("/dev/net/tun", 10, 200),
    ("/dev/null", 1, 3),
    ("/dev/ptmx", 5, 2),
    ("/dev/random", 1, 8),
    ("/dev/tty", 5, 0),
    ("/dev/urandom", 1, 9),
    ("/dev/zero", 1, 5),
];

/// Of a device whose specification has none.
const MODE: u32 = 0o660;

/// A block device of the node that a container is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BlockDevice {
    /// In the container.
    pub path: String,
    /// On the node.
    pub major: u32,
    pub minor: u32,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub access: Access,
}

/// What the rules of a container let it do with a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Access {
    read: bool,
    pub write: bool,
    make: bool,
}

impl Access {
    const ALL: Self = Self { read: true, write: true, make: true };

    fn parse(text: &str) -> Self {
        Self { read: text.contains('r'), write: text.contains('w'), make: text.contains('m') }
    }

    fn or(self, other: Self) -> Self {
        Self { read: self.read || other.read, write: self.write || other.write, make: self.make || other.make }
    }
}

impl std::fmt::Display for Access {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let letters = [(self.read, "r"), (self.write, "w"), (self.make, "m")];
        letters.iter().filter(|(allowed, _)| *allowed).try_for_each(|(_, letter)| formatter.write_str(letter))
    }
}

/// Takes the node's block devices out of a specification.
pub(super) fn take_block(linux: &mut Linux) -> Result<Vec<BlockDevice>, SpecError> {
    let rules = linux.resources.get("devices").and_then(Value::as_array).cloned().unwrap_or_default();
    let (blocks, others) = std::mem::take(&mut linux.devices).into_iter().partition(is_block);
    linux.devices = others;
    let blocks: Vec<Device> = blocks;
    blocks.iter().map(|device| block(device, &rules)).collect()
}

fn is_block(device: &Device) -> bool {
    device.other.get("type").and_then(Value::as_str) == Some("b")
}

fn block(device: &Device, rules: &[Value]) -> Result<BlockDevice, SpecError> {
    let refused = |reason: &str| SpecError::Unsupported(format!("device {}: {reason}", shown(&device.path)));
    let number =
        |key: &str| device.other.get(key).and_then(Value::as_u64).and_then(|number| u32::try_from(number).ok());
    let (Some(major), Some(minor)) = (number("major"), number("minor")) else {
        return Err(refused("the specification does not say which block device of the node it is"));
    };
    let allowing = rules.iter().filter(|rule| rule["allow"] == true && is_about(rule, major, minor));
    let access = allowing.map(access).fold(Access::default(), Access::or);
    if !access.read {
        return Err(refused("no rule lets the container read it"));
    }
    Ok(BlockDevice {
        path: device.path.clone(),
        major,
        minor,
        mode: number("fileMode").unwrap_or(MODE) & 0o7777,
        uid: number("uid").unwrap_or(0),
        gid: number("gid").unwrap_or(0),
        access,
    })
}

fn is_about(rule: &Value, major: u32, minor: u32) -> bool {
    let every = |key: &str| rule[key].is_null() || rule[key] == -1;
    let kind = rule["type"].as_str().unwrap_or("a");
    ["a", "b"].contains(&kind)
        && (every("major") || rule["major"] == major)
        && (every("minor") || rule["minor"] == minor)
}

fn access(rule: &Value) -> Access {
    rule["access"].as_str().map_or(Access::ALL, Access::parse)
}

/// Drops the rules about single block devices: they are the node's numbers, which are other devices in the guest. The
/// agent adds those of the disks that the container has.
pub(super) fn drop_block_rules(resources: &mut Map<String, Value>) {
    let about_one = |rule: &Value| rule["type"] == "b" && rule["major"].as_u64().is_some();
    if let Some(rules) = resources.get_mut("devices").and_then(Value::as_array_mut) {
        rules.retain(|rule| !about_one(rule));
    }
}

/// After [`take_block`].
pub(super) fn check(devices: &[Device]) -> Result<(), SpecError> {
    match devices.iter().find(|device| !is_guests(device)) {
        None => Ok(()),
        Some(device) => Err(SpecError::Unsupported(format!(
            "device {} of the node cannot be used in a microVM",
            shown(&device.path)
        ))),
    }
}

/// What is left out is what it should be.
fn is_guests(device: &Device) -> bool {
    let is = |key: &str, wanted: u64| device.other.get(key).is_none_or(|value| value.as_u64() == Some(wanted));
    let character = device.other.get("type").and_then(Value::as_str).is_none_or(|kind| ["c", "u"].contains(&kind));
    let same = |(path, major, minor): &(&str, u64, u64)| {
        device.path == *path && character && is("major", *major) && is("minor", *minor)
    };
    GUEST_DEVICES.iter().any(same)
}

#[cfg(test)]
mod tests;
