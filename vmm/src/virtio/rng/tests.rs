use super::request::MAX_FILL;
use super::*;
use crate::virtio::testing::{BUFFERS, Driver, EVENT_INDEX, Part, survives_random_chains};

fn driver() -> Driver<Rng> {
    Driver::start(Rng::new(), EVENT_INDEX)
}

#[test]
fn a_buffer_is_filled_with_random_bytes() {
    let mut driver = driver();
    assert_eq!(driver.queues[0].request(&[Part::Writable(BUFFERS, 64)]), 64);
    let first = driver.read(BUFFERS, 64);
    assert_eq!(driver.queues[0].request(&[Part::Writable(BUFFERS, 64)]), 64);
    assert_ne!(first, driver.read(BUFFERS, 64));
    assert_eq!(driver.read(BUFFERS + 64, 64), [0; 64]);
}

#[test]
fn a_request_spans_its_descriptors() {
    let mut driver = driver();
    let parts = [Part::Writable(BUFFERS, 16), Part::Writable(BUFFERS + 4096, 16)];
    assert_eq!(driver.queues[0].request(&parts), 32);
    assert_ne!(driver.read(BUFFERS + 4096, 16), [0; 16]);
}

#[test]
fn a_huge_request_is_filled_up_to_the_bound() {
    let mut driver = driver();
    assert_eq!(driver.queues[0].request(&[Part::Writable(BUFFERS, 1 << 20)]), u32::try_from(MAX_FILL).unwrap());
    assert_eq!(driver.read(BUFFERS + MAX_FILL as u64, 64), [0; 64]);
}

#[test]
fn chains_without_a_writable_byte_return_empty() {
    let mut driver = driver();
    assert_eq!(driver.queues[0].request(&[Part::Readable(BUFFERS, 64)]), 0);
    assert_eq!(driver.queues[0].request(&[Part::Writable(BUFFERS, 0)]), 0);
}

#[test]
fn it_survives_random_chains() {
    survives_random_chains(&mut driver(), 0, 0x5eed_0004, 200);
}

#[test]
fn it_starts_again_after_a_stop() {
    let mut driver = driver();
    driver.queues[0].request(&[Part::Writable(BUFFERS, 64)]);
    driver.stop();
    driver.restart(0);
    assert_eq!(driver.queues[0].request(&[Part::Writable(BUFFERS, 64)]), 64);
}
