//! Block devices of the node that containers use as such: a disk of the guest for each, however many use it.

use super::super::devices::BlockDevice;
use super::super::{Inner, SandboxError};
use super::{Disk, SOURCES, blocking, until};
use crate::identifier::Identifier;
use agent_protocol::agent::DeviceNode;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;
use tokio::time::Instant;

/// How often a device is looked at that someone holds, and how long to wait in between: another shim may look too.
pub(super) const LOOKS: u32 = 4;
pub(super) const PAUSE: Duration = Duration::from_millis(50);

/// The devices that are in the guest.
pub(in super::super) type BlockDevices = HashMap<Key, Plugged>;

/// Two disks of one device would be two caches of it to the guest's kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in super::super) struct Key {
    number: u64,
    read_only: bool,
}

#[derive(Debug)]
pub(in super::super) struct Plugged {
    disk: Disk,
    /// Never empty.
    users: HashSet<Identifier>,
}

impl Inner {
    pub(super) async fn attach_devices(
        &self,
        container: &Identifier,
        devices: Vec<BlockDevice>,
    ) -> Result<Vec<DeviceNode>, SandboxError> {
        let mut nodes = Vec::with_capacity(devices.len());
        for device in devices {
            let disk = self.attach_device(container, &device).await?;
            nodes.push(DeviceNode {
                path: device.path,
                pci_address: disk.address.to_string(),
                mode: device.mode,
                uid: device.uid,
                gid: device.gid,
                access: device.access.to_string(),
                ..DeviceNode::default()
            });
        }
        Ok(nodes)
    }

    async fn attach_device(&self, container: &Identifier, device: &BlockDevice) -> Result<Disk, SandboxError> {
        let number = libc::makedev(device.major, device.minor);
        let key = Key { number, read_only: !device.access.write };
        // Held while the device is plugged in: another container waits for it.
        let mut plugged = self.block_devices.lock().await;
        if let Some(plugged) = plugged.get_mut(&key) {
            plugged.users.insert(container.clone());
            return Ok(plugged.disk);
        }
        let name = format!("device {} (block device {}:{} of the node)", device.path, device.major, device.minor);
        let (major, minor, what) = (device.major, device.minor, name.clone());
        let open =
            move || open(major, minor, key.read_only, Hold::Together).map_err(SandboxError::host("attach", &what));
        let file = until(Instant::now() + SOURCES, format!("opening {name}"), blocking(open)).await?;
        let disk = self.plug(&name, &file, key.read_only).await?;
        plugged.insert(key, Plugged { disk, users: [container.clone()].into() });
        Ok(disk)
    }

    /// Takes away what nobody but `container` used. Goes on after an error; tells the first.
    pub(super) async fn detach_devices(&self, container: &Identifier, alive: bool) -> Result<(), SandboxError> {
        let mut plugged = self.block_devices.lock().await;
        let mut unused = Vec::new();
        plugged.retain(|_, plugged| {
            plugged.users.remove(container);
            if plugged.users.is_empty() {
                unused.push(plugged.disk);
            }
            !plugged.users.is_empty()
        });
        let mut result = Ok(());
        for disk in unused.into_iter().filter(|_| alive) {
            result = result.and(self.detach_disk(disk).await);
        }
        result
    }
}

/// Who else may use a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hold {
    /// Whoever knows how to share it.
    Together,
    /// Nobody who asks the kernel, as a mount does.
    Alone,
}

/// The device of a number, by the kernel's own name for it: no link and no node of somebody else's is followed.
pub(super) fn open(major: u32, minor: u32, read_only: bool, hold: Hold) -> io::Result<File> {
    let uevent = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/uevent"))?;
    let path = device_path(&uevent).ok_or(io::ErrorKind::InvalidData)?;
    check_unused(&path)?;
    let exclusive = if hold == Hold::Alone { libc::O_EXCL } else { 0 };
    let flags = libc::O_NOFOLLOW | libc::O_CLOEXEC | exclusive;
    let open = File::options().read(true).write(!read_only).custom_flags(flags).open(&path)?;
    let metadata = open.metadata()?;
    if metadata.file_type().is_block_device() && metadata.rdev() == libc::makedev(major, minor) {
        Ok(open)
    } else {
        Err(io::Error::other(format!("{} is another device", path.display())))
    }
}

/// What is mounted, swapped to, or part of another device is held by the kernel itself.
fn check_unused(path: &Path) -> io::Result<()> {
    let exclusive = libc::O_EXCL | libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC;
    for _ in 0..LOOKS {
        match File::options().read(true).custom_flags(exclusive).open(path) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => std::thread::sleep(PAUSE),
            result => return result.map(drop),
        }
    }
    let reason = format!("{} is mounted on the node, or part of another device", path.display());
    Err(io::Error::new(io::ErrorKind::ResourceBusy, reason))
}

fn device_path(uevent: &str) -> Option<PathBuf> {
    let name = Path::new(uevent.lines().find_map(|line| line.strip_prefix("DEVNAME="))?);
    let plain = !name.as_os_str().is_empty() && name.components().all(|part| matches!(part, Component::Normal(_)));
    plain.then(|| Path::new("/dev").join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_names_a_devices_node() {
        let path = |uevent: &str| device_path(uevent).map(|path| path.display().to_string());
        assert_eq!(path("MAJOR=7\nMINOR=3\nDEVNAME=loop3\nDEVTYPE=disk\n").unwrap(), "/dev/loop3");
        assert_eq!(path("DEVNAME=cciss/c0d0\n").unwrap(), "/dev/cciss/c0d0");
        for bad in ["", "DEVNAME=\n", "DEVNAME=/etc/passwd\n", "DEVNAME=../etc\n"] {
            assert_eq!(path(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_number_that_the_node_does_not_have_is_not_opened() {
        assert_eq!(open(4095, 1, true, Hold::Alone).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
