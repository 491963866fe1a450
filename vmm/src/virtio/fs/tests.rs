#![expect(clippy::cast_possible_truncation, reason = "lengths of tests are small")]
use super::spec::{IN_HEADER_LENGTH, MAX_PACKET, OUT_HEADER_LENGTH};
use super::*;
use crate::virtio::testing::{BUFFERS, Driver, EVENT_INDEX, Part, survives_random_chains};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, recv, send, setsockopt, socketpair};
use std::os::fd::AsRawFd;

const GETATTR: u32 = 3;
const FORGET: u32 = 2;
const INTERRUPT: u32 = 36;
const EIO: i32 = -5;
const EINVAL: i32 = -22;

const ANSWER: u64 = BUFFERS + 0x8_0000;

struct Fixture {
    driver: Driver<Fs>,
    server: Option<OwnedFd>,
}

impl Fixture {
    fn new() -> Self {
        let (server, device) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::empty()).unwrap();
        // The server's side waits at most this long, so that a bug fails the test instead of hanging it.
        setsockopt(&server, sockopt::ReceiveTimeout, &nix::sys::time::TimeVal::new(10, 0)).unwrap();
        Self { driver: Driver::start(Fs::new("share", device).unwrap(), EVENT_INDEX), server: Some(server) }
    }

    /// Writes a request of `length` bytes at `address`.
    fn compose(&self, address: u64, opcode: u32, unique: u64, length: u32) {
        self.driver.write(address, &length.to_le_bytes());
        self.driver.write(address + 4, &opcode.to_le_bytes());
        self.driver.write(address + 8, &unique.to_le_bytes());
    }

    fn offer(&mut self, queue: usize, parts: &[Part]) -> u16 {
        let head = self.driver.queues[queue].add(parts);
        self.driver.queues[queue].kick();
        head
    }

    fn serve(&self) -> Vec<u8> {
        let mut packet = vec![0; MAX_PACKET + 1];
        let length = recv(self.server.as_ref().unwrap().as_raw_fd(), &mut packet, MsgFlags::empty()).unwrap();
        packet.truncate(length);
        packet
    }

    fn reply(&self, tag: u64, body: &[u8]) {
        let mut reply = Vec::from((OUT_HEADER_LENGTH as u32 + body.len() as u32).to_le_bytes());
        reply.extend(0_i32.to_le_bytes());
        reply.extend(tag.to_le_bytes());
        reply.extend(body);
        self.send(&reply);
    }

    fn send(&self, packet: &[u8]) {
        send(self.server.as_ref().unwrap().as_raw_fd(), packet, MsgFlags::MSG_NOSIGNAL).unwrap();
    }

    /// Header of the answer at `address`: length, error, unique.
    fn answer(&self, address: u64) -> (u32, i32, u64) {
        let bytes = self.driver.read(address, OUT_HEADER_LENGTH);
        let (length, rest) = bytes.split_first_chunk().unwrap();
        let (error, rest) = rest.split_first_chunk().unwrap();
        (u32::from_le_bytes(*length), i32::from_le_bytes(*error), u64::from_le_bytes(*rest.first_chunk().unwrap()))
    }
}

fn tag(packet: &[u8]) -> u64 {
    u64::from_le_bytes(*packet[8..].first_chunk().unwrap())
}

const fn request(length: u32) -> [Part; 2] {
    [Part::Readable(BUFFERS, length), Part::Writable(ANSWER, 4096)]
}

#[test]
fn a_request_reaches_the_server_and_its_reply_the_driver() {
    let mut share = Fixture::new();
    share.compose(BUFFERS, GETATTR, 77, 56);
    share.driver.write(BUFFERS + 40, b"sixteen bytes...");
    let head = share.offer(
        REQUEST_QUEUE,
        &[
            Part::Readable(BUFFERS, 40),
            Part::Readable(BUFFERS + 40, 16),
            Part::Writable(ANSWER, 16),
            Part::Writable(ANSWER + 16, 100),
        ],
    );
    let packet = share.serve();
    assert_eq!(packet.len(), 56);
    assert_eq!(&packet[40..], b"sixteen bytes...");
    share.reply(tag(&packet), b"attributes");
    assert_eq!(share.driver.queues[REQUEST_QUEUE].wait(1), [(head, 26)]);
    assert_eq!(share.answer(ANSWER), (26, 0, 77));
    assert_eq!(share.driver.read(ANSWER + 16, 10), b"attributes");
}

