use super::*;
use crate::virtio::testing::{BUFFERS, Driver, EVENT_INDEX, Part, survives_random_chains};

const PAGE: usize = 4096;

/// Address of one of the pages that tests use.
fn page(number: usize) -> u64 {
    BUFFERS + (number * PAGE) as u64
}

fn driver() -> Driver<Balloon> {
    Driver::start(Balloon::new(), EVENT_INDEX | PAGE_REPORTING)
}

fn report(driver: &mut Driver<Balloon>, parts: &[Part]) {
    assert_eq!(driver.queues[REPORTING_QUEUE].request(parts), 0);
}

#[test]
fn pages_that_are_reported_go_back_and_others_stay() {
    let mut driver = driver();
    driver.write(BUFFERS, &[7; 6 * PAGE]);
    report(&mut driver, &[Part::Writable(BUFFERS, 4096), Part::Writable(page(3), 8192)]);
    let first = |number| driver.read(page(number), 1)[0];
    assert_eq!([0, 1, 2, 3, 4, 5].map(first), [0, 7, 7, 0, 0, 7]);
}

#[test]
fn of_a_page_that_is_free_in_part_nothing_is_lost() {
    let mut driver = driver();
    driver.write(BUFFERS, &[7; 3 * PAGE]);
    report(&mut driver, &[Part::Writable(BUFFERS + 1, 4096)]);
    report(&mut driver, &[Part::Writable(BUFFERS + 5, 100)]);
    assert_eq!(driver.read(BUFFERS, 3 * PAGE), [7; 3 * PAGE]);
    report(&mut driver, &[Part::Writable(BUFFERS + 1, 2 * 4096)]);
    assert_eq!(driver.read(page(1), 1), [0]);
    assert_eq!(driver.read(page(2), 1), [7]);
}

#[test]
fn what_is_only_to_be_read_is_not_free() {
    let mut driver = driver();
    driver.write(BUFFERS, &[7; 4096]);
    report(&mut driver, &[Part::Readable(BUFFERS, 4096)]);
    assert_eq!(driver.read(BUFFERS, 1), [7]);
}

#[test]
fn the_balloon_is_to_be_empty() {
    let mut config = [7; 16];
    Balloon::new().read_config(0, &mut config);
    assert_eq!(config, [0; 16]);
}

#[test]
fn it_survives_random_chains() {
    survives_random_chains(&mut driver(), REPORTING_QUEUE, 0x5eed_0005, 200);
}

#[test]
fn it_starts_again_after_a_stop() {
    let mut driver = driver();
    report(&mut driver, &[Part::Writable(BUFFERS, 4096)]);
    assert_eq!(driver.stop().len(), 3);
    driver.restart(EVENT_INDEX | PAGE_REPORTING);
    report(&mut driver, &[Part::Writable(BUFFERS, 4096)]);
}
