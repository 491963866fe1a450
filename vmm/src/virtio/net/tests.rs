#![expect(clippy::cast_possible_truncation, reason = "lengths of tests are small")]
use super::spec::{HEADER_LENGTH, MAX_FRAME, TAP_HEADER_LENGTH};
use super::*;
use crate::virtio::testing::{
    BUFFERS, Driver, DriverQueue, EVENT_INDEX, Part, eventually, skip, survives_random_chains,
};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socketpair, sockopt};
use nix::unistd::{read, write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_MRG_RXBUF,
};

const MERGE: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;
const FRAMES: u64 = BUFFERS + 0x10_0000;
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// A link made of a socket that keeps packets apart, as a tap does.
#[derive(Clone, Debug)]
struct SocketLink {
    socket: Arc<OwnedFd>,
    offloads: Arc<AtomicU32>,
}

impl AsFd for SocketLink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Link for SocketLink {
    fn set_offloads(&self, offloads: libc::c_uint) -> io::Result<()> {
        self.offloads.store(offloads, Ordering::SeqCst);
        Ok(())
    }
}

struct Fixture {
    driver: Driver<Net<SocketLink>>,
    wire: Option<OwnedFd>,
    offloads: Arc<AtomicU32>,
}

impl Fixture {
    fn new(features: u64) -> Self {
        let flags = SockFlag::SOCK_NONBLOCK;
        let (wire, socket) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
        setsockopt(&wire, sockopt::SndBuf, &(1 << 20)).unwrap();
        let offloads = Arc::new(AtomicU32::new(u32::MAX));
        let link = SocketLink { socket: Arc::new(socket), offloads: Arc::clone(&offloads) };
        let driver = Driver::start(Net::on_link(link, MAC, 1500).unwrap(), features);
        Self { driver, wire: Some(wire), offloads }
    }

    /// A frame arrives on the wire.
    fn arrive(&self, frame: &[u8]) -> bool {
        let packet = [&[0; TAP_HEADER_LENGTH][..], frame].concat();
        write(self.wire.as_ref().unwrap(), &packet).is_ok()
    }

    /// The next packet that the device put on the wire.
    fn departed(&self) -> Vec<u8> {
        let packet = Mutex::new(Vec::new());
        eventually("a frame leaves", || {
            let mut bytes = vec![0; 100_000];
            match read(self.wire.as_ref().unwrap(), &mut bytes) {
                Ok(length) => {
                    bytes.truncate(length);
                    *packet.lock().unwrap() = bytes;
                    true
                }
                Err(_) => false,
            }
        });
        packet.into_inner().unwrap()
    }

    fn receive(&mut self) -> &mut DriverQueue {
        &mut self.driver.queues[RECEIVE_QUEUE]
    }

    fn offer_buffers(&mut self, count: u64, length: u32) {
        for index in 0..count {
            self.receive().add(&[Part::Writable(BUFFERS + index * u64::from(length), length)]);
        }
        self.receive().notify();
    }

    /// Sends a frame with this header; returns when the device has taken it.
    fn transmit(&mut self, flags: u8, segmentation: u8, frame: &[u8]) {
        self.driver.write(FRAMES, &[flags, segmentation, 3, 0, 4, 0, 5, 0, 6, 0, 0xee, 0xee]);
        self.driver.write(FRAMES + 12, frame);
        let parts = [Part::Readable(FRAMES, 12), Part::Readable(FRAMES + 12, frame.len() as u32)];
        assert_eq!(self.driver.queues[TRANSMIT_QUEUE].request(&parts), 0);
    }
}

#[test]
fn a_frame_leaves_with_the_header_of_the_tap() {
    let mut net = Fixture::new(1 << VIRTIO_NET_F_CSUM);
    net.transmit(1, 0, b"frame");
    assert_eq!(net.departed(), b"\x01\x00\x03\x00\x04\x00\x05\x00\x06\x00frame");
}

#[test]
fn a_frame_arrives_with_the_header_of_the_driver() {
    let mut net = Fixture::new(MERGE);
    net.offer_buffers(1, 2048);
    net.arrive(b"frame");
    assert_eq!(net.receive().wait(1)[0].1, 17);
    assert_eq!(net.driver.read(BUFFERS, 17), b"\0\0\0\0\0\0\0\0\0\0\x01\0frame");
}

#[test]
fn a_long_frame_spreads_over_merged_buffers() {
    let mut net = Fixture::new(MERGE);
    net.offer_buffers(4, 1000);
    let frame: Vec<u8> = (0..2500_u32).map(|byte| byte as u8).collect();
    net.arrive(&frame);
    let lengths: Vec<u32> = net.receive().wait(3).iter().map(|entry| entry.1).collect();
    assert_eq!(lengths, [1000, 1000, 512]);
    assert_eq!(net.driver.read(BUFFERS + 10, 2), [3, 0]);
    assert_eq!(net.driver.read(BUFFERS + 12, 2500), frame);
    net.arrive(b"next");
    assert_eq!(net.receive().wait(1)[0].1, 16);
}

