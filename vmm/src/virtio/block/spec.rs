//! Wire layout of virtio-blk (virtio 1.3, section 5.2).

/// Block device.
pub const DEVICE_TYPE: u16 = 2;

/// Block size that the driver is told.
const BLOCK_SIZE: u32 = 512;

/// All positions and capacities are in units of this many bytes, whatever the block size.
pub const SECTOR: u64 = 512;

pub const QUEUE_SIZE: u16 = 256;

/// Data buffers of a request; header and status take two more descriptors.
pub const SEGMENTS_MAX: u32 = QUEUE_SIZE as u32 - 2;

/// Ranges of one discard or write-zeroes request.
pub const RANGES_MAX: u32 = 32;

/// Sectors of one such range: 1 GiB.
pub const RANGE_SECTORS_MAX: u32 = 1 << 21;

/// `struct virtio_blk_req` up to its data.
pub const HEADER_LENGTH: usize = 16;

/// `struct virtio_blk_discard_write_zeroes`.
pub const RANGE_LENGTH: usize = 16;

/// Text that `VIRTIO_BLK_T_GET_ID` is answered with.
pub const ID_LENGTH: usize = 20;

/// Flag of a write-zeroes range: the sectors need not stay allocated.
pub const RANGE_UNMAP: u32 = 1;

/// `struct virtio_blk_config` up to the write-zeroes fields.
pub const CONFIG_LENGTH: usize = 60;

/// Last byte of a request's writable buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

pub fn config(sectors: u64, queues: u16) -> [u8; CONFIG_LENGTH] {
    let mut config = [0; CONFIG_LENGTH];
    let mut put = |offset: usize, bytes: &[u8]| config[offset..offset + bytes.len()].copy_from_slice(bytes);
    put(0, &sectors.to_le_bytes());
    put(12, &SEGMENTS_MAX.to_le_bytes());
    put(20, &BLOCK_SIZE.to_le_bytes());
    put(34, &queues.to_le_bytes());
    put(36, &RANGE_SECTORS_MAX.to_le_bytes()); // discard
    put(40, &RANGES_MAX.to_le_bytes());
    put(44, &1_u32.to_le_bytes()); // alignment, in sectors
    put(48, &RANGE_SECTORS_MAX.to_le_bytes()); // write zeroes
    put(52, &RANGES_MAX.to_le_bytes());
    put(56, &[1]); // zeroed sectors may be unmapped
    config
}
