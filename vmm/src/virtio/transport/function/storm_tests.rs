//! A device with a thread of its own behind its registers, while two vCPUs write whatever they like.

use super::*;
use crate::pci::Function;
use crate::virtio::rng::Rng;
use crate::virtio::testing::Random;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::thread;
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestMemoryMmap};

const STATUS: u64 = 20;
const NOTIFY: u64 = 0x3000;
const WINDOW: u32 = 0xc000_8000;
const SLOT: u8 = 1;
const ROUNDS: usize = 5;

/// The descriptor table, the available ring and the used ring of a queue of 64 entries, and a buffer.
const QUEUE: [u64; 3] = [0x1000, 0x2000, 0x3000];
const BUFFER: u64 = 0x8000;

/// The doorbells that are placed, as KVM keeps them: an address holds one, and only what is there can go.
#[derive(Debug, Default)]
struct Bells {
    placed: Mutex<Vec<u64>>,
    ever: AtomicUsize,
}

impl Doorbells for Bells {
    fn connect(&self, address: u64, _: &EventFd) -> io::Result<()> {
        let mut placed = self.placed.lock().unwrap();
        assert!(!placed.contains(&address), "{address:#x} is placed twice");
        placed.push(address);
        self.ever.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn disconnect(&self, address: u64, _: &EventFd) -> io::Result<()> {
        let mut placed = self.placed.lock().unwrap();
        let index = placed.iter().position(|known| *known == address).expect("only what is placed goes");
        placed.swap_remove(index);
        Ok(())
    }
}

/// What a driver writes to the common registers to start its device, in order.
fn script() -> Vec<(u64, Vec<u8>)> {
    let mut script = vec![(STATUS, vec![1]), (STATUS, vec![3])];
    script.extend([8, 12].map(|register| (register, 1_u32.to_le_bytes().to_vec())));
    script.push((STATUS, vec![11]));
    script.extend((32..).step_by(8).zip(QUEUE).map(|(register, address)| (register, address.to_le_bytes().to_vec())));
    script.extend([(28, vec![1, 0]), (STATUS, vec![15])]);
    script
}

/// Something else that the guest may write, sense or nonsense.
fn disturb(function: &VirtioFunction, random: &mut Random) {
    let any = random.number().to_le_bytes();
    match random.below(12) {
        0 => function.write_bar(STATUS, &[0]),
        1 => function.write_bar(STATUS, &any[..1]),
        2 => function.write_bar(32 + u64::from(any[0] & 0x18), &any),
        3 => function.write_bar(24, &[any[0] & 0x7f, 0]),
        4 => function.write_bar(26, &[any[0] & 3, 0]),
        5 => function.write_config(4, &[any[0] | 2, 0]),
        6 => function.write_config(0x10, &(WINDOW + u32::from(any[0] & 3) * BAR_SIZE).to_le_bytes()),
        7 => function.write_bar(NOTIFY, &[0, 0]),
        8 => function.write_bar(0x4000 + u64::from(any[0] & 0x3c), &any[..4]),
        9 => function.write_config(any[0], &any[..usize::from(any[1] & 3) + 1]),
        10 => function.read_bar(u64::from(any[0]) * 128, &mut [0; 8]),
        _ => function.write_bar(u64::from(any[1]) * 128 + u64::from(any[2] & 63), &any[..usize::from(any[3] & 7) + 1]),
    }
}

/// A vCPU that often starts the device, as far as the other one lets it.
fn run_vcpu(function: &VirtioFunction, random: &mut Random) {
    for _ in 0..100 {
        function.write_config(4, &[6, 0]);
        for (register, value) in script() {
            function.write_bar(register, &value);
            if random.below(8) == 0 {
                disturb(function, random);
            }
        }
        // For the main thread to catch up, so that what follows meets a running device.
        if random.below(2) == 0 {
            thread::sleep(Duration::from_millis(3));
        }
        for _ in 0..random.below(40) {
            disturb(function, random);
        }
        function.write_bar(STATUS, &[0]);
        // Now and then it waits for the reset, as it should.
        while random.below(4) != 0 && status(function) != 0 {
            thread::yield_now();
        }
    }
}

fn status(function: &VirtioFunction) -> u8 {
    let mut status = [0];
    function.read_bar(STATUS, &mut status);
    status[0]
}

fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// A reset, and then all that a driver does to have one buffer filled.
fn use_as_a_driver_does(function: &VirtioFunction, memory: &GuestMemory) {
    function.write_bar(STATUS, &[0]);
    eventually("the reset is done", || status(function) == 0);
    function.write_config(0x10, &WINDOW.to_le_bytes());
    function.write_config(4, &[6, 0]);
    memory.write_slice(&[0; 0x8000], GuestAddress(0x1000)).unwrap();
    memory.write_obj(BUFFER, GuestAddress(QUEUE[0])).unwrap();
    memory.write_obj(16_u32, GuestAddress(QUEUE[0] + 8)).unwrap();
    // Writable.
    memory.write_obj(2_u16, GuestAddress(QUEUE[0] + 12)).unwrap();
    memory.store(1_u16, GuestAddress(QUEUE[1] + 2), Ordering::SeqCst).unwrap();
    script().into_iter().for_each(|(register, value)| function.write_bar(register, &value));
    function.write_bar(NOTIFY, &[0, 0]);
    let used = || memory.load::<u16>(GuestAddress(QUEUE[2] + 2), Ordering::SeqCst).unwrap();
    eventually("the buffer comes back", || used() == 1);
}

#[test]
fn a_device_works_after_anything_that_two_vcpus_wrote() {
    let memory: GuestMemory = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap());
    let attention = Arc::new(Attention::new().unwrap());
    let device = Box::new(Rng::new());
    let function = VirtioFunction::new(SLOT, device, Arc::clone(&memory), Arc::clone(&attention)).unwrap();
    let bells = Bells::default();
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        let main = scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                if attention.take().slots().any(|slot| slot == SLOT) {
                    function.service(&bells);
                }
                thread::yield_now();
            }
        });
        for round in 0..ROUNDS as u64 {
            let vcpus = [1, 2].map(|vcpu| {
                let function = &function;
                scope.spawn(move || {
                    let mut random = Random::new(0x5eed + 2 * round + 1000 * vcpu);
                    run_vcpu(function, &mut random);
                })
            });
            vcpus.into_iter().for_each(|vcpu| vcpu.join().unwrap());
            use_as_a_driver_does(&function, &memory);
        }
        ended.store(true, Ordering::Relaxed);
        main.join().unwrap();
    });
    assert!(bells.ever.load(Ordering::Relaxed) > ROUNDS, "the vCPUs never started the device");
    assert_eq!(bells.placed.lock().unwrap().len(), 1);
    function.retire(&bells);
    assert!(bells.placed.lock().unwrap().is_empty());
}
