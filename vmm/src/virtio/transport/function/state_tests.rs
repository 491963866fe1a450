//! A function that is saved goes on as another one, wherever its driver was.

use super::*;
use crate::pci::MsiMessage;
use crate::snapshot::codec::testing::{content, from_content};
use crate::virtio::transport::state::Position;

/// What a driver can see of a function.
fn seen(function: &VirtioFunction) -> Vec<u8> {
    let mut bytes = Vec::new();
    for offset in (0..=252).step_by(4) {
        let mut word = [0; 4];
        function.read_config(offset, &mut word);
        bytes.extend_from_slice(&word);
    }
    for queue in 0..3_u16 {
        function.write_bar(22, &queue.to_le_bytes());
        let mut common = [0; 56];
        function.read_bar(COMMON, &mut common);
        bytes.extend_from_slice(&common);
    }
    function.write_bar(22, &[0, 0]);
    for offset in (0..48).step_by(4) {
        let mut word = [0; 4];
        function.read_bar(0x4000 + offset, &mut word);
        bytes.extend_from_slice(&word);
    }
    let mut pending = [0; 8];
    function.read_bar(0x5000, &mut pending);
    bytes.extend_from_slice(&pending);
    bytes
}

fn through_bytes(state: &FunctionState) -> FunctionState {
    let loaded = from_content(&content(state)).unwrap();
    assert_eq!(*state, loaded);
    loaded
}

/// The register writes of a driver that comes up: offset in the window and value.
fn steps() -> Vec<(u64, Vec<u8>)> {
    let table = 0x4000 + 16;
    vec![
        (STATUS, vec![1]),
        (STATUS, vec![3]),
        (8, vec![1, 0, 0, 0]),
        (12, vec![1, 0, 0, 0]),
        (STATUS, vec![11]),
        (16, vec![0, 0]),
        (table, 0xfee0_0000_u64.to_le_bytes().to_vec()),
        (table + 8, 0x41_u32.to_le_bytes().to_vec()),
        (table + 12, vec![0; 4]),
        (24, vec![32, 0]),
        (32, 0x1000_u64.to_le_bytes().to_vec()),
        (40, 0x2000_u64.to_le_bytes().to_vec()),
        (48, 0x3000_u64.to_le_bytes().to_vec()),
        (26, vec![1, 0]),
        (28, vec![1, 0]),
        (STATUS, vec![15]),
    ]
}

#[test]
fn a_driver_goes_on_wherever_it_was() {
    for count in 0..=steps().len() {
        let bench = bench_that(false);
        for (offset, data) in steps().iter().take(count) {
            bench.function.write_bar(*offset, data);
            bench.main_thread();
        }
        let before = seen(&bench.function);
        let state = through_bytes(&bench.function.save().unwrap());
        let next = bench_that(false);
        next.function.restore(&state, &next.bells).unwrap();
        assert_eq!(seen(&next.function), before, "after {count} steps");
        for (offset, data) in steps().iter().skip(count) {
            next.function.write_bar(*offset, data);
            next.main_thread();
        }
        assert_eq!(next.status(), 15);
        assert_eq!(next.log.take(), ["start"]);
        assert_eq!(next.bells.placed.lock().unwrap().len(), 1);
    }
}

fn running() -> Bench {
    let bench = bench_that(false);
    for (offset, data) in steps() {
        bench.function.write_bar(offset, &data);
        bench.main_thread();
    }
    bench
}

#[test]
fn rings_go_on_where_they_were_served_to() {
    let bench = running();
    {
        let mut resources = bench.resources.lock().unwrap();
        let queue = &mut resources.as_mut().unwrap().queues[0].as_mut().unwrap().queue;
        queue.set_next_avail(17);
        queue.set_next_used(65535);
    }
    let state = through_bytes(&bench.function.save().unwrap());
    assert_eq!(bench.log.take(), ["start", "stop"]);
    let next = bench_that(false);
    next.function.restore(&state, &next.bells).unwrap();
    let resources = next.resources.lock().unwrap();
    let running = resources.as_ref().unwrap().queues[0].as_ref().unwrap();
    assert_eq!((running.queue.next_avail(), running.queue.next_used(), running.queue.size()), (17, 65535, 32));
}

