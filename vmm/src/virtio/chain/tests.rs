#![expect(clippy::cast_possible_truncation, reason = "lengths of tests are small")]
use super::*;
use crate::virtio::testing::Random;
use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use virtio_queue::mock::MockSplitQueue;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{Bytes, GuestRegionMmap};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const MEMORY: usize = 1 << 20;

/// Two regions with a hole between them and one next to the other.
fn memory() -> Memory {
    let regions = [(0, MEMORY), (MEMORY as u64, 0x1000), (2 * MEMORY as u64, 0x1000)];
    Memory::from_ranges(&regions.map(|(start, length)| (GuestAddress(start), length))).unwrap()
}

fn descriptor(address: u64, length: u32, flags: u16) -> RawDescriptor {
    RawDescriptor::from(Descriptor::new(address, length, flags, 0))
}

/// Parses a chain of these descriptors, linked in order.
fn parse(memory: &Memory, descriptors: &[RawDescriptor]) -> Result<Chain, ChainError> {
    let queue = MockSplitQueue::new(memory, 1 << 11);
    Chain::parse(memory, queue.build_desc_chain(descriptors).unwrap(), Chain::default())
}

#[test]
fn both_buffers_are_gathered() {
    let parts = [descriptor(0x8_0000, 10, 0), descriptor(0x8_1000, 20, 0), descriptor(0x8_2000, 30, WRITE)];
    let chain = parse(&memory(), &parts).unwrap();
    assert_eq!((chain.readable.len(), chain.writable.len()), (30, 30));
}

#[test]
fn a_descriptor_may_span_adjacent_regions_but_no_hole() {
    let memory = memory();
    let end = MEMORY as u64;
    let chain = parse(&memory, &[descriptor(end - 16, 32, WRITE)]).unwrap();
    let bytes: Vec<u8> = (0..32).collect();
    chain.writable.copy_from(&memory, 0, &bytes).unwrap();
    let mut back = [0; 32];
    memory.read_slice(&mut back, GuestAddress(end - 16)).unwrap();
    assert_eq!(back, *bytes);
    assert_eq!(chain.writable.slices(&memory, 0..32).unwrap().len(), 2);
    for (address, length) in [(end + 0xff0, 32), (end + 0x1000, 1), (u64::MAX, 1), (u64::MAX - 15, 32)] {
        assert_eq!(parse(&memory, &[descriptor(address, length, 0)]).unwrap_err(), ChainError::NotMemory);
    }
}

#[test]
fn images_are_sent_and_never_written() {
    let image = MmapRegionBuilder::new(0x1000).with_mmap_prot(libc::PROT_READ);
    let image = image.with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS).build().unwrap();
    let (start, end) = (2 * MEMORY as u64 + 0x1000, 2 * MEMORY as u64 + 0x2000);
    let image = GuestRegionMmap::new(image, GuestAddress(start)).unwrap();
    let memory = memory().insert_region(image.into()).unwrap();
    assert_eq!(parse(&memory, &[descriptor(start, 0x1000, 0)]).unwrap().readable.len(), 0x1000);
    parse(&memory, &[descriptor(start - 16, 16, WRITE)]).unwrap();
    for (address, length) in [(start, 1), (end - 1, 1), (start - 16, 17), (start - 0x1000, 0x2000), (start, 0)] {
        assert_eq!(parse(&memory, &[descriptor(address, length, WRITE)]).unwrap_err(), ChainError::NotMemory);
    }
    assert!(can_be_written(&memory, GuestAddress(0), 1) && !can_be_written(&memory, GuestAddress(u64::MAX), 16));
}

#[test]
fn a_chain_that_goes_back_to_reading_is_refused() {
    let parts = [descriptor(0x8_0000, 1, WRITE), descriptor(0x8_0000, 1, 0)];
    assert_eq!(parse(&memory(), &parts).unwrap_err(), ChainError::Order);
}

#[test]
fn a_chain_longer_than_a_system_call_takes_is_refused() {
    let memory = memory();
    let part = descriptor(0x8_0000, 1, 0);
    assert_eq!(parse(&memory, &vec![part; MAX_DESCRIPTORS]).unwrap().readable.len(), MAX_DESCRIPTORS);
    assert_eq!(parse(&memory, &vec![part; MAX_DESCRIPTORS + 1]).unwrap_err(), ChainError::TooLong);
}

#[test]
fn a_chain_of_more_than_4_gib_is_cut_and_refused() {
    let memory = Memory::from_ranges(&[(GuestAddress(0), 3 << 30)]).unwrap();
    let part = descriptor(0x8_0000, 1 << 31, 0);
    assert_eq!(parse(&memory, &[part, part]).unwrap_err(), ChainError::Cut);
}

#[test]
fn a_chain_that_leads_out_of_the_table_is_refused() {
    let memory = memory();
    let queue = MockSplitQueue::new(&memory, 16);
    let part = RawDescriptor::from(Descriptor::new(0x8_0000, 1, NEXT, 16));
    let chain = queue.build_multiple_desc_chains(&[part]).unwrap();
    assert_eq!(Chain::parse(&memory, chain, Chain::default()).unwrap_err(), ChainError::Cut);
}

#[test]
fn any_range_reads_and_writes_as_in_one_piece() {
    let memory = memory();
    let mut random = Random::new(0x5eed_c4a1);
    for _ in 0..200 {
        let count = 1 + random.below(8);
        let mut model = Vec::new();
        let mut parts = Vec::new();
        for index in 0..count {
            let (address, length) = (0x8_0000 + index * 0x1000, random.below(40) as u32);
            let bytes: Vec<u8> = (0..length).map(|_| random.below(256) as u8).collect();
            memory.write_slice(&bytes, GuestAddress(address)).unwrap();
            model.extend(bytes);
            parts.push(descriptor(address, length, WRITE));
        }
        let buffer = parse(&memory, &parts).unwrap().writable;
        assert_eq!(buffer.len(), model.len());
        let start = random.below(model.len() as u64 + 1) as usize;
        let length = random.below((model.len() - start) as u64 + 1) as usize;
        let mut read = vec![0; length];
        buffer.copy_to(&memory, start, &mut read).unwrap();
        assert_eq!(read, model[start..start + length]);
        let slices = buffer.slices(&memory, start..start + length).unwrap();
        assert_eq!(slices.iter().map(VolatileSlice::len).sum::<usize>(), length);
        let fresh: Vec<u8> = (0..length).map(|_| random.below(256) as u8).collect();
        buffer.copy_from(&memory, start, &fresh).unwrap();
        model[start..start + length].copy_from_slice(&fresh);
        let mut all = vec![0; model.len()];
        buffer.copy_to(&memory, 0, &mut all).unwrap();
        assert_eq!(all, model);
        assert_eq!(buffer.copy_to(&memory, start, &mut vec![0; model.len() - start + 1]), Err(ChainError::Short));
    }
}
