use super::*;
use crate::virtio::testing::{BUFFERS, Driver, EVENT_INDEX, Part, survives_random_chains};

/// One block, the second half of the memory of tests.
const REGION: Range<u64> = BLOCK..2 * BLOCK;
const ANSWER: u64 = BUFFERS + 64;

fn driver() -> (Driver<Mem>, Handle) {
    let (device, handle) = Mem::new(&REGION);
    (Driver::start(device, EVENT_INDEX | spec::UNPLUGGED_INACCESSIBLE), handle)
}

/// Sends a request and returns the kinds of its answer and of the state in it.
fn ask(driver: &mut Driver<Mem>, kind: u16, start: u64, blocks: u16) -> (u8, u8) {
    let mut request = [0; 24];
    request[..2].copy_from_slice(&kind.to_le_bytes());
    request[8..16].copy_from_slice(&start.to_le_bytes());
    request[16..18].copy_from_slice(&blocks.to_le_bytes());
    driver.write(BUFFERS, &request);
    driver.write(ANSWER, &[0xff; 10]);
    let parts = [Part::Readable(BUFFERS, 24), Part::Writable(ANSWER, 10)];
    assert_eq!(driver.queues[0].request(&parts), 10);
    let answer = driver.read(ANSWER, 10);
    (answer[0], answer[8])
}

fn plugged(device: &Mem) -> [u64; 2] {
    let mut config = [0; 56];
    device.read_config(0, &mut config);
    let field = |index: usize| u64::from_le_bytes(config[8 * index..8 * index + 8].try_into().unwrap());
    assert_eq!([0, 1, 2, 3, 4].map(field), [BLOCK, 0, REGION.start, 128 << 20, 128 << 20]);
    [5, 6].map(field)
}

#[test]
fn memory_is_plugged_when_it_is_requested_and_unplugging_empties_it() {
    let (mut driver, handle) = driver();
    assert_eq!(ask(&mut driver, 0, REGION.start, 1), (1, 0), "none is requested");
    handle.request(BLOCK).unwrap();
    assert_eq!(plugged(&driver.device), [0, BLOCK]);
    assert_eq!(ask(&mut driver, 3, REGION.start, 1), (0, 1));
    assert_eq!(ask(&mut driver, 0, REGION.start, 1), (0, 0));
    assert_eq!(plugged(&driver.device), [BLOCK, BLOCK]);
    assert_eq!(ask(&mut driver, 3, REGION.start, 1), (0, 0));
    assert_eq!(ask(&mut driver, 3, REGION.start, 2), (0, 2));
    driver.write(REGION.start, &[7; 8192]);
    assert_eq!(ask(&mut driver, 1, REGION.start, 1), (0, 0));
    assert_eq!(driver.read(REGION.start, 8192), [0; 8192]);
    assert_eq!(plugged(&driver.device), [0, BLOCK]);
}

#[test]
fn all_of_it_can_be_unplugged_at_once() {
    let (mut driver, handle) = driver();
    handle.request(BLOCK).unwrap();
    ask(&mut driver, 0, REGION.start, 1);
    driver.write(REGION.end - 1, &[7]);
    assert_eq!(ask(&mut driver, 2, 0, 0), (0, 0));
    assert_eq!(driver.read(REGION.end - 1, 1), [0]);
    assert_eq!(plugged(&driver.device), [0, BLOCK]);
}

#[test]
fn requests_that_make_no_sense_are_answered_so() {
    let (mut driver, handle) = driver();
    handle.request(BLOCK).unwrap();
    for (kind, start, blocks) in [
        (4, REGION.start, 1),
        (u16::MAX, 0, 0),
        (0, 0, 1),
        (0, REGION.end, 1),
        (0, REGION.start + 4096, 1),
        (1, REGION.start, 1),
        (1, 0, 1),
        (3, 0, 1),
        (3, u64::MAX, u16::MAX),
    ] {
        assert_eq!(ask(&mut driver, kind, start, blocks).0, 3, "{kind} {start:#x} {blocks}");
    }
    assert_eq!(driver.queues[0].request(&[Part::Readable(BUFFERS, 23), Part::Writable(ANSWER, 10)]), 0);
    assert_eq!(driver.queues[0].request(&[Part::Readable(BUFFERS, 24), Part::Writable(ANSWER, 9)]), 0);
}

#[test]
fn what_is_plugged_stays_so_over_a_reset_of_the_driver() {
    let (mut driver, handle) = driver();
    handle.request(BLOCK).unwrap();
    ask(&mut driver, 0, REGION.start, 1);
    driver.stop();
    handle.request(BLOCK).unwrap();
    assert_eq!(plugged(&driver.device), [BLOCK, BLOCK]);
    driver.restart(EVENT_INDEX);
    assert_eq!(ask(&mut driver, 3, REGION.start, 1), (0, 0));
}

#[test]
fn it_survives_random_chains() {
    survives_random_chains(&mut driver().0, REQUEST_QUEUE, 0x5eed_0018, 200);
}
