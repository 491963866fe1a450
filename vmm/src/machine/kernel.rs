//! Loads an ELF kernel by mapping its file over guest memory, except for its code.
//!
//! Whole pages of a segment are private mappings of the file: all guests share the page cache until they write. Code,
//! which each guest patches, is copied, into huge pages where the host has them; pages of writable segments are made the
//! guest's own before it runs, since it writes to all of them. The parts of pages at a segment's ends are copied too, so
//! that bytes of the file that belong to no segment never show, and segments may meet inside a page. What a segment has
//! in memory only is zero, as fresh guest memory is.
#![expect(unsafe_code, reason = "reads a file into guest memory that has no huge pages yet")]

mod code;

use super::memory::{OverlayError, overlay};
use super::x86_64::layout::HIGH_MEMORY;
use crate::virtio::device::GuestMemory;
use linux_loader::elf::{Elf64_Ehdr, Elf64_Phdr};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError};

const PAGE: u64 = 4096;

const MAGIC: &[u8; 4] = b"\x7fELF";
const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const EXECUTABLE: u16 = 2;
const X86_64: u16 = 62;
const LOAD: u32 = 1;
const WRITABLE: u32 = 2;

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
    writable: bool,
}

/// A kernel in guest memory.
#[derive(Debug)]
pub struct Kernel {
    pub entry: u64,
    /// Guest addresses that it writes to while it boots, and that have memory of their own already.
    pub written: Vec<Range<u64>>,
}

/// Puts the kernel into guest memory. Nothing else may use the memory yet.
pub fn load(kernel: &File, memory: &GuestMemory) -> Result<Kernel, KernelError> {
    let header = read_header(kernel)?;
    let segments = segments(kernel, &header, memory)?;
    let entered = |segment: &Segment| {
        let loaded = segment.file.end - segment.file.start;
        (segment.memory.start..segment.memory.start + loaded).contains(&header.e_entry)
    };
    if !segments.iter().any(entered) {
        return Err(KernelError::Entry);
    }
    let parts = code::parts(kernel, &header);
    let mut written = Vec::new();
    for segment in &segments {
        written.extend(place(kernel, segment, &parts, memory)?);
    }
    Ok(Kernel { entry: header.e_entry, written })
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
    let writable = program.p_flags & WRITABLE != 0;
    Ok(Segment { index, file: program.p_offset..file_end, memory: program.p_paddr..memory_end, writable })
}

/// Maps the segment's whole pages and copies the rest. Returns what of it the guest will write to.
fn place(
    kernel: &File,
    segment: &Segment,
    code: &[Range<u64>],
    memory: &GuestMemory,
) -> Result<Vec<Range<u64>>, KernelError> {
    let whole = segment.file.start.next_multiple_of(PAGE)..segment.file.end - segment.file.end % PAGE;
    if whole.is_empty() {
        copy(kernel, segment, segment.file.clone(), memory)?;
        return Ok(Vec::new());
    }
    copy(kernel, segment, segment.file.start..whole.start, memory)?;
    copy(kernel, segment, whole.end..segment.file.end, memory)?;
    if segment.writable {
        // Data, and what Linux needs for its start only: it overwrites all of that when it gives it up.
        map(kernel, segment, whole, memory)?;
        own(segment, memory)?;
        return Ok(vec![segment.memory.clone()]);
    }
    let mut written = Vec::new();
    let mut placed = whole.start;
    for part in code {
        let start = (part.start - part.start % PAGE).max(placed);
        let pages = start..part.end.div_ceil(PAGE).saturating_mul(PAGE).min(whole.end);
        if !pages.is_empty() {
            map(kernel, segment, placed..pages.start, memory)?;
            read(kernel, segment, pages.clone(), memory)?;
            written.push(guest_address(segment, pages.start).0..guest_address(segment, pages.end).0);
            placed = pages.end;
        }
    }
    map(kernel, segment, placed..whole.end, memory)?;
    Ok(written)
}

/// Gives the guest pages of its own for all of the segment. What it has in memory only, it clears first of all.
fn own(segment: &Segment, memory: &GuestMemory) -> Result<(), KernelError> {
    let start = segment.memory.start - segment.memory.start % PAGE;
    let beyond = || KernelError::BeyondMemory(segment.index);
    let length = usize::try_from(segment.memory.end - start).map_err(|_| beyond())?;
    let target = memory.get_slice(GuestAddress(start), length).map_err(|_| beyond())?;
    // SAFETY: `target` is `length` bytes of guest memory, and no content changes. Where the host cannot do it, each page
    // becomes the guest's own when it writes to it.
    unsafe { libc::madvise(target.ptr_guard_mut().as_ptr().cast(), length, libc::MADV_POPULATE_WRITE) };
    Ok(())
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

/// Copies whole pages.
fn read(kernel: &File, segment: &Segment, part: Range<u64>, memory: &GuestMemory) -> Result<(), KernelError> {
    let length = usize::try_from(part.end - part.start).map_err(|_| KernelError::BeyondFile(segment.index))?;
    let target = memory
        .get_slice(guest_address(segment, part.start), length)
        .map_err(|_| KernelError::BeyondMemory(segment.index))?;
    let start = target.ptr_guard_mut();
    // SAFETY: `target` is `length` bytes of one region of guest memory, aligned to pages since the region is and the
    // segment was checked. Where the host has no huge pages the call fails and nothing is different.
    unsafe { libc::madvise(start.as_ptr().cast(), length, libc::MADV_HUGEPAGE) };
    // SAFETY: as above, and nobody else uses the memory yet.
    let bytes = unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), length) };
    kernel.read_exact_at(bytes, part.start).map_err(KernelError::Read)
}

fn map(kernel: &File, segment: &Segment, part: Range<u64>, memory: &GuestMemory) -> Result<(), KernelError> {
    if part.is_empty() {
        return Ok(());
    }
    let length = usize::try_from(part.end - part.start).map_err(|_| KernelError::BeyondFile(segment.index))?;
    overlay(memory, guest_address(segment, part.start), length, kernel, part.start).map_err(|error| match error {
        OverlayError::Place => KernelError::BeyondMemory(segment.index),
        OverlayError::Map(error) => KernelError::Map(segment.index, error),
    })
}

#[cfg(test)]
mod tests;
