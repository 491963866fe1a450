//! Many connections at once against a driver that waits for interrupts as Linux does: it looks at its rings when it is
//! interrupted, kicks when it is asked to, and never polls. A packet that the device forgets stalls the test.

use super::connection::BUFFER;
use super::spec::{self, HEADER_LENGTH, HOST_CID, Header, RX, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TX};
use super::*;
use crate::virtio::testing::{BUFFERS, Driver, EVENT_INDEX, Part, Random};
use std::collections::{BTreeMap, VecDeque};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};
use vmm_sys_util::eventfd::EFD_NONBLOCK;

const CID: u32 = 3;
const PORT: u32 = 1025;
/// Length of each buffer, with the header.
const PACKET: usize = 4096;
const RX_LENGTH: u32 = 4096;
const TX_BUFFERS: u64 = BUFFERS + 0x8_0000;

/// How long nothing may happen while something is to be done.
const STALL: Duration = Duration::from_secs(60);

/// What a caller asks for: its first bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Order {
    seed: u32,
    /// Bytes that follow, up to the end of the stream.
    up: u32,
    /// Bytes that the guest is to answer.
    down: u32,
}

const ORDER: usize = 12;

impl Order {
    fn random(random: &mut Random) -> Self {
        let mut length = || match random.below(16) {
            0..4 => 0,
            4..8 => random.below(20),
            8..12 => random.below(5_000),
            12..15 => random.below(60_000),
            // More than all receive buffers hold.
            _ => 400_000,
        };
        let [up, down] = [length(), length()].map(|length| u32::try_from(length).unwrap());
        Self { seed: u32::try_from(random.below(1 << 32)).unwrap(), up, down }
    }

    fn to_bytes(self) -> [u8; ORDER] {
        let mut bytes = [0; ORDER];
        for (field, value) in bytes.chunks_exact_mut(4).zip([self.seed, self.up, self.down]) {
            field.copy_from_slice(&value.to_le_bytes());
        }
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Self {
        let field = |index: usize| u32::from_le_bytes(bytes[4 * index..4 * index + 4].try_into().unwrap());
        Self { seed: field(0), up: field(1), down: field(2) }
    }

    /// The bytes of one direction, different for each order.
    fn bytes(self, direction: u32, range: std::ops::Range<usize>) -> Vec<u8> {
        let byte =
            |at: usize| (u32::try_from(at).unwrap() ^ self.seed ^ direction).wrapping_mul(0x9e37_79b1).to_be_bytes()[0];
        range.map(byte).collect()
    }
}

const UP: u32 = 0;
const DOWN: u32 = 1;

/// The caller's side: runs on a thread of its own and returns when the guest has ended the stream.
fn call(connector: &Connector, order: Order) {
    let (mut host, device) = UnixStream::pair().unwrap();
    host.set_read_timeout(Some(STALL)).unwrap();
    host.set_write_timeout(Some(STALL)).unwrap();
    let (sender, receiver) = channel();
    connector.connect(PORT, OwnedFd::from(device), Box::new(move |result| sender.send(result).unwrap()));
    receiver.recv_timeout(STALL).expect("the guest's answer arrives").unwrap();
    let mut bytes = order.to_bytes().to_vec();
    bytes.extend(order.bytes(UP, 0..order.up as usize));
    let writer = {
        let mut host = host.try_clone().unwrap();
        std::thread::spawn(move || {
            host.write_all(&bytes).unwrap();
            host.shutdown(Shutdown::Write).unwrap();
        })
    };
    let mut received = Vec::new();
    host.read_to_end(&mut received).expect("the stream ends");
    assert!(received == order.bytes(DOWN, 0..order.down as usize), "{order:?}: {} bytes came", received.len());
    writer.join().unwrap();
}

/// The guest's end of a connection.
#[derive(Debug, Default)]
struct Socket {
    received: Vec<u8>,
    /// Bytes that the application took.
    consumed: u32,
    told_consumed: u32,
    sent: u32,
    /// The host's credit: allocated and forwarded.
    credit: (u32, u32),
    allocated: u32,
    host_ended: bool,
    ended: bool,
}

impl Socket {
    fn order(&self) -> Option<Order> {
        self.received.get(..ORDER).map(Order::from_bytes)
    }

