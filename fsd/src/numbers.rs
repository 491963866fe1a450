//! Inode numbers that stay unique when several file systems are seen as one.
//!
//! The share is one file system to the guest: one device number for the container's root and every volume. The host's
//! inode numbers are unique only per device, and two files with equal device and inode number are one file to `cp`,
//! `tar` and many others. So each host device gets a value of its own for the upper bits.

use std::sync::{Mutex, PoisonError};

/// Host inode numbers seldom need more bits; where they do, the upper ones are mixed.
const SHIFT: u32 = 48;

/// Most devices that are told apart.
const MAX_DEVICES: usize = 1 << 15;

#[derive(Debug, Default)]
pub struct InodeNumbers {
    /// Devices in the order of their first appearance.
    devices: Mutex<Vec<u64>>,
}

impl InodeNumbers {
    /// The guest's number of the host's inode `number` on `device`. It stays the same as long as the server runs.
    pub fn unique(&self, device: u64, number: u64) -> u64 {
        number ^ (self.index(device) << SHIFT)
    }

    fn index(&self, device: u64) -> u64 {
        let mut devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        let index = devices.iter().position(|known| *known == device).unwrap_or_else(|| {
            if devices.len() < MAX_DEVICES {
                devices.push(device);
            }
            devices.len() - 1
        });
        index as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_numbers_of_different_devices_differ() {
        let numbers = InodeNumbers::default();
        let seen = [numbers.unique(7, 42), numbers.unique(8, 42), numbers.unique(9, 42)];
        assert_eq!(seen[0], 42);
        assert!(seen[0] != seen[1] && seen[1] != seen[2] && seen[0] != seen[2]);
        assert_eq!(numbers.unique(8, 42), seen[1]);
    }

    #[test]
    fn devices_beyond_the_bound_share_the_last_value() {
        let numbers = InodeNumbers::default();
        for device in 0..MAX_DEVICES as u64 + 10 {
            numbers.unique(device, 1);
        }
        assert_eq!(numbers.devices.lock().unwrap().len(), MAX_DEVICES);
    }
}