#[test]
fn the_longest_frame_passes_both_ways() {
    let mut net = Fixture::new(MERGE);
    let frame = vec![7; MAX_FRAME];
    net.offer_buffers(40, 4096);
    net.arrive(&frame);
    let entries = net.receive().wait(17);
    assert_eq!(entries.iter().map(|entry| entry.1 as usize).sum::<usize>(), HEADER_LENGTH + MAX_FRAME);
    net.transmit(0, 0, &frame);
    assert_eq!(net.departed().len(), TAP_HEADER_LENGTH + MAX_FRAME);
    net.driver.queues[TRANSMIT_QUEUE].request(&[Part::Readable(FRAMES, (HEADER_LENGTH + MAX_FRAME + 1) as u32)]);
    net.transmit(0, 0, b"after");
    assert_eq!(&net.departed()[TAP_HEADER_LENGTH..], b"after");
}

#[test]
fn a_row_of_long_frames_arrives_whole_and_in_order() {
    const LENGTHS: [usize; 8] = [60_000, MAX_FRAME, 9000, 100, 60_000, 50_000, 100, 100];
    for (count, length) in [(250, 8192), (250, 1536), (40, 8192)] {
        let mut net = Fixture::new(MERGE);
        net.offer_buffers(count, length);
        for (round, sent) in LENGTHS.into_iter().enumerate() {
            let frame: Vec<u8> = (0..sent).map(|byte| (byte / 7 + round) as u8).collect();
            net.arrive(&frame);
            let used = (HEADER_LENGTH + sent).div_ceil(length as usize);
            let entries = net.receive().wait(used);
            assert_eq!(entries.len(), used);
            assert_eq!(entries.iter().map(|entry| entry.1 as usize).sum::<usize>(), HEADER_LENGTH + sent);
            // Buffers lie side by side, in the order of the ring.
            let first = BUFFERS + u64::from(entries[0].0) * u64::from(length);
            assert_eq!(net.driver.read(first, HEADER_LENGTH), [&[0; 10][..], &(used as u16).to_le_bytes()].concat());
            assert!(net.driver.read(first + 12, sent) == frame, "frame {round} of {sent} bytes in buffers of {length}");
        }
    }
}

#[test]
fn a_row_of_long_frames_ends_where_the_buffers_do() {
    let mut net = Fixture::new(MERGE | EVENT_INDEX);
    net.offer_buffers(60, 2000);
    for _ in 0..3 {
        net.arrive(&[7; 60_000]);
    }
    assert_eq!(net.receive().wait(31).len(), 31);
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert_eq!(net.receive().returned(), []);
    net.offer_buffers(40, 2000);
    assert_eq!(net.receive().wait(62).len(), 62);
}

#[test]
fn a_stop_gives_back_the_buffers_taken_ahead() {
    let mut net = Fixture::new(MERGE);
    net.offer_buffers(250, 2000);
    for _ in 0..2 {
        net.arrive(&[7; 60_000]);
    }
    assert_eq!(net.receive().wait(62).len(), 62);
    assert_eq!(virtio_queue::QueueT::next_avail(&net.driver.stop()[RECEIVE_QUEUE]), 62);
}

#[test]
fn every_kick_is_heard() {
    let mut net = Fixture::new(MERGE | EVENT_INDEX);
    net.driver.write(FRAMES, &[0; 12]);
    for round in 0..10_000u64 {
        let parts = [Part::Readable(FRAMES, 12), Part::Readable(FRAMES + 12, 60)];
        for _ in 0..=round % 3 {
            net.driver.queues[TRANSMIT_QUEUE].add(&parts);
            net.driver.queues[TRANSMIT_QUEUE].notify();
        }
        for _ in 0..=round % 3 {
            assert_eq!(net.departed().len(), TAP_HEADER_LENGTH + 60);
        }
        net.driver.queues[TRANSMIT_QUEUE].wait(1 + round as usize % 3);
        // Sometimes before there is a buffer, sometimes after.
        if round % 2 == 0 {
            net.arrive(&[1; 60]);
        }
        net.receive().add(&[Part::Writable(BUFFERS, 2048)]);
        net.receive().notify();
        if round % 2 == 1 {
            net.arrive(&[1; 60]);
        }
        assert_eq!(net.receive().wait(1).len(), 1);
    }
}

