//! A whole machine with a tiny kernel: saved, and made again.

use super::*;
use crate::machine::{Description, Resources};
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestAddress};

const MIB: u64 = 1 << 20;
/// Bytes that guest and test tell each other something with.
const GO_ON: GuestAddress = GuestAddress(0x600);
const DONE: GuestAddress = GuestAddress(0x602);
const COUNT: GuestAddress = GuestAddress(0x680);

/// Waits for [`GO_ON`], counts, and says that it is done.
const CODE: &[u8] = &[
    0x80, 0x3c, 0x25, 0x00, 0x06, 0x00, 0x00, 0x00, // again: cmp byte [0x600], 0
    0x74, 0xf6, // je again
    0xff, 0x04, 0x25, 0x80, 0x06, 0x00, 0x00, // inc dword [0x680]
    0xc6, 0x04, 0x25, 0x02, 0x06, 0x00, 0x00, 0x01, // mov byte [0x602], 1
    0xeb, 0xfe, // forever: jmp forever
];

fn kernel() -> File {
    let mut bytes = vec![0; 4096];
    let header: [(usize, &[u8]); 9] = [
        (0, &[0x7f, b'E', b'L', b'F', 2, 1]),
        (16, &[2, 0, 62, 0]),
        // Entry, where the program headers are, their size and number.
        (24, &(2 * MIB).to_le_bytes()),
        (32, &64_u64.to_le_bytes()),
        (54, &[56, 0, 1, 0]),
        // To be loaded, from the file's second page, to 2 MiB.
        (64, &[1, 0, 0, 0]),
        (72, &4096_u64.to_le_bytes()),
        (88, &(2 * MIB).to_le_bytes()),
        (96, &[0, 16, 0, 0, 0, 0, 0, 0, 0, 16]),
    ];
    for (at, value) in header {
        bytes[at..at + value.len()].copy_from_slice(value);
    }
    bytes.extend_from_slice(CODE);
    bytes.resize(8192, 0);
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&bytes, 0).unwrap();
    file
}

fn image(length: u64) -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(length).unwrap();
    file
}

struct Saved {
    memory: File,
    state: File,
}

/// KVM, or a line that says that the test was skipped.
fn open_kvm() -> Option<Kvm> {
    Kvm::new().inspect_err(|error| println!("SKIPPED: no /dev/kvm: {error}")).ok()
}

fn console() -> OwnedFd {
    std::io::pipe().unwrap().1.into()
}

fn saved() -> Option<Saved> {
    saved_for(1)
}

/// Of a guest that was told of so many processors, and runs on the first.
fn saved_for(vcpus: u8) -> Option<Saved> {
    let kvm = open_kvm()?;
    let description =
        Description { vcpus, memory_mib: 64, growth_mib: 0, command_line: String::new(), debug_serial: false };
    let resources = Resources { kvm, kernel: kernel(), root_image: image(2 * MIB), console: console() };
    let mut machine = Machine::new(&description, resources).unwrap();
    machine.run_as_template(open_kvm()?, description.memory_mib).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    let saved = Saved { memory: tempfile::tempfile().unwrap(), state: tempfile::tempfile().unwrap() };
    machine.snapshot(&saved.memory, &saved.state).unwrap();
    assert!(matches!(machine.snapshot(&saved.memory, &saved.state), Err(SnapshotError::NotTemplate)));
    Some(saved)
}

fn restore(saved: &Saved, root_image: File) -> Result<Machine, SnapshotError> {
    restore_with(saved, 1, root_image)
}

fn restore_with(saved: &Saved, vcpus: u8, root_image: File) -> Result<Machine, SnapshotError> {
    restore_to_grow(saved, vcpus, root_image, 0)
}

fn restore_to_grow(saved: &Saved, vcpus: u8, root_image: File, growth_mib: u32) -> Result<Machine, SnapshotError> {
    Machine::restore(&read_state(&saved.state)?, vcpus, resources(saved, root_image, growth_mib))
}

/// With a state that was changed.
fn restore_state(saved: &Saved, state: &MachineState) -> Result<Machine, SnapshotError> {
    Machine::restore(state, 1, resources(saved, image(2 * MIB), 0))
}

fn resources(saved: &Saved, root_image: File, growth_mib: u32) -> RestoreResources {
    let (kvm, memory) = (open_kvm().unwrap(), saved.memory.try_clone().unwrap());
    RestoreResources { kvm, memory, root_image, console: console(), growth_mib }
}

