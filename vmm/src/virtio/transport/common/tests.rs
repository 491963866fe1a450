//! Registers under every access, in every state.

use super::*;

const FEATURE: u64 = 1 << 5;
const NEGOTIATED: u64 = FEATURE | 1 << VIRTIO_F_VERSION_1;

/// The states that a driver walks through, by the status that it has written.
const STATES: [u8; 5] = [
    0,
    ACKNOWLEDGE,
    ACKNOWLEDGE | DRIVER,
    ACKNOWLEDGE | DRIVER | FEATURES_OK,
    ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK,
];

fn registers() -> CommonRegisters {
    CommonRegisters::new(FEATURE, &[256, 64], 3)
}

fn read(registers: &CommonRegisters, offset: u64, length: usize) -> u64 {
    let mut data = [0; 8];
    registers.read(offset, 7, &mut data[..length]);
    u64::from_le_bytes(data)
}

fn status(registers: &CommonRegisters) -> u8 {
    u8::try_from(read(registers, 20, 1)).unwrap()
}

/// A driver that does everything right until `state`, with both queues set up.
fn driven_to(state: u8) -> CommonRegisters {
    let mut registers = registers();
    for step in STATES.into_iter().take_while(|step| *step <= state).skip(1) {
        if step & FEATURES_OK != 0 && step & DRIVER_OK == 0 {
            accept(&mut registers, NEGOTIATED);
        }
        if step & DRIVER_OK != 0 {
            set_up_queues(&mut registers);
        }
        registers.write(20, &[step]);
        assert_eq!(status(&registers), step);
    }
    registers
}

fn accept(registers: &mut CommonRegisters, features: u64) {
    for select in 0..2_u32 {
        registers.write(8, &select.to_le_bytes());
        registers.write(12, &half(features, select));
    }
}

fn set_up_queues(registers: &mut CommonRegisters) {
    for queue in 0..2_u16 {
        registers.write(22, &queue.to_le_bytes());
        registers.write(24, &32_u16.to_le_bytes());
        registers.write(26, &queue.to_le_bytes());
        for (offset, address) in [(32, 0x1000_u64), (40, 0x2000), (48, 0x3000)] {
            registers.write(offset, &address.to_le_bytes());
        }
        registers.write(28, &1_u16.to_le_bytes());
    }
}

#[test]
fn a_driver_that_follows_the_steps_starts_the_device() {
    let registers = driven_to(STATES[4]);
    assert_eq!(registers.due(), Some(Due::Start));
    assert_eq!(registers.accepted_features(), NEGOTIATED);
    for queue in registers.queues() {
        assert!(queue.enabled);
        assert_eq!((queue.size, queue.descriptors, queue.driver, queue.device), (32, 0x1000, 0x2000, 0x3000));
    }
}

#[test]
fn every_access_in_every_state_is_harmless() {
    for state in STATES {
        for length in 0..=16 {
            for offset in (0..80).chain([0xfff, u64::MAX - 8, u64::MAX]) {
                for value in [0x00, 0x01, 0x7f, 0xff] {
                    let mut registers = driven_to(state);
                    registers.write(offset, &vec![value; length]);
                    registers.read(offset, 0, &mut vec![0; length]);
                }
            }
        }
    }
}

#[test]
fn nothing_that_the_device_was_started_with_changes_while_it_runs() {
    for value in [0x00_u8, 0x01, 0x40, 0xff] {
        for length in [1, 2, 4, 8] {
            for queue in 0..4_u16 {
                let mut registers = driven_to(STATES[4]);
                registers.started(true);
                let before = (registers.queues().to_vec(), registers.accepted_features(), registers.config_vector());
                registers.write(22, &queue.to_le_bytes());
                // All but the status register, whose zero is a reset, and the selectors, which name no state.
                for offset in (0..64_u64).filter(|offset| !matches!(offset, 20 | 22)) {
                    registers.write(offset, &vec![value; length]);
                }
                let after = (registers.queues().to_vec(), registers.accepted_features(), registers.config_vector());
                assert_eq!(before, after);
            }
        }
    }
}

#[test]
fn an_enabled_queue_is_frozen_before_the_start() {
    let mut registers = driven_to(STATES[3]);
    set_up_queues(&mut registers);
    let before = registers.queues().to_vec();
    registers.write(24, &64_u16.to_le_bytes());
    registers.write(32, &0xdead_0000_u64.to_le_bytes());
    registers.write(28, &0_u16.to_le_bytes());
    assert_eq!(registers.queues(), before);
}

#[test]
fn queues_cannot_be_set_up_before_features_are_agreed() {
    for state in &STATES[..3] {
        let mut registers = driven_to(*state);
        let before = registers.queues().to_vec();
        set_up_queues(&mut registers);
        assert_eq!(registers.queues(), before);
    }
}

