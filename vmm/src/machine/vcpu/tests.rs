//! Tiny guests in real mode, on the machine's own KVM.

use super::super::interrupts::{Interrupts, KvmDoorbells};
use super::super::latch::AddressLatch;
use super::super::memory::{Window, give_images, give_ram, guest_memory};
use super::super::prefault;
use super::super::regions::ReadOnly;
use super::super::serial::DebugSerial;
use super::super::x86_64::layout;
use super::*;
use crate::pci::{Bus, Vector};
use crate::virtio::device::{GuestMemory, Interrupt};
use crate::virtio::transport::Doorbells;
use kvm_ioctls::Kvm;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use vm_memory::{Bytes, GuestAddress};

const CODE: u64 = 0x1000;
const RAM: u64 = 1 << 20;

/// KVM, or a line that says that the test was skipped.
fn kvm() -> Option<Kvm> {
    match Kvm::new() {
        Ok(kvm) => Some(kvm),
        Err(error) => {
            println!("SKIPPED: no /dev/kvm: {error}");
            None
        }
    }
}

struct Guest {
    vcpu: Option<VcpuFd>,
    memory: GuestMemory,
    exits: Exits,
    _images: Window,
    serial: std::io::PipeReader,
}

impl Guest {
    fn new(kvm: &Kvm) -> Self {
        let file = tempfile::tempfile().unwrap();
        file.set_len(2 << 20).unwrap();
        Self::with_image(kvm, &[(&file, 0..2 << 20)])
    }

    fn with_image(kvm: &Kvm, files: &[(&File, Range<u64>)]) -> Self {
        let vm = kvm.create_vm().unwrap();
        let memory = guest_memory(&layout::ram(RAM)).unwrap();
        // Within reach of real mode: behind RAM.
        let place = RAM..RAM + (2 << 20);
        let images = Window::new(&place).unwrap();
        images.map(RAM, files).unwrap();
        let slot = give_ram(&vm, &memory).unwrap();
        give_images(&vm, slot, &images, &place).unwrap();
        let (serial, log) = std::io::pipe().unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        let exits = Exits {
            bus: Arc::new(Bus::new()),
            latch: AddressLatch::new(&vm, &vcpu).unwrap(),
            serial: Some(DebugSerial::new(log.into()).unwrap()),
            read_only: Arc::new(ReadOnly::new(place)),
        };
        Self { vcpu: Some(vcpu), memory, exits, _images: images, serial }
    }

    /// Runs machine code until it stops, and returns why and what `ax` holds then.
    fn run(&mut self, code: &[u8]) -> (StopReason, u64) {
        self.memory.write_slice(code, GuestAddress(CODE)).unwrap();
        let vcpu = self.vcpu.take().unwrap();
        let mut special = vcpu.get_sregs().unwrap();
        (special.cs.base, special.cs.selector) = (0, 0);
        vcpu.set_sregs(&special).unwrap();
        vcpu.set_regs(&kvm_bindings::kvm_regs { rip: CODE, rflags: 2, ..Default::default() }).unwrap();
        // `run` takes the vCPU; its registers end up in memory.
        let reason = run(vcpu, &self.exits);
        let ax: u16 = self.memory.read_obj(GuestAddress(0x500)).unwrap();
        (reason, u64::from(ax))
    }
}

/// `mov [0x500], ax; hlt`
const STORE_AND_HALT: &[u8] = &[0xa3, 0x00, 0x05, 0xf4];

fn program(code: &[u8]) -> Vec<u8> {
    [code, STORE_AND_HALT].concat()
}

#[test]
fn a_halted_guest_without_interrupts_has_stopped() {
    let Some(kvm) = kvm() else { return };
    // mov ax, 0x1234
    let (reason, ax) = Guest::new(&kvm).run(&program(&[0xb8, 0x34, 0x12]));
    assert_eq!((reason, ax), (StopReason::GuestStopped, 0x1234));
}

