//! Kernels that are what they should be, and kernels that are not.

use super::super::memory::guest_memory;
use super::super::x86_64::layout;
use super::*;
use std::io::Write;
use std::ops::Range;

const MIB: u64 = 1 << 20;

/// What a program header says.
#[derive(Clone, Copy)]
struct Program {
    offset: u64,
    address: u64,
    file: u64,
    memory: u64,
}

const TEXT: Program = Program { offset: 0x1000, address: 2 * MIB, file: 0x2000, memory: 0x2000 };

fn memory() -> GuestMemory {
    guest_memory(&layout::ram(16 * MIB)).unwrap()
}

/// A file of 64 KiB whose bytes tell their offset, with these headers at its start.
fn elf(entry: u64, programs: &[Program], change: impl FnOnce(&mut Elf64_Ehdr)) -> File {
    let mut header = Elf64_Ehdr::default();
    header.e_ident[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', CLASS_64, LITTLE_ENDIAN]);
    header.e_type = EXECUTABLE;
    header.e_machine = X86_64;
    header.e_entry = entry;
    header.e_phoff = size_of::<Elf64_Ehdr>() as u64;
    header.e_phentsize = u16::try_from(size_of::<Elf64_Phdr>()).unwrap();
    header.e_phnum = u16::try_from(programs.len()).unwrap();
    change(&mut header);
    let mut bytes = header.as_slice().to_vec();
    for program in programs {
        let header = Elf64_Phdr {
            p_type: LOAD,
            p_offset: program.offset,
            p_paddr: program.address,
            p_filesz: program.file,
            p_memsz: program.memory,
            ..Default::default()
        };
        bytes.extend_from_slice(header.as_slice());
    }
    let length = bytes.len() as u64;
    bytes.extend((length..0x1_0000).map(pattern));
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&bytes).unwrap();
    file
}

fn pattern(offset: u64) -> u8 {
    u8::try_from((offset ^ (offset >> 8)) & 0xff).unwrap() | 1
}

fn bytes(memory: &GuestMemory, range: Range<u64>) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(range.end - range.start).unwrap()];
    memory.read_slice(&mut bytes, GuestAddress(range.start)).unwrap();
    bytes
}

fn refused(programs: &[Program]) -> KernelError {
    load(&elf(TEXT.address, programs, |_| {}), &memory()).unwrap_err()
}

#[test]
fn a_segment_shows_its_bytes_and_nothing_around_them() {
    // Begins and ends inside of a page.
    let program = Program { offset: 0x1234, address: 2 * MIB + 0x234, file: 0x3456, memory: 0x6000 };
    let memory = memory();
    let kernel = load(&elf(program.address, &[program], |_| {}), &memory).unwrap();
    assert_eq!(kernel.entry, program.address);
    let end = program.address + program.file;
    let loaded = bytes(&memory, program.address..end);
    let expected: Vec<u8> = (program.offset..program.offset + program.file).map(pattern).collect();
    assert!(loaded == expected);
    assert!(bytes(&memory, 2 * MIB..program.address).iter().all(|byte| *byte == 0));
    assert!(bytes(&memory, end..end + 0x4000).iter().all(|byte| *byte == 0));
}

#[test]
fn segments_may_meet_inside_of_a_page() {
    let first = Program { offset: 0x1000, address: 2 * MIB, file: 0x1800, memory: 0x1800 };
    let second = Program { offset: 0x4800, address: 2 * MIB + 0x1800, file: 0x1800, memory: 0x1800 };
    let memory = memory();
    load(&elf(TEXT.address, &[first, second], |_| {}), &memory).unwrap();
    let loaded = bytes(&memory, first.address..first.address + 0x3000);
    let expected: Vec<u8> = (0x1000..0x2800).chain(0x4800..0x6000).map(pattern).collect();
    assert!(loaded == expected);
}

#[test]
fn guests_write_to_copies_of_their_own() {
    let file = elf(TEXT.address, &[TEXT], |_| {});
    let (first, second) = (memory(), memory());
    load(&file, &first).unwrap();
    load(&file, &second).unwrap();
    first.write_slice(&[0; 16], GuestAddress(TEXT.address)).unwrap();
    assert!(bytes(&second, TEXT.address..TEXT.address + 16).iter().all(|byte| *byte != 0));
    let mut on_disk = [0; 16];
    file.read_exact_at(&mut on_disk, TEXT.offset).unwrap();
    assert!(on_disk.iter().all(|byte| *byte != 0));
}

