//! A device behind its registers, driven as a vCPU would, with the main thread's part called by hand.

use super::*;
use crate::pci::Function;
use crate::virtio::device::{DeviceTraits, StartError};
use std::sync::atomic::{AtomicBool, AtomicUsize};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestMemoryMmap, GuestRegionMmap};

#[derive(Clone, Debug, Default)]
struct Log(Arc<Mutex<Vec<&'static str>>>);

impl Log {
    fn add(&self, entry: &'static str) {
        self.0.lock().unwrap().push(entry);
    }

    fn take(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

#[derive(Debug)]
struct Mock {
    log: Log,
    fails: bool,
    hangs: Arc<AtomicBool>,
    resources: Arc<Mutex<Option<Resources>>>,
}

impl VirtioDevice for Mock {
    fn traits(&self) -> DeviceTraits {
        DeviceTraits { device_type: 2, features: 0, queue_sizes: &[64, 64] }
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        crate::virtio::device::read_config_bytes(&[1, 2, 3, 4], offset, data);
    }

    fn start(&mut self, resources: Resources) -> Result<(), StartError> {
        self.log.add("start");
        if self.fails {
            return Err(StartError::BackendLost);
        }
        *self.resources.lock().unwrap() = Some(resources);
        Ok(())
    }

    fn request_stop(&mut self) -> bool {
        !self.hangs.load(Ordering::Relaxed)
    }

    fn stop(&mut self) -> Vec<Option<Queue>> {
        self.log.add("stop");
        let queues = self.resources.lock().unwrap().take().map(|resources| resources.queues).unwrap_or_default();
        queues.into_iter().map(|running| running.map(|running| running.queue)).collect()
    }
}

/// Counts doorbells instead of asking KVM for them.
#[derive(Debug, Default)]
struct Bells {
    placed: Mutex<Vec<u64>>,
    refused: AtomicUsize,
}

impl Doorbells for Bells {
    fn connect(&self, address: u64, _: &EventFd) -> io::Result<()> {
        if self.refused.load(Ordering::Relaxed) > 0 {
            return Err(io::Error::other("refused"));
        }
        self.placed.lock().unwrap().push(address);
        Ok(())
    }

    fn disconnect(&self, address: u64, _: &EventFd) -> io::Result<()> {
        self.placed.lock().unwrap().retain(|placed| *placed != address);
        Ok(())
    }
}

struct Bench {
    function: VirtioFunction,
    attention: Arc<Attention>,
    bells: Bells,
    log: Log,
    hangs: Arc<AtomicBool>,
    resources: Arc<Mutex<Option<Resources>>>,
}

const COMMON: u64 = 0;
const STATUS: u64 = 20;
const ISR: u64 = 0x1000;
const NOTIFY: u64 = 0x3000;

/// Of memory that can only be read.
const IMAGE: u64 = 2 << 20;

fn bench_that(fails: bool) -> Bench {
    let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
    let image = MmapRegionBuilder::new(1 << 20).with_mmap_prot(libc::PROT_READ);
    let image = image.with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS).build().unwrap();
    let image = GuestRegionMmap::new(image, GuestAddress(IMAGE)).unwrap();
    let memory = Arc::new(memory.insert_region(Arc::new(image)).unwrap());
    let attention = Arc::new(Attention::new().unwrap());
    let log = Log::default();
    let resources = Arc::default();
    let hangs = Arc::default();
    let device = Mock { log: log.clone(), fails, hangs: Arc::clone(&hangs), resources: Arc::clone(&resources) };
    let function = VirtioFunction::new(5, Box::new(device), memory, Arc::clone(&attention)).unwrap();
    let bench = Bench { function, attention, bells: Bells::default(), log, hangs, resources };
    // Memory decoding on, as the driver does first.
    bench.function.write_config(4, &2_u16.to_le_bytes());
    bench
}

impl Bench {
    fn common(&self, offset: u64, data: &[u8]) {
        self.function.write_bar(COMMON + offset, data);
    }

    fn status(&self) -> u8 {
        let mut status = [0];
        self.function.read_bar(COMMON + STATUS, &mut status);
        status[0]
    }

    /// Negotiates, puts queue 0 at these addresses and says `DRIVER_OK`.
    fn drive(&self, descriptors: u64, driver: u64, device: u64) {
        self.common(STATUS, &[1]);
        self.common(STATUS, &[3]);
        self.common(8, &1_u32.to_le_bytes());
        self.common(12, &1_u32.to_le_bytes());
        self.common(STATUS, &[11]);
        for (offset, address) in [(32, descriptors), (40, driver), (48, device)] {
            self.common(offset, &address.to_le_bytes());
        }
        self.common(26, &1_u16.to_le_bytes());
        self.common(28, &1_u16.to_le_bytes());
        self.common(STATUS, &[15]);
    }

    fn main_thread(&self) {
        if self.attention.take().slots().any(|slot| slot == 5) {
            self.function.service(&self.bells);
        }
    }
}

#[test]
fn the_main_thread_starts_and_resets_the_device() {
    let bench = bench_that(false);
    bench.drive(0x1000, 0x2000, 0x3000);
    assert!(bench.log.take().is_empty(), "a vCPU starts nothing");
    bench.main_thread();
    assert_eq!(bench.log.take(), ["start"]);
    bench.common(STATUS, &[0]);
    assert_eq!(bench.status(), 15);
    bench.main_thread();
    assert_eq!(bench.log.take(), ["stop"]);
    assert_eq!(bench.status(), 0);
    bench.drive(0x1000, 0x2000, 0x3000);
    bench.main_thread();
    assert_eq!(bench.log.take(), ["start"]);
}

#[test]
fn queues_that_do_not_lie_in_guest_memory_never_reach_the_device() {
    let end = 1 << 20;
    for (descriptors, driver, device) in [
        (end, 0x2000, 0x3000),
        (end - 16, 0x2000, 0x3000),
        (0x1000, end - 2, 0x3000),
        (0x1000, 0x2000, end - 4),
        (u64::MAX - 15, 0x2000, 0x3000),
        (0x1000, u64::MAX - 1, 0x3000),
        (0x1000, 0x2000, u64::MAX - 3),
        (0x1001, 0x2000, 0x3000),
        (0x1000, 0x2001, 0x3000),
        (0x1000, 0x2000, 0x3002),
        (0x1000, 0x2000, IMAGE),
    ] {
        let bench = bench_that(false);
        bench.drive(descriptors, driver, device);
        bench.main_thread();
        assert!(bench.log.take().is_empty(), "{descriptors:#x} {driver:#x} {device:#x}");
        assert_eq!(bench.status(), 15 | 0x40);
    }
}

#[test]
fn a_device_that_does_not_start_needs_a_reset_and_says_so() {
    let bench = bench_that(true);
    bench.drive(0x1000, 0x2000, 0x3000);
    bench.main_thread();
    assert_eq!(bench.status(), 15 | 0x40);
    let mut isr = [0];
    bench.function.read_bar(ISR, &mut isr);
    assert_eq!(isr, [2]);
    bench.function.read_bar(ISR, &mut isr);
    assert_eq!(isr, [0], "reading clears");
}

#[test]
fn disabled_queues_are_not_handed_over() {
    let bench = bench_that(false);
    bench.drive(0x1000, 0x2000, 0x3000);
    bench.main_thread();
    let resources = bench.resources.lock().unwrap();
    let queues = &resources.as_ref().unwrap().queues;
    assert!(queues[0].is_some() && queues[1].is_none());
}

#[test]
fn a_kick_through_the_exit_reaches_its_queue_and_no_other() {
    let bench = bench_that(false);
    bench.function.write_bar(NOTIFY + 4, &1_u16.to_le_bytes());
    assert!(bench.function.kicks[1].read().is_ok());
    assert!(bench.function.kicks[0].read().is_err());
    for beyond in [8, 0xffc] {
        bench.function.write_bar(NOTIFY + beyond, &[0; 4]);
    }
}

#[test]
fn doorbells_follow_the_window_and_go_with_a_reset() {
    let bench = bench_that(false);
    bench.drive(0x1000, 0x2000, 0x3000);
    bench.main_thread();
    assert_eq!(*bench.bells.placed.lock().unwrap(), [0xc002_8000 + NOTIFY]);
    bench.function.write_config(0x10, &0xd000_0000_u32.to_le_bytes());
    assert_eq!(bench.function.window(), Some(0xd000_0000..0xd000_8000));
    bench.main_thread();
    assert_eq!(*bench.bells.placed.lock().unwrap(), [0xd000_0000 + NOTIFY]);
    bench.function.write_config(4, &0_u16.to_le_bytes());
    bench.main_thread();
    assert!(bench.bells.placed.lock().unwrap().is_empty());
    bench.function.write_config(4, &2_u16.to_le_bytes());
    bench.main_thread();
    bench.common(STATUS, &[0]);
    bench.main_thread();
    assert!(bench.bells.placed.lock().unwrap().is_empty());
}

#[test]
fn a_doorbell_that_cannot_be_placed_is_tried_again_and_stops_nothing() {
    let bench = bench_that(false);
    bench.bells.refused.store(1, Ordering::Relaxed);
    bench.drive(0x1000, 0x2000, 0x3000);
    bench.main_thread();
    assert_eq!((bench.status(), bench.log.take()), (15, vec!["start"]));
    bench.bells.refused.store(0, Ordering::Relaxed);
    bench.function.service(&bench.bells);
    assert_eq!(bench.bells.placed.lock().unwrap().len(), 1);
}

#[test]
fn a_retired_device_is_stopped_and_has_no_doorbells() {
    let bench = bench_that(false);
    bench.drive(0x1000, 0x2000, 0x3000);
    bench.main_thread();
    let mut device = bench.function.retire(&bench.bells);
    assert_eq!(bench.log.take(), ["start"], "whoever retires a device decides who waits for it");
    assert!(bench.bells.placed.lock().unwrap().is_empty());
    drop(device.stop());
    assert_eq!(bench.log.take(), ["stop"]);
    bench.common(STATUS, &[0]);
    bench.main_thread();
    assert_eq!(bench.status(), 0, "a vCPU that was inside of the function finds nothing that hurts");
}

#[test]
fn a_device_that_hangs_is_not_reset_before_it_ends_and_holds_nobody_up() {
    let bench = bench_that(false);
    bench.drive(0x1000, 0x2000, 0x3000);
    bench.main_thread();
    bench.hangs.store(true, Ordering::Relaxed);
    bench.common(STATUS, &[0]);
    bench.main_thread();
    assert_eq!((bench.status(), bench.log.take()), (15, vec!["start"]), "its memory is not the driver's again");
    assert!(bench.bells.placed.lock().unwrap().is_empty());
    bench.drive(0x1000, 0x2000, 0x3000);
    bench.main_thread();
    assert_eq!(bench.log.take(), [""; 0], "it is not started meanwhile");
    let ended = bench.resources.lock().unwrap().as_ref().unwrap().ended.clone();
    bench.hangs.store(false, Ordering::Relaxed);
    ended.wake();
    bench.main_thread();
    assert_eq!((bench.status(), bench.log.take()), (0, vec!["stop"]));
}

#[test]
fn a_queue_interrupts_through_the_vector_that_the_driver_chose() {
    let bench = bench_that(false);
    bench.drive(0x1000, 0x2000, 0x3000);
    bench.main_thread();
    let resources = bench.resources.lock().unwrap();
    let queue = resources.as_ref().unwrap().queues[0].as_ref().unwrap();
    queue.interrupt.trigger().unwrap();
    let mut pending = [0];
    bench.function.read_bar(0x5000, &mut pending);
    assert_eq!(pending, [0b10]);
    resources.as_ref().unwrap().config_interrupt.trigger().unwrap();
    bench.function.read_bar(0x5000, &mut pending);
    assert_eq!(pending, [0b10], "the driver chose no vector for configuration changes");
}

#[test]
fn enabling_msix_asks_for_routes_of_unmasked_vectors_alone() {
    let bench = bench_that(false);
    bench.attention.take();
    let control = 0x40 + 16 * 3 + 20 + 3;
    let mut capability = [0];
    bench.function.read_config(control - 3, &mut capability);
    assert_eq!(capability, [0x11]);
    bench.function.write_config(control, &[0x80]);
    assert!(!bench.attention.take().routes(), "everything is masked");
    bench.function.write_bar(0x4000, &0xfee0_0000_u32.to_le_bytes());
    bench.function.write_bar(0x400c, &0_u32.to_le_bytes());
    assert!(bench.attention.take().routes());
}

#[test]
fn device_configuration_shows_through() {
    let bench = bench_that(false);
    let mut data = [0; 8];
    bench.function.read_bar(0x2002, &mut data);
    assert_eq!(data, [3, 4, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn every_offset_and_size_of_the_bar_is_harmless() {
    for started in [false, true] {
        let bench = bench_that(false);
        if started {
            bench.drive(0x1000, 0x2000, 0x3000);
            bench.main_thread();
        }
        for length in [0, 1, 2, 3, 4, 7, 8, 16] {
            let fine = (0..0x80).flat_map(|at| (0..8).map(move |page| page * 0x1000 + at));
            for offset in fine.chain([0x7fff, 0x8000, u64::MAX]).filter(|offset| *offset != STATUS) {
                bench.function.write_bar(offset, &vec![0xa5; length]);
                bench.function.read_bar(offset, &mut vec![0; length]);
            }
        }
        bench.main_thread();
    }
}

#[path = "state_tests.rs"]
mod state_tests;
