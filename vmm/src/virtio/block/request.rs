//! Parses requests of virtio-blk. No I/O happens here: what comes out is checked against the disk's size and mode.

use super::spec::{HEADER_LENGTH, RANGE_LENGTH, RANGE_SECTORS_MAX, RANGE_UNMAP, RANGES_MAX, SECTOR, Status};
use std::ops::Range;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
};

/// What a request may do to a disk.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub sectors: u64,
    pub read_only: bool,
}

/// A request that may be carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Fill the data buffer from this byte offset on.
    Read {
        offset: u64,
    },
    /// Write the data buffer from this byte offset on.
    Write {
        offset: u64,
    },
    /// Make what was written durable.
    Flush,
    /// Fill the data buffer with the device's name.
    Identify,
    /// The driver does not need these bytes any more.
    Discard(Vec<Range<u64>>),
    WriteZeroes(Vec<Zeroes>),
}

/// Bytes that shall read as zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zeroes {
    pub range: Range<u64>,
    /// Whether their storage may be given back.
    pub unmap: bool,
}

/// Lengths of a request's data: what the driver sends and what it wants.
#[derive(Clone, Copy, Debug)]
pub struct Data {
    pub sent: usize,
    pub wanted: usize,
}

impl Request {
    /// Parses a header. `read_ranges` copies that many bytes of the data sent; it is called for requests that have
    /// their parameters there.
    pub fn parse(
        header: [u8; HEADER_LENGTH],
        data: Data,
        limits: Limits,
        read_ranges: impl FnOnce(usize) -> Option<Vec<u8>>,
    ) -> Result<Self, Status> {
        let [type_0, type_1, type_2, type_3, .., s0, s1, s2, s3, s4, s5, s6, s7] = header;
        let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        match u32::from_le_bytes([type_0, type_1, type_2, type_3]) {
            VIRTIO_BLK_T_IN => Ok(Self::Read { offset: limits.extent(sector, data.wanted)?.start }),
            VIRTIO_BLK_T_OUT => {
                limits.writable()?;
                Ok(Self::Write { offset: limits.extent(sector, data.sent)?.start })
            }
            VIRTIO_BLK_T_FLUSH => Ok(Self::Flush),
            VIRTIO_BLK_T_GET_ID => Ok(Self::Identify),
            VIRTIO_BLK_T_DISCARD => {
                limits.writable()?;
                let ranges = parse_ranges(data, limits, read_ranges)?;
                // The only flag is of write-zeroes.
                if ranges.iter().any(|zeroes| zeroes.unmap) {
                    return Err(Status::Unsupported);
                }
                Ok(Self::Discard(ranges.into_iter().map(|zeroes| zeroes.range).collect()))
            }
            VIRTIO_BLK_T_WRITE_ZEROES => {
                limits.writable()?;
                Ok(Self::WriteZeroes(parse_ranges(data, limits, read_ranges)?))
            }
            _ => Err(Status::Unsupported),
        }
    }
}

impl Limits {
    fn writable(self) -> Result<(), Status> {
        if self.read_only { Err(Status::IoError) } else { Ok(()) }
    }

    /// The bytes of a transfer, when they are whole sectors of the disk.
    fn extent(self, sector: u64, length: usize) -> Result<Range<u64>, Status> {
        let length = length as u64;
        let end = sector.checked_add(length / SECTOR).filter(|end| *end <= self.sectors);
        match end {
            // The disk's size in bytes fits, so these do.
            Some(end) if length.is_multiple_of(SECTOR) => Ok(sector * SECTOR..end * SECTOR),
            _ => Err(Status::IoError),
        }
    }
}

fn parse_ranges(
    data: Data,
    limits: Limits,
    read_ranges: impl FnOnce(usize) -> Option<Vec<u8>>,
) -> Result<Vec<Zeroes>, Status> {
    let count = data.sent / RANGE_LENGTH;
    if !data.sent.is_multiple_of(RANGE_LENGTH) || count == 0 || count > RANGES_MAX as usize {
        return Err(Status::IoError);
    }
    let bytes = read_ranges(data.sent).ok_or(Status::IoError)?;
    bytes.as_chunks::<RANGE_LENGTH>().0.iter().map(|bytes| parse_range(*bytes, limits)).collect()
}

fn parse_range(bytes: [u8; RANGE_LENGTH], limits: Limits) -> Result<Zeroes, Status> {
    let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, f0, f1, f2, f3] = bytes;
    let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
    let sectors = u32::from_le_bytes([n0, n1, n2, n3]);
    let flags = u32::from_le_bytes([f0, f1, f2, f3]);
    if flags & !RANGE_UNMAP != 0 {
        return Err(Status::Unsupported);
    }
    let end = sector.checked_add(u64::from(sectors)).filter(|end| *end <= limits.sectors);
    match end {
        Some(end) if sectors <= RANGE_SECTORS_MAX => {
            Ok(Zeroes { range: sector * SECTOR..end * SECTOR, unmap: flags & RANGE_UNMAP != 0 })
        }
        _ => Err(Status::IoError),
    }
}
