//! Wire layout of virtio-fs (virtio 1.3, section 5.11) and what the device needs to know of FUSE.

/// File system device.
pub const DEVICE_TYPE: u16 = 26;

/// Bytes of the tag in the configuration; a shorter one is padded with zeroes.
pub const TAG_LENGTH: usize = 36;

/// `struct virtio_fs_config`: tag and number of request queues.
pub const CONFIG_LENGTH: usize = TAG_LENGTH + 4;

pub const QUEUE_SIZE: u16 = 256;

/// `struct fuse_in_header`.
pub const IN_HEADER_LENGTH: usize = 40;

/// Length of a reply without content, as it says it.
pub const EMPTY_REPLY: u32 = 16;

/// `struct fuse_out_header`.
pub const OUT_HEADER_LENGTH: usize = EMPTY_REPLY as usize;

/// Where both headers have the number that ties a reply to its request.
pub const UNIQUE: std::ops::Range<usize> = 8..16;

/// Longest request or reply: 128 KiB of file content and room for headers and names.
pub const MAX_PACKET: usize = 128 * 1024 + 4096;

pub const OPCODE_FORGET: u32 = 2;
pub const OPCODE_INTERRUPT: u32 = 36;
pub const OPCODE_BATCH_FORGET: u32 = 42;

pub fn config(tag: &str) -> [u8; CONFIG_LENGTH] {
    let mut config = [0; CONFIG_LENGTH];
    let length = tag.len().min(TAG_LENGTH);
    config[..length].copy_from_slice(&tag.as_bytes()[..length]);
    config[TAG_LENGTH..].copy_from_slice(&1_u32.to_le_bytes());
    config
}
