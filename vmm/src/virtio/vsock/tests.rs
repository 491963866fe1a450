#![expect(clippy::cast_possible_truncation, reason = "random numbers are bounded where they are drawn")]

use super::connection::BUFFER;
use super::spec::{self, EVENT, HEADER_LENGTH, HOST_CID, Header, RX, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TX};
use super::*;
use crate::virtio::testing::{
    BUFFERS, Descriptor, Driver, INDIRECT, NEXT, Part, Random, eventually, survives_random_chains, write_descriptor,
};
use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};
use vmm_protocol::READY_PORT;
use vmm_sys_util::eventfd::EFD_NONBLOCK;

const CID: u32 = 3;
const PORT: u32 = 1024;
const RX_BUFFER: u32 = 4096;
const TX_BUFFER: u64 = BUFFERS + 0x8_0000;
const PACKET: usize = 64 * 1024;

/// A driver that behaves: it keeps receive buffers available and counts credit.
struct Guest {
    driver: Driver<Vsock>,
    connector: Connector,
    ready: EventFd,
    packets: VecDeque<(Header, Vec<u8>)>,
}

/// The guest's end of a connection.
#[derive(Clone, Copy)]
struct Socket {
    host_port: u32,
    sent: u32,
    /// What the guest took.
    received: u32,
    allocated: u32,
    /// The host's side, as last heard.
    credit: (u32, u32),
}

impl Guest {
    fn new() -> Self {
        let ready = EventFd::new(EFD_NONBLOCK).unwrap();
        let (device, connector) = Vsock::new(CID, ready.try_clone().unwrap()).unwrap();
        let mut guest = Self { driver: Driver::start(device, 0), connector, ready, packets: VecDeque::new() };
        guest.offer_buffers();
        guest
    }

    fn offer_buffers(&mut self) {
        for index in 0..u64::from(spec::QUEUE_SIZES[RX]) {
            let address = BUFFERS + index * u64::from(RX_BUFFER);
            self.driver.queues[RX].add(&[Part::Writable(address, RX_BUFFER)]);
        }
        self.driver.queues[RX].kick();
    }

    fn send(&mut self, header: Header, payload: &[u8]) {
        self.driver.write(TX_BUFFER, &header.to_bytes());
        self.driver.write(TX_BUFFER + HEADER_LENGTH as u64, payload);
        let length = u32::try_from(HEADER_LENGTH + payload.len()).unwrap();
        // In two pieces, as Linux sends long packets.
        let first = length / 2;
        let parts = [Part::Readable(TX_BUFFER, first), Part::Readable(TX_BUFFER + u64::from(first), length - first)];
        self.driver.queues[TX].request(&parts);
    }

    fn take(&mut self, entries: Vec<(u16, u32)>) {
        for (head, length) in entries {
            let address = BUFFERS + u64::from(head) * u64::from(RX_BUFFER);
            let bytes = self.driver.read(address, length as usize);
            let (header, payload) = bytes.split_first_chunk().unwrap();
            let header = Header::from_bytes(header);
            assert_eq!(header.len as usize, payload.len());
            assert_eq!((header.src_cid, header.dst_cid), (HOST_CID, CID.into()));
            self.packets.push_back((header, payload.to_vec()));
            assert_eq!(self.driver.queues[RX].add(&[Part::Writable(address, RX_BUFFER)]), head);
        }
        self.driver.queues[RX].kick();
    }

    fn receive(&mut self) -> (Header, Vec<u8>) {
        if self.packets.is_empty() {
            let entries = self.driver.queues[RX].wait(1);
            self.take(entries);
        }
        self.packets.pop_front().unwrap()
    }

    /// The next packet, if it is there already.
    fn poll(&mut self) -> Option<(Header, Vec<u8>)> {
        let entries = self.driver.queues[RX].returned();
        self.take(entries);
        self.packets.pop_front()
    }

    fn connect(&self, port: u32) -> (UnixStream, Receiver<Result<(), ConnectError>>) {
        let (host, device) = UnixStream::pair().unwrap();
        host.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let (sender, receiver) = channel();
        self.connector.connect(port, OwnedFd::from(device), Box::new(move |result| drop(sender.send(result))));
        (host, receiver)
    }