#[test]
fn queue_sizes_are_powers_of_two_up_to_the_largest() {
    let mut registers = driven_to(STATES[3]);
    registers.write(22, &1_u16.to_le_bytes());
    for bad in [0_u16, 3, 63, 65, 128, 0x8000, u16::MAX] {
        registers.write(24, &bad.to_le_bytes());
        assert_eq!(registers.queues()[1].size, 64, "{bad}");
    }
    registers.write(24, &16_u16.to_le_bytes());
    assert_eq!(registers.queues()[1].size, 16);
}

#[test]
fn features_that_were_not_offered_or_no_version_one_are_refused() {
    for features in [0, FEATURE, NEGOTIATED | 1, NEGOTIATED | 1 << 63] {
        let mut registers = driven_to(STATES[2]);
        accept(&mut registers, features);
        registers.write(20, &[STATES[3]]);
        assert_eq!(status(&registers), STATES[2], "{features:#x}");
        registers.write(20, &[STATES[4]]);
        assert_eq!(registers.due(), None);
    }
}

#[test]
fn features_are_frozen_once_agreed() {
    let mut registers = driven_to(STATES[3]);
    accept(&mut registers, 0);
    assert_eq!(registers.accepted_features(), NEGOTIATED);
}

#[test]
fn steps_cannot_be_skipped() {
    let mut registers = registers();
    registers.write(20, &[DRIVER_OK]);
    assert_eq!((status(&registers), registers.due()), (0, None));
    registers.write(20, &[FEATURES_OK | DRIVER_OK]);
    assert_eq!((status(&registers), registers.due()), (0, None));
}

#[test]
fn status_bits_go_away_through_a_reset_alone() {
    let mut registers = driven_to(STATES[4]);
    registers.started(true);
    registers.write(20, &[ACKNOWLEDGE]);
    assert_eq!(status(&registers), STATES[4]);
    assert_eq!(registers.due(), None);
}

#[test]
fn status_reads_as_it_was_until_the_reset_is_done() {
    let mut registers = driven_to(STATES[4]);
    registers.started(true);
    assert!(registers.write(20, &[0]));
    assert_eq!(registers.due(), Some(Due::Reset));
    assert_eq!(status(&registers), STATES[4]);
    assert!(!registers.write(20, &[STATES[4]]), "a driver that does not wait is ignored");
    registers.reset();
    assert_eq!(status(&registers), 0);
    assert_eq!(registers.queues(), self::registers().queues());
}

#[test]
fn a_reset_before_the_start_was_carried_out_wins() {
    let mut registers = driven_to(STATES[4]);
    registers.write(20, &[0]);
    assert_eq!(registers.due(), Some(Due::Reset));
}

#[test]
fn a_failed_start_asks_for_a_reset() {
    let mut registers = driven_to(STATES[4]);
    registers.started(false);
    assert_eq!(status(&registers), STATES[4] | NEEDS_RESET);
    registers.write(20, &[STATES[4] | NEEDS_RESET]);
    assert_eq!(registers.due(), None);
}

#[test]
fn vectors_beyond_the_table_read_back_as_none() {
    let mut registers = driven_to(STATES[3]);
    registers.write(16, &2_u16.to_le_bytes());
    registers.write(26, &1_u16.to_le_bytes());
    assert_eq!((read(&registers, 16, 2), read(&registers, 26, 2)), (2, 1));
    registers.write(16, &3_u16.to_le_bytes());
    registers.write(26, &3_u16.to_le_bytes());
    assert_eq!((read(&registers, 16, 2), read(&registers, 26, 2)), (0xffff, 0xffff));
}

#[test]
fn offered_features_show_in_halves_and_nothing_beyond() {
    let mut registers = registers();
    let mut offered = 0;
    for select in 0..2_u32 {
        registers.write(0, &select.to_le_bytes());
        offered |= read(&registers, 4, 4) << (32 * select);
    }
    assert_eq!(offered, FEATURE | TRANSPORT_FEATURES);
    registers.write(0, &2_u32.to_le_bytes());
    assert_eq!(read(&registers, 4, 4), 0);
}

#[test]
fn a_queue_that_is_not_there_has_size_zero() {
    let mut registers = driven_to(STATES[3]);
    registers.write(22, &2_u16.to_le_bytes());
    assert_eq!(read(&registers, 24, 2), 0);
    set_up_queues(&mut registers);
    registers.write(22, &u16::MAX.to_le_bytes());
    registers.write(28, &1_u16.to_le_bytes());
    assert_eq!(read(&registers, 28, 2), 0);
}

#[test]
fn addresses_may_be_written_in_halves() {
    let mut registers = driven_to(STATES[3]);
    registers.write(32, &0x8000_0000_u32.to_le_bytes());
    registers.write(36, &1_u32.to_le_bytes());
    assert_eq!(registers.queues()[0].descriptors, 0x1_8000_0000);
    assert_eq!(read(&registers, 32, 8), 0x1_8000_0000);
}

#[test]
fn the_generation_is_shown() {
    assert_eq!(read(&registers(), 21, 1), 7);
}
