//! The state in which vCPUs begin: long mode at the kernel's entry (Documentation/arch/x86/boot.rst, "64-bit boot
//! protocol"). Only the first vCPU needs it; the kernel starts the others by itself.

use super::layout::{GDT, PAGE_TABLES, ZERO_PAGE};
use crate::virtio::device::GuestMemory;
use kvm_bindings::{Msrs, kvm_lapic_state, kvm_msr_entry, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

const CR0_PROTECTED: u64 = 1;
const CR0_EXTENSION_TYPE: u64 = 1 << 4;
const CR0_PAGING: u64 = 1 << 31;
const CR4_PHYSICAL_ADDRESS_EXTENSION: u64 = 1 << 5;
const EFER_LONG_MODE_ENABLE: u64 = 1 << 8;
const EFER_LONG_MODE_ACTIVE: u64 = 1 << 10;
/// Bit 1 is always set.
const RFLAGS: u64 = 2;

const PRESENT_WRITABLE: u64 = 3;
const LARGE_PAGE: u64 = 1 << 7;
const ENTRIES_PER_TABLE: u64 = 512;
const LARGE_PAGE_SIZE: u64 = 2 << 20;

/// Linux's `__BOOT_CS`, `__BOOT_DS` and a task state that the processor insists on.
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const TASK_SELECTOR: u16 = 0x20;

const MSR_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRINGS: u64 = 1;
const MSR_MTRR_DEFAULT_TYPE: u32 = 0x2ff;
const MTRR_ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;

const LAPIC_LVT0: usize = 0x350;
const LAPIC_LVT1: usize = 0x360;
/// Delivery mode and mask bit of an entry of the local vector table.
const DELIVERY: u32 = 1 << 16 | 0x700;
const NMI: u32 = 4 << 8;
/// From a legacy controller, masked: there is none.
const NO_LEGACY: u32 = 1 << 16 | 7 << 8;

fn segment(selector: u16, kind: u8, long: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_: kind,
        present: 1,
        dpl: 0,
        db: u8::from(!long),
        s: u8::from(selector != TASK_SELECTOR),
        l: u8::from(long),
        g: 1,
        avl: 0,
        unusable: 0,
        padding: 0,
    }
}

/// The descriptor that loading `segment` would have read.
fn descriptor(segment: &kvm_segment) -> u64 {
    let access = u64::from(segment.type_)
        | u64::from(segment.s) << 4
        | u64::from(segment.dpl) << 5
        | u64::from(segment.present) << 7
        | u64::from(segment.l) << 13
        | u64::from(segment.db) << 14
        | u64::from(segment.g) << 15;
    let limit = u64::from(if segment.g == 1 { segment.limit >> 12 } else { segment.limit });
    limit & 0xffff | access << 40 | (limit >> 16 & 0xf) << 48
}

/// Writes the descriptor table and page tables that map the first GiB to itself.
pub fn write_tables(memory: &GuestMemory) -> Result<(), GuestMemoryError> {
    let table = [0, 0, descriptor(&code()), descriptor(&data()), descriptor(&task())].map(u64::to_le_bytes).concat();
    memory.write_slice(&table, GuestAddress(GDT))?;

    let page = ENTRIES_PER_TABLE * 8;
    let (level4, level3, level2) = (PAGE_TABLES, PAGE_TABLES + page, PAGE_TABLES + 2 * page);
    memory.write_obj(level3 | PRESENT_WRITABLE, GuestAddress(level4))?;
    memory.write_obj(level2 | PRESENT_WRITABLE, GuestAddress(level3))?;
    let entries: Vec<u8> = (0..ENTRIES_PER_TABLE)
        .flat_map(|index| ((index * LARGE_PAGE_SIZE) | PRESENT_WRITABLE | LARGE_PAGE).to_le_bytes())
        .collect();
    memory.write_slice(&entries, GuestAddress(level2))
}