#[test]
fn a_stream_of_long_frames_never_stalls() {
    const LENGTHS: [usize; 6] = [60_000, MAX_FRAME, 60, 30_000, 60_000, 66];
    const FRAMES: usize = 3000;
    // Room for two frames and for four: now the link waits, now the driver.
    for buffers in [40, 80, 250] {
        let mut net = Fixture::new(MERGE | EVENT_INDEX);
        net.offer_buffers(buffers, 4096);
        let wire = net.wire.take().unwrap();
        let sender = std::thread::spawn(move || {
            let packet = [7; TAP_HEADER_LENGTH + MAX_FRAME];
            for index in 0..FRAMES {
                let length = TAP_HEADER_LENGTH + LENGTHS[index % LENGTHS.len()];
                while write(&wire, &packet[..length]).is_err() {
                    std::thread::yield_now();
                }
            }
            wire
        });
        let mut frames = 0;
        while frames < FRAMES {
            let entries = net.receive().wait(1);
            for (head, length) in entries {
                // What ends a frame is shorter than a buffer, as it happens.
                frames += usize::from(length < 4096);
                let address = BUFFERS + u64::from(head) * 4096;
                net.receive().add(&[Part::Writable(address, 4096)]);
            }
            net.receive().notify();
        }
        net.wire = Some(sender.join().unwrap());
    }
}

#[test]
fn what_was_not_agreed_is_not_sent() {
    let mut net = Fixture::new(0);
    net.transmit(1, 0, b"checksum");
    net.transmit(0, 1, b"segments");
    net.transmit(0, 4, b"segments");
    net.transmit(0, 3, b"datagrams");
    net.transmit(0, 0x81, b"congestion");
    net.transmit(2, 0, b"unknown");
    net.transmit(0, 0, b"plain");
    assert_eq!(&net.departed()[TAP_HEADER_LENGTH..], b"plain");
    let mut net = Fixture::new(1 << VIRTIO_NET_F_CSUM | 1 << VIRTIO_NET_F_HOST_TSO4);
    net.transmit(1, 1, b"segments");
    assert_eq!(net.departed()[..2], [1, 1]);
}

#[test]
fn reception_goes_on_after_a_flood_without_buffers() {
    for features in [MERGE, MERGE | EVENT_INDEX] {
        let mut net = Fixture::new(features);
        let mut sent = 0_u32;
        while net.arrive(&sent.to_le_bytes()) {
            sent += 1;
        }
        for expected in 0..sent {
            net.offer_buffers(1, 2048);
            assert_eq!(net.receive().wait(1)[0].1, 16);
            assert_eq!(net.driver.read(BUFFERS + 12, 4), expected.to_le_bytes());
        }
    }
}

#[test]
fn a_frame_waits_for_the_rest_of_its_buffers() {
    for features in [MERGE, MERGE | EVENT_INDEX] {
        let mut net = Fixture::new(features);
        net.offer_buffers(2, 1000);
        net.arrive(&[7; 2500]);
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert_eq!(net.receive().returned(), []);
        net.receive().add(&[Part::Writable(BUFFERS + 2000, 1000)]);
        net.receive().notify();
        assert_eq!(net.receive().wait(3).len(), 3);
        assert_eq!(net.driver.read(BUFFERS + 2511, 2), [7, 0]);
    }
}

#[test]
fn a_frame_that_fits_no_buffer_is_dropped() {
    let mut net = Fixture::new(0);
    net.offer_buffers(1, 100);
    net.arrive(&[7; 500]);
    net.arrive(b"small");
    assert_eq!(net.receive().wait(1)[0].1, 17);
    assert_eq!(net.driver.read(BUFFERS + 12, 5), b"small");
}

#[test]
fn buffers_without_room_go_back() {
    let mut net = Fixture::new(0);
    net.receive().add(&[Part::Readable(BUFFERS, 2048)]);
    net.receive().add(&[Part::Writable(u64::MAX - 10, 2048)]);
    net.receive().add(&[Part::Writable(BUFFERS, 2048)]);
    net.receive().kick();
    for frame in [b"one  ", b"two  ", b"three"] {
        net.arrive(frame);
    }
    let lengths: Vec<u32> = net.receive().wait(3).iter().map(|entry| entry.1).collect();
    assert_eq!(lengths, [0, 0, 17]);
    assert_eq!(net.driver.read(BUFFERS + 12, 5), b"three");
}

#[test]
fn a_lost_link_leaves_the_device_quiet() {
    let mut net = Fixture::new(MERGE);
    net.offer_buffers(1, 2048);
    net.wire = None;
    net.transmit(0, 0, b"nowhere");
    net.transmit(0, 0, b"nowhere");
    assert_eq!(net.receive().returned(), []);
    net.driver.stop();
}

#[test]
fn a_reset_drops_the_frame_that_waits() {
    let mut net = Fixture::new(MERGE);
    net.arrive(b"old");
    std::thread::sleep(std::time::Duration::from_millis(20));
    net.driver.stop();
    net.driver.restart(MERGE);
    net.offer_buffers(2, 2048);
    net.arrive(b"newer");
    assert_eq!(net.receive().wait(1)[0].1, 17);
    assert_eq!(net.driver.read(BUFFERS + 12, 5), b"newer");
}