#[test]
fn replies_out_of_order_find_their_requests_although_the_guest_repeats_its_numbers() {
    let mut share = Fixture::new();
    let mut tags = Vec::new();
    let mut heads = Vec::new();
    for index in 0..3_u64 {
        let address = BUFFERS + index * 256;
        share.compose(address, GETATTR, 7, 40);
        share.driver.write(address + 4, &(GETATTR).to_le_bytes());
        heads.push(
            share.offer(REQUEST_QUEUE, &[Part::Readable(address, 40), Part::Writable(ANSWER + index * 256, 100)]),
        );
        tags.push(tag(&share.serve()));
    }
    for index in [2, 0, 1] {
        share.reply(tags[index], &[index as u8]);
    }
    assert_eq!(share.driver.queues[REQUEST_QUEUE].wait(3), [(heads[2], 17), (heads[0], 17), (heads[1], 17)]);
    for index in 0..3 {
        assert_eq!(share.driver.read(ANSWER + index * 256 + 16, 1), [index as u8]);
    }
}

#[test]
fn forget_is_forwarded_and_returns_at_once() {
    let mut share = Fixture::new();
    share.compose(BUFFERS, FORGET, 1, 48);
    let head = share.offer(HIGH_PRIORITY_QUEUE, &[Part::Readable(BUFFERS, 48)]);
    assert_eq!(share.driver.queues[HIGH_PRIORITY_QUEUE].wait(1), [(head, 0)]);
    assert_eq!(share.serve().len(), 48);
}

#[test]
fn interrupts_are_not_forwarded() {
    let mut share = Fixture::new();
    share.compose(BUFFERS, INTERRUPT, 1, 48);
    let head = share.offer(HIGH_PRIORITY_QUEUE, &[Part::Readable(BUFFERS, 48)]);
    assert_eq!(share.driver.queues[HIGH_PRIORITY_QUEUE].wait(1), [(head, 0)]);
    share.compose(BUFFERS, FORGET, 2, 48);
    share.offer(HIGH_PRIORITY_QUEUE, &[Part::Readable(BUFFERS, 48)]);
    assert_eq!(share.serve()[4..8], FORGET.to_le_bytes());
}

#[test]
fn the_largest_request_and_reply_pass() {
    let mut share = Fixture::new();
    share.compose(BUFFERS, GETATTR, 5, MAX_PACKET as u32);
    let parts = [Part::Readable(BUFFERS, MAX_PACKET as u32), Part::Writable(ANSWER, MAX_PACKET as u32)];
    share.offer(REQUEST_QUEUE, &parts);
    let packet = share.serve();
    assert_eq!(packet.len(), MAX_PACKET);
    share.reply(tag(&packet), &vec![3; MAX_PACKET - OUT_HEADER_LENGTH]);
    assert_eq!(share.driver.queues[REQUEST_QUEUE].wait(1)[0].1, MAX_PACKET as u32);
    assert_eq!(share.driver.read(ANSWER + MAX_PACKET as u64 - 1, 2), [3, 0]);
}

#[test]
fn malformed_requests_fail_and_do_not_reach_the_server() {
    let mut share = Fixture::new();
    for (claimed, sent) in [(41, 40), (39, 40), (u32::MAX, 40), (0, 40), (MAX_PACKET as u32 + 1, MAX_PACKET as u32 + 1)]
    {
        share.compose(BUFFERS, GETATTR, 5, claimed);
        let head = share.offer(REQUEST_QUEUE, &request(sent));
        assert_eq!(share.driver.queues[REQUEST_QUEUE].wait(1), [(head, 16)], "{claimed} {sent}");
        assert_eq!(share.answer(ANSWER).1, EINVAL);
    }
    for parts in [
        &[Part::Readable(BUFFERS, 39), Part::Writable(ANSWER, 15)][..],
        &[Part::Writable(ANSWER, 8)],
        &[Part::Readable(u64::MAX - 8, 40), Part::Writable(ANSWER, 100)],
    ] {
        let head = share.offer(REQUEST_QUEUE, parts);
        assert_eq!(share.driver.queues[REQUEST_QUEUE].wait(1), [(head, 0)]);
    }
    share.compose(BUFFERS, FORGET, 9, 48);
    share.offer(REQUEST_QUEUE, &[Part::Readable(BUFFERS, 48)]);
    assert_eq!(share.serve()[4..8], FORGET.to_le_bytes());
}