#[test]
fn memory_that_is_mapped_in_advance_is_the_same_to_the_guest() {
    let Some(kvm) = kvm() else { return };
    let mut guest = Guest::new(&kvm);
    let vcpu = guest.vcpu.as_ref().unwrap();
    prefault::map(vcpu, &(0..RAM));
    prefault::map(vcpu, &(CODE + 1..CODE + 2));
    prefault::map(vcpu, &(1 << 40..(1 << 40) + 1));
    assert_eq!(guest.run(&program(&[0xb8, 0x34, 0x12])), (StopReason::GuestStopped, 0x1234));
}

#[test]
fn the_guest_reads_the_host_bridge_through_its_ports() {
    let Some(kvm) = kvm() else { return };
    // mov eax, 0x80000000; mov dx, 0xcf8; out dx, eax; mov dx, 0xcfc; in ax, dx
    let code = [0x66, 0xb8, 0, 0, 0, 0x80, 0xba, 0xf8, 0x0c, 0x66, 0xef, 0xba, 0xfc, 0x0c, 0xed];
    assert_eq!(Guest::new(&kvm).run(&program(&code)), (StopReason::GuestStopped, 0x8086));
}

/// Selects registers 0 to 1023 in turn, and reads the last: more writes than KVM collects.
const SELECT_MANY: &[u8] = &[
    0xba, 0xf8, 0x0c, // mov dx, 0xcf8
    0x66, 0xb8, 0, 0, 0, 0x80, // mov eax, 0x80000000
    0xb9, 0x00, 0x04, // mov cx, 0x400
    0x66, 0xef, // select: out dx, eax
    0x66, 0x40, // inc eax
    0xe2, 0xfa, // loop select
    0xed, // in ax, dx
];

#[test]
fn no_collected_address_is_lost_when_there_are_many() {
    let Some(kvm) = kvm() else { return };
    assert_eq!(Guest::new(&kvm).run(&program(SELECT_MANY)).1, 0xffff, "a word of the address port shows nothing");
    let whole = [SELECT_MANY, &[0x66, 0xed]].concat(); // in eax, dx
    assert_eq!(Guest::new(&kvm).run(&program(&whole)).1, 0x03ff);
}

#[test]
fn ports_without_a_device_read_ones() {
    let Some(kvm) = kvm() else { return };
    // mov dx, 0x80; in ax, dx
    assert_eq!(Guest::new(&kvm).run(&program(&[0xba, 0x80, 0, 0xed])).1, 0xffff);
}

#[test]
fn the_debug_serial_port_shows_what_the_guest_writes() {
    let Some(kvm) = kvm() else { return };
    let mut guest = Guest::new(&kvm);
    // mov dx, 0x3f8; mov al, 'B'; out dx, al; mov al, 'K'; out dx, al
    guest.run(&program(&[0xba, 0xf8, 0x03, 0xb0, b'B', 0xee, 0xb0, b'K', 0xee]));
    let mut text = [0; 2];
    guest.serial.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"BK");
}

/// Writes to each page of the 60 KiB that real mode reaches behind RAM, and reads the first byte.
const WRITE_ALL: &[u8] = &[
    0xb8, 0xff, 0xff, // mov ax, 0xffff
    0x8e, 0xd8, // mov ds, ax
    0xbb, 0x10, 0x00, // mov bx, 0x10
    0xc6, 0x07, 0x5a, // write: mov byte [bx], 0x5a
    0x81, 0xc3, 0x00, 0x10, // add bx, 0x1000
    0x73, 0xf7, // jnc write
    0xa0, 0x10, 0x00, // mov al, [0x10]
    0x30, 0xe4, // xor ah, ah
    0x8c, 0xcb, // mov bx, cs
    0x8e, 0xdb, // mov ds, bx
];

