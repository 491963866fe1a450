use super::*;
use crate::virtio::testing::{BUFFERS, Driver, Part, survives_random_chains};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::time::{Duration, Instant};

fn driver() -> (Driver<Console>, File) {
    let (reader, writer) = nix::unistd::pipe().unwrap();
    fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    (Driver::start(Console::new(writer), 0), File::from(reader))
}

fn drain(pipe: &mut File) -> Vec<u8> {
    let mut bytes = Vec::new();
    match pipe.read_to_end(&mut bytes) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => {}
        other => drop(other.unwrap()),
    }
    bytes
}

#[test]
fn what_the_guest_writes_reaches_the_pipe() {
    let (mut driver, mut pipe) = driver();
    driver.write(BUFFERS, b"Linux ");
    driver.write(BUFFERS + 100, b"version\n");
    let parts = [Part::Readable(BUFFERS, 6), Part::Readable(BUFFERS + 100, 8)];
    assert_eq!(driver.queues[TRANSMIT_QUEUE].request(&parts), 0);
    assert_eq!(drain(&mut pipe), b"Linux version\n");
}

#[test]
fn receive_buffers_are_kept() {
    let (mut driver, _pipe) = driver();
    driver.queues[RECEIVE_QUEUE].add(&[Part::Writable(BUFFERS, 64)]);
    driver.queues[RECEIVE_QUEUE].kick();
    driver.write(BUFFERS + 4096, b"x\n");
    driver.queues[TRANSMIT_QUEUE].request(&[Part::Readable(BUFFERS + 4096, 2)]);
    assert_eq!(driver.queues[RECEIVE_QUEUE].returned(), []);
}

#[test]
fn a_full_pipe_drops_and_says_so() {
    let (mut driver, mut pipe) = driver();
    driver.write(BUFFERS, &[b'a'; 4096]);
    driver.write(BUFFERS + 8192, b"\nend\n");
    for _ in 0..20 {
        driver.queues[TRANSMIT_QUEUE].request(&[Part::Readable(BUFFERS, 4096)]);
    }
    let kept = drain(&mut pipe).len();
    assert!(kept <= 64 * 1024);
    driver.queues[TRANSMIT_QUEUE].request(&[Part::Readable(BUFFERS + 8192, 5)]);
    let rest = String::from_utf8(drain(&mut pipe)).unwrap();
    assert!(rest.contains("bytes of this log were dropped]\n"), "{rest}");
    assert!(rest.ends_with("\nend\n"), "{rest}");
}

#[test]
fn a_reader_that_is_gone_does_not_stop_the_guest() {
    let (mut driver, pipe) = driver();
    drop(pipe);
    for _ in 0..100 {
        assert_eq!(driver.queues[TRANSMIT_QUEUE].request(&[Part::Readable(BUFFERS, 4096)]), 0);
    }
}

#[test]
fn a_request_longer_than_the_pipe_is_cut() {
    let (mut driver, mut pipe) = driver();
    driver.queues[TRANSMIT_QUEUE].request(&[Part::Readable(BUFFERS, 2 << 20)]);
    assert!(drain(&mut pipe).len() <= 64 * 1024);
}

#[test]
fn lines_are_broken_at_their_bound() {
    let (mut driver, mut pipe) = driver();
    driver.write(BUFFERS, &[b'a'; 10_000]);
    driver.queues[TRANSMIT_QUEUE].request(&[Part::Readable(BUFFERS, 5_000)]);
    driver.queues[TRANSMIT_QUEUE].request(&[Part::Readable(BUFFERS, 5_000)]);
    let log = drain(&mut pipe);
    assert!(log.split(|byte| *byte == b'\n').all(|line| line.len() <= log::MAX_LINE));
    assert_eq!(log.iter().filter(|byte| **byte == b'a').count(), 10_000);
}

#[test]
fn a_flood_is_limited_to_burst_and_rate() {
    let (reader, writer) = nix::unistd::pipe().unwrap();
    fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    let mut pipe = File::from(reader);
    let mut log = log::Log::new(writer);
    log.never_wait().unwrap();
    let start = Instant::now();
    let line = [b'x'; 1024];
    let mut flood = |now| (0..4096).filter(|_| drain(&mut pipe).len() < usize::MAX && log.write(&line, now)).count();
    assert_eq!(flood(start), log::BURST / 1024);
    assert_eq!(flood(start + Duration::from_secs(2)), 2 * log::RATE / 1024);
}

#[test]
fn a_reset_does_not_begin_the_limits_anew() {
    let (mut driver, mut pipe) = driver();
    driver.write(BUFFERS, &[b'x'; 4096]);
    let mut flood = |driver: &mut Driver<Console>| {
        let passed = |_| {
            driver.queues[TRANSMIT_QUEUE].request(&[Part::Readable(BUFFERS, 4096)]);
            drain(&mut pipe).iter().filter(|byte| **byte == b'x').count()
        };
        (0..2 * log::BURST / 4096).map(passed).sum::<usize>()
    };
    assert!(flood(&mut driver) >= log::BURST);
    driver.stop();
    driver.restart(0);
    // What has been earned since.
    assert!(flood(&mut driver) < log::BURST / 2);
}

#[test]
fn it_survives_random_chains() {
    let (mut driver, mut pipe) = driver();
    for seed in 0..20 {
        survives_random_chains(&mut driver, TRANSMIT_QUEUE, 0x5eed_0003 + seed * 2, 5);
        drain(&mut pipe);
    }
}

#[test]
fn it_starts_again_after_a_stop() {
    let (mut driver, mut pipe) = driver();
    driver.stop();
    driver.restart(0);
    driver.write(BUFFERS, b"again\n");
    driver.queues[TRANSMIT_QUEUE].request(&[Part::Readable(BUFFERS, 6)]);
    assert_eq!(drain(&mut pipe), b"again\n");
}
