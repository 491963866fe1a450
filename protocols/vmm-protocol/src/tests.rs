use super::*;
use std::num::NonZeroU64;

fn machine() -> Machine {
    Machine {
        version: "1.0.0".into(),
        jail: Jail { uid: 70001, gid: 70001 },
        vcpus: 2,
        memory_mib: 256,
        growth_mib: 0,
        command_line: "quiet".into(),
        kvm: FdSlot(0),
        kernel: FdSlot(1),
        root_image: FdSlot(2),
        console: FdSlot(3),
        debug_serial: false,
        template: false,
    }
}

#[test]
fn boot_has_a_golden_encoding() {
    let request = Request { id: 1, call: Call::Boot(Box::new(machine())) };
    let golden = concat!(
        r#"{"id":1,"call":{"boot":{"version":"1.0.0","jail":{"uid":70001,"gid":70001},"vcpus":2,"#,
        r#""memory_mib":256,"growth_mib":0,"command_line":"quiet","kvm":0,"kernel":1,"root_image":2,"console":3,"debug_serial":false,"#,
        r#""template":false}}}"#
    );
    assert_eq!(String::from_utf8(encode(&request).unwrap()).unwrap(), golden);
    assert_eq!(decode::<Request>(golden.as_bytes()).unwrap(), request);
}

#[test]
fn restore_and_snapshot_have_golden_encodings() {
    let restore = Restore {
        version: "1.0.0".into(),
        jail: Jail { uid: 70001, gid: 70001 },
        vcpus: 2,
        kvm: FdSlot(0),
        memory: FdSlot(1),
        state: FdSlot(2),
        root_image: FdSlot(3),
        console: FdSlot(4),
        growth_mib: 384,
    };
    let request = Request { id: 1, call: Call::Restore(Box::new(restore)) };
    let golden = concat!(
        r#"{"id":1,"call":{"restore":{"version":"1.0.0","jail":{"uid":70001,"gid":70001},"#,
        r#""vcpus":2,"kvm":0,"memory":1,"state":2,"root_image":3,"console":4,"growth_mib":384}}}"#
    );
    assert_eq!(String::from_utf8(encode(&request).unwrap()).unwrap(), golden);
    assert_eq!(decode::<Request>(golden.as_bytes()).unwrap(), request);
    let request = Request { id: 2, call: Call::Snapshot { memory: FdSlot(0), state: FdSlot(1) } };
    let golden = r#"{"id":2,"call":{"snapshot":{"memory":0,"state":1}}}"#;
    assert_eq!(String::from_utf8(encode(&request).unwrap()).unwrap(), golden);
    assert_eq!(decode::<Request>(golden.as_bytes()).unwrap(), request);
}

#[test]
fn attached_has_a_golden_encoding() {
    let address = PciAddress::new(4).unwrap();
    let reply = Reply { id: 7, result: Ok(Answer::Attached { device: DeviceId(3), address }) };
    let golden = r#"{"reply":{"id":7,"result":{"Ok":{"attached":{"device":3,"address":"0000:00:04.0"}}}}}"#;
    let message = Message::Reply(reply);
    assert_eq!(String::from_utf8(encode(&message).unwrap()).unwrap(), golden);
    assert_eq!(decode::<Message>(golden.as_bytes()).unwrap(), message);
}

#[test]
fn memory_has_golden_encodings() {
    let request = Request { id: 3, call: Call::Memory { mib: 256 } };
    let golden = r#"{"id":3,"call":{"memory":{"mib":256}}}"#;
    assert_eq!(String::from_utf8(encode(&request).unwrap()).unwrap(), golden);
    assert_eq!(decode::<Request>(golden.as_bytes()).unwrap(), request);
    let address = PciAddress::new(6).unwrap();
    let message = Message::Reply(Reply { id: 3, result: Ok(Answer::Memory { address }) });
    let golden = r#"{"reply":{"id":3,"result":{"Ok":{"memory":{"address":"0000:00:06.0"}}}}}"#;
    assert_eq!(String::from_utf8(encode(&message).unwrap()).unwrap(), golden);
    assert_eq!(decode::<Message>(golden.as_bytes()).unwrap(), message);
}

