//! The driver's side of devices, for tests: queues in a small guest memory, descriptors of any shape.
#![expect(clippy::cast_possible_truncation, reason = "random numbers are cut to size")]

use super::device::{GuestMemory, Interrupt, Resources, RunningQueue, VirtioDevice};
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::sync::{Arc, Condvar, Mutex};
use std::task::Waker;
use std::time::{Duration, Instant};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub const MEMORY: u64 = 4 << 20;

/// Where queues lie; buffers of tests go between [`BUFFERS`] and [`MEMORY`].
const QUEUES: u64 = 0x1_0000;
const QUEUE_SPACING: u64 = 0x1_0000;
pub const BUFFERS: u64 = 0x10_0000;

/// How long a device may take before a test fails.
const PATIENCE: Duration = Duration::from_secs(10);

/// `VIRTIO_F_EVENT_IDX`: both sides say from which entry on they want to hear of the other.
pub const EVENT_INDEX: u64 = 1 << 29;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// Counts interrupts and lets a test wait for them.
#[derive(Debug, Default)]
pub struct CountingInterrupt {
    count: Mutex<usize>,
    raised: Condvar,
}

impl CountingInterrupt {
    pub fn count(&self) -> usize {
        *self.count.lock().unwrap()
    }

    fn wait_beyond(&self, seen: usize) {
        let count = self.count.lock().unwrap();
        let (_count, timeout) = self.raised.wait_timeout_while(count, PATIENCE, |count| *count <= seen).unwrap();
        assert!(!timeout.timed_out(), "no interrupt");
    }
}

impl Interrupt for CountingInterrupt {
    fn trigger(&self) -> io::Result<()> {
        *self.count.lock().unwrap() += 1;
        self.raised.notify_all();
        Ok(())
    }
}

/// A descriptor as the driver writes it, hostile ones too.
#[derive(Clone, Copy, Debug)]
pub struct Descriptor {
    pub address: u64,
    pub length: u32,
    pub flags: u16,
    pub next: u16,
}

/// A buffer of a well-formed chain.
#[derive(Clone, Copy, Debug)]
pub enum Part {
    Readable(u64, u32),
    Writable(u64, u32),
}

/// The driver's view of one queue.
#[derive(Debug)]
pub struct DriverQueue {
    memory: GuestMemory,
    size: u16,
    base: u64,
    kick: EventFd,
    interrupt: Arc<CountingInterrupt>,
    next_descriptor: u16,
    available: u16,
    seen: u16,
    event_index: bool,
    /// The available index when the device was last told.
    told: u16,
}

impl DriverQueue {
    fn available_ring(&self) -> u64 {
        self.base + 16 * u64::from(self.size)
    }

    fn used_ring(&self) -> u64 {
        // The available ring with its event field, rounded up.
        (self.available_ring() + 6 + 2 * u64::from(self.size)).next_multiple_of(4)
    }

    /// Writes a descriptor to the table.
    pub fn describe(&self, index: u16, descriptor: Descriptor) {
        write_descriptor(&self.memory, self.base, index, descriptor);
    }

    /// Makes a head available, whatever it names. The device is not told.
    pub fn offer(&mut self, head: u16) {
        let entry = self.available_ring() + 4 + 2 * u64::from(self.available % self.size);
        self.memory.write_obj(head, GuestAddress(entry)).unwrap();
        self.available = self.available.wrapping_add(1);
        self.set_available(self.available);
    }

    /// Sets the available index, which may be a lie.
    pub fn set_available(&self, index: u16) {
        self.memory.store(index, GuestAddress(self.available_ring() + 2), Ordering::SeqCst).unwrap();
    }

    /// Head of the chain that [`DriverQueue::add`] offers next.
    pub fn next_head(&self) -> u16 {
        self.next_descriptor
    }

    /// Offers a well-formed chain, reusing the table round robin, and returns its head.
    pub fn add(&mut self, parts: &[Part]) -> u16 {
        let head = self.next_descriptor;
        for (position, part) in parts.iter().enumerate() {
            let index = self.next_descriptor;
            self.next_descriptor = (index + 1) % self.size;
            let (address, length, direction) = match *part {
                Part::Readable(address, length) => (address, length, 0),
                Part::Writable(address, length) => (address, length, WRITE),
            };
            let more = if position + 1 < parts.len() { NEXT } else { 0 };
            self.describe(index, Descriptor { address, length, flags: direction | more, next: self.next_descriptor });
        }
        self.offer(head);
        head
    }