fn code() -> kvm_segment {
    segment(CODE_SELECTOR, 0xb, true)
}

fn data() -> kvm_segment {
    segment(DATA_SELECTOR, 0x3, false)
}

fn task() -> kvm_segment {
    kvm_segment { db: 0, ..segment(TASK_SELECTOR, 0xb, false) }
}

/// Points a vCPU at the kernel.
pub fn enter_kernel(vcpu: &VcpuFd, entry: u64) -> Result<(), kvm_ioctls::Error> {
    let mut special = vcpu.get_sregs()?;
    special.gdt.base = GDT;
    special.gdt.limit = 5 * 8 - 1;
    special.cs = code();
    (special.ds, special.es, special.fs, special.gs, special.ss) = (data(), data(), data(), data(), data());
    special.tr = task();
    special.cr0 = CR0_PROTECTED | CR0_EXTENSION_TYPE | CR0_PAGING;
    special.cr3 = PAGE_TABLES;
    special.cr4 = CR4_PHYSICAL_ADDRESS_EXTENSION;
    special.efer = EFER_LONG_MODE_ENABLE | EFER_LONG_MODE_ACTIVE;
    vcpu.set_sregs(&special)?;
    vcpu.set_regs(&kvm_regs { rip: entry, rsi: ZERO_PAGE, rflags: RFLAGS, ..Default::default() })
}

/// Model-specific registers that firmware would set, on every vCPU.
pub fn set_msrs(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let entries = [(MSR_MISC_ENABLE, MISC_ENABLE_FAST_STRINGS), (MSR_MTRR_DEFAULT_TYPE, MTRR_ENABLED_WRITE_BACK)];
    for (index, data) in entries {
        // One at a time: KVM skips what this processor lacks, and all that follows in the same call.
        if let Ok(msrs) = Msrs::from_entries(&[kvm_msr_entry { index, data, ..Default::default() }]) {
            vcpu.set_msrs(&msrs)?;
        }
    }
    Ok(())
}

/// Wires the local APIC as the MP table says: nothing on LINT0, NMI on LINT1.
pub fn wire_local_apic(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let mut lapic = vcpu.get_lapic()?;
    set_delivery(&mut lapic, LAPIC_LVT0, NO_LEGACY);
    set_delivery(&mut lapic, LAPIC_LVT1, NMI);
    vcpu.set_lapic(&lapic)
}

fn set_delivery(lapic: &mut kvm_lapic_state, offset: usize, delivery: u32) {
    let register = &mut lapic.regs[offset..offset + 4];
    let mut bytes = [0; 4];
    for (byte, char) in bytes.iter_mut().zip(&*register) {
        *byte = char.to_le_bytes()[0];
    }
    let value = u32::from_le_bytes(bytes) & !DELIVERY | delivery;
    for (char, byte) in register.iter_mut().zip(value.to_le_bytes()) {
        *char = i8::from_le_bytes([byte]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_those_of_a_flat_long_mode() {
        assert_eq!(descriptor(&code()), 0x00af_9b00_0000_ffff);
        assert_eq!(descriptor(&data()), 0x00cf_9300_0000_ffff);
        assert_eq!(descriptor(&task()), 0x008f_8b00_0000_ffff);
    }

    #[test]
    fn deliveries_replace_those_of_the_reset_state() {
        let mut lapic = kvm_lapic_state::default();
        lapic.regs[LAPIC_LVT0..LAPIC_LVT0 + 4].copy_from_slice(&[5, 0, 0, 0]);
        set_delivery(&mut lapic, LAPIC_LVT0, NO_LEGACY);
        assert_eq!(lapic.regs[LAPIC_LVT0..LAPIC_LVT0 + 4], [5, 7, 1, 0]);
        set_delivery(&mut lapic, LAPIC_LVT0, NMI);
        assert_eq!(lapic.regs[LAPIC_LVT0..LAPIC_LVT0 + 4], [5, 4, 0, 0]);
    }
}