    fn room(&self) -> usize {
        (self.credit.0 - (self.sent - self.credit.1)) as usize
    }
}

/// The guest: one driver, one application.
struct Guest {
    driver: Driver<Vsock>,
    random: Random,
    sockets: BTreeMap<u32, Socket>,
    /// Packets that wait for the transmit queue.
    outgoing: VecDeque<(Header, Vec<u8>)>,
    transmitting: u16,
    /// Receive buffers that the driver has back and keeps for now.
    spare: Vec<u16>,
    /// How many of them it collects before it gives them to the device again.
    refill_at: usize,
    seen: [usize; 2],
    finished: usize,
}

impl Guest {
    fn new(features: u64, refill_at: usize, seed: u64) -> (Self, Connector) {
        let (device, connector) = Vsock::new(CID, EventFd::new(EFD_NONBLOCK).unwrap()).unwrap();
        let mut guest = Self {
            driver: Driver::start(device, features),
            random: Random::new(seed),
            sockets: BTreeMap::new(),
            outgoing: VecDeque::new(),
            transmitting: 0,
            spare: (0..spec::QUEUE_SIZES[RX]).collect(),
            refill_at,
            seen: [0; 2],
            finished: 0,
        };
        guest.refill();
        (guest, connector)
    }

    /// Serves until `count` connections have ended.
    fn run(&mut self, count: usize) {
        let mut progress = Instant::now();
        while self.finished < count {
            let interrupted = [RX, TX].map(|queue| {
                let interrupts = self.driver.queues[queue].interrupts();
                std::mem::replace(&mut self.seen[queue], interrupts) != interrupts
            });
            if interrupted[TX] {
                self.transmitting -= u16::try_from(self.driver.queues[TX].returned().len()).unwrap();
            }
            if interrupted[RX] {
                self.take_packets();
            }
            let worked = self.work();
            self.transmit();
            if interrupted != [false; 2] || worked {
                progress = Instant::now();
            } else {
                assert!(progress.elapsed() < STALL, "stalled: {:?}", self.sockets);
                std::thread::sleep(Duration::from_micros(200));
            }
        }
    }

    fn refill(&mut self) {
        for index in self.spare.drain(..) {
            let address = BUFFERS + u64::from(index) * PACKET as u64;
            self.driver.queues[RX].add(&[Part::Writable(address, RX_LENGTH)]);
        }
        self.driver.queues[RX].notify();
    }

    fn take_packets(&mut self) {
        for (head, length) in self.driver.queues[RX].returned() {
            let bytes = self.driver.read(BUFFERS + u64::from(head) * PACKET as u64, length as usize);
            let (header, payload) = bytes.split_first_chunk().unwrap();
            self.take_packet(Header::from_bytes(header), payload);
            self.spare.push(head);
        }
        if self.spare.len() >= self.refill_at {
            self.refill();
        }
    }

    fn take_packet(&mut self, header: Header, payload: &[u8]) {
        let port = header.src_port;
        if header.op == spec::OP_REQUEST {
            let allocated = [4096, 10_000, BUFFER][usize::try_from(self.random.below(3)).unwrap()];
            self.sockets.insert(port, Socket { allocated, ..Socket::default() });
            self.send(port, spec::OP_RESPONSE, 0, &[]);
        }
        let Some(socket) = self.sockets.get_mut(&port) else {
            assert_eq!(header.op, spec::OP_RST, "packet for a connection that is over");
            return;
        };
        socket.credit = (header.buf_alloc, header.fwd_cnt);
        match header.op {
            spec::OP_RW => {
                socket.received.extend(payload);
                let buffered = u32::try_from(socket.received.len()).unwrap() - socket.consumed;
                assert!(buffered <= socket.allocated, "more than the credit");
            }
            spec::OP_SHUTDOWN => socket.host_ended |= header.flags & SHUTDOWN_SEND != 0,
            spec::OP_CREDIT_REQUEST => self.send(port, spec::OP_CREDIT_UPDATE, 0, &[]),
            spec::OP_RST => {
                let socket = self.sockets.remove(&port).unwrap();
                let order = socket.order().expect("the order came");
                assert!(socket.ended, "reset before the guest ended");
                assert!(socket.received[ORDER..] == order.bytes(UP, 0..order.up as usize), "{order:?}");
                self.finished += 1;
            }
            _ => {}
        }
    }

    /// Lets the application of some sockets do something. False when none had anything to do.
    fn work(&mut self) -> bool {
        let mut worked = false;
        for port in self.sockets.keys().copied().collect::<Vec<_>>() {
            // The others are not scheduled now.
            if self.random.below(3) == 0 {
                worked |= self.read(port);
                worked |= self.write(port);
            } else {
                worked |= self.has_work(port);
            }
        }
        worked
    }

    fn has_work(&self, port: u32) -> bool {
        let socket = &self.sockets[&port];
        socket.received.len() > socket.consumed as usize
    }