#[test]
fn segments_beyond_the_file_are_refused() {
    for (offset, file) in [(0xf000, 0x2000), (u64::MAX - 0xfff, 0x1000), (0x1000, u64::MAX), (1 << 63, 1 << 63)] {
        let error = refused(&[Program { offset, file, memory: file, ..TEXT }]);
        assert!(matches!(error, KernelError::BeyondFile(0)), "{error}");
    }
}

#[test]
fn segments_beyond_guest_memory_are_refused() {
    for (address, memory) in [
        (0, 0x2000),
        (MIB - 0x1000, 0x2000),
        (16 * MIB - 0x1000, 0x2000),
        (u64::MAX - 0xfff, 0x2000),
        (2 * MIB, u64::MAX),
        (2 * MIB, 0x1fff),
    ] {
        let error = refused(&[Program { address, memory, ..TEXT }]);
        assert!(matches!(error, KernelError::BeyondMemory(0)), "{address:#x}: {error}");
    }
}

#[test]
fn a_segment_must_not_span_the_hole_between_two_regions() {
    let memory = guest_memory(&[0..4 * MIB, 4 * MIB..8 * MIB]).unwrap();
    let program = Program { address: 4 * MIB - 0x1000, ..TEXT };
    let error = load(&elf(program.address, &[program], |_| {}), &memory).unwrap_err();
    assert!(matches!(error, KernelError::BeyondMemory(0)), "{error}");
}

#[test]
fn misaligned_segments_are_refused() {
    let error = refused(&[Program { offset: 0x1001, ..TEXT }]);
    assert!(matches!(error, KernelError::Misaligned(0)), "{error}");
}

#[test]
fn overlapping_segments_are_refused() {
    let error = refused(&[TEXT, Program { address: TEXT.address + 0x1000, ..TEXT }]);
    assert!(matches!(error, KernelError::Overlap(0, 1)), "{error}");
    let error = refused(&[TEXT, Program { address: TEXT.address + 0x1000, file: 0, memory: 1, ..TEXT }]);
    assert!(matches!(error, KernelError::Overlap(0, 1)), "{error}");
}

#[test]
fn an_entry_outside_of_what_was_loaded_is_refused() {
    for entry in [0, TEXT.address - 1, TEXT.address + TEXT.file, u64::MAX] {
        let error = load(&elf(entry, &[TEXT], |_| {}), &memory()).unwrap_err();
        assert!(matches!(error, KernelError::Entry), "{error}");
    }
}

#[test]
fn headers_that_lie_are_refused() {
    let changes: [fn(&mut Elf64_Ehdr); 9] = [
        |header| header.e_ident[0] = 0,
        |header| header.e_ident[4] = 1,
        |header| header.e_ident[5] = 2,
        |header| header.e_type = 3,
        |header| header.e_machine = 3,
        |header| header.e_phentsize = 1,
        |header| header.e_phnum = u16::MAX,
        |header| header.e_phoff = u64::MAX,
        |header| header.e_phoff = 0xffff,
    ];
    for (index, change) in changes.into_iter().enumerate() {
        assert!(load(&elf(TEXT.address, &[TEXT], change), &memory()).is_err(), "change {index}");
    }
}

#[test]
fn files_that_end_early_are_refused() {
    let file = elf(TEXT.address, &[TEXT], |_| {});
    for length in (0..=size_of::<Elf64_Ehdr>() as u64 + size_of::<Elf64_Phdr>() as u64).rev() {
        file.set_len(length).unwrap();
        assert!(load(&file, &memory()).is_err(), "{length}");
    }
}

#[test]
fn random_headers_are_refused_or_loaded_but_never_break() {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        // Small, huge and page-sized values meet more checks than evenly spread ones.
        match seed % 4 {
            0 => seed,
            1 => seed & 0xf_ffff,
            2 => seed & 0xff_f000,
            _ => u64::MAX - (seed & 0xffff),
        }
    };
    for _ in 0..2000 {
        let programs: Vec<_> =
            (0..3).map(|_| Program { offset: random(), address: random(), file: random(), memory: random() }).collect();
        let _ = load(&elf(programs[0].address, &programs, |_| {}), &memory());
    }
}
