#![expect(clippy::cast_possible_truncation, reason = "random numbers are bounded where they are drawn")]

use super::connection::{BUFFER, Connection, Due, Reaction};
use super::packet::{Credit, Operation, Packet, Ports};
use super::spec::{MAX_PAYLOAD, TYPE_STREAM};
use crate::virtio::testing::Random;
use std::net::Shutdown;

const ROOM: Credit = Credit { allocated: 1 << 20, forwarded: 0 };

const CLOSED_BY_GUEST: Operation = Operation::Shutdown { receive: true, send: true };

fn packet(operation: Operation, length: u32, credit: Credit) -> Packet {
    Packet { ports: Ports { guest: 1, host: 2 }, socket_type: TYPE_STREAM, operation, credit, length }
}

fn receive(connection: &mut Connection, operation: Operation) -> Reaction {
    connection.receive(&packet(operation, 0, ROOM))
}

fn receive_data(connection: &mut Connection, length: u32) -> Reaction {
    connection.receive(&packet(Operation::Data, length, ROOM))
}

fn requested() -> Connection {
    let mut connection = Connection::new();
    assert_eq!(connection.due(true), Some(Due::Request));
    connection.sent(Due::Request);
    connection
}

fn established() -> Connection {
    let mut connection = requested();
    assert_eq!(connection.due(true), None);
    assert_eq!(receive(&mut connection, Operation::Response), Reaction::Established);
    connection
}

/// Sends what is due, which must be `due`.
fn send(connection: &mut Connection, due: Due) {
    assert_eq!(connection.due(false), Some(due));
    connection.sent(due);
}

#[test]
fn a_guest_may_refuse() {
    let mut connection = requested();
    assert_eq!(receive(&mut connection, Operation::Reset), Reaction::Refused);
    assert!(connection.is_over());
}

#[test]
fn an_attempt_that_the_caller_gave_up_is_reset() {
    let mut connection = requested();
    connection.stream_closed();
    send(&mut connection, Due::Reset);
    assert!(connection.is_over());
}

#[test]
fn an_attempt_given_up_before_the_guest_heard_of_it_leaves_no_trace() {
    let mut connection = Connection::new();
    connection.stream_closed();
    assert_eq!(connection.due(true), None);
    assert!(connection.is_over());
}

#[test]
fn the_end_of_the_stream_is_told_once_and_the_guest_may_go_on() {
    let mut connection = established();
    connection.stream_ended();
    send(&mut connection, Due::Shutdown { receive: false, send: true });
    assert_eq!(connection.due(false), None);
    assert_eq!(receive_data(&mut connection, 10), Reaction::Deliver);
    connection.forwarded(10);
    assert_eq!(receive(&mut connection, CLOSED_BY_GUEST), Reaction::Nothing);
    send(&mut connection, Due::Reset);
    assert!(connection.is_over());
}

#[test]
fn a_guest_that_sends_no_more_still_receives() {
    let mut connection = established();
    receive(&mut connection, Operation::Shutdown { receive: false, send: true });
    assert_eq!(connection.shut_stream(), Some(Shutdown::Write));
    assert_eq!(connection.shut_stream(), None);
    assert!(matches!(connection.due(true), Some(Due::Data(_))));
    connection.stream_ended();
    send(&mut connection, Due::Reset);
}

#[test]
fn a_guest_that_receives_no_more_still_sends() {
    let mut connection = established();
    receive(&mut connection, Operation::Shutdown { receive: true, send: false });
    assert_eq!(connection.shut_stream(), Some(Shutdown::Read));
    assert_eq!(connection.due(true), None);
    assert_eq!(receive_data(&mut connection, 10), Reaction::Deliver);
    connection.forwarded(10);
    receive(&mut connection, Operation::Shutdown { receive: false, send: true });
    send(&mut connection, Due::Reset);
}

#[test]
fn a_closed_connection_is_reset_only_when_its_bytes_are_flushed() {
    let mut connection = established();
    receive_data(&mut connection, 10);
    receive(&mut connection, CLOSED_BY_GUEST);
    assert_eq!(connection.shut_stream(), Some(Shutdown::Read));
    assert_eq!(connection.due(true), None);
    connection.forwarded(10);
    assert_eq!(connection.shut_stream(), Some(Shutdown::Write));
    send(&mut connection, Due::Reset);
}

#[test]
fn bytes_before_a_reset_of_the_guest_are_not_lost() {
    let mut connection = established();
    receive_data(&mut connection, 10);
    receive(&mut connection, Operation::Reset);
    assert_eq!(connection.due(true), None);
    assert!(!connection.is_over());
    assert_eq!(receive_data(&mut connection, 1), Reaction::Unknown);
    assert_eq!(receive(&mut connection, Operation::Reset), Reaction::Nothing);
    connection.forwarded(10);
    assert!(connection.is_over());
}

