#![expect(clippy::cast_possible_truncation, reason = "lengths of tests are small")]
use super::*;
use crate::virtio::testing::{
    BUFFERS, Descriptor, Driver, EVENT_INDEX, INDIRECT, NEXT, Part, WRITE, survives_random_chains, write_descriptor,
};
use std::num::NonZeroU32;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::Duration;

mod batches;
mod parts;

const READ: u32 = 0;
const WRITE_DATA: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

const HEADER: u64 = BUFFERS;
const STATUS: u64 = BUFFERS + 0x100;
const DATA: u64 = BUFFERS + 0x1000;
const SECTORS: u64 = 2048;

struct Fixture {
    driver: Driver<Block>,
    image: File,
}

impl Fixture {
    fn new(read_only: bool) -> Self {
        let image = tempfile::tempfile().unwrap();
        image.set_len(SECTORS * SECTOR).unwrap();
        let block = Block::new(image.try_clone().unwrap(), read_only, Options::default()).unwrap();
        Self { driver: Driver::start(block, EVENT_INDEX), image }
    }

    fn header(&self, kind: u32, sector: u64) {
        self.driver.write(HEADER, &kind.to_le_bytes());
        self.driver.write(HEADER + 8, &sector.to_le_bytes());
        self.driver.write(STATUS, &[0xff]);
    }

    /// Sends a request with these data parts; returns its status and how much was written.
    fn request(&mut self, kind: u32, sector: u64, data: &[Part]) -> (u8, u32) {
        self.header(kind, sector);
        let mut parts = vec![Part::Readable(HEADER, 16)];
        parts.extend(data);
        parts.push(Part::Writable(STATUS, 1));
        let written = self.driver.queues[0].request(&parts);
        (self.driver.read(STATUS, 1)[0], written)
    }

    fn range_request(&mut self, kind: u32, ranges: &[(u64, u32, u32)]) -> u8 {
        for (index, (sector, sectors, flags)) in ranges.iter().enumerate() {
            let address = DATA + 16 * index as u64;
            self.driver.write(address, &sector.to_le_bytes());
            self.driver.write(address + 8, &sectors.to_le_bytes());
            self.driver.write(address + 12, &flags.to_le_bytes());
        }
        self.request(kind, 0, &[Part::Readable(DATA, 16 * ranges.len() as u32)]).0
    }

    fn content(&self, sector: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.image.read_exact_at(&mut bytes, sector * SECTOR).unwrap();
        bytes
    }
}

#[test]
fn what_is_written_reads_back_across_descriptors() {
    let mut disk = Fixture::new(false);
    let pattern: Vec<u8> = (0..8192_u32).map(|byte| (byte % 251) as u8).collect();
    disk.driver.write(DATA, &pattern);
    let parts = [Part::Readable(DATA, 1000), Part::Readable(DATA + 1000, 7192)];
    assert_eq!(disk.request(WRITE_DATA, 5, &parts), (OK, 1));
    assert_eq!(disk.content(5, 8192), pattern);
    let back = DATA + 0x1_0000;
    let parts = [Part::Writable(back, 4096), Part::Writable(back + 0x2000, 4096)];
    assert_eq!(disk.request(READ, 5, &parts), (OK, 8193));
    assert_eq!(disk.driver.read(back, 4096), pattern[..4096]);
    assert_eq!(disk.driver.read(back + 0x2000, 4096), pattern[4096..]);
}

#[test]
fn status_may_share_the_last_data_descriptor() {
    let mut disk = Fixture::new(false);
    disk.image.write_all_at(&[7; 512], 0).unwrap();
    disk.header(READ, 0);
    assert_eq!(disk.driver.queues[0].request(&[Part::Readable(HEADER, 16), Part::Writable(DATA, 513)]), 513);
    assert_eq!(disk.driver.read(DATA, 512), [7; 512]);
    assert_eq!(disk.driver.read(DATA + 512, 1), [OK]);
}

#[test]
fn header_may_be_split() {
    let mut disk = Fixture::new(false);
    disk.image.write_all_at(&[7; 512], 512).unwrap();
    disk.header(READ, 1);
    let parts = [
        Part::Readable(HEADER, 7),
        Part::Readable(HEADER + 7, 9),
        Part::Writable(DATA, 512),
        Part::Writable(STATUS, 1),
    ];
    assert_eq!(disk.driver.queues[0].request(&parts), 513);
    assert_eq!(disk.driver.read(DATA, 512), [7; 512]);
}

