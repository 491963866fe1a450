//! Where a disk's bytes are: in one file, or in several that follow each other.

use super::BlockError;
use super::spec::SECTOR;
use crate::virtio::chain::{Buffer, Memory};
use crate::virtio::vectored;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, OFlag, PosixFadviseAdvice, fallocate, fcntl, posix_fadvise};
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
        /// It is on something that cannot tell whether a read would wait: many targets of device-mapper are.
        always_waits: AtomicBool,
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
        let (lossy, always_waits) = Default::default();
        Ok(Self::File { file, length, lossy, always_waits })
    }

    /// A disk of parts, each of the size that it has now.
    pub fn parts(files: Vec<File>) -> Result<Self, BlockError> {
        let places = layer_places(&files)?;
        Ok(Self::Parts(files.into_iter().zip(places).map(|(file, place)| Part { file, place }).collect()))
    }

    /// A multiple of [`SECTOR`].
    pub fn length(&self) -> u64 {
        match self {
            Self::File { length, .. } => *length,
            Self::Parts(parts) => parts.last().map_or(0, |last| last.place.end.next_multiple_of(PART_ALIGNMENT)),
        }
    }

    /// Fills the bytes `range` of a buffer, of which the first byte is at `offset` of the disk. What is read is within the
    /// disk.
    pub fn read(&self, memory: &Memory, buffer: &Buffer, range: Range<usize>, offset: u64) -> io::Result<()> {
        let filled = self.fill(memory, buffer, range.clone(), offset, |file, at, range| {
            vectored::read_at(file, at, memory, buffer, range)
        })?;
        if filled < range.len() { Err(cut()) } else { Ok(()) }
    }

    /// The same without waiting for the node's disks. Returns how many bytes were there; the node reads the others
    /// meanwhile.
    pub fn read_cached(&self, memory: &Memory, buffer: &Buffer, length: usize, offset: u64) -> io::Result<usize> {
        if let Self::File { file, always_waits, .. } = self
            && always_waits.load(Ordering::Relaxed)
        {
            return begin(file, offset, length);
        }
        self.fill(memory, buffer, 0..length, offset, |file, at, range| {
            let length = range.len();
            match vectored::read_cached_at(file, at, memory, buffer, range) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
                Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                    if let Self::File { always_waits, .. } = self {
                        always_waits.store(true, Ordering::Relaxed);
                    }
                    begin(file, at, length)
                }
                result => result,
            }
        })
    }

    /// Writes the bytes `range` of a buffer at `offset` of the disk.
    pub fn write(&self, memory: &Memory, buffer: &Buffer, range: Range<usize>, offset: u64) -> io::Result<()> {
        let (file, length) = (self.writable()?, range.len());
        let written = transfer(range, offset, |at, range| vectored::write_at(file, at, memory, buffer, range))?;
        // Without an error no kernel stops early.
        if written < length { Err(io::ErrorKind::WriteZero.into()) } else { Ok(()) }
    }

    /// Gives bytes back to the node, or has them read as zeroes. `Unsupported`: the node's file system cannot.
    pub fn allocate(&self, mode: FallocateFlags, range: Range<u64>) -> io::Result<()> {
        let file = self.writable()?;
        if range.is_empty() {
            return Ok(());
        }
        let offset = |bytes: u64| libc::off_t::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput);
        let (start, length) = (offset(range.start)?, offset(range.end - range.start)?);
        loop {
            match fallocate(file, mode | FallocateFlags::FALLOC_FL_KEEP_SIZE, start, length) {
                Ok(()) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => return Err(io::ErrorKind::Unsupported.into()),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Makes what was written durable. When that failed once, it fails for ever, and so does writing: a later success
    /// would say that all is safe.
    pub fn sync(&self) -> io::Result<()> {
        match self {
            Self::File { lossy, .. } => {
                self.writable()?.sync_data().inspect_err(|_| lossy.store(true, Ordering::Relaxed))
            }
            Self::Parts(_) => Ok(()),
        }
    }

    /// The file that may be written.
    fn writable(&self) -> io::Result<&File> {
        match self {
            Self::File { file, lossy, .. } if !lossy.load(Ordering::Relaxed) => Ok(file),
            _ => Err(io::ErrorKind::ReadOnlyFilesystem.into()),
        }
    }

    /// Has `call` fill a buffer file by file. Stops at its first 0; returns how far it came.
    fn fill(
        &self,
        memory: &Memory,
        buffer: &Buffer,
        range: Range<usize>,
        offset: u64,
        call: impl Fn(&File, u64, Range<usize>) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let mut done = 0;
        while done < range.len() {
            let rest = range.start + done..range.end;
            let at_most = |bytes: u64| usize::try_from(bytes).map_or(rest.len(), |bytes| bytes.min(rest.len()));
            match self.piece(offset + done as u64)? {
                Piece::Of(file, at, bytes) => {
                    let piece = rest.start..rest.start + at_most(bytes);
                    let wanted = piece.len();
                    let count = transfer(piece, at, |at, range| call(file, at, range))?;
                    done += count;
                    if count < wanted {
                        break;
                    }
                }
                Piece::Zeroes(bytes) => {
                    // Shorter than a page: parts start at pages.
                    let zeroes = vec![0; at_most(bytes)];
                    buffer.copy_from(memory, rest.start, &zeroes).map_err(io::Error::other)?;
                    done += zeroes.len();
                }
            }
        }
        Ok(done)
    }

    fn piece(&self, offset: u64) -> io::Result<Piece<'_>> {
        let parts = match self {
            Self::File { file, length, .. } => return Ok(Piece::Of(file, offset, length.saturating_sub(offset))),
            Self::Parts(parts) => parts,
        };
        let next = parts.partition_point(|part| part.place.start <= offset);
        // The first one starts at 0.
        let part = next.checked_sub(1).and_then(|index| parts.get(index)).ok_or_else(cut)?;
        if offset < part.place.end {
            return Ok(Piece::Of(&part.file, offset - part.place.start, part.place.end - offset));
        }
        match parts.get(next).map_or_else(|| self.length(), |next| next.place.start).checked_sub(offset) {
            Some(zeroes) if zeroes > 0 => Ok(Piece::Zeroes(zeroes)),
            _ => Err(cut()),
        }
    }
}