#[test]
fn a_stream_closed_on_both_sides_is_reset() {
    let mut connection = established();
    connection.stream_closed();
    assert!(matches!(connection.due(true), Some(Due::Data(_))), "what was written before the close still goes out");
    connection.stream_ended();
    send(&mut connection, Due::Reset);
}

#[test]
fn a_stream_that_takes_no_more_drops_what_is_in_flight() {
    let mut connection = established();
    connection.stream_closed();
    send(&mut connection, Due::Shutdown { receive: true, send: false });
    assert_eq!(receive_data(&mut connection, 10), Reaction::Nothing);
    assert_eq!(connection.buffered(), 0);
}

#[test]
fn a_guest_that_overruns_its_credit_is_reset() {
    let mut connection = established();
    for _ in 0..BUFFER / MAX_PAYLOAD {
        assert_eq!(receive_data(&mut connection, MAX_PAYLOAD), Reaction::Deliver);
    }
    assert_eq!(receive_data(&mut connection, 1), Reaction::Discard);
    send(&mut connection, Due::Reset);
    assert!(connection.is_over());
}

#[test]
fn the_guest_hears_of_its_credit_in_steps_and_when_it_asks() {
    let mut connection = established();
    receive_data(&mut connection, BUFFER / 4);
    connection.forwarded(BUFFER / 4 - 1);
    assert_eq!(connection.due(false), None);
    connection.forwarded(1);
    send(&mut connection, Due::CreditUpdate);
    assert_eq!(connection.credit(), Credit { allocated: BUFFER, forwarded: BUFFER / 4 });
    assert_eq!(connection.due(false), None);
    receive(&mut connection, Operation::CreditRequest);
    send(&mut connection, Due::CreditUpdate);
}

#[test]
fn credit_is_asked_for_once_until_the_guest_grants_some() {
    let mut connection = established();
    let exhausted = Credit { allocated: 100, forwarded: 0 };
    connection.receive(&packet(Operation::CreditUpdate, 0, exhausted));
    assert_eq!(connection.due(true), Some(Due::Data(100)));
    connection.sent(Due::Data(100));
    assert_eq!(connection.due(true), Some(Due::CreditRequest));
    connection.sent(Due::CreditRequest);
    assert_eq!(connection.due(true), None);
    connection.receive(&packet(Operation::CreditUpdate, 0, Credit { allocated: 100, forwarded: 40 }));
    assert_eq!(connection.due(true), Some(Due::Data(40)));
}

#[test]
fn a_guest_that_claims_to_have_forwarded_more_than_was_sent_gets_nothing() {
    let mut connection = established();
    connection.receive(&packet(Operation::CreditUpdate, 0, Credit { allocated: 100, forwarded: 1 }));
    assert_eq!(connection.due(true), Some(Due::CreditRequest));
}

#[test]
fn packets_out_of_place_reset_the_connection() {
    let wrong: [(fn() -> Connection, Operation); 6] = [
        (requested, Operation::Request),
        (requested, Operation::Data),
        (requested, CLOSED_BY_GUEST),
        (established, Operation::Request),
        (established, Operation::Response),
        (established, Operation::Invalid),
    ];
    for (start, operation) in wrong {
        let mut connection = start();
        assert_eq!(receive(&mut connection, operation), Reaction::Discard, "{operation:?}");
        send(&mut connection, Due::Reset);
    }
}

#[test]
fn data_after_the_end_of_data_resets_the_connection() {
    let mut connection = established();
    receive(&mut connection, Operation::Shutdown { receive: false, send: true });
    assert_eq!(receive_data(&mut connection, 1), Reaction::Discard);
}

/// What the specification allows, kept by an observer on the wire.
#[derive(Default)]
struct Model {
    sent: u64,
    received: u64,
    forwarded: u64,
    resets: usize,
}

impl Model {
    fn check_due(&mut self, connection: &Connection, due: Due, credit: Credit) {
        assert_eq!(self.resets, 0, "{due:?} after a reset");
        match due {
            Due::Data(room) => {
                let in_flight = self.sent - u64::from(credit.forwarded);
                assert!(in_flight + u64::from(room) <= u64::from(credit.allocated), "sent beyond the guest's credit");
            }
            Due::Reset => self.resets += 1,
            _ => {}
        }
        assert_eq!(u64::from(connection.credit().forwarded), self.forwarded);
    }
}

