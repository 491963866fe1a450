//! Guest memory in a file, and mapped from there. All machines of a template share the file's pages until they write.
//!
//! What is zero for long is not in the file and stays anonymous in a restored machine: reading it needs no page, and what the
//! guest never used costs nothing. Shorter gaps are kept, since each mapping costs more than a few pages of a shared file.

use super::codec::{CodecError, Reader, Saved, Writer};
use crate::machine::{OverlayError, overlay};
use crate::virtio::device::GuestMemory;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

const PAGE: usize = 4096;
const CHUNK: usize = 64 * PAGE;

/// Zero pages in a row that are worth a mapping less.
const LONGEST_GAP: u64 = 16 * PAGE as u64;

/// The kernel allows a process 65530 mappings.
const MAX_EXTENTS: usize = 8192;

#[derive(Debug, thiserror::Error)]
pub enum MemoryFileError {
    #[error("cannot read guest memory")]
    Read(#[source] GuestMemoryError),
    #[error("cannot write the memory file")]
    Write(#[source] io::Error),
    #[error("cannot inspect the memory file")]
    Inspect(#[source] io::Error),
    #[error("guest memory has too many pieces: {0}")]
    Pieces(usize),
    #[error("piece {0} of the memory file does not lie in it or in guest memory")]
    Place(usize),
    #[error("cannot map piece {0} of the memory file")]
    Map(usize, #[source] io::Error),
}

/// Guest memory that is in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    pub guest: u64,
    pub offset: u64,
    pub length: u64,
}

impl Saved for Extent {
    fn save(&self, writer: &mut Writer) {
        writer.object(&[self.guest, self.offset, self.length]);
    }

    fn load(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        let [guest, offset, length] = reader.object("an extent")?;
        Ok(Self { guest, offset, length })
    }
}

pub fn save_extents(writer: &mut Writer, extents: &[Extent]) {
    writer.list(extents, |writer, extent| extent.save(writer));
}

pub fn load_extents(reader: &mut Reader<'_>) -> Result<Vec<Extent>, CodecError> {
    reader.list("extents", MAX_EXTENTS, Extent::load)
}

/// Writes what is not zero of these addresses to an empty file. Nobody may write to the memory meanwhile.
pub fn save(memory: &GuestMemory, ram: &[Range<u64>], file: &File) -> Result<Vec<Extent>, MemoryFileError> {
    let mut extents: Vec<Extent> = Vec::new();
    let mut chunk = vec![0; CHUNK];
    for Range { start, end } in ram.iter().cloned() {
        let mut open = None;
        for address in (start..end).step_by(CHUNK) {
            let length = CHUNK.min(usize::try_from(end - address).unwrap_or(CHUNK));
            let chunk = &mut chunk[..length];
            memory.read_slice(chunk, GuestAddress(address)).map_err(MemoryFileError::Read)?;
            for (page, address) in chunk.chunks(PAGE).zip((address..).step_by(PAGE)) {
                if page.iter().any(|byte| *byte != 0) {
                    let extent = open.take().filter(|extent: &Extent| address - extent.end() <= LONGEST_GAP);
                    let next = extents.last().map_or(0, |last| last.offset + last.length);
                    let extent = if let Some(extent) = extent {
                        extents.pop();
                        extent
                    } else {
                        Extent { guest: address, offset: next, length: 0 }
                    };
                    let offset = extent.offset + (address - extent.guest);
                    file.write_all_at(page, offset).map_err(MemoryFileError::Write)?;
                    let extent = Extent { length: address + page.len() as u64 - extent.guest, ..extent };
                    extents.push(extent);
                    open = Some(extent);
                }
            }
        }
    }
    if extents.len() > MAX_EXTENTS {
        return Err(MemoryFileError::Pieces(extents.len()));
    }
    Ok(extents)
}

impl Extent {
    fn end(&self) -> u64 {
        self.guest + self.length
    }
}

/// Lays a file over memory that nobody uses yet, and that is RAM alone. The memory stays private to this process.
pub fn map(memory: &GuestMemory, file: &File, extents: &[Extent]) -> Result<(), MemoryFileError> {
    let file_length = file.metadata().map_err(MemoryFileError::Inspect)?.len();
    for (number, extent) in extents.iter().enumerate() {
        let place = || MemoryFileError::Place(number);
        let aligned = |value: u64| value.is_multiple_of(PAGE as u64);
        let fits = extent.offset.checked_add(extent.length).is_some_and(|end| end <= file_length);
        if !fits || extent.length == 0 || !aligned(extent.guest) || !aligned(extent.offset) || !aligned(extent.length) {
            return Err(place());
        }
        let length = usize::try_from(extent.length).map_err(|_| place())?;
        overlay(memory, GuestAddress(extent.guest), length, file, extent.offset).map_err(|error| match error {
            OverlayError::Place => place(),
            OverlayError::Map(error) => MemoryFileError::Map(number, error),
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use vm_memory::GuestMemoryMmap;

    const KIB: u64 = 1024;
    const HIGH: u64 = 1 << 32;
    const RAM: [Range<u64>; 2] = [0..4 << 20, HIGH..HIGH + (2 << 20)];

    fn memory() -> GuestMemory {
        let ranges = [(GuestAddress(0), 4 << 20), (GuestAddress(HIGH), 2 << 20)];
        Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap())
    }

    fn used() -> GuestMemory {
        let memory = memory();
        for (address, value) in [(0, 1_u8), (8 * KIB, 2), (1 << 20, 3), ((4 << 20) - 1, 4), (HIGH, 5), (HIGH + 5000, 6)]
        {
            memory.write_obj(value, GuestAddress(address)).unwrap();
        }
        memory
    }

    fn all(memory: &GuestMemory) -> Vec<u8> {
        let mut bytes = vec![0; 6 << 20];
        let (low, high) = bytes.split_at_mut(4 << 20);
        memory.read_slice(low, GuestAddress(0)).unwrap();
        memory.read_slice(high, GuestAddress(HIGH)).unwrap();
        bytes
    }

    #[test]
    fn memory_comes_back_and_long_zeroes_are_not_in_the_file() {
        let (saved, file) = (used(), tempfile::tempfile().unwrap());
        let extents = save(&saved, &RAM, &file).unwrap();
        let places: Vec<_> = extents.iter().map(|extent| (extent.guest, extent.length)).collect();
        assert_eq!(places, [(0, 12 * KIB), (1 << 20, 4 * KIB), ((4 << 20) - 4 * KIB, 4 * KIB), (HIGH, 8 * KIB)]);
        assert_eq!(file.metadata().unwrap().len(), 28 * KIB);
        let restored = memory();
        map(&restored, &file, &extents).unwrap();
        assert!(all(&restored) == all(&saved));
    }

    #[test]
    fn writes_stay_in_the_machine_that_makes_them() {
        let file = tempfile::tempfile().unwrap();
        let extents = save(&used(), &RAM, &file).unwrap();
        let (first, second) = (memory(), memory());
        map(&first, &file, &extents).unwrap();
        map(&second, &file, &extents).unwrap();
        first.write_obj(0xff_u8, GuestAddress(0)).unwrap();
        assert_eq!(second.read_obj::<u8>(GuestAddress(0)).unwrap(), 1);
        let mut byte = [0];
        file.read_exact_at(&mut byte, 0).unwrap();
        assert_eq!(byte, [1]);
    }

    #[test]
    fn extents_that_lead_out_of_file_or_memory_are_refused() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        let page = PAGE as u64;
        let good = Extent { guest: 0, offset: 0, length: page };
        map(&memory(), &file, &[good]).unwrap();
        for bad in [
            Extent { guest: 1, ..good },
            Extent { offset: 1, ..good },
            Extent { length: 1, ..good },
            Extent { length: 0, ..good },
            Extent { offset: 1 << 20, ..good },
            Extent { offset: u64::MAX - page + 1, ..good },
            Extent { length: u64::MAX - page + 1, ..good },
            Extent { guest: 4 << 20, ..good },
            Extent { guest: (4 << 20) - page, length: 2 * page, ..good },
            Extent { guest: u64::MAX - page + 1, ..good },
        ] {
            assert!(matches!(map(&memory(), &file, &[good, bad]), Err(MemoryFileError::Place(1))), "{bad:?}");
        }
    }
}
