//! Which layers the pod's disks have, and which containers use them. Pure.
//!
//! A layer is attached once for all containers of the pod. A disk goes when no container uses any of its parts.

use super::FileId;
use crate::identifier::Identifier;
use std::collections::HashMap;
use std::ops::Range;
use vmm_protocol::{DeviceId, LayerAccess, PciAddress};

#[derive(Debug, Default)]
pub(in super::super) struct Registry {
    disks: Vec<LayerDisk>,
    users: HashMap<Identifier, Vec<Key>>,
}

/// A part of a disk. A file that is a layer here and a device of another layer there is two: the guest's kernel mounts what is
/// read as a device by nobody else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Key {
    pub file: FileId,
    /// Its content is described by another layer.
    pub is_device: bool,
}

#[derive(Debug)]
struct LayerDisk {
    device: DeviceId,
    address: PciAddress,
    access: LayerAccess,
    /// In the order of the disk.
    parts: Vec<(Key, Range<u64>)>,
}

/// Where the guest finds a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct Part {
    pub address: PciAddress,
    /// From 1 on.
    pub number: u32,
    pub place: Range<u64>,
}

impl Registry {
    pub fn has(&self, key: Key) -> bool {
        self.part(key).is_some()
    }

    /// A disk that was attached. The files stay open in the VMM, so that their ids stay theirs.
    pub fn add(
        &mut self,
        (device, address): (DeviceId, PciAddress),
        access: LayerAccess,
        parts: Vec<(Key, Range<u64>)>,
    ) {
        self.disks.push(LayerDisk { device, address, access, parts });
    }

    /// Bytes of layers that are memory of the guest.
    pub fn mapped(&self) -> u64 {
        let mapped = self.disks.iter().filter(|disk| disk.access == LayerAccess::Memory);
        mapped.filter_map(|disk| disk.parts.last()).map(|(_, place)| place.end).sum()
    }

    /// The layers of a container, which uses them from now on. `None` when one is not attached.
    pub fn take(&mut self, container: &Identifier, keys: &[Key]) -> Option<Vec<Part>> {
        let parts = keys.iter().map(|key| self.part(*key)).collect::<Option<_>>()?;
        self.users.insert(container.clone(), keys.to_vec());
        Some(parts)
    }

    /// Forgets what a container uses. Returns the disks that nobody uses any more, forgotten too.
    pub fn release(&mut self, container: &Identifier) -> Vec<(DeviceId, PciAddress)> {
        self.users.remove(container);
        let used = |key: &Key| self.users.values().any(|keys| keys.contains(key));
        let unused = |disk: &mut LayerDisk| !disk.parts.iter().any(|(key, _)| used(key));
        self.disks.extract_if(.., unused).map(|disk| (disk.device, disk.address)).collect()
    }

    fn part(&self, key: Key) -> Option<Part> {
        self.disks.iter().find_map(|disk| {
            let index = disk.parts.iter().position(|(other, _)| *other == key)?;
            let number = u32::try_from(index + 1).ok()?;
            Some(Part { address: disk.address, number, place: disk.parts[index].1.clone() })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm_protocol::RateLimit;

    const DISK: LayerAccess =
        LayerAccess::Disk { limit: RateLimit { bytes_per_second: None, operations_per_second: None } };

    fn file(inode: u64) -> Key {
        Key { file: FileId { device: 1, inode }, is_device: false }
    }

    fn address(slot: u8) -> PciAddress {
        PciAddress::new(slot).unwrap()
    }

    #[test]
    fn a_second_container_of_an_image_attaches_nothing() {
        let [web, log] = ["web", "log"].map(|id| id.parse::<Identifier>().unwrap());
        let mut registry = Registry::default();
        assert!(!registry.has(file(1)));
        registry.add((DeviceId(7), address(5)), DISK, vec![(file(1), 0..4096), (file(2), 4096..8192)]);
        let parts = registry.take(&web, &[file(2), file(1)]).unwrap();
        assert_eq!(parts[0], Part { address: address(5), number: 2, place: 4096..8192 });
        assert_eq!(parts[1].number, 1);
        assert_eq!(registry.take(&log, &[file(2), file(1)]).unwrap(), parts);
        assert_eq!(registry.release(&web), []);
        assert_eq!(registry.release(&log), [(DeviceId(7), address(5))]);
        assert!(!registry.has(file(1)));
    }

    #[test]
    fn a_disk_stays_for_the_one_layer_that_is_shared() {
        let [web, log] = ["web", "log"].map(|id| id.parse::<Identifier>().unwrap());
        let mut registry = Registry::default();
        registry.add((DeviceId(7), address(5)), DISK, vec![(file(1), 0..4096), (file(2), 4096..8192)]);
        registry.take(&web, &[file(2), file(1)]).unwrap();
        registry.add((DeviceId(8), address(6)), DISK, vec![(file(3), 0..4096)]);
        registry.take(&log, &[file(3), file(1)]).unwrap();
        assert_eq!(registry.release(&web), [], "its base is in use");
        assert_eq!(registry.release(&log), [(DeviceId(7), address(5)), (DeviceId(8), address(6))]);
    }

    #[test]
    fn a_file_that_is_a_device_of_a_layer_is_another_part() {
        let device = Key { is_device: true, ..file(1) };
        let mut registry = Registry::default();
        registry.add((DeviceId(7), address(5)), DISK, vec![(file(1), 0..4096)]);
        assert!(registry.has(file(1)) && !registry.has(device));
    }

    #[test]
    fn what_is_mapped_counts_for_as_long_as_it_is_attached() {
        let web = "web".parse().unwrap();
        let mut registry = Registry::default();
        registry.add((DeviceId(7), address(5)), DISK, vec![(file(1), 0..4096)]);
        assert_eq!(registry.mapped(), 0);
        registry.add((DeviceId(8), address(6)), LayerAccess::Memory, vec![(file(2), 0..10), (file(3), 4096..4100)]);
        registry.add((DeviceId(9), address(7)), LayerAccess::Memory, vec![(file(4), 0..100)]);
        assert_eq!(registry.mapped(), 4200);
        registry.release(&web);
        assert_eq!(registry.mapped(), 0);
    }

    #[test]
    fn what_is_not_attached_cannot_be_used() {
        let web = "web".parse().unwrap();
        let mut registry = Registry::default();
        assert_eq!(registry.take(&web, &[file(1)]), None);
        registry.add((DeviceId(7), address(5)), DISK, vec![(file(1), 0..4096)]);
        assert_eq!(registry.release(&web), [(DeviceId(7), address(5))], "a disk that nobody took goes");
    }
}