#[test]
fn the_tap_learns_what_the_guest_does_itself() {
    let all = 1 << VIRTIO_NET_F_GUEST_CSUM | 1 << VIRTIO_NET_F_GUEST_TSO4 | 1 << VIRTIO_NET_F_GUEST_TSO6;
    for (features, expected) in [
        (0, 0),
        (1 << VIRTIO_NET_F_GUEST_TSO4, 0),
        (1 << VIRTIO_NET_F_GUEST_CSUM, libc::TUN_F_CSUM),
        (all, libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6),
    ] {
        let net = Fixture::new(features);
        eventually("offloads are set", || net.offloads.load(Ordering::SeqCst) == expected);
    }
}

#[test]
fn malformed_frames_return_and_the_device_lives_on() {
    let mut net = Fixture::new(0);
    for parts in [
        &[Part::Readable(FRAMES, 11)][..],
        &[Part::Writable(FRAMES, 100)],
        &[Part::Readable(u64::MAX - 8, 100)],
        &[Part::Readable(FRAMES, 0)],
    ] {
        assert_eq!(net.driver.queues[TRANSMIT_QUEUE].request(parts), 0);
    }
    net.transmit(0, 0, b"after");
    assert_eq!(&net.departed()[TAP_HEADER_LENGTH..], b"after");
}

#[test]
fn it_survives_random_chains() {
    let mut net = Fixture::new(MERGE);
    survives_random_chains(&mut net.driver, TRANSMIT_QUEUE, 0x5eed_0001, 100);
}

#[test]
fn reception_survives_random_buffers() {
    for features in [0, MERGE] {
        let mut net = Fixture::new(features);
        let mut random = crate::virtio::testing::Random::new(0x5eed_2001);
        for _ in 0..200 {
            for index in 0..QUEUE_SIZE {
                let descriptor = random.descriptor(QUEUE_SIZE);
                net.receive().describe(index, descriptor);
            }
            for _ in 0..=random.below(64) {
                let head = random.below(u64::from(QUEUE_SIZE)) as u16;
                if net.receive().in_flight() < QUEUE_SIZE {
                    net.receive().offer(head);
                }
            }
            let length = if random.below(2) == 0 { 60_000 } else { 9000 };
            net.arrive(&vec![1; 1 + random.below(length) as usize]);
            net.receive().kick();
            net.receive().returned();
        }
        net.driver.stop();
    }
}

#[test]
fn a_tap_carries_frames() {
    let Some((tap, name)) = new_tap() else { return skip("a_tap_carries_frames", "root and /dev/net/tun") };
    let net = Net::new(tap, MAC, 1500).unwrap();
    let mut driver = Driver::start(net, FEATURES);
    let mut frame = vec![0xff; 6];
    frame.extend(MAC);
    frame.extend([0x88, 0xb5]);
    frame.resize(64, 0);
    driver.write(FRAMES, &[0; 12]);
    driver.write(FRAMES + 12, &frame);
    driver.queues[TRANSMIT_QUEUE].request(&[Part::Readable(FRAMES, 76)]);
    let statistics = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let line = statistics.lines().find(|line| line.trim_start().starts_with(&name)).unwrap();
    assert_eq!(line.split_whitespace().nth(2), Some("1"), "{statistics}");
    driver.stop();
}

/// A tap device that is up, in a network namespace of this thread.
fn new_tap() -> Option<(File, String)> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).ok()?;
    let tap = File::options().read(true).write(true).open("/dev/net/tun").ok()?;
    testing::name_tap(&tap, "test0")?;
    let up = std::process::Command::new("ip").args(["link", "set", "test0", "up"]).status().ok()?;
    up.success().then(|| (tap, "test0".into()))
}

/// Calls that only the test makes.
mod testing {
    #![expect(unsafe_code, reason = "ioctl(2) on a tap device")]
    use std::fs::File;
    use std::os::fd::AsRawFd;

    pub fn name_tap(tap: &File, name: &str) -> Option<()> {
        // SAFETY: all fields of this structure may be zero.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (target, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *target = byte.cast_signed();
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as i16;
        // SAFETY: `request` is what this call reads and writes, and outlives it.
        let result = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        (result == 0).then_some(())
    }
}

#[test]
fn the_configuration_has_address_and_mtu() {
    let net = Fixture::new(0);
    let mut config = [0xff; 14];
    net.driver.device.read_config(0, &mut config);
    assert_eq!(config, [2, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0xdc, 5, 0, 0]);
}

#[test]
fn an_impossible_mtu_is_refused() {
    assert!(matches!(Net::new(tempfile::tempfile().unwrap(), MAC, 67), Err(NetError::Mtu(67))));
}
