//! Disks of several files.

use super::*;
use vmm_protocol::part_offsets;

fn file(bytes: &[u8]) -> File {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("part");
    std::fs::write(&path, bytes).unwrap();
    File::open(path).unwrap()
}

fn layers(parts: Vec<File>) -> Result<Block, BlockError> {
    Block::layers(parts, Options::default())
}

/// Every byte tells its part and its place there.
fn content(part: usize, length: usize) -> Vec<u8> {
    (0..length).map(|at| ((at * 7 + part * 31) % 251 + 1) as u8).collect()
}

/// The disk of parts of these lengths, and what it is to read as.
fn disk(lengths: &[usize]) -> (Driver<Block>, Vec<u8>) {
    let parts: Vec<_> = lengths.iter().enumerate().map(|(part, length)| content(part, *length)).collect();
    let places = part_offsets(&lengths.iter().map(|length| *length as u64).collect::<Vec<_>>()).unwrap();
    let mut expected = vec![0; places.last().unwrap().end.next_multiple_of(4096) as usize];
    for (part, place) in parts.iter().zip(places) {
        expected[place.start as usize..place.end as usize].copy_from_slice(part);
    }
    let block = layers(parts.iter().map(|part| file(part)).collect()).unwrap();
    (Driver::start(block, EVENT_INDEX), expected)
}

fn request(driver: &mut Driver<Block>, kind: u32, sector: u64, data: &[Part]) -> u8 {
    driver.write(HEADER, &kind.to_le_bytes());
    driver.write(HEADER + 8, &sector.to_le_bytes());
    driver.write(STATUS, &[0xff]);
    let mut parts = vec![Part::Readable(HEADER, 16)];
    parts.extend(data);
    parts.push(Part::Writable(STATUS, 1));
    driver.queues[0].request(&parts);
    driver.read(STATUS, 1)[0]
}

#[test]
fn the_disk_is_the_parts_at_their_places_with_zeroes_between_them() {
    let (mut driver, expected) = disk(&[4096, 1, 5000, 512, 12288, 4095]);
    let sectors = expected.len() as u64 / SECTOR;
    let mut config = [0; 8];
    driver.device.read_config(0, &mut config);
    assert_eq!(u64::from_le_bytes(config), sectors);
    // Every start with lengths that end within, at and beyond each border; the buffer is in two pieces, never aligned.
    for start in 0..sectors {
        for count in [1, 2, 7, 8, 9, 17, sectors - start] {
            let length = count * SECTOR;
            let wanted = [Part::Writable(DATA, 300), Part::Writable(DATA + 0x1_0001, length as u32 - 300)];
            driver.write(DATA, &[0xee; 300]);
            driver.write(DATA + 0x1_0001, &vec![0xee; length as usize - 300]);
            if start + count > sectors {
                assert_eq!(request(&mut driver, READ, start, &wanted), IO_ERROR);
                continue;
            }
            assert_eq!(request(&mut driver, READ, start, &wanted), OK);
            let expected = &expected[(start * SECTOR) as usize..][..length as usize];
            assert!(driver.read(DATA, 300) == expected[..300], "{count} sectors from {start}");
            assert!(driver.read(DATA + 0x1_0001, length as usize - 300) == expected[300..], "{count} from {start}");
        }
    }
}

#[test]
fn nothing_can_be_changed() {
    let (mut driver, _) = disk(&[8192, 8192]);
    let features = driver.device.traits().features;
    assert_ne!(features & 1 << VIRTIO_BLK_F_RO, 0);
    driver.write(DATA, &[0; 16]);
    driver.write(DATA + 8, &1_u32.to_le_bytes());
    for (kind, length) in [(WRITE_DATA, 512), (DISCARD, 16), (WRITE_ZEROES, 16)] {
        assert_eq!(request(&mut driver, kind, 0, &[Part::Readable(DATA, length)]), IO_ERROR);
    }
    assert_eq!(request(&mut driver, FLUSH, 0, &[]), OK);
}

#[test]
fn a_part_that_is_cut_while_in_use_gives_errors_and_the_others_do_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("part");
    std::fs::write(&path, content(0, 8192)).unwrap();
    let block = layers(vec![File::open(&path).unwrap(), file(&content(1, 4096))]).unwrap();
    let mut driver = Driver::start(block, EVENT_INDEX);
    File::options().write(true).open(&path).unwrap().set_len(4096).unwrap();
    assert_eq!(request(&mut driver, READ, 0, &[Part::Writable(DATA, 4096)]), OK);
    assert_eq!(request(&mut driver, READ, 8, &[Part::Writable(DATA, 512)]), IO_ERROR);
    assert_eq!(request(&mut driver, READ, 16, &[Part::Writable(DATA, 4096)]), OK);
}

#[test]
fn the_most_parts_are_a_disk_and_one_more_is_not() {
    let lengths = vec![600; MAX_PARTS];
    let (mut driver, expected) = disk(&lengths);
    let last = (expected.len() as u64 - 4096) / SECTOR;
    assert_eq!(request(&mut driver, READ, last, &[Part::Writable(DATA, 1024)]), OK);
    assert_eq!(driver.read(DATA, 600), content(MAX_PARTS - 1, 600));
    let one_more = (0..=MAX_PARTS).map(|_| file(b"x")).collect();
    assert!(matches!(layers(one_more), Err(BlockError::Parts(129))));
}

#[test]
fn unusable_parts_are_refused() {
    assert!(matches!(layers(Vec::new()), Err(BlockError::Parts(0))));
    assert!(matches!(layers(vec![file(b"x"), file(b"")]), Err(BlockError::Parts(2))));
    assert!(matches!(layers(vec![File::open("/").unwrap()]), Err(BlockError::PartType)));
    assert!(matches!(layers(vec![File::open("/dev/zero").unwrap()]), Err(BlockError::PartType)));
    let writable = tempfile::tempfile().unwrap();
    writable.set_len(4096).unwrap();
    assert!(matches!(layers(vec![writable]), Err(BlockError::PartMode)));
}

#[test]
fn it_survives_random_chains() {
    survives_random_chains(&mut disk(&[5000, 512, 9000]).0, 0, 0x5eed_0003, 100);
}
