use super::*;
use crate::virtio::testing::{BUFFERS, Driver, Part, survives_random_chains};

fn driver() -> Driver<Pmem> {
    Driver::start(Pmem::new(0x1_4000_0000, 0x20_0000), 0)
}

#[test]
fn the_configuration_names_the_mapping() {
    let mut config = [0xff; 24];
    driver().device.read_config(0, &mut config);
    assert_eq!(config[..8], 0x1_4000_0000_u64.to_le_bytes());
    assert_eq!(config[8..16], 0x20_0000_u64.to_le_bytes());
    assert_eq!(config[16..], [0; 8]);
}

#[test]
fn a_flush_succeeds() {
    let mut driver = driver();
    driver.write(BUFFERS + 64, &[0xff; 4]);
    assert_eq!(driver.queues[0].request(&[Part::Readable(BUFFERS, 4), Part::Writable(BUFFERS + 64, 4)]), 4);
    assert_eq!(driver.read(BUFFERS + 64, 4), [0; 4]);
}

#[test]
fn an_unknown_request_fails() {
    let mut driver = driver();
    driver.write(BUFFERS, &7_u32.to_le_bytes());
    assert_eq!(driver.queues[0].request(&[Part::Readable(BUFFERS, 4), Part::Writable(BUFFERS + 64, 4)]), 4);
    assert_eq!(driver.read(BUFFERS + 64, 4), [0xff; 4]);
}

#[test]
fn short_requests_return_empty() {
    let mut driver = driver();
    assert_eq!(driver.queues[0].request(&[Part::Readable(BUFFERS, 3), Part::Writable(BUFFERS + 64, 4)]), 0);
    assert_eq!(driver.queues[0].request(&[Part::Readable(BUFFERS, 4), Part::Writable(BUFFERS + 64, 3)]), 0);
    assert_eq!(driver.queues[0].request(&[Part::Writable(BUFFERS + 64, 4)]), 0);
}

#[test]
fn it_survives_random_chains() {
    survives_random_chains(&mut driver(), 0, 0x5eed_001b, 200);
}