    fn establish(&mut self) -> (UnixStream, Socket) {
        let (host, done) = self.connect(PORT);
        let (request, _) = self.receive();
        assert_eq!((request.op, request.dst_port, request.socket_type), (spec::OP_REQUEST, PORT, spec::TYPE_STREAM));
        assert_eq!(request.buf_alloc, BUFFER);
        let credit = (request.buf_alloc, request.fwd_cnt);
        let socket = Socket { host_port: request.src_port, sent: 0, received: 0, allocated: BUFFER, credit };
        self.send_op(&socket, spec::OP_RESPONSE, 0);
        done.recv().unwrap().unwrap();
        (host, socket)
    }

    fn send_op(&mut self, socket: &Socket, op: u16, flags: u32) {
        self.send(Header { op, flags, ..socket.header() }, &[]);
    }

    fn send_data(&mut self, socket: &mut Socket, bytes: &[u8]) {
        let len = u32::try_from(bytes.len()).unwrap();
        self.send(Header { op: spec::OP_RW, len, ..socket.header() }, bytes);
        socket.sent = socket.sent.wrapping_add(len);
    }

    /// Sends bytes as the host's credit allows.
    fn send_all(&mut self, socket: &mut Socket, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = (socket.credit.0 - (socket.sent - socket.credit.1)) as usize;
            if room == 0 {
                let (header, _) = self.receive();
                assert_eq!(header.op, spec::OP_CREDIT_UPDATE);
                socket.credit = (header.buf_alloc, header.fwd_cnt);
                continue;
            }
            let (now, later) = bytes.split_at(bytes.len().min(room).min(PACKET));
            self.send_data(socket, now);
            bytes = later;
        }
    }

    fn expect(&mut self, socket: &Socket, op: u16) -> Header {
        let (header, _) = self.receive();
        assert_eq!((header.op, header.src_port), (op, socket.host_port));
        header
    }

    fn expect_silence(&mut self) {
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(self.poll(), None);
    }
}

impl Socket {
    fn header(&self) -> Header {
        Header {
            src_cid: CID.into(),
            dst_cid: HOST_CID,
            src_port: PORT,
            dst_port: self.host_port,
            socket_type: spec::TYPE_STREAM,
            buf_alloc: self.allocated,
            fwd_cnt: self.received,
            ..Header::default()
        }
    }
}

fn random_bytes(length: usize) -> Vec<u8> {
    let mut random = Random::new(length as u64);
    (0..length).map(|_| random.below(256) as u8).collect()
}

#[test]
fn eight_mebibytes_reach_the_host() {
    let mut guest = Guest::new();
    let (mut host, mut socket) = guest.establish();
    let bytes = random_bytes(8 << 20);
    let reader = std::thread::spawn(move || {
        let mut received = Vec::new();
        host.read_to_end(&mut received).unwrap();
        received
    });
    guest.send_all(&mut socket, &bytes);
    guest.send_op(&socket, spec::OP_SHUTDOWN, SHUTDOWN_SEND | SHUTDOWN_RECEIVE);
    assert!(reader.join().unwrap() == bytes);
    while guest.receive().0.op != spec::OP_RST {}
}

#[test]
fn eight_mebibytes_reach_the_guest() {
    let mut guest = Guest::new();
    let (mut host, mut socket) = guest.establish();
    let bytes = random_bytes(8 << 20);
    let sent = bytes.clone();
    let writer = std::thread::spawn(move || {
        host.write_all(&sent).unwrap();
        host.shutdown(Shutdown::Write).unwrap();
        host
    });
    let mut received = Vec::new();
    loop {
        let (header, payload) = guest.receive();
        match header.op {
            spec::OP_RW => received.extend_from_slice(&payload),
            spec::OP_CREDIT_REQUEST => {
                socket.received = u32::try_from(received.len()).unwrap();
                guest.send_op(&socket, spec::OP_CREDIT_UPDATE, 0);
            }
            spec::OP_SHUTDOWN => break assert_eq!(header.flags, SHUTDOWN_SEND),
            op => panic!("unexpected operation {op}"),
        }
    }
    assert!(received == bytes);

    // The other direction is still open.
    let mut host = writer.join().unwrap();
    guest.send_data(&mut socket, b"goodbye");
    guest.send_op(&socket, spec::OP_SHUTDOWN, SHUTDOWN_SEND | SHUTDOWN_RECEIVE);
    let mut last = Vec::new();
    host.read_to_end(&mut last).unwrap();
    assert_eq!(last, b"goodbye");
    guest.expect(&socket, spec::OP_RST);
}

