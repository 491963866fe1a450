//! Loads an ELF kernel by mapping its file over guest memory.
//!
//! Whole pages of a segment are private mappings of the file: all guests share the page cache until they write. The
//! parts of pages at a segment's ends are copied, so that bytes of the file that belong to no segment never show, and
//! segments may meet inside a page. What a segment has in memory only is zero, as fresh guest memory is.
#![expect(unsafe_code, reason = "maps a file over guest memory")]

use super::x86_64::layout::HIGH_MEMORY;
use crate::virtio::device::GuestMemory;
use linux_loader::elf::{Elf64_Ehdr, Elf64_Phdr};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError};

const PAGE: u64 = 4096;

const MAGIC: &[u8; 4] = b"\x7fELF";
const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const EXECUTABLE: u16 = 2;
const X86_64: u16 = 62;
const LOAD: u32 = 1;

/// Kernels have about five.
const MAX_PROGRAM_HEADERS: u16 = 64;

#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    #[error("cannot read the kernel's headers")]
    Read(#[source] io::Error),
    #[error("kernel is not an ELF executable for x86-64")]
    NotElf,
    #[error("kernel has {0} program headers of {1} bytes")]
    ProgramHeaders(u16, u16),
    #[error("kernel segment {0} does not lie in its file")]
    BeyondFile(usize),
    #[error("kernel segment {0} does not lie in guest memory from 1 MiB on")]
    BeyondMemory(usize),
    #[error("kernel segment {0} is placed differently within a page in file and memory")]
    Misaligned(usize),
    #[error("kernel segments {0} and {1} overlap")]
    Overlap(usize, usize),
    #[error("kernel's entry lies in none of its segments")]
    Entry,
    #[error("cannot map kernel segment {0}")]
    Map(usize, #[source] io::Error),
    #[error("cannot copy kernel segment {0}")]
    Copy(usize, #[source] GuestMemoryError),
}

/// A part of the file and its place in guest memory, both checked.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Segment {
    index: usize,
    file: Range<u64>,
    memory: Range<u64>,
}

/// Puts the kernel into guest memory and returns its entry. Nothing else may use the memory yet.
pub fn load(kernel: &File, memory: &GuestMemory) -> Result<u64, KernelError> {
    let header = read_header(kernel)?;
    let segments = segments(kernel, &header, memory)?;
    let entered = |segment: &Segment| {
        let loaded = segment.file.end - segment.file.start;
        (segment.memory.start..segment.memory.start + loaded).contains(&header.e_entry)
    };
    if !segments.iter().any(entered) {
        return Err(KernelError::Entry);
    }
    for segment in &segments {
        place(kernel, segment, memory)?;
    }
    Ok(header.e_entry)
}

fn read_header(kernel: &File) -> Result<Elf64_Ehdr, KernelError> {
    let mut header = Elf64_Ehdr::default();
    kernel.read_exact_at(header.as_mut_slice(), 0).map_err(KernelError::Read)?;
    let supported = header.e_ident[..4] == *MAGIC
        && header.e_ident[4] == CLASS_64
        && header.e_ident[5] == LITTLE_ENDIAN
        && header.e_type == EXECUTABLE
        && header.e_machine == X86_64;
    if !supported {
        return Err(KernelError::NotElf);
    }
    if usize::from(header.e_phentsize) != size_of::<Elf64_Phdr>() || header.e_phnum > MAX_PROGRAM_HEADERS {
        return Err(KernelError::ProgramHeaders(header.e_phnum, header.e_phentsize));
    }
    Ok(header)
}

fn segments(kernel: &File, header: &Elf64_Ehdr, memory: &GuestMemory) -> Result<Vec<Segment>, KernelError> {
    let file_length = kernel.metadata().map_err(KernelError::Read)?.len();
    let mut segments: Vec<Segment> = Vec::new();
    for index in 0..usize::from(header.e_phnum) {
        let offset = (index as u64 * u64::from(header.e_phentsize)).checked_add(header.e_phoff);
        let mut program = Elf64_Phdr::default();
        let offset = offset.ok_or(KernelError::BeyondFile(index))?;
        kernel.read_exact_at(program.as_mut_slice(), offset).map_err(KernelError::Read)?;
        if program.p_type != LOAD || program.p_memsz == 0 {
            continue;
        }
        let segment = check(index, &program, file_length, memory)?;
        let overlapping =
            |other: &&Segment| other.memory.start < segment.memory.end && segment.memory.start < other.memory.end;
        if let Some(other) = segments.iter().find(overlapping) {
            return Err(KernelError::Overlap(other.index, index));
        }
        segments.push(segment);
    }
    Ok(segments)
}

fn check(index: usize, program: &Elf64_Phdr, file_length: u64, memory: &GuestMemory) -> Result<Segment, KernelError> {
    let file_end = program.p_offset.checked_add(program.p_filesz).filter(|end| *end <= file_length);
    let file_end = file_end.ok_or(KernelError::BeyondFile(index))?;
    let beyond = || KernelError::BeyondMemory(index);
    if program.p_paddr < HIGH_MEMORY || program.p_filesz > program.p_memsz {
        return Err(beyond());
    }
    let memory_end = program.p_paddr.checked_add(program.p_memsz).ok_or_else(beyond)?;
    let size = usize::try_from(program.p_memsz).map_err(|_| beyond())?;
    // One slice means one region, so that the host addresses are contiguous too.
    memory.get_slice(GuestAddress(program.p_paddr), size).map_err(|_| beyond())?;
    if program.p_filesz != 0 && program.p_paddr % PAGE != program.p_offset % PAGE {
        return Err(KernelError::Misaligned(index));
    }
    Ok(Segment { index, file: program.p_offset..file_end, memory: program.p_paddr..memory_end })
}

/// Maps the segment's whole pages and copies the rest.
fn place(kernel: &File, segment: &Segment, memory: &GuestMemory) -> Result<(), KernelError> {
    let whole = segment.file.start.next_multiple_of(PAGE)..segment.file.end - segment.file.end % PAGE;
    if whole.is_empty() {
        return copy(kernel, segment, segment.file.clone(), memory);
    }
    copy(kernel, segment, segment.file.start..whole.start, memory)?;
    map(kernel, segment, whole.clone(), memory)?;
    copy(kernel, segment, whole.end..segment.file.end, memory)
}

fn guest_address(segment: &Segment, file_offset: u64) -> GuestAddress {
    GuestAddress(segment.memory.start + (file_offset - segment.file.start))
}

fn copy(kernel: &File, segment: &Segment, part: Range<u64>, memory: &GuestMemory) -> Result<(), KernelError> {
    // At most two pages: what is longer is mapped.
    let mut bytes = vec![0; usize::try_from(part.end - part.start).unwrap_or(0)];
    kernel.read_exact_at(&mut bytes, part.start).map_err(KernelError::Read)?;
    memory
        .write_slice(&bytes, guest_address(segment, part.start))
        .map_err(|error| KernelError::Copy(segment.index, error))
}

fn map(kernel: &File, segment: &Segment, part: Range<u64>, memory: &GuestMemory) -> Result<(), KernelError> {
    let overflow = |_| KernelError::BeyondFile(segment.index);
    let length = usize::try_from(part.end - part.start).map_err(overflow)?;
    let offset = libc::off_t::try_from(part.start).map_err(overflow)?;
    let target = memory
        .get_slice(guest_address(segment, part.start), length)
        .map_err(|_| KernelError::BeyondMemory(segment.index))?;
    // SAFETY: `target` is `length` bytes of one region of guest memory, page-aligned since the region is and the
    // segment was checked. Replacing the pages of a region that nobody uses yet is what guest memory is for; the
    // region's own unmapping covers the new pages too.
    let mapped = unsafe {
        libc::mmap(
            target.ptr_guard_mut().as_ptr().cast(),
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE,
            kernel.as_raw_fd(),
            offset,
        )
    };
    if mapped == libc::MAP_FAILED {
        return Err(KernelError::Map(segment.index, io::Error::last_os_error()));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
