//! The MP table (Intel MultiProcessor Specification 1.4): processors for a guest without ACPI.
//!
//! The machine has local APICs and messages between them, and no other interrupt controller.

use super::layout::{BASE_MEMORY_END, LOCAL_APIC, MP_TABLE};

const SPEC_REVISION: u8 = 4;
const APIC_VERSION: u8 = 0x14;

const ENTRY_PROCESSOR: u8 = 0;
const ENTRY_BUS: u8 = 1;
const ENTRY_IO_INTERRUPT: u8 = 3;
const ENTRY_LOCAL_INTERRUPT: u8 = 4;

const PROCESSOR_ENABLED: u8 = 1;
const PROCESSOR_BOOT: u8 = 2;

const INTERRUPT_INT: u8 = 0;
const INTERRUPT_NMI: u8 = 1;

const ALL_LOCAL_APICS: u8 = 0xff;

/// The floating pointer and the table behind it, to be written at [`MP_TABLE`]. `vcpus` is at most
/// [`vmm_protocol::MAX_VCPUS`], which fits.
pub fn table(vcpus: u8) -> Vec<u8> {
    let mut entries = Vec::new();
    for id in 0..vcpus {
        let flags = if id == 0 { PROCESSOR_ENABLED | PROCESSOR_BOOT } else { PROCESSOR_ENABLED };
        entries.extend_from_slice(&[ENTRY_PROCESSOR, id, APIC_VERSION, flags]);
        // Signature and features: Linux reads CPUID instead.
        entries.extend_from_slice(&[0; 16]);
    }
    // One line that leads nowhere: Linux takes a table without any for broken and makes up sixteen.
    entries.extend_from_slice(&[ENTRY_BUS, 0]);
    entries.extend_from_slice(b"ISA   ");
    entries.extend_from_slice(&[ENTRY_IO_INTERRUPT, INTERRUPT_INT, 0, 0, 0, 0, vcpus, 0]);
    entries.extend_from_slice(&[ENTRY_LOCAL_INTERRUPT, INTERRUPT_NMI, 0, 0, 0, 0, ALL_LOCAL_APICS, 1]);
    let count = u16::from(vcpus) + 3;

    let mut pointer = floating_pointer();
    pointer.extend_from_slice(&configuration(&entries, count));
    debug_assert!(pointer.len() as u64 <= BASE_MEMORY_END - MP_TABLE);
    pointer
}

fn floating_pointer() -> Vec<u8> {
    let mut bytes = b"_MP_".to_vec();
    #[expect(clippy::cast_possible_truncation, reason = "a small constant")]
    bytes.extend_from_slice(&(MP_TABLE as u32 + 16).to_le_bytes());
    // Length in paragraphs, revision, checksum, five feature bytes (a table is there).
    bytes.extend_from_slice(&[1, SPEC_REVISION, 0, 0, 0, 0, 0, 0]);
    bytes[10] = checksum(&bytes);
    bytes
}

fn configuration(entries: &[u8], count: u16) -> Vec<u8> {
    const HEADER: usize = 44;
    let length = u16::try_from(HEADER + entries.len()).unwrap_or(u16::MAX);
    let mut bytes = b"PCMP".to_vec();
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&[SPEC_REVISION, 0]);
    bytes.extend_from_slice(b"BULKHEADMICROVM     ");
    // No OEM table.
    bytes.extend_from_slice(&[0; 6]);
    bytes.extend_from_slice(&count.to_le_bytes());
    bytes.extend_from_slice(&LOCAL_APIC.to_le_bytes());
    // No extended table.
    bytes.extend_from_slice(&[0; 4]);
    debug_assert_eq!(bytes.len(), HEADER);
    bytes.extend_from_slice(entries);
    bytes[7] = checksum(&bytes);
    bytes
}

/// The value that makes all bytes add up to zero, when its own place holds zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)).wrapping_neg()
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm_protocol::MAX_VCPUS;

    #[test]
    fn checksums_add_up_to_zero() {
        for vcpus in 1..=MAX_VCPUS {
            let bytes = table(vcpus);
            let sum = |bytes: &[u8]| bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
            assert_eq!(sum(&bytes[..16]), 0);
            assert_eq!(sum(&bytes[16..]), 0);
        }
    }

    #[test]
    fn the_largest_table_fits_into_its_kib() {
        assert!(table(MAX_VCPUS).len() <= 1024);
    }

    #[test]
    fn length_and_count_describe_the_entries() {
        let bytes = table(3);
        let configuration = &bytes[16..];
        assert_eq!(usize::from(u16::from_le_bytes([configuration[4], configuration[5]])), configuration.len());
        let mut rest = &configuration[44..];
        let mut count = 0;
        while let Some(kind) = rest.first() {
            rest = &rest[if *kind == ENTRY_PROCESSOR { 20 } else { 8 }..];
            count += 1;
        }
        assert_eq!(u16::from_le_bytes([configuration[34], configuration[35]]), count);
    }
}