#[test]
fn replies_that_do_not_fit_or_lie_become_errors() {
    let mut share = Fixture::new();
    let mut exchange = |answer: u32, reply: &dyn Fn(&Fixture, u64)| {
        share.compose(BUFFERS, GETATTR, 5, 40);
        share.offer(REQUEST_QUEUE, &[Part::Readable(BUFFERS, 40), Part::Writable(ANSWER, answer)]);
        let tag = tag(&share.serve());
        reply(&share, tag);
        let written = share.driver.queues[REQUEST_QUEUE].wait(1)[0].1;
        (written, share.answer(ANSWER))
    };
    let whole = |body: usize| move |share: &Fixture, tag| share.reply(tag, &vec![1; body]);
    assert_eq!(exchange(100, &whole(84)), (100, (100, 0, 5)));
    assert_eq!(exchange(100, &whole(85)), (16, (16, EIO, 5)));
    assert_eq!(exchange(8, &whole(0)).0, 0);
    assert_eq!(exchange(100, &whole(MAX_PACKET)), (16, (16, EIO, 5)));
    let lie = |share: &Fixture, tag: u64| {
        let mut reply = vec![0; 32];
        reply[0] = 31;
        reply[8..16].copy_from_slice(&tag.to_le_bytes());
        share.send(&reply);
    };
    assert_eq!(exchange(100, &lie), (16, (16, EIO, 5)));
}

#[test]
fn replies_to_nothing_are_dropped() {
    let mut share = Fixture::new();
    share.reply(12345, b"surprise");
    share.send(&[1, 2, 3]);
    share.compose(BUFFERS, GETATTR, 5, 40);
    share.offer(REQUEST_QUEUE, &request(40));
    let tag = tag(&share.serve());
    share.reply(tag, b"");
    share.reply(tag, b"again");
    assert_eq!(share.driver.queues[REQUEST_QUEUE].wait(1).len(), 1);
    share.offer(REQUEST_QUEUE, &request(40));
    share.reply(self::tag(&share.serve()), b"x");
    assert_eq!(share.driver.queues[REQUEST_QUEUE].wait(1)[0].1, 17);
}

#[test]
fn a_server_that_goes_fails_what_is_pending_and_what_comes() {
    let mut share = Fixture::new();
    share.compose(BUFFERS, GETATTR, 5, 40);
    share.offer(REQUEST_QUEUE, &request(40));
    share.serve();
    share.server = None;
    assert_eq!(share.driver.queues[REQUEST_QUEUE].wait(1)[0].1, 16);
    assert_eq!(share.answer(ANSWER), (16, EIO, 5));
    for unique in 6..9 {
        share.compose(BUFFERS, GETATTR, unique, 40);
        share.offer(REQUEST_QUEUE, &request(40));
        assert_eq!(share.driver.queues[REQUEST_QUEUE].wait(1)[0].1, 16);
        assert_eq!(share.answer(ANSWER), (16, EIO, unique));
    }
    share.driver.stop();
    share.driver.restart(0);
    share.compose(BUFFERS, GETATTR, 10, 40);
    share.offer(REQUEST_QUEUE, &request(40));
    share.driver.queues[REQUEST_QUEUE].wait(1);
    assert_eq!(share.answer(ANSWER), (16, EIO, 10));
}

#[test]
fn a_full_socket_holds_requests_back_and_loses_none() {
    let mut share = Fixture::new();
    let length = 64 * 1024;
    share.compose(BUFFERS, GETATTR, 5, length);
    for _ in 0..40 {
        share.driver.queues[REQUEST_QUEUE].add(&[Part::Readable(BUFFERS, length), Part::Writable(ANSWER, 64)]);
    }
    share.driver.queues[REQUEST_QUEUE].kick();
    for served in 0..40 {
        let packet = share.serve();
        assert_eq!(packet.len(), length as usize, "request {served}");
        share.reply(tag(&packet), b"");
    }
    assert_eq!(share.driver.queues[REQUEST_QUEUE].wait(40).len(), 40);
}