/// Has the node read these bytes into its memory. None of them counts as there.
fn begin(file: &File, offset: u64, length: usize) -> io::Result<usize> {
    if let (Ok(offset), Ok(length)) = (libc::off_t::try_from(offset), libc::off_t::try_from(length)) {
        // Whatever is wrong, reading tells.
        let _ = posix_fadvise(file, offset, length, PosixFadviseAdvice::POSIX_FADV_WILLNEED);
    }
    Ok(0)
}

/// A file that ends early was cut while in use.
fn cut() -> io::Error {
    io::ErrorKind::UnexpectedEof.into()
}

/// Where layers are in the guest's disk or memory, if they can be layers.
pub fn layer_places(files: &[File]) -> Result<Vec<Range<u64>>, BlockError> {
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
    part_offsets(&lengths).ok_or(BlockError::Parts(lengths.len()))
}

fn access(file: &File) -> Result<OFlag, BlockError> {
    let flags = fcntl(file, FcntlArg::F_GETFL).map_err(|error| BlockError::Inspect(error.into()))?;
    Ok(OFlag::from_bits_retain(flags & libc::O_ACCMODE))
}

/// Moves the bytes `range` of a buffer, in as many calls as the kernel needs. Returns how many were moved until a call
/// moved none.
fn transfer(
    range: Range<usize>,
    offset: u64,
    mut call: impl FnMut(u64, Range<usize>) -> io::Result<usize>,
) -> io::Result<usize> {
    let mut done = 0;
    while done < range.len() {
        match call(offset + done as u64, range.start + done..range.end)? {
            0 => break,
            count => done += count,
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_without_waiting_is_begun_all_the_same() {
        let file = tempfile::tempfile().unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &[7; 1 << 16], 0).unwrap();
        file.sync_all().unwrap();
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
        let (lossy, always_waits) = (AtomicBool::new(false), AtomicBool::new(true));
        let image = Image::File { file, length: 1 << 16, lossy, always_waits };
        let driver = crate::virtio::testing::Driver::start(crate::virtio::rng::Rng::new(), 0);
        let buffer = Buffer::of(crate::virtio::testing::BUFFERS, 4096);
        assert_eq!(image.read_cached(&driver.memory, &buffer, 4096, 4096).unwrap(), 0);
        let Image::File { file, .. } = &image else { unreachable!("it is one") };
        crate::virtio::testing::eventually("it is in memory", || {
            vectored::read_cached_at(file, 4096, &driver.memory, &buffer, 0..4096).is_ok()
        });
        image.read(&driver.memory, &buffer, 0..4096, 4096).unwrap();
        assert_eq!(driver.read(crate::virtio::testing::BUFFERS, 4096), [7; 4096]);
    }

    #[test]
    fn a_disk_that_lost_a_write_takes_no_more() {
        // It takes every write, and makes none durable.
        let file = File::options().read(true).write(true).open("/dev/null").unwrap();
        let (lossy, always_waits) = Default::default();
        let image = Image::File { file, length: SECTOR, lossy, always_waits };
        assert!(image.writable().is_ok());
        assert!(image.sync().unwrap_err().raw_os_error().is_some());
        for error in [image.writable().unwrap_err(), image.sync().unwrap_err()] {
            assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem);
        }
    }
}