#[test]
fn the_guest_never_gets_more_than_its_credit() {
    let mut guest = Guest::new();
    let (mut host, mut socket) = guest.establish();
    socket.allocated = 5000;
    guest.send_op(&socket, spec::OP_CREDIT_UPDATE, 0);
    host.write_all(&[7; 20_000]).unwrap();
    let mut received = 0;
    while received < 5000 {
        received += guest.expect(&socket, spec::OP_RW).len;
    }
    assert_eq!(received, 5000);
    guest.expect(&socket, spec::OP_CREDIT_REQUEST);
    guest.expect_silence();
    socket.received = received;
    guest.send_op(&socket, spec::OP_CREDIT_UPDATE, 0);
    assert!(guest.expect(&socket, spec::OP_RW).len > 0);
}

#[test]
fn a_stalled_stream_blocks_no_other() {
    let mut guest = Guest::new();
    let (mut stalled, mut first) = guest.establish();
    let (mut host, mut second) = guest.establish();
    let bytes = random_bytes(BUFFER as usize);
    guest.send_all(&mut first, &bytes);
    guest.send_data(&mut second, b"hello");
    let mut hello = [0; 5];
    host.read_exact(&mut hello).unwrap();
    assert_eq!(&hello, b"hello");

    let mut received = vec![0; bytes.len()];
    stalled.read_exact(&mut received).unwrap();
    assert!(received == bytes);
}

#[test]
fn a_guest_that_ignores_its_credit_is_cut_off() {
    let mut guest = Guest::new();
    let (host, mut socket) = guest.establish();
    let bytes = vec![1; PACKET];
    // The socket's own buffer takes some bytes as well.
    let packets = (0..64).find(|_| {
        guest.send_data(&mut socket, &bytes);
        guest.poll().is_some_and(|(header, _)| header.op == spec::OP_RST)
    });
    assert!(packets.is_some());
    guest.send_data(&mut socket, &bytes);
    assert_eq!(guest.expect(&socket, spec::OP_RST).buf_alloc, 0);
    drop(host);
}

#[test]
fn connections_take_turns() {
    let mut guest = Guest::new();
    let mut ends: Vec<(UnixStream, Socket)> = (0..6).map(|_| guest.establish()).collect();
    let fill = |(host, _): &mut (UnixStream, Socket)| {
        host.set_nonblocking(true).unwrap();
        assert!(host.write(&vec![1; 150_000]).unwrap() >= 20 * RX_BUFFER as usize);
    };
    // The first two take all receive buffers; the other four then wait together.
    let (first, rest) = ends.split_at_mut(2);
    first.iter_mut().for_each(fill);
    let held = guest.driver.queues[RX].wait(64);
    rest.iter_mut().for_each(fill);
    std::thread::sleep(Duration::from_millis(50));
    guest.take(held);
    let mut counts = [0u32; 4];
    while counts.iter().sum::<u32>() < 64 {
        let (header, _) = guest.receive();
        if let Some(index) = rest.iter().position(|(_, socket)| socket.host_port == header.src_port) {
            counts[index] += 1;
        }
    }
    assert!(counts.iter().all(|count| *count >= 8), "{counts:?}");
}