    /// Kicks, whether or not the device wants it.
    pub fn kick(&mut self) {
        self.told = self.available;
        self.kick.write(1).unwrap();
    }

    /// Kicks if the device wants it, as an honest driver does.
    pub fn notify(&mut self) {
        fence(Ordering::SeqCst);
        let wanted = if self.event_index {
            let event: u16 = self.load(self.used_ring() + 4 + 8 * u64::from(self.size));
            self.available.wrapping_sub(event).wrapping_sub(1) < self.available.wrapping_sub(self.told)
        } else {
            self.load(self.used_ring()) == 0
        };
        self.told = self.available;
        if wanted {
            self.kick.write(1).unwrap();
        }
    }

    fn load(&self, address: u64) -> u16 {
        self.memory.load(GuestAddress(address), Ordering::SeqCst).unwrap()
    }

    pub fn interrupts(&self) -> usize {
        self.interrupt.count()
    }

    /// How many chains the device has returned, modulo 2¹⁶.
    pub fn used(&self) -> u16 {
        self.load(self.used_ring() + 2)
    }

    /// Chains that the device has not returned.
    pub fn in_flight(&self) -> u16 {
        self.available.wrapping_sub(self.used())
    }

    /// What the device returned since the last call: heads and lengths. Asks for an interrupt at the next.
    pub fn returned(&mut self) -> Vec<(u16, u32)> {
        let mut entries = Vec::new();
        while self.seen != self.used() {
            let entry = self.used_ring() + 4 + 8 * u64::from(self.seen % self.size);
            let head: u32 = self.memory.read_obj(GuestAddress(entry)).unwrap();
            let length: u32 = self.memory.read_obj(GuestAddress(entry + 4)).unwrap();
            entries.push((u16::try_from(head).unwrap(), length));
            self.seen = self.seen.wrapping_add(1);
            // Before the index is read again, so that nothing is returned unnoticed in between.
            let event = self.available_ring() + 4 + 2 * u64::from(self.size);
            self.memory.store(self.seen, GuestAddress(event), Ordering::SeqCst).unwrap();
            fence(Ordering::SeqCst);
        }
        entries
    }

    /// Waits until the device has returned `count` more chains.
    pub fn wait(&mut self, count: usize) -> Vec<(u16, u32)> {
        let mut entries = Vec::new();
        loop {
            let interrupts = self.interrupts();
            entries.extend(self.returned());
            if entries.len() >= count {
                return entries;
            }
            self.interrupt.wait_beyond(interrupts);
        }
    }

    /// Offers a chain, notifies, and waits for it; returns how many bytes the device wrote.
    pub fn request(&mut self, parts: &[Part]) -> u32 {
        let head = self.add(parts);
        self.notify();
        let entries = self.wait(1);
        assert_eq!(entries.len(), 1);
        assert_eq!(entries[0].0, head);
        entries[0].1
    }
}

/// Writes descriptor `index` of the table at `table`.
pub fn write_descriptor(memory: &GuestMemory, table: u64, index: u16, descriptor: Descriptor) {
    let entry = table + 16 * u64::from(index);
    memory.write_obj(descriptor.address, GuestAddress(entry)).unwrap();
    memory.write_obj(descriptor.length, GuestAddress(entry + 8)).unwrap();
    memory.write_obj(descriptor.flags, GuestAddress(entry + 12)).unwrap();
    memory.write_obj(descriptor.next, GuestAddress(entry + 14)).unwrap();
}

/// A driver with a device and the memory between them.
#[derive(Debug)]
pub struct Driver<D> {
    pub memory: GuestMemory,
    pub device: D,
    pub queues: Vec<DriverQueue>,
}