#[test]
fn writes_to_a_mapped_image_change_nothing_and_stop_nobody() {
    let Some(kvm) = kvm() else { return };
    // The guest's own image is one file; layers are several, the first of which ends within a page.
    for lengths in [&[2 << 20][..], &[5000, 3 * 4096, 1]] {
        let places = vmm_protocol::part_offsets(lengths).unwrap();
        let files: Vec<_> = lengths.iter().map(|length| file_of_sevens(*length)).collect();
        let mut guest = Guest::with_image(&kvm, &files.iter().zip(places).collect::<Vec<_>>());
        assert_eq!(guest.run(&program(WRITE_ALL)), (StopReason::GuestStopped, 7));
        for (file, length) in files.iter().zip(lengths) {
            let mut content = vec![0; usize::try_from(*length).unwrap()];
            file.read_exact_at(&mut content, 0).unwrap();
            assert!(content.iter().all(|byte| *byte == 7) && file.metadata().unwrap().len() == *length);
        }
    }
}

/// Where real mode reads behind RAM: `mov ax, 0xffff; mov ds, ax; mov al, [0x1010]`.
const READ_IMAGE: &[u8] = &[0xb8, 0xff, 0xff, 0x8e, 0xd8, 0xa0, 0x10, 0x10];

#[test]
fn a_mapped_file_that_is_cut_is_told() {
    let Some(kvm) = kvm() else { return };
    let file = file_of_sevens(4 * 4096);
    let mut guest = Guest::with_image(&kvm, &[(&file, 0..4 * 4096)]);
    file.set_len(4096).unwrap();
    let (reason, ax) = guest.run(&program(READ_IMAGE));
    let reason = match reason {
        StopReason::Failed(reason) => reason,
        reason => return println!("SKIPPED: this KVM emulates reads of memory that is gone: {reason:?} {ax:#x}"),
    };
    assert!(reason.starts_with("the guest's memory"), "{reason}");
    assert!(reason.ends_with("cannot be read: a file that is mapped there was cut, or its disk fails"), "{reason}");
}

fn file_of_sevens(length: u64) -> File {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&vec![7; usize::try_from(length).unwrap()], 0).unwrap();
    file
}

#[test]
fn the_first_reason_to_stop_counts() {
    let stop = Stop::new().unwrap();
    stop.signal(StopReason::GuestStopped);
    stop.signal(StopReason::Failed("later".into()));
    assert_eq!(stop.reason(), Some(StopReason::GuestStopped));
    assert!(stop.event().read().is_ok());
}

#[test]
fn vectors_connect_and_are_routed() {
    let Some(kvm) = kvm() else { return };
    let vm = Arc::new(kvm.create_vm().unwrap());
    let local = kvm_bindings::kvm_enable_cap { cap: kvm_bindings::KVM_CAP_SPLIT_IRQCHIP, ..Default::default() };
    vm.enable_cap(&local).unwrap();
    let mut interrupts = Interrupts::new(Arc::clone(&vm));
    let mut msix = crate::pci::Msix::new(2).unwrap();
    interrupts.connect(5, msix.vectors()).unwrap();
    msix.set_control(0x80);
    msix.write_table(0, &0xfee0_0000_u64.to_le_bytes());
    msix.write_table(8, &0x4031_u64.to_le_bytes());
    let vector: Arc<Vector> = Arc::clone(&msix.vectors()[0]);
    vector.trigger().unwrap();
    let mut pending = [0];
    msix.read_pending(0, &mut pending);
    assert_eq!(pending, [1], "no route yet");
    interrupts.apply().unwrap();
    msix.read_pending(0, &mut pending);
    assert_eq!(pending, [0], "delivered");
    interrupts.disconnect(5);
    interrupts.apply().unwrap();
}

#[test]
fn doorbells_connect_once_per_address() {
    let Some(kvm) = kvm() else { return };
    let doorbells = KvmDoorbells(Arc::new(kvm.create_vm().unwrap()));
    let kick = EventFd::new(EFD_NONBLOCK).unwrap();
    doorbells.connect(0xc000_3000, &kick).unwrap();
    assert!(doorbells.connect(0xc000_3000, &kick).is_err());
    doorbells.disconnect(0xc000_3000, &kick).unwrap();
    doorbells.connect(0xc000_3000, &kick).unwrap();
}
