//! Wire layout of virtio-pmem.

/// Persistent memory device.
pub const DEVICE_TYPE: u16 = 27;

/// `struct virtio_pmem_config`: start and size, 64 bits each.
pub const CONFIG_LENGTH: usize = 16;

/// `struct virtio_pmem_req`: the request type.
pub const REQUEST_LENGTH: usize = 4;

/// `struct virtio_pmem_resp`: the result.
pub const RESPONSE_LENGTH: u32 = 4;

/// The one request type.
pub const REQUEST_FLUSH: u32 = 0;

pub const RESULT_OK: u32 = 0;
pub const RESULT_ERROR: u32 = u32::MAX;

pub fn config(start: u64, size: u64) -> [u8; CONFIG_LENGTH] {
    let mut config = [0; CONFIG_LENGTH];
    config[..8].copy_from_slice(&start.to_le_bytes());
    config[8..].copy_from_slice(&size.to_le_bytes());
    config
}