    /// Takes some of what was received; tells the host as Linux does, when little room is left or all was taken.
    fn read(&mut self, port: u32) -> bool {
        let socket = self.sockets.get_mut(&port).unwrap();
        let buffered = u32::try_from(socket.received.len()).unwrap() - socket.consumed;
        if buffered == 0 {
            return false;
        }
        socket.consumed += 1 + u32::try_from(self.random.below(u64::from(buffered))).unwrap();
        let untold = socket.consumed - socket.told_consumed;
        if socket.consumed as usize == socket.received.len() || socket.allocated - untold < 64 * 1024 {
            self.send(port, spec::OP_CREDIT_UPDATE, 0, &[]);
        }
        true
    }

    /// Answers the order as far as the host's credit goes, and ends when both sides have said everything.
    fn write(&mut self, port: u32) -> bool {
        let socket = &self.sockets[&port];
        let Some(order) = socket.order().filter(|_| !socket.ended) else { return false };
        let done = socket.sent as usize;
        let rest = order.down as usize - done;
        if rest > 0 {
            let most = rest.min(socket.room()).min(PACKET - HEADER_LENGTH);
            if most == 0 {
                return false;
            }
            let length = 1 + usize::try_from(self.random.below(most as u64)).unwrap();
            self.send(port, spec::OP_RW, 0, &order.bytes(DOWN, done..done + length));
            return true;
        }
        let all_read = socket.host_ended && socket.consumed as usize == ORDER + order.up as usize;
        if all_read {
            self.send(port, spec::OP_SHUTDOWN, SHUTDOWN_SEND | SHUTDOWN_RECEIVE, &[]);
            self.sockets.get_mut(&port).unwrap().ended = true;
        }
        all_read
    }

    fn send(&mut self, port: u32, op: u16, flags: u32, payload: &[u8]) {
        let socket = self.sockets.get_mut(&port).unwrap();
        let len = u32::try_from(payload.len()).unwrap();
        socket.sent += len;
        socket.told_consumed = socket.consumed;
        let header = Header {
            src_cid: CID.into(),
            dst_cid: HOST_CID,
            src_port: PORT,
            dst_port: port,
            len,
            socket_type: spec::TYPE_STREAM,
            op,
            flags,
            buf_alloc: socket.allocated,
            fwd_cnt: socket.consumed,
        };
        self.outgoing.push_back((header, payload.to_vec()));
    }

    /// Puts packets on the transmit queue while it has room.
    fn transmit(&mut self) {
        let size = spec::QUEUE_SIZES[TX];
        while self.transmitting < size
            && let Some((header, payload)) = self.outgoing.pop_front()
        {
            // Heads count up by one, and packets return in order.
            let slot = self.driver.queues[TX].next_head();
            let address = TX_BUFFERS + u64::from(slot) * PACKET as u64;
            self.driver.write(address, &header.to_bytes());
            self.driver.write(address + HEADER_LENGTH as u64, &payload);
            let length = u32::try_from(HEADER_LENGTH + payload.len()).unwrap();
            self.driver.queues[TX].add(&[Part::Readable(address, length)]);
            self.transmitting += 1;
            if self.random.below(2) == 0 {
                self.driver.queues[TX].notify();
            }
        }
        self.driver.queues[TX].notify();
    }
}

/// `count` connections, of which `callers` are open at a time.
fn storm(features: u64, refill_at: usize, seed: u64, callers: usize, count: usize) {
    let (mut guest, connector) = Guest::new(features, refill_at, seed);
    std::thread::scope(|scope| {
        for caller in 0..callers {
            let connector = connector.clone();
            scope.spawn(move || {
                let mut random = Random::new(seed ^ (caller as u64) << 32);
                for _ in 0..count / callers {
                    call(&connector, Order::random(&mut random));
                }
            });
        }
        guest.run(count / callers * callers);
    });
}

/// Linux refills when half of its buffers are used up.
const HALF: usize = 33;
/// The device has no buffer left before it gets any back.
const LAST: usize = 64;

#[test]
fn no_byte_of_many_connections_is_lost_or_waits_for_another_event() {
    for (seed, refill_at) in [(1, HALF), (2, LAST)] {
        storm(EVENT_INDEX, refill_at, seed, 40, 400);
        storm(0, refill_at, seed, 40, 400);
    }
}

#[test]
fn a_connection_that_is_alone_has_no_other_event_to_wait_for() {
    for (seed, refill_at) in [(3, HALF), (4, LAST)] {
        storm(EVENT_INDEX, refill_at, seed, 1, 40);
        storm(0, refill_at, seed, 1, 40);
    }
}