#[test]
fn a_close_by_the_host_delivers_first_and_resets_then() {
    let mut guest = Guest::new();
    let (mut host, socket) = guest.establish();
    host.write_all(b"last words").unwrap();
    drop(host);
    let (header, payload) = guest.receive();
    assert_eq!((header.op, payload.as_slice()), (spec::OP_RW, b"last words".as_slice()));
    // Either order of the two events is right; both end in a reset.
    while guest.receive().0.op != spec::OP_RST {}
    guest.send_op(&socket, spec::OP_RST, 0);
    guest.expect_silence();
}

#[test]
fn bytes_and_end_reach_the_host_although_the_guest_resets() {
    let mut guest = Guest::new();
    let (mut host, mut socket) = guest.establish();
    let bytes = random_bytes(BUFFER as usize);
    guest.send_all(&mut socket, &bytes);
    guest.send_op(&socket, spec::OP_RST, 0);
    let mut received = Vec::new();
    host.read_to_end(&mut received).unwrap();
    assert!(received == bytes);
    std::thread::sleep(Duration::from_millis(50));
    while let Some((header, _)) = guest.poll() {
        assert_eq!(header.op, spec::OP_CREDIT_UPDATE, "a reset is not answered");
    }
}

#[test]
fn a_guest_that_receives_no_more_closes_the_stream_for_writing() {
    let mut guest = Guest::new();
    let (mut host, socket) = guest.establish();
    guest.send_op(&socket, spec::OP_SHUTDOWN, SHUTDOWN_RECEIVE);
    eventually("write fails", || host.try_clone().unwrap().write(b"x").is_err());
    assert_eq!(host.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
    let mut socket = socket;
    guest.send_data(&mut socket, b"still sending");
    let mut received = [0; 13];
    host.read_exact(&mut received).unwrap();
    assert_eq!(&received, b"still sending");
}

#[test]
fn a_refused_connection_is_reported() {
    let mut guest = Guest::new();
    let (mut host, done) = guest.connect(99);
    let (request, _) = guest.receive();
    let header = Header { op: spec::OP_RST, src_port: 99, dst_port: request.src_port, ..socket(0).header() };
    guest.send(header, &[]);
    assert!(matches!(done.recv().unwrap(), Err(ConnectError::Refused(99))));
    assert_eq!(host.read(&mut [0]).unwrap(), 0);
}

#[test]
fn an_attempt_ends_when_its_caller_closes_the_stream() {
    let mut guest = Guest::new();
    let (host, done) = guest.connect(PORT);
    let (request, _) = guest.receive();
    drop(host);
    assert!(matches!(done.recv().unwrap(), Err(ConnectError::StreamClosed(PORT))));
    guest.expect(&socket(request.src_port), spec::OP_RST);
}

#[test]
fn connections_wait_for_the_driver_and_end_with_it() {
    let mut guest = Guest::new();
    guest.driver.stop();
    let (_early, early) = guest.connect(PORT);
    assert!(early.try_recv().is_err());
    guest.driver.restart(0);
    guest.offer_buffers();
    let (request, _) = guest.receive();
    guest.send_op(&socket(request.src_port), spec::OP_RESPONSE, 0);
    early.recv().unwrap().unwrap();

    let (mut established, _) = guest.establish();
    let (_pending, pending) = guest.connect(PORT);
    guest.receive();
    guest.driver.stop();
    assert!(matches!(pending.recv().unwrap(), Err(ConnectError::Stopped(PORT))));
    assert_eq!(established.read(&mut [0]).unwrap(), 0);
}

#[test]
fn connections_are_bounded() {
    let guest = Guest::new();
    let ends: Vec<_> = (0..MAX_CONNECTIONS + 10).map(|_| guest.connect(PORT)).collect();
    let refused = || ends.iter().filter(|(_, done)| matches!(done.try_recv(), Ok(Err(ConnectError::TooMany)))).count();
    eventually("the excess is refused", || refused() >= 1);
}

fn socket(host_port: u32) -> Socket {
    Socket { host_port, sent: 0, received: 0, allocated: BUFFER, credit: (0, 0) }
}

#[test]
fn the_ready_port_is_noticed_and_nothing_else_listens() {
    let mut guest = Guest::new();
    for port in [READY_PORT + 1, 0, 22, u32::MAX] {
        guest.send_op(&socket(port), spec::OP_REQUEST, 0);
        guest.expect(&socket(port), spec::OP_RST);
    }
    assert!(guest.ready.read().is_err());
    guest.send_op(&socket(READY_PORT), spec::OP_REQUEST, 0);
    guest.expect(&socket(READY_PORT), spec::OP_RST);
    guest.ready.read().unwrap();
}

#[test]
fn hostile_headers_are_answered_with_resets_or_not_at_all() {
    let mut guest = Guest::new();
    let base = Header { op: spec::OP_RW, ..socket(77).header() };
    for dropped in [
        Header { src_cid: 4, ..base },
        Header { src_cid: HOST_CID, ..base },
        Header { dst_cid: 9, ..base },
        Header { op: spec::OP_RST, ..base },
        Header { op: spec::OP_RST, socket_type: 2, ..base },
    ] {
        guest.send(dropped, &[]);
    }
    guest.expect_silence();
    for refused in [
        Header { op: 0, ..base },
        Header { op: 99, ..base },
        Header { len: 10, ..base },
        Header { len: u32::MAX, ..base },
        Header { socket_type: 2, op: spec::OP_REQUEST, ..base },
        Header { op: spec::OP_RESPONSE, ..base },
    ] {
        guest.send(refused, &[]);
        let (reset, _) = guest.receive();
        assert_eq!((reset.op, reset.socket_type), (spec::OP_RST, refused.socket_type), "{refused:?}");
    }
    // Shorter than a header.
    guest.driver.queues[TX].request(&[Part::Readable(TX_BUFFER, 43)]);
    guest.expect_silence();
}

#[test]
fn a_packet_for_the_ports_of_another_connection_does_not_reach_it() {
    let mut guest = Guest::new();
    let (host, socket) = guest.establish();
    host.set_nonblocking(true).unwrap();
    let forged = Header { op: spec::OP_RW, len: 4, src_port: PORT + 1, ..socket.header() };
    guest.send(forged, b"evil");
    guest.expect(&socket, spec::OP_RST);
    assert_eq!((&host).read(&mut [0; 4]).unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
fn a_storm_of_packets_that_need_resets_is_bounded() {
    let mut guest = Guest::new();
    for port in 0..5000 {
        guest.driver.write(TX_BUFFER, &Header { op: spec::OP_RW, ..socket(port).header() }.to_bytes());
        guest.driver.queues[TX].request(&[Part::Readable(TX_BUFFER, HEADER_LENGTH as u32)]);
    }
    // What fits the receive buffers, and what was kept beyond them.
    let mut resets = 0;
    while guest.poll().is_some() {
        resets += 1;
        if guest.packets.is_empty() {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    assert_eq!(resets, 64 + 128);
}

/// Headers that are nearly right, for connections whose other end does anything.
#[test]
fn the_device_survives_any_headers() {
    let mut guest = Guest::new();
    let mut random = Random::new(0x5eed);
    let mut ends: VecDeque<(UnixStream, Socket)> = VecDeque::new();
    for _ in 0..3000 {
        if ends.len() < 4 {
            let (host, _done) = guest.connect(PORT);
            host.set_nonblocking(true).unwrap();
            // The request may stand behind other packets; the port is known all the same.
            let (header, _) = guest.receive();
            ends.push_back((host, socket(header.src_port)));
        }
        let (host, socket) = &mut ends[random.below(4) as usize % 4];
        match random.below(20) {
            0 => drop(host.write(&[1; 10_000])),
            1 => drop(host.read(&mut [0; 100_000])),
            2 => drop(host.shutdown(Shutdown::Write)),
            _ => {}
        }
        let mut odd = |usual: u32| match random.below(20) {
            0 => random.number() as u32,
            1 => usual.wrapping_sub(1),
            _ => usual,
        };
        let header = Header {
            src_port: odd(PORT),
            dst_port: odd(socket.host_port),
            len: odd(64),
            flags: odd(0),
            buf_alloc: odd(BUFFER),
            fwd_cnt: odd(0),
            op: random.below(9) as u16,
            ..socket.header()
        };
        if random.below(50) == 0 {
            ends.pop_front();
        }
        guest.send(header, &[2; 64]);
        while guest.poll().is_some() {}
    }
    drop(ends);
    while guest.poll().is_some() {}
    std::thread::sleep(Duration::from_millis(50));
    while guest.poll().is_some() {}
    let (mut host, mut socket) = guest.establish();
    guest.send_data(&mut socket, b"alive");
    let mut alive = [0; 5];
    host.read_exact(&mut alive).unwrap();
    assert_eq!(&alive, b"alive");
}

#[test]
fn receive_buffers_of_any_shape_come_back() {
    let mut guest = Guest::new();
    survives_random_chains(&mut guest.driver, TX, 0x5eed, 20);
    // A buffer without room for a byte of payload, a readable one, and one that is split inside the header.
    guest.driver.stop();
    guest.driver.restart(0);
    let shapes: [&[Part]; 3] = [
        &[Part::Writable(BUFFERS, HEADER_LENGTH as u32)],
        &[Part::Readable(BUFFERS, 4096)],
        &[Part::Writable(BUFFERS, 10), Part::Writable(BUFFERS + 8192, 100)],
    ];
    for shape in shapes {
        guest.driver.queues[RX].add(shape);
    }
    guest.send_op(&socket(1), spec::OP_RW, 0);
    let lengths: Vec<u32> = guest.driver.queues[RX].wait(3).into_iter().map(|(_, length)| length).collect();
    assert_eq!(lengths, [0, 0, HEADER_LENGTH as u32]);
    let mut header = guest.driver.read(BUFFERS, 10);
    header.extend(guest.driver.read(BUFFERS + 8192, 34));
    assert_eq!(Header::from_bytes(&header.try_into().unwrap()).op, spec::OP_RST);
}

/// A driver that offers useless buffers again as fast as they come back does not keep the thread from its end.
#[test]
fn a_driver_that_always_has_useless_buffers_is_left() {
    const PATIENCE: Duration = Duration::from_secs(5);
    let mut guest = Guest::new();
    guest.driver.stop();
    guest.driver.restart(0);
    // All heads are the same long chain without room, which takes the device longer than the driver to offer it.
    for index in 0..1024_u16 {
        let next = Descriptor { address: BUFFERS, length: 1, flags: NEXT, next: index + 1 };
        write_descriptor(&guest.driver.memory, BUFFERS, index, next);
    }
    let size = spec::QUEUE_SIZES[RX];
    for head in 0..size {
        let table = Descriptor { address: BUFFERS, length: 1024 * 16, flags: INDIRECT, next: 0 };
        guest.driver.queues[RX].describe(head, table);
        guest.driver.queues[RX].offer(head);
    }
    // Something that the device has to send from now on.
    guest.send_op(&socket(5), spec::OP_RW, 0);
    let started = Instant::now();
    let stopped = AtomicBool::new(false);
    let Driver { device, queues, .. } = &mut guest.driver;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            queues[RX].kick();
            while !stopped.load(Ordering::Relaxed) && started.elapsed() < 2 * PATIENCE {
                queues[RX].set_available(queues[RX].used().wrapping_add(size));
            }
        });
        std::thread::sleep(Duration::from_millis(100));
        device.stop();
        stopped.store(true, Ordering::Relaxed);
    });
    assert!(started.elapsed() < PATIENCE, "the device went on for as long as there were buffers");
}

#[test]
fn the_event_queue_keeps_its_buffers() {
    let mut guest = Guest::new();
    guest.driver.queues[EVENT].add(&[Part::Writable(TX_BUFFER, 8)]);
    guest.driver.queues[EVENT].kick();
    guest.send_op(&socket(5), spec::OP_RW, 0);
    guest.receive();
    assert_eq!(guest.driver.queues[EVENT].returned(), []);
}

#[test]
fn the_configuration_is_the_context_id() {
    let guest = Guest::new();
    let mut bytes = [0xff; 12];
    guest.driver.device.read_config(0, &mut bytes);
    assert_eq!(bytes, [3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
}