#[test]
fn the_last_sector_is_reachable_and_the_next_is_not() {
    let mut disk = Fixture::new(false);
    assert_eq!(disk.request(READ, SECTORS - 1, &[Part::Writable(DATA, 512)]).0, OK);
    assert_eq!(disk.request(READ, SECTORS - 1, &[Part::Writable(DATA, 1024)]).0, IO_ERROR);
    assert_eq!(disk.request(READ, SECTORS, &[Part::Writable(DATA, 512)]).0, IO_ERROR);
    assert_eq!(disk.request(WRITE_DATA, SECTORS, &[Part::Readable(DATA, 512)]).0, IO_ERROR);
    for sector in [u64::MAX, u64::MAX / 512, 1 << 55, i64::MAX as u64] {
        assert_eq!(disk.request(READ, sector, &[Part::Writable(DATA, 512)]).0, IO_ERROR);
        assert_eq!(disk.request(WRITE_DATA, sector, &[Part::Readable(DATA, 512)]).0, IO_ERROR);
    }
    assert_eq!(disk.image.metadata().unwrap().len(), SECTORS * SECTOR);
}

#[test]
fn parts_of_sectors_are_refused() {
    let mut disk = Fixture::new(false);
    assert_eq!(disk.request(READ, 0, &[Part::Writable(DATA, 511)]).0, IO_ERROR);
    assert_eq!(disk.request(WRITE_DATA, 0, &[Part::Readable(DATA, 513)]).0, IO_ERROR);
}

#[test]
fn a_read_only_disk_refuses_all_changes() {
    let mut disk = Fixture::new(true);
    disk.image.write_all_at(&[7; 512], 0).unwrap();
    assert_eq!(disk.request(WRITE_DATA, 0, &[Part::Readable(DATA, 512)]).0, IO_ERROR);
    assert_eq!(disk.range_request(DISCARD, &[(0, 8, 0)]), IO_ERROR);
    assert_eq!(disk.range_request(WRITE_ZEROES, &[(0, 8, 0)]), IO_ERROR);
    assert_eq!(disk.content(0, 512), [7; 512]);
    assert_eq!(disk.request(READ, 0, &[Part::Writable(DATA, 512)]).0, OK);
    assert_eq!(disk.request(FLUSH, 0, &[]).0, OK);
    let features = disk.driver.device.traits().features;
    assert_ne!(features & 1 << VIRTIO_BLK_F_RO, 0);
    assert_eq!(features & (1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES), 0);
}

#[test]
fn a_discard_gives_storage_back() {
    let mut disk = Fixture::new(false);
    disk.image.write_all_at(&vec![7; 1 << 20], 0).unwrap();
    let before = disk.image.metadata().unwrap().blocks();
    assert_eq!(disk.range_request(DISCARD, &[(0, 1024, 0), (1024, 512, 0)]), OK);
    assert!(disk.image.metadata().unwrap().blocks() < before);
    assert_eq!(disk.content(0, 512), [0; 512]);
    assert_eq!(disk.content(1536, 512), [7; 512]);
    assert_eq!(disk.image.metadata().unwrap().len(), SECTORS * SECTOR);
}

#[test]
fn zeroes_are_written_with_and_without_unmapping() {
    let mut disk = Fixture::new(false);
    disk.image.write_all_at(&[7; 4096], 0).unwrap();
    assert_eq!(disk.range_request(WRITE_ZEROES, &[(0, 1, 1)]), OK);
    // A file system without ZERO_RANGE says so, and the guest writes zeroes itself.
    let kept = disk.range_request(WRITE_ZEROES, &[(2, 1, 0)]);
    assert!(kept == OK || kept == UNSUPPORTED);
    assert_eq!(disk.content(0, 512), [0; 512]);
    assert_eq!(disk.content(1, 512), [7; 512]);
}

#[test]
fn hostile_ranges_are_refused() {
    let mut disk = Fixture::new(false);
    disk.image.write_all_at(&[7; 512], 0).unwrap();
    for kind in [DISCARD, WRITE_ZEROES] {
        assert_eq!(disk.range_request(kind, &[(SECTORS, 1, 0)]), IO_ERROR);
        assert_eq!(disk.range_request(kind, &[(0, u32::MAX, 0)]), IO_ERROR);
        assert_eq!(disk.range_request(kind, &[(u64::MAX, 2, 0)]), IO_ERROR);
        assert_eq!(disk.range_request(kind, &[(0, 1, 2)]), UNSUPPORTED);
        assert_eq!(disk.range_request(kind, &[]), IO_ERROR);
        assert_eq!(disk.range_request(kind, &[(0, 1, 0); 33]), IO_ERROR);
        assert_eq!(disk.request(kind, 0, &[Part::Readable(DATA, 17)]).0, IO_ERROR);
        assert_eq!(disk.request(kind, 0, &[Part::Readable(DATA, 2 << 20)]).0, IO_ERROR);
    }
    assert_eq!(disk.range_request(DISCARD, &[(0, 1, 1)]), UNSUPPORTED);
    assert_eq!(disk.content(0, 512), [7; 512]);
}

