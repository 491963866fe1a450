//! Where a disk's bytes are: in one file, or in several that follow each other.

use super::BlockError;
use super::spec::{SECTOR, Status};
use crate::virtio::chain::{Buffer, Memory, Slice};
use crate::virtio::vectored;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::FileTypeExt;
use std::sync::atomic::{AtomicBool, Ordering};
use vmm_protocol::{PART_ALIGNMENT, part_offsets};

#[derive(Debug)]
pub enum Image {
    /// A regular file or a block device.
    File {
        file: File,
        length: u64,
        /// The node's kernel tells once that it lost something that was written, and then forgets.
        lossy: AtomicBool,
    },
    /// Regular files that are never written. Between one's end and the next one's start the disk reads as zeroes.
    Parts(Vec<Part>),
}

#[derive(Debug)]
pub struct Part {
    file: File,
    /// Its bytes of the disk.
    place: Range<u64>,
}

/// What a disk has from some offset on.
enum Piece<'a> {
    /// So many bytes of a file, from this one on.
    Of(&'a File, u64, u64),
    Zeroes(u64),
}

impl Image {
    /// A disk of the size that `file` has now.
    pub fn file(mut file: File, read_only: bool) -> Result<Self, BlockError> {
        let file_type = file.metadata().map_err(BlockError::Inspect)?.file_type();
        if !file_type.is_file() && !file_type.is_block_device() {
            return Err(BlockError::Type);
        }
        match access(&file)? {
            OFlag::O_RDWR => {}
            OFlag::O_RDONLY if read_only => {}
            OFlag::O_RDONLY => return Err(BlockError::Mode("writing")),
            _ => return Err(BlockError::Mode("reading")),
        }
        // Tells the size of a block device as well.
        let length = file.seek(SeekFrom::End(0)).map_err(BlockError::Inspect)?;
        if length == 0 || !length.is_multiple_of(SECTOR) {
            return Err(BlockError::Length(length));
        }
        Ok(Self::File { file, length, lossy: AtomicBool::new(false) })
    }

    /// A disk of parts, each of the size that it has now.
    pub fn parts(files: Vec<File>) -> Result<Self, BlockError> {
        let length = |file: &File| {
            let metadata = file.metadata().map_err(BlockError::Inspect)?;
            match access(file)? {
                _ if !metadata.is_file() => Err(BlockError::PartType),
                OFlag::O_RDONLY => Ok(metadata.len()),
                // The guest cannot change what this process cannot.
                _ => Err(BlockError::PartMode),
            }
        };
        let lengths = files.iter().map(length).collect::<Result<Vec<_>, _>>()?;
        let places = part_offsets(&lengths).ok_or(BlockError::Parts(lengths.len()))?;
        Ok(Self::Parts(files.into_iter().zip(places).map(|(file, place)| Part { file, place }).collect()))
    }

    /// A multiple of [`SECTOR`].
    pub fn length(&self) -> u64 {
        match self {
            Self::File { length, .. } => *length,
            Self::Parts(parts) => parts.last().map_or(0, |last| last.place.end.next_multiple_of(PART_ALIGNMENT)),
        }
    }

    /// The file that may be written.
    pub fn writable(&self) -> Result<&File, Status> {
        match self {
            Self::File { file, lossy, .. } if !lossy.load(Ordering::Relaxed) => Ok(file),
            _ => Err(Status::IoError),
        }
    }

    /// Makes what was written durable. When that failed once, it fails for ever, and so does writing: a later success
    /// would say that all is safe.
    pub fn sync(&self) -> Result<(), Status> {
        match self {
            Self::File { lossy, .. } => self.writable()?.sync_data().map_err(|error| {
                lossy.store(true, Ordering::Relaxed);
                tracing::error!(%error, "the node lost something that the guest wrote: its disk takes no more");
                Status::IoError
            }),
            Self::Parts(_) => Ok(()),
        }
    }

    /// Fills the first `length` bytes of a buffer. The range from `offset` on is within the disk.
    pub fn read(&self, memory: &Memory, buffer: &Buffer, length: usize, offset: u64) -> Result<(), Status> {
        let mut done = 0;
        while done < length {
            let rest = length - done;
            let at_most = |bytes: u64| usize::try_from(bytes).map_or(rest, |bytes| bytes.min(rest));
            match self.piece(offset + done as u64)? {
                Piece::Of(file, at, bytes) => {
                    let range = done..done + at_most(bytes);
                    done = range.end;
                    transfer(memory, buffer, range, at, |at, to| vectored::read_at(file, at, to))?;
                }
                Piece::Zeroes(bytes) => {
                    // Shorter than a page: parts start at pages.
                    let zeroes = vec![0; at_most(bytes)];
                    buffer.copy_from(memory, done, &zeroes).map_err(|_| Status::IoError)?;
                    done += zeroes.len();
                }
            }
        }
        Ok(())
    }

    fn piece(&self, offset: u64) -> Result<Piece<'_>, Status> {
        let parts = match self {
            Self::File { file, length, .. } => return Ok(Piece::Of(file, offset, length.saturating_sub(offset))),
            Self::Parts(parts) => parts,
        };
        let next = parts.partition_point(|part| part.place.start <= offset);
        // The first one starts at 0.
        let part = next.checked_sub(1).and_then(|index| parts.get(index)).ok_or(Status::IoError)?;
        if offset < part.place.end {
            return Ok(Piece::Of(&part.file, offset - part.place.start, part.place.end - offset));
        }
        match parts.get(next).map_or_else(|| self.length(), |next| next.place.start).checked_sub(offset) {
            Some(zeroes) if zeroes > 0 => Ok(Piece::Zeroes(zeroes)),
            _ => Err(Status::IoError),
        }
    }
}

fn access(file: &File) -> Result<OFlag, BlockError> {
    let flags = fcntl(file, FcntlArg::F_GETFL).map_err(|error| BlockError::Inspect(error.into()))?;
    Ok(OFlag::from_bits_retain(flags & libc::O_ACCMODE))
}

/// Moves the bytes `range` of a buffer, in as many calls as the kernel needs. A file that ends early is an error: it
/// was cut while in use.
pub fn transfer(
    memory: &Memory,
    buffer: &Buffer,
    range: Range<usize>,
    mut offset: u64,
    mut call: impl FnMut(u64, &[Slice]) -> io::Result<usize>,
) -> Result<(), Status> {
    let mut start = range.start;
    while start < range.end {
        let slices = buffer.slices(memory, start..range.end).map_err(|_| Status::IoError)?;
        match call(offset, &slices) {
            Ok(count) if count > 0 => {
                start += count;
                offset += count as u64;
            }
            _ => return Err(Status::IoError),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_lost_a_write_takes_no_more() {
        // It takes every write, and makes none durable.
        let file = File::options().read(true).write(true).open("/dev/null").unwrap();
        let image = Image::File { file, length: SECTOR, lossy: AtomicBool::new(false) };
        assert!(image.writable().is_ok());
        image.sync().unwrap_err();
        image.writable().unwrap_err();
        image.sync().unwrap_err();
    }
}