#[test]
fn a_woken_function_kicks_its_queues_and_interrupts_its_driver_once() {
    let state = running().function.save().unwrap();
    let next = bench_that(false);
    next.function.restore(&state, &next.bells).unwrap();
    next.function.wake().unwrap();
    let resources = next.resources.lock().unwrap();
    assert_eq!(resources.as_ref().unwrap().queues[0].as_ref().unwrap().kick.read().unwrap(), 1);
    // MSI-X is not enabled here, so that the interrupt waits.
    let mut pending = [0];
    next.function.read_bar(0x5000, &mut pending);
    assert_eq!(pending, [0b10]);
}

#[test]
fn interrupts_that_were_pending_are_delivered_through_new_routes() {
    let bench = running();
    // MSI-X on, but no route yet.
    let control = u8::try_from(bench.function.lock().msix_control).unwrap();
    bench.function.write_config(control, &[0x80]);
    bench.function.vectors()[1].trigger().unwrap();
    let state = through_bytes(&bench.function.save().unwrap());
    let next = bench_that(false);
    next.function.restore(&state, &next.bells).unwrap();
    let vector = &next.function.vectors()[1];
    assert!(vector.irqfd().read().is_err());
    let message = MsiMessage { address_low: 0xfee0_0000, address_high: 0, data: 0x41 };
    assert_eq!(vector.message(), Some(message));
    vector.set_routed(message);
    assert_eq!(vector.irqfd().read().unwrap(), 1);
}

#[test]
fn what_no_driver_could_have_written_is_refused() {
    type Damage = fn(&mut FunctionState);
    let refused: [Damage; 9] = [
        |state| state.slot = 6,
        |state| state.config[2] ^= 1,
        |state| state.vectors.truncate(1),
        |state| state.common.queues.truncate(1),
        |state| state.common.queues[0].size = 128,
        |state| state.common.queues[0].size = 33,
        |state| state.common.queues[0].vector = 3,
        |state| state.common.config_vector = 3,
        |state| state.common.driver_features |= 1 << 40,
    ];
    for (number, damage) in refused.into_iter().enumerate() {
        let mut state = running().function.save().unwrap();
        damage(&mut state);
        let next = bench_that(false);
        assert!(next.function.restore(&state, &next.bells).is_err(), "{number}");
    }
    let outside: [Damage; 3] = [
        |state| state.common.queues[0].descriptors = 1 << 40,
        |state| state.common.queues[0].driver = (1 << 20) - 2,
        |state| state.common.queues[0].device = u64::MAX - 3,
    ];
    for damage in outside {
        let mut state = running().function.save().unwrap();
        damage(&mut state);
        let next = bench_that(false);
        assert!(matches!(next.function.restore(&state, &next.bells), Err(StateError::Start(5))));
    }
}

#[test]
fn a_function_that_waits_for_the_main_thread_is_not_saved() {
    let bench = bench_that(false);
    bench.drive(0x1000, 0x2000, 0x3000);
    assert!(matches!(bench.function.save(), Err(StateError::Busy(5))));
    bench.main_thread();
    let state = bench.function.save().unwrap();
    assert_eq!(state.positions, [Some(Position { next_avail: 0, next_used: 0 }), None]);
}

#[test]
fn damaged_bytes_are_an_error_or_a_state() {
    let bytes = content(&running().function.save().unwrap());
    for length in 0..bytes.len() {
        assert!(from_content::<FunctionState>(&bytes[..length]).is_err());
    }
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0xff;
        if let Ok(state) = from_content::<FunctionState>(&damaged) {
            let next = bench_that(false);
            // Neither result is wrong.
            let _ = next.function.restore(&state, &next.bells);
        }
    }
}