#[test]
fn a_restored_machine_grows_by_what_its_template_knows_nothing_of() {
    let Some(saved) = saved() else { return };
    let mut machine = restore_to_grow(&saved, 1, image(2 * MIB), 8 << 10).unwrap();
    let region = machine.growth.addresses().clone();
    machine.memory.write_obj(7_u8, GuestAddress(region.end - 1)).unwrap();
    assert!(machine.memory.write_obj(7_u8, GuestAddress(region.end)).is_err());
    for mib in [0, 3, (8 << 10) + 2, u32::MAX - 1] {
        assert!(machine.grow(mib).is_err(), "{mib}");
    }
    // A machine without free slots has one for this.
    while let Some(slot) = machine.free_slot() {
        machine.insert(slot, Box::new(crate::virtio::rng::Rng::new())).unwrap();
    }
    for mib in [2, 8 << 10, 128] {
        assert_eq!(machine.grow(mib).unwrap().to_string(), "0000:00:1f.0");
    }
    assert!(restore(&saved, image(2 * MIB)).unwrap().grow(2).is_err(), "it is not to grow");
}

#[test]
fn a_machine_goes_on_as_often_as_it_is_restored() {
    let Some(saved) = saved() else { return };
    for _ in 0..3 {
        let mut machine = restore(&saved, image(2 * MIB)).unwrap();
        machine.memory.write_obj(1_u8, GO_ON).unwrap();
        machine.run_as_template(open_kvm().unwrap(), 64).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while machine.memory.read_obj::<u8>(DONE).unwrap() == 0 {
            assert!(Instant::now() < deadline, "the guest does not go on");
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(machine.memory.read_obj::<u32>(COUNT).unwrap(), 1);
        for vcpu in machine.template.take().unwrap().vcpus {
            vcpu.pause().unwrap();
        }
    }
}

#[test]
fn a_machine_is_restored_with_as_many_vcpus_as_its_guest_knows_of() {
    let Some(saved) = saved_for(4) else { return };
    for count in 1..=4 {
        let machine = restore_with(&saved, count, image(2 * MIB)).unwrap();
        assert_eq!(machine.vcpus.len(), usize::from(count));
    }
    for wanted in [0, 5] {
        let error = restore_with(&saved, wanted, image(2 * MIB)).unwrap_err();
        assert!(matches!(error, SnapshotError::Vcpus { known: 4, .. }), "{error}");
    }
}

#[test]
fn another_root_image_or_processor_is_refused() {
    let Some(saved) = saved() else { return };
    assert!(matches!(restore(&saved, image(4 * MIB)), Err(SnapshotError::RootImage)));
    let mut state = read_state(&saved.state).unwrap();
    state.vcpu.cpuid[0].eax ^= 1;
    let error = restore_state(&saved, &state).unwrap_err();
    assert!(matches!(error, SnapshotError::Vcpu(VcpuError::Processor)), "{error}");
}

#[test]
fn functions_that_are_missing_or_doubled_are_refused() {
    let Some(saved) = saved() else { return };
    type Damage = fn(&mut MachineState);
    let damages: [Damage; 3] = [
        |state| drop(state.functions.pop()),
        |state| state.functions.swap(0, 1),
        |state| state.functions[1] = state.functions[0].clone(),
    ];
    for damage in damages {
        let mut state = read_state(&saved.state).unwrap();
        damage(&mut state);
        assert!(restore_state(&saved, &state).is_err());
    }
}

#[test]
fn a_file_that_is_no_state_is_refused() {
    for length in [0, 10, 4096, 2 * MIB] {
        assert!(matches!(read_state(&image(length)), Err(SnapshotError::Codec(_))), "{length}");
    }
    assert!(read_state(&File::open("/dev/null").unwrap()).is_err());
}

#[test]
fn a_machine_that_is_no_template_is_not_saved() {
    let Some(kvm) = open_kvm() else { return };
    let description =
        Description { vcpus: 1, memory_mib: 64, growth_mib: 0, command_line: String::new(), debug_serial: false };
    let resources = Resources { kvm, kernel: kernel(), root_image: image(2 * MIB), console: console() };
    let mut machine = Machine::new(&description, resources).unwrap();
    let file = tempfile::tempfile().unwrap();
    assert!(matches!(machine.snapshot(&file, &file), Err(SnapshotError::NotTemplate)));
}