impl<D: VirtioDevice> Driver<D> {
    /// Starts the device with all of its queues and `features`.
    pub fn start(device: D, features: u64) -> Self {
        let memory: GuestMemory =
            Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), usize::try_from(MEMORY).unwrap())]).unwrap());
        let mut driver = Self { memory, device, queues: Vec::new() };
        driver.restart(features);
        driver
    }

    /// Starts the device again after [`Driver::stop`], with fresh queues.
    pub fn restart(&mut self, features: u64) {
        self.queues.clear();
        let mut queues = Vec::new();
        for (index, &size) in self.device.traits().queue_sizes.iter().enumerate() {
            let base = QUEUES + index as u64 * QUEUE_SPACING;
            self.memory.write_slice(&vec![0; QUEUE_SPACING as usize], GuestAddress(base)).unwrap();
            let kick = EventFd::new(EFD_NONBLOCK).unwrap();
            let interrupt = Arc::new(CountingInterrupt::default());
            let side = DriverQueue {
                memory: Arc::clone(&self.memory),
                size,
                base,
                kick: kick.try_clone().unwrap(),
                interrupt: Arc::clone(&interrupt),
                next_descriptor: 0,
                available: 0,
                seen: 0,
                event_index: features & EVENT_INDEX != 0,
                told: 0,
            };
            let queue = device_side(&side);
            assert!(queue.is_valid(&*self.memory));
            queues.push(Some(RunningQueue { queue, kick, interrupt }));
            self.queues.push(side);
        }
        let config_interrupt = Arc::new(CountingInterrupt::default());
        let memory = Arc::clone(&self.memory);
        let resources = Resources { memory, features, queues, config_interrupt, ended: Waker::noop().clone() };
        self.device.start(resources).unwrap();
    }

    /// Stops the device and checks that all of its queues come back.
    pub fn stop(&mut self) -> Vec<Queue> {
        let queues: Vec<Queue> =
            self.device.stop().into_iter().map(|queue| queue.expect("queue is returned")).collect();
        assert_eq!(queues.len(), self.queues.len());
        queues
    }

    pub fn write(&self, address: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(address)).unwrap();
    }

    pub fn read(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }
}

fn device_side(side: &DriverQueue) -> Queue {
    let half = |address: u64| (Some(u32::try_from(address).unwrap()), Some(0));
    let mut queue = Queue::new(side.size).unwrap();
    let (low, high) = half(side.base);
    queue.set_desc_table_address(low, high);
    let (low, high) = half(side.available_ring());
    queue.set_avail_ring_address(low, high);
    let (low, high) = half(side.used_ring());
    queue.set_used_ring_address(low, high);
    queue.set_event_idx(side.event_index);
    queue.set_ready(true);
    queue
}

/// Waits until `condition` holds.
pub fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Pseudo-random numbers (xorshift), the same in every run.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.number() % limit
    }

    /// A descriptor that is often nearly right.
    pub fn descriptor(&mut self, queue_size: u16) -> Descriptor {
        let address = match self.below(8) {
            0 => self.number(),
            1 => MEMORY - self.below(64),
            _ => BUFFERS + self.below(0x10_0000),
        };
        let length = match self.below(8) {
            0 => self.number() as u32,
            1 => 0,
            _ => self.below(8192) as u32,
        };
        let flags = match self.below(8) {
            0 => self.number() as u16,
            _ => self.below(4) as u16,
        };
        Descriptor { address, length, flags, next: self.below(u64::from(queue_size) + 1) as u16 }
    }
}

/// Throws random chains at every queue of a device and checks that it returns each of them, once.
///
/// The device may not panic, hang or lose a chain, whatever the descriptors say.
pub fn survives_random_chains<D: VirtioDevice>(driver: &mut Driver<D>, queue: usize, seed: u64, rounds: usize) {
    let mut random = Random::new(seed);
    let size = driver.queues[queue].size;
    for _ in 0..rounds {
        for index in 0..size {
            let descriptor = random.descriptor(size);
            driver.queues[queue].describe(index, descriptor);
        }
        // Some of the buffers hold headers that mean something.
        for _ in 0..16 {
            let bytes: Vec<u8> = (0..32).map(|_| random.below(4) as u8).collect();
            let address = BUFFERS + random.below(0x10_0000);
            driver.write(address, &bytes);
        }
        let count = usize::try_from(random.below(u64::from(size)) + 1).unwrap();
        for _ in 0..count {
            let head = random.below(u64::from(size)) as u16;
            driver.queues[queue].offer(head);
        }
        driver.queues[queue].kick();
        assert_eq!(driver.queues[queue].wait(count).len(), count);
    }
}

/// Requirements that a machine lacks: a test that cannot run says so and is counted.
pub fn skip(test: &str, missing: &str) {
    static SKIPPED: AtomicUsize = AtomicUsize::new(0);
    let count = SKIPPED.fetch_add(1, Ordering::Relaxed) + 1;
    eprintln!("SKIPPED ({count}): {test}: {missing}");
}