#[test]
fn a_running_machine_has_a_golden_encoding() {
    let moments = vec![Moment { stage: Stage::Program, at_ns: 5 }, Moment { stage: Stage::Kvm, at_ns: u64::MAX }];
    let message = Message::Reply(Reply { id: 1, result: Ok(Answer::Running { moments }) });
    let golden = concat!(
        r#"{"reply":{"id":1,"result":{"Ok":{"running":{"moments":["#,
        r#"{"stage":"program","at_ns":5},{"stage":"kvm","at_ns":18446744073709551615}]}}}}}"#
    );
    assert_eq!(String::from_utf8(encode(&message).unwrap()).unwrap(), golden);
    assert_eq!(decode::<Message>(golden.as_bytes()).unwrap(), message);
}

#[test]
fn a_disk_has_a_golden_encoding() {
    let limit = RateLimit { bytes_per_second: NonZeroU64::new(1 << 20), operations_per_second: None };
    let block = Device::Block { image: FdSlot(0), read_only: false, limit };
    let request = Request { id: 2, call: Call::Attach(block) };
    let golden = concat!(
        r#"{"id":2,"call":{"attach":{"block":{"image":0,"read_only":false,"#,
        r#""limit":{"bytes_per_second":1048576,"operations_per_second":null}}}}}"#
    );
    assert_eq!(String::from_utf8(encode(&request).unwrap()).unwrap(), golden);
    assert_eq!(decode::<Request>(golden.as_bytes()).unwrap(), request);
    assert!(decode::<Request>(golden.replace("1048576", "0").as_bytes()).is_err(), "no bytes at all are no rate");
}

#[test]
fn a_disk_of_layers_has_a_golden_encoding() {
    let request = Request {
        id: 2,
        call: Call::Attach(Device::Layers {
            parts: vec![FdSlot(0), FdSlot(1)],
            access: LayerAccess::Disk { limit: RateLimit::default() },
        }),
    };
    let golden = concat!(
        r#"{"id":2,"call":{"attach":{"layers":{"parts":[0,1],"#,
        r#""access":{"disk":{"limit":{"bytes_per_second":null,"operations_per_second":null}}}}}}}"#
    );
    assert_eq!(String::from_utf8(encode(&request).unwrap()).unwrap(), golden);
    assert_eq!(decode::<Request>(golden.as_bytes()).unwrap(), request);
    assert!(decode::<Request>(golden.replace(r#"{"limit""#, r#"{"rate""#).as_bytes()).is_err());
}

#[test]
fn a_failed_device_has_a_golden_encoding() {
    let event = Event::DeviceFailed { device: DeviceId(3), reason: "the node's disk is full".into() };
    let golden = r#"{"event":{"device_failed":{"device":3,"reason":"the node's disk is full"}}}"#;
    let message = Message::Event(event);
    assert_eq!(String::from_utf8(encode(&message).unwrap()).unwrap(), golden);
    assert_eq!(decode::<Message>(golden.as_bytes()).unwrap(), message);
}

#[test]
fn the_most_parts_fit_a_message() {
    let parts = (0..MAX_PARTS).map(|part| FdSlot(u8::try_from(part).unwrap())).collect();
    let access = LayerAccess::Memory;
    encode(&Request { id: u32::MAX, call: Call::Attach(Device::Layers { parts, access }) }).unwrap();
}

#[test]
fn unknown_fields_are_refused() {
    assert!(decode::<Request>(br#"{"id":1,"call":{"detach":{"device":1,"force":true}}}"#).is_err());
}

#[test]
fn pci_addresses_off_the_bus_are_refused() {
    for text in ["0000:00:20.0", "0000:01:04.0", "0000:00:4.0", "0000:00:04.1", "../../etc", ""] {
        assert!(text.parse::<PciAddress>().is_err(), "{text}");
    }
}

#[test]
fn an_oversized_message_is_refused() {
    let bytes = vec![b' '; MAX_MESSAGE + 1];
    assert!(matches!(decode::<Request>(&bytes), Err(ProtocolError::TooLong(_))));
}
