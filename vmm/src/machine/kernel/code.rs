//! Which parts of the kernel's file are code, as its section headers say.
//!
//! Linux patches nearly all of its code while it boots, so that sharing its pages would only cost an access more for
//! each. Nothing depends on this but speed: headers that make no sense name no code.

use super::PAGE;
use linux_loader::elf::Elf64_Ehdr;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// `int3`.
const BREAKPOINT: u8 = 0xcc;

/// Kernels have about thirty.
const MAX_SECTIONS: u16 = 256;
const HEADER: usize = 64;

const CONTENT: u32 = 1;
const IN_MEMORY: u64 = 2;
const CODE: u64 = 4;

/// Parts of the file, in order.
pub fn parts(kernel: &File, header: &Elf64_Ehdr) -> Vec<Range<u64>> {
    if usize::from(header.e_shentsize) != HEADER || header.e_shnum > MAX_SECTIONS {
        return Vec::new();
    }
    let mut sections = vec![0; usize::from(header.e_shnum) * HEADER];
    if kernel.read_exact_at(&mut sections, header.e_shoff).is_err() {
        return Vec::new();
    }
    let parts = sections.as_chunks::<HEADER>().0.iter().filter_map(code);
    let mut parts: Vec<_> = parts.map(|part| without_padding(kernel, part)).collect();
    parts.sort_unstable_by_key(|part| part.start);
    parts
}

/// Linux fills its code up to the next 2 MiB with breakpoints. Pages are looked at here and there only: one that is
/// taken for padding is mapped instead of copied, and just as right.
fn without_padding(kernel: &File, part: Range<u64>) -> Range<u64> {
    let (mut code, mut padding) = (0, (part.end - part.start).div_ceil(PAGE));
    while code < padding {
        let middle = code + (padding - code) / 2;
        let mut bytes = [0; 64];
        let read = kernel.read_exact_at(&mut bytes, part.start + middle * PAGE);
        if read.is_ok() && bytes == [BREAKPOINT; 64] {
            padding = middle;
        } else {
            code = middle + 1;
        }
    }
    part.start..part.end.min(part.start + code * PAGE)
}

/// The part of the file that a section is, if it is code.
fn code(section: &[u8; HEADER]) -> Option<Range<u64>> {
    let field = |at: usize| section[at..].first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
    let kind = section[4..].first_chunk().map(|bytes| u32::from_le_bytes(*bytes))?;
    let (flags, offset, size) = (field(8)?, field(24)?, field(32)?);
    if kind != CONTENT || flags & (IN_MEMORY | CODE) != IN_MEMORY | CODE || size == 0 {
        return None;
    }
    Some(offset..offset.checked_add(size)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section(kind: u32, flags: u64, offset: u64, size: u64) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[4..8].copy_from_slice(&kind.to_le_bytes());
        bytes[8..16].copy_from_slice(&flags.to_le_bytes());
        bytes[24..32].copy_from_slice(&offset.to_le_bytes());
        bytes[32..40].copy_from_slice(&size.to_le_bytes());
        bytes
    }

    #[test]
    fn only_content_that_is_executed_in_memory_is_code() {
        assert_eq!(code(&section(CONTENT, IN_MEMORY | CODE, 0x1000, 0x200)), Some(0x1000..0x1200));
        assert_eq!(code(&section(CONTENT, IN_MEMORY, 0x1000, 0x200)), None);
        assert_eq!(code(&section(CONTENT, CODE, 0x1000, 0x200)), None);
        assert_eq!(code(&section(8, IN_MEMORY | CODE, 0x1000, 0x200)), None);
        assert_eq!(code(&section(CONTENT, IN_MEMORY | CODE, u64::MAX, 2)), None);
    }

    #[test]
    fn padding_ends_at_the_last_page_of_code() {
        let kernel = tempfile::tempfile().unwrap();
        for code in [0, 1, 5, 8] {
            let mut bytes = vec![0x90; 8 * 4096];
            bytes[code * 4096..].fill(BREAKPOINT);
            kernel.write_all_at(&bytes, 0).unwrap();
            assert_eq!(without_padding(&kernel, 0..0x8000), 0..code as u64 * PAGE);
            assert_eq!(without_padding(&kernel, 0..0x7abc).end, (code as u64 * PAGE).min(0x7abc));
        }
    }

    #[test]
    fn headers_that_lie_name_no_code() {
        let kernel = tempfile::tempfile().unwrap();
        kernel.set_len(0x1000).unwrap();
        let header = |e_shoff, e_shentsize, e_shnum| Elf64_Ehdr { e_shoff, e_shentsize, e_shnum, ..Default::default() };
        for header in [header(0xfff, 64, 1), header(u64::MAX, 64, 1), header(0, 63, 1), header(0, 64, u16::MAX)] {
            assert!(parts(&kernel, &header).is_empty());
        }
    }
}