#[test]
fn the_name_fits_any_buffer() {
    let mut disk = Fixture::new(false);
    assert_eq!(disk.request(GET_ID, 0, &[Part::Writable(DATA, 20)]), (OK, 21));
    assert_eq!(&disk.driver.read(DATA, 9), b"bulkhead\0");
    assert_eq!(disk.request(GET_ID, 0, &[Part::Writable(DATA, 3)]), (OK, 4));
}

#[test]
fn unknown_requests_are_unsupported() {
    let mut disk = Fixture::new(false);
    assert_eq!(disk.request(0x7777, 0, &[]).0, UNSUPPORTED);
}

#[test]
fn malformed_chains_return_and_the_disk_lives_on() {
    let mut disk = Fixture::new(false);
    disk.header(READ, 0);
    let queue = &mut disk.driver.queues[0];
    assert_eq!(queue.request(&[Part::Readable(HEADER, 16)]), 0, "no status");
    assert_eq!(queue.request(&[Part::Readable(HEADER, 8), Part::Writable(STATUS, 1)]), 1, "short header");
    assert_eq!(queue.request(&[Part::Writable(STATUS, 1)]), 1, "no header");
    assert_eq!(queue.request(&[Part::Readable(HEADER, 16), Part::Writable(STATUS, 0)]), 0, "empty status");
    let parts = [Part::Readable(HEADER, 16), Part::Writable(DATA, 512), Part::Readable(DATA, 512)];
    assert_eq!(queue.request(&parts), 0, "readable after writable");
    let parts = [Part::Readable(HEADER, 16), Part::Writable(u64::MAX - 100, 512), Part::Writable(STATUS, 1)];
    assert_eq!(queue.request(&parts), 0, "outside memory");
    let parts = [Part::Readable(HEADER, 16), Part::Writable(DATA, u32::MAX), Part::Writable(STATUS, 1)];
    assert_eq!(queue.request(&parts), 0, "longer than memory");
    assert_eq!(disk.request(READ, 0, &[Part::Writable(DATA, 512)]), (OK, 513));
}

#[test]
fn a_looping_chain_returns() {
    let mut disk = Fixture::new(false);
    disk.header(READ, 0);
    let queue = &mut disk.driver.queues[0];
    queue.describe(0, Descriptor { address: HEADER, length: 16, flags: NEXT, next: 1 });
    queue.describe(1, Descriptor { address: DATA, length: 512, flags: NEXT | WRITE, next: 1 });
    queue.offer(0);
    queue.kick();
    assert_eq!(queue.wait(1), [(0, 0)]);
}

#[test]
fn indirect_tables_work_and_nested_ones_are_refused() {
    let mut disk = Fixture::new(false);
    disk.header(READ, 0);
    let table = DATA + 0x10_0000;
    let memory = disk.driver.memory.clone();
    write_descriptor(&memory, table, 0, Descriptor { address: HEADER, length: 16, flags: NEXT, next: 1 });
    write_descriptor(&memory, table, 1, Descriptor { address: DATA, length: 512, flags: NEXT | WRITE, next: 2 });
    write_descriptor(&memory, table, 2, Descriptor { address: STATUS, length: 1, flags: WRITE, next: 0 });
    let queue = &mut disk.driver.queues[0];
    let indirect = |length| Descriptor { address: table, length, flags: INDIRECT, next: 0 };
    queue.describe(0, indirect(48));
    queue.offer(0);
    queue.kick();
    assert_eq!(queue.wait(1), [(0, 513)]);
    for length in [0, 17, 32, 0xffff_fff0] {
        queue.describe(0, indirect(length));
        queue.offer(0);
        queue.kick();
        assert_eq!(queue.wait(1), [(0, 0)], "table of {length} bytes");
    }
    write_descriptor(&memory, table, 1, Descriptor { address: table, length: 48, flags: INDIRECT, next: 0 });
    queue.describe(0, indirect(48));
    queue.offer(0);
    queue.kick();
    assert_eq!(queue.wait(1), [(0, 0)]);
}