/// Any packet with any numbers, at any time.
#[test]
fn no_guest_breaks_the_rules_of_the_other_side() {
    let operations = [
        Operation::Response,
        Operation::Data,
        Operation::Data,
        Operation::Data,
        Operation::CreditUpdate,
        Operation::CreditRequest,
        Operation::Shutdown { receive: true, send: false },
        Operation::Shutdown { receive: false, send: true },
        Operation::Reset,
        Operation::Invalid,
        Operation::Request,
    ];
    for seed in 1..2000 {
        let mut random = Random::new(seed);
        let mut connection = if random.below(8) == 0 { Connection::new() } else { established() };
        let mut model = Model::default();
        let mut credit = ROOM;
        for _ in 0..60 {
            match random.below(8) {
                0..3 => {
                    // Mostly data, so that runs are long.
                    let span = if random.below(4) == 0 { operations.len() as u64 } else { 6 };
                    let operation = operations[1 + random.below(span - 1) as usize];
                    let length =
                        if operation == Operation::Data { random.below(u64::from(MAX_PAYLOAD)) as u32 } else { 0 };
                    let forwarded = random.below(model.sent + 1) as u32;
                    credit = Credit { allocated: random.below(1 << 18) as u32, forwarded };
                    match connection.receive(&packet(operation, length, credit)) {
                        Reaction::Deliver => model.received += u64::from(length),
                        Reaction::Discard => model.forwarded = model.received,
                        // Data that is dropped, since nobody listens, counts as forwarded.
                        Reaction::Nothing if u64::from(connection.credit().forwarded) > model.forwarded => {
                            model.received += u64::from(length);
                            model.forwarded = model.received;
                        }
                        _ => {}
                    }
                }
                3..5 => {
                    let bytes = random.below(u64::from(connection.buffered()) + 1) as u32;
                    connection.forwarded(bytes);
                    model.forwarded += u64::from(bytes);
                }
                5 if random.below(10) == 0 => {
                    connection.stream_closed();
                    model.forwarded = model.received;
                }
                5 if random.below(10) == 0 => connection.stream_ended(),
                _ => {
                    if let Some(mut due) = connection.due(random.below(2) == 0) {
                        model.check_due(&connection, due, credit);
                        if let Due::Data(room) = &mut due {
                            *room = 1 + random.below(u64::from(*room)) as u32;
                            model.sent += u64::from(*room);
                        }
                        connection.sent(due);
                    }
                }
            }
            assert!(connection.buffered() <= BUFFER);
            assert_eq!(u64::from(connection.buffered()), model.received - model.forwarded);
        }
    }
}

/// Two well-behaved ends that close in any order: everything arrives, and nothing stays behind.
#[test]
fn every_orderly_end_delivers_all_bytes_and_is_over() {
    for seed in 1..2000 {
        let mut random = Random::new(seed);
        let mut connection = established();
        let (mut to_guest, mut at_guest) = (random.below(500_000) as u32, 0);
        let (mut to_host, mut at_host) = (random.below(500_000) as u32, 0);
        let expected = (to_guest, to_host);
        let (mut guest_closed, mut stream_ended, mut asked) = (false, false, false);
        let (mut sent, mut known) = (0, connection.credit());
        for step in 0.. {
            assert!(step < 100_000, "seed {seed}: stuck at {connection:?}");
            if connection.is_over() {
                break;
            }
            let credit = Credit { allocated: 100_000, forwarded: at_guest };
            match random.below(4) {
                0 if to_host > 0 => {
                    let room = known.allocated - (sent - known.forwarded);
                    let length = to_host.min(room).min(random.below(u64::from(MAX_PAYLOAD)) as u32 + 1);
                    if length > 0 {
                        assert_eq!(connection.receive(&packet(Operation::Data, length, credit)), Reaction::Deliver);
                        to_host -= length;
                        sent += length;
                    }
                }
                0 if asked => {
                    asked = false;
                    connection.receive(&packet(Operation::CreditUpdate, 0, credit));
                }
                0 if !guest_closed && (stream_ended || random.below(50) == 0) => {
                    guest_closed = true;
                    // A guest closes both ways only when it has all it wants.
                    let receive = stream_ended;
                    connection.receive(&packet(Operation::Shutdown { receive, send: true }, 0, credit));
                }
                1 => {
                    let bytes = random.below(u64::from(connection.buffered()) + 1) as u32;
                    connection.forwarded(bytes);
                    at_host += bytes;
                }
                2 if to_guest == 0 && random.below(50) == 0 => connection.stream_ended(),
                _ => {
                    if let Some(mut due) = connection.due(to_guest > 0) {
                        match &mut due {
                            Due::Data(room) => {
                                *room = to_guest.min(*room).min(4052);
                                to_guest -= *room;
                                at_guest += *room;
                            }
                            Due::CreditRequest => asked = true,
                            Due::Shutdown { send: true, .. } => stream_ended = true,
                            _ => {}
                        }
                        connection.sent(due);
                        known = connection.credit();
                    }
                }
            }
        }
        assert_eq!((at_guest, at_host), expected, "seed {seed}");
    }
}