#[test]
fn a_reset_drops_late_replies() {
    let mut share = Fixture::new();
    share.compose(BUFFERS, GETATTR, 5, 40);
    share.offer(REQUEST_QUEUE, &request(40));
    let late = tag(&share.serve());
    share.driver.stop();
    share.driver.write(ANSWER, &[0xee; 16]);
    share.driver.restart(0);
    share.reply(late, b"late");
    share.compose(BUFFERS, GETATTR, 6, 40);
    let head = share.offer(REQUEST_QUEUE, &[Part::Readable(BUFFERS, 40), Part::Writable(ANSWER + 4096, 100)]);
    let tag = tag(&share.serve());
    assert_ne!(tag, late);
    share.reply(tag, b"new");
    assert_eq!(share.driver.queues[REQUEST_QUEUE].wait(1), [(head, 19)]);
    assert_eq!(share.driver.read(ANSWER, 16), [0xee; 16]);
}

#[test]
fn pending_requests_are_bounded_by_the_rings() {
    let mut share = Fixture::new();
    share.compose(BUFFERS, GETATTR, 5, IN_HEADER_LENGTH as u32);
    let parts = [Part::Readable(BUFFERS, IN_HEADER_LENGTH as u32), Part::Writable(ANSWER, 64)];
    // A driver that makes requests available which it has not got back.
    for _ in 0..20 {
        for _ in 0..100 {
            share.driver.queues[REQUEST_QUEUE].add(&parts);
        }
        share.driver.queues[REQUEST_QUEUE].kick();
        std::thread::sleep(std::time::Duration::from_millis(1));
        let mut packet = vec![0; MAX_PACKET];
        while recv(share.server.as_ref().unwrap().as_raw_fd(), &mut packet, MsgFlags::MSG_DONTWAIT).is_ok() {}
    }
    let device = share.driver.device.worker.take().unwrap().stop().unwrap();
    assert!(device.pending_count() <= 2 * usize::from(QUEUE_SIZE), "{}", device.pending_count());
}

#[test]
fn it_survives_random_chains() {
    let mut share = Fixture::new();
    let server = share.server.take().unwrap();
    let answering = std::thread::spawn(move || {
        let mut packet = vec![0; MAX_PACKET];
        while let Ok(length @ 1..) = recv(server.as_raw_fd(), &mut packet, MsgFlags::empty()) {
            let mut reply = packet[..length.min(200)].to_vec();
            reply[..4].copy_from_slice(&(length.min(200) as u32).to_le_bytes());
            if send(server.as_raw_fd(), &reply, MsgFlags::MSG_NOSIGNAL).is_err() {
                break;
            }
        }
    });
    survives_random_chains(&mut share.driver, REQUEST_QUEUE, 0x5eed_001a, 50);
    survives_random_chains(&mut share.driver, HIGH_PRIORITY_QUEUE, 0x5eed_101a, 50);
    share.driver.stop();
    drop(share);
    answering.join().unwrap();
}

#[test]
fn unusable_arguments_are_refused() {
    let socket = |kind| socketpair(AddressFamily::Unix, kind, None, SockFlag::empty()).unwrap().0;
    assert!(matches!(Fs::new("", socket(SockType::SeqPacket)), Err(FsError::Tag(0))));
    assert!(matches!(Fs::new(&"x".repeat(37), socket(SockType::SeqPacket)), Err(FsError::Tag(37))));
    assert!(matches!(Fs::new("share", socket(SockType::Stream)), Err(FsError::Socket)));
    assert!(Fs::new(&"x".repeat(36), socket(SockType::SeqPacket)).is_ok());
}

#[test]
fn the_configuration_has_the_tag_and_one_queue() {
    let share = Fixture::new();
    let mut config = [0xff; 44];
    share.driver.device.read_config(0, &mut config);
    assert_eq!(&config[..6], b"share\0");
    assert_eq!(config[36..], [1, 0, 0, 0, 0, 0, 0, 0]);
}