#[test]
fn a_broken_ring_silences_the_device_until_its_reset() {
    let mut disk = Fixture::new(false);
    disk.driver.queues[0].set_available(1000);
    disk.driver.queues[0].kick();
    disk.driver.stop();
    assert_eq!(disk.driver.queues[0].returned(), []);
    disk.driver.restart(0);
    assert_eq!(disk.request(READ, 0, &[Part::Writable(DATA, 512)]), (OK, 513));
    disk.driver.queues[0].offer(spec::QUEUE_SIZE);
    disk.driver.queues[0].kick();
    disk.driver.stop();
    disk.driver.restart(0);
    assert_eq!(disk.request(READ, 0, &[Part::Writable(DATA, 512)]), (OK, 513));
}

#[test]
fn a_full_ring_is_served_with_one_interrupt_where_the_driver_asks_for_it() {
    let mut disk = Fixture::new(false);
    disk.header(READ, 0);
    let queue = &mut disk.driver.queues[0];
    for _ in 0..64 {
        queue.add(&[Part::Readable(HEADER, 16), Part::Writable(DATA, 512), Part::Writable(STATUS, 1)]);
    }
    queue.kick();
    assert_eq!(queue.wait(64).len(), 64);
    assert!(queue.interrupts() <= 2, "{}", queue.interrupts());
}

#[test]
fn a_file_cut_while_in_use_gives_errors() {
    let mut disk = Fixture::new(false);
    disk.image.set_len(512).unwrap();
    assert_eq!(disk.request(READ, 0, &[Part::Writable(DATA, 512)]).0, OK);
    assert_eq!(disk.request(READ, 0, &[Part::Writable(DATA, 1024)]).0, IO_ERROR);
    assert_eq!(disk.request(READ, 8, &[Part::Writable(DATA, 512)]).0, IO_ERROR);
}

#[test]
fn it_survives_random_chains() {
    survives_random_chains(&mut Fixture::new(false).driver, 0, 0x5eed_0002, 100);
    survives_random_chains(&mut Fixture::new(true).driver, 0, 0x5eed_1002, 100);
}

#[test]
fn unusable_images_are_refused() {
    let image = |length| {
        let file = tempfile::tempfile().unwrap();
        file.set_len(length).unwrap();
        file
    };
    assert!(matches!(Block::new(image(0), true, Options::default()), Err(BlockError::Length(0))));
    assert!(matches!(Block::new(image(1000), true, Options::default()), Err(BlockError::Length(1000))));
    assert!(matches!(Block::new(File::open("/").unwrap(), true, Options::default()), Err(BlockError::Type)));
    assert!(matches!(Block::new(File::open("/dev/null").unwrap(), true, Options::default()), Err(BlockError::Type)));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    File::create(&path).unwrap().set_len(512).unwrap();
    assert!(matches!(
        Block::new(File::open(&path).unwrap(), false, Options::default()),
        Err(BlockError::Mode("writing"))
    ));
    let write_only = File::options().write(true).open(&path).unwrap();
    assert!(matches!(Block::new(write_only, true, Options::default()), Err(BlockError::Mode("reading"))));
}

#[test]
fn the_configuration_tells_the_capacity() {
    let disk = Fixture::new(false);
    let mut config = [0xff; 64];
    disk.driver.device.read_config(0, &mut config);
    assert_eq!(config[..8], SECTORS.to_le_bytes());
    assert_eq!(config[60..], [0; 4]);
    let mut tail = [0xff; 8];
    disk.driver.device.read_config(usize::MAX, &mut tail);
    assert_eq!(tail, [0; 8]);
}

#[test]
fn a_limited_disk_is_as_slow_as_it_is_to_be_and_no_reset_makes_it_faster() {
    let image = tempfile::tempfile().unwrap();
    image.set_len(SECTORS * SECTOR).unwrap();
    let limit = RateLimit { operations_per_second: NonZeroU32::new(20), ..RateLimit::default() };
    let block = Block::new(image.try_clone().unwrap(), false, Options { limit, ..Options::default() }).unwrap();
    let mut disk = Fixture { driver: Driver::start(block, EVENT_INDEX), image };
    let read = |disk: &mut Fixture, count| {
        for _ in 0..count {
            assert_eq!(disk.request(READ, 0, &[Part::Writable(DATA, 512)]), (OK, 513));
        }
    };
    let started = Instant::now();
    read(&mut disk, 20);
    let burst = started.elapsed();
    read(&mut disk, 10);
    disk.driver.stop();
    disk.driver.restart(EVENT_INDEX);
    read(&mut disk, 10);
    // A second's worth at once, then twenty a second.
    assert!(started.elapsed() >= Duration::from_millis(950), "{:?}", started.elapsed());
    assert!(burst < Duration::from_millis(500), "{burst:?}");
}
