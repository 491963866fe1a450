//! What the guest's processors say that they are: KVM's offer, with this machine's topology.
//!
//! One socket, one thread per core. Nested virtualization is hidden: it is the largest part of KVM that a guest could
//! reach.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

const LEAF_EXTENDED_TOPOLOGY: u32 = 0xb;
const LEAF_EXTENDED_TOPOLOGY_V2: u32 = 0x1f;

const LEAF1_ECX_VMX: u32 = 1 << 5;
const LEAF1_ECX_TSC_DEADLINE: u32 = 1 << 24;
const LEAF1_ECX_HYPERVISOR: u32 = 1 << 31;
const LEAF1_EDX_HTT: u32 = 1 << 28;
const EXTENDED1_ECX_CMP_LEGACY: u32 = 1 << 1;
const EXTENDED1_ECX_SVM: u32 = 1 << 2;

const TOPOLOGY_THREAD: u32 = 1 << 8;
const TOPOLOGY_CORE: u32 = 2 << 8;

/// Which processor of how many.
#[derive(Clone, Copy, Debug)]
pub struct Processor {
    pub id: u8,
    pub count: u8,
}

impl Processor {
    /// Bits of an APIC id that number the processors.
    fn id_bits(self) -> u32 {
        u32::from(self.count).next_power_of_two().trailing_zeros()
    }
}

/// KVM's `supported` CPUID, made that of `processor`.
pub fn normalize(supported: &CpuId, processor: Processor, tsc_deadline: bool) -> Vec<kvm_cpuid_entry2> {
    let mut entries: Vec<_> = supported
        .as_slice()
        .iter()
        .filter(|entry| !matches!(entry.function, LEAF_EXTENDED_TOPOLOGY | LEAF_EXTENDED_TOPOLOGY_V2))
        .copied()
        .collect();
    for entry in &mut entries {
        normalize_leaf(entry, processor, tsc_deadline);
    }
    let highest = entries.iter().find(|entry| entry.function == 0).map_or(0, |entry| entry.eax);
    if highest >= LEAF_EXTENDED_TOPOLOGY {
        entries.extend(extended_topology(processor));
    }
    entries
}

fn normalize_leaf(entry: &mut kvm_cpuid_entry2, processor: Processor, tsc_deadline: bool) {
    let id = u32::from(processor.id);
    let count = u32::from(processor.count);
    match entry.function {
        1 => {
            entry.ebx = entry.ebx & 0xffff | count << 16 | id << 24;
            entry.ecx = entry.ecx & !LEAF1_ECX_VMX | LEAF1_ECX_HYPERVISOR;
            if tsc_deadline {
                entry.ecx |= LEAF1_ECX_TSC_DEADLINE;
            }
            entry.edx = set(entry.edx, LEAF1_EDX_HTT, count > 1);
        }
        // Caches: the last level is shared by all, the others by none.
        4 if entry.eax & 0x1f != 0 => {
            let sharing = if entry.eax >> 5 & 7 >= 3 { count - 1 } else { 0 };
            entry.eax = entry.eax & 0x3fff | sharing << 14 | (count.next_power_of_two() - 1) << 26;
        }
        0x8000_001d if entry.eax & 0x1f != 0 => {
            let sharing = if entry.eax >> 5 & 7 >= 3 { count - 1 } else { 0 };
            entry.eax = entry.eax & 0x3fff | sharing << 14;
        }
        0x8000_0001 => {
            entry.ecx = set(entry.ecx & !EXTENDED1_ECX_SVM, EXTENDED1_ECX_CMP_LEGACY, count > 1);
        }
        // Processor count and size of the APIC id, on AMD.
        0x8000_0008 => entry.ecx = processor.id_bits() << 12 | (count - 1),
        // SVM's own leaf.
        0x8000_000a => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        // APIC id, core and node, on AMD.
        0x8000_001e => (entry.eax, entry.ebx, entry.ecx) = (id, id, 0),
        _ => {}
    }
}

fn set(value: u32, bit: u32, on: bool) -> u32 {
    if on { value | bit } else { value & !bit }
}

fn extended_topology(processor: Processor) -> [kvm_cpuid_entry2; 3] {
    let leaf = |index: u32, eax: u32, ebx: u32, kind: u32| kvm_cpuid_entry2 {
        function: LEAF_EXTENDED_TOPOLOGY,
        index,
        flags: kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax,
        ebx,
        ecx: kind | index,
        edx: u32::from(processor.id),
        ..Default::default()
    };
    [
        leaf(0, 0, 1, TOPOLOGY_THREAD),
        leaf(1, processor.id_bits(), u32::from(processor.count), TOPOLOGY_CORE),
        leaf(2, 0, 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, eax: 0x20, ebx: u32::MAX, ecx: u32::MAX, edx: u32::MAX, ..Default::default() }
    }

    fn normalized(id: u8, count: u8) -> Vec<kvm_cpuid_entry2> {
        let leaves = [0, 1, 4, 0xb, 0x1f, 0x8000_0001, 0x8000_0008, 0x8000_000a, 0x8000_001e];
        let supported = CpuId::from_entries(&leaves.map(entry)).unwrap();
        normalize(&supported, Processor { id, count }, true)
    }

    fn leaf(entries: &[kvm_cpuid_entry2], function: u32) -> kvm_cpuid_entry2 {
        *entries.iter().find(|entry| entry.function == function).unwrap()
    }

    #[test]
    fn the_apic_id_is_the_same_in_every_leaf() {
        for id in 0..32 {
            let entries = normalized(id, 32);
            assert_eq!(leaf(&entries, 1).ebx >> 24, u32::from(id));
            assert!(entries.iter().filter(|e| e.function == 0xb).all(|e| e.edx == u32::from(id)));
            assert_eq!(leaf(&entries, 0x8000_001e).eax, u32::from(id));
        }
    }

    #[test]
    fn nested_virtualization_is_hidden() {
        let entries = normalized(0, 2);
        assert_eq!(leaf(&entries, 1).ecx & LEAF1_ECX_VMX, 0);
        assert_eq!(leaf(&entries, 0x8000_0001).ecx & EXTENDED1_ECX_SVM, 0);
        assert_eq!(leaf(&entries, 0x8000_000a).edx, 0);
    }

    #[test]
    fn a_single_processor_has_no_threads() {
        let entries = normalized(0, 1);
        assert_eq!(leaf(&entries, 1).edx & LEAF1_EDX_HTT, 0);
        assert_eq!(leaf(&entries, 0x8000_0008).ecx, 0);
    }

    #[test]
    fn the_topology_leaf_of_the_host_is_replaced() {
        let entries = normalized(1, 3);
        assert_eq!(entries.iter().filter(|entry| entry.function == 0xb).count(), 3);
        assert!(entries.iter().all(|entry| entry.function != 0x1f));
        let core = entries.iter().find(|entry| entry.function == 0xb && entry.index == 1).unwrap();
        assert_eq!((core.eax, core.ebx), (2, 3));
    }
}
