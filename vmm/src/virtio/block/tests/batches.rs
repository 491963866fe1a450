//! Several requests at once, on one queue and on several, with and without the node's memory holding their data.

use super::*;
use crate::virtio::failure::Failures;
use crate::virtio::testing::Random;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use std::collections::BTreeSet;
use virtio_queue::QueueT;
use vmm_protocol::DeviceId;

/// Where the request of this number has its header, its status and its data.
fn places(number: u64) -> (u64, u64, u64) {
    let base = DATA + number * 0x2000;
    (base, base + 0x40, base + 0x1000)
}

/// Has every sector begin with its number.
fn number_sectors(image: &File) {
    for sector in 0..SECTORS {
        image.write_all_at(&sector.to_le_bytes(), sector * SECTOR).unwrap();
    }
}

/// Makes the node forget what is in the file, where it can.
fn evict(image: &File) {
    image.sync_all().unwrap();
    posix_fadvise(image, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
}

fn offer_read(driver: &mut Driver<Block>, queue: usize, number: u64, sector: u64) -> u16 {
    let (header, status, data) = places(number);
    driver.write(header, &READ.to_le_bytes());
    driver.write(header + 8, &sector.to_le_bytes());
    driver.write(status, &[0xff]);
    driver.queues[queue].add(&[Part::Readable(header, 16), Part::Writable(data, 512), Part::Writable(status, 1)])
}

fn check_read(driver: &Driver<Block>, number: u64, sector: u64) {
    let (_, status, data) = places(number);
    assert_eq!(driver.read(status, 1), [OK], "request {number}");
    assert_eq!(driver.read(data, 8), sector.to_le_bytes(), "request {number}");
}

#[test]
fn reads_that_wait_for_the_disk_and_reads_that_do_not_are_all_answered() {
    let mut disk = Fixture::new(false);
    number_sectors(&disk.image);
    let mut random = Random::new(0x5eed_0003);
    for _ in 0..20 {
        evict(&disk.image);
        // Some of it is in the node's memory again.
        let mut page = [0; 4096];
        for _ in 0..random.below(32) {
            disk.image.read_exact_at(&mut page, random.below(SECTORS / 8) * 4096).unwrap();
        }
        let sectors: Vec<u64> = (0..64).map(|_| random.below(SECTORS)).collect();
        let heads: Vec<_> =
            (0..).zip(&sectors).map(|(n, sector)| offer_read(&mut disk.driver, 0, n, *sector)).collect();
        disk.driver.queues[0].kick();
        let returned: BTreeSet<_> = disk.driver.queues[0].wait(64).into_iter().collect();
        assert_eq!(returned, heads.into_iter().map(|head| (head, 513)).collect());
        (0..).zip(sectors).for_each(|(number, sector)| check_read(&disk.driver, number, sector));
    }
}

#[test]
fn a_stop_answers_what_was_taken_and_leaves_the_rest() {
    let mut disk = Fixture::new(false);
    number_sectors(&disk.image);
    for _ in 0..20 {
        evict(&disk.image);
        for number in 0..64 {
            offer_read(&mut disk.driver, 0, number, number * 31);
        }
        disk.driver.queues[0].kick();
        let queues = disk.driver.stop();
        let returned = disk.driver.queues[0].returned();
        assert_eq!(usize::from(queues[0].next_avail()), returned.len());
        (0..returned.len() as u64).for_each(|number| check_read(&disk.driver, number, number * 31));
        disk.driver.restart(EVENT_INDEX);
    }
}

#[test]
fn a_head_that_is_in_flight_is_refused() {
    let mut disk = Fixture::new(false);
    number_sectors(&disk.image);
    evict(&disk.image);
    let head = offer_read(&mut disk.driver, 0, 0, 9);
    (0..7).for_each(|_| disk.driver.queues[0].offer(head));
    disk.driver.queues[0].kick();
    let returned = disk.driver.queues[0].wait(8);
    assert!(returned.iter().all(|(returned, _)| *returned == head));
    assert!(returned.iter().any(|(_, written)| *written == 513));
    check_read(&disk.driver, 0, 9);
}

fn with_queues(queues: u16) -> (Fixture, Arc<Failures>) {
    let image = tempfile::tempfile().unwrap();
    image.set_len(SECTORS * SECTOR).unwrap();
    let failures = Arc::new(Failures::new().unwrap());
    let options = Options { queues, reporter: Some(failures.reporter(DeviceId(3))), ..Options::default() };
    let block = Block::new(image.try_clone().unwrap(), false, options).unwrap();
    (Fixture { driver: Driver::start(block, EVENT_INDEX), image }, failures)
}

#[test]
fn a_disk_has_as_many_queues_as_are_asked_for_and_four_at_most() {
    for (asked, has) in [(0, 1_u16), (1, 1), (3, 3), (4, 4), (32, 4)] {
        let (disk, _) = with_queues(asked);
        let traits = disk.driver.device.traits();
        assert_eq!(traits.queue_sizes.len(), usize::from(has));
        assert_eq!(traits.features & 1 << VIRTIO_BLK_F_MQ != 0, has > 1);
        let mut config = [0; 2];
        disk.driver.device.read_config(34, &mut config);
        assert_eq!(config, has.to_le_bytes());
    }
}

#[test]
fn queues_are_served_side_by_side() {
    let (mut disk, _) = with_queues(4);
    number_sectors(&disk.image);
    evict(&disk.image);
    for number in 0..128 {
        offer_read(&mut disk.driver, usize::try_from(number % 4).unwrap(), number, number * 15);
    }
    disk.driver.queues.iter_mut().for_each(crate::virtio::testing::DriverQueue::kick);
    disk.driver.queues.iter_mut().for_each(|queue| assert_eq!(queue.wait(32).len(), 32));
    (0..128).for_each(|number| check_read(&disk.driver, number, number * 15));
    let queues = disk.driver.stop();
    assert!(queues.iter().all(|queue| queue.next_avail() == 32));
}

#[test]
fn an_end_can_be_asked_for_without_waiting() {
    let (mut disk, _) = with_queues(4);
    let deadline = Instant::now() + Duration::from_secs(10);
    while !disk.driver.device.request_stop() {
        assert!(Instant::now() < deadline, "its threads never end");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(disk.driver.stop().len(), 4);
    assert!(disk.driver.device.request_stop(), "there is nothing to end");
}

#[test]
fn a_disk_that_fails_is_told_of_once() {
    let (mut disk, failures) = with_queues(1);
    assert_eq!(disk.request(READ, SECTORS, &[Part::Writable(DATA, 512)]).0, IO_ERROR);
    assert_eq!(failures.take(), [], "what the guest does wrong is no failure of the node");
    disk.image.set_len(0).unwrap();
    for _ in 0..3 {
        assert_eq!(disk.request(READ, 0, &[Part::Writable(DATA, 512)]).0, IO_ERROR);
    }
    let told = failures.take();
    assert_eq!(told.iter().map(|(device, _)| device.0).collect::<Vec<_>>(), [3]);
    assert_eq!(told[0].1.to_string(), "its file on the node is shorter than it was");
}
