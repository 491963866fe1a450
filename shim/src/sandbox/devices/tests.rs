use super::*;
use serde_json::json;

fn linux(devices: &Value, rules: &Value) -> Linux {
    serde_json::from_value(json!({"devices": devices, "resources": {"devices": rules}})).unwrap()
}

/// Goes the way of a container's devices: block devices are taken out, the others checked.
fn checked(device: &Value) -> Result<(), String> {
    let mut linux = linux(&json!([device]), &json!([]));
    take_block(&mut linux).and_then(|_| check(&linux.devices)).map_err(|error| error.to_string())
}

fn deny_all() -> Value {
    json!({"allow": false, "access": "rwm"})
}

#[test]
fn what_every_linux_has_is_the_guests() {
    assert_eq!(checked(&json!({"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 438})), Ok(()));
    assert_eq!(checked(&json!({"path": "/dev/null"})), Ok(()));
}

#[test]
fn another_device_is_refused_whatever_it_is_called() {
    for device in [
        json!({"path": "/dev/kvm", "type": "c", "major": 10, "minor": 232}),
        json!({"path": "/dev/null", "type": "c", "major": 10, "minor": 232}),
        json!({"path": "/dev/null", "type": "p"}),
        json!({"path": "/dev/../dev/null"}),
    ] {
        let sentence = checked(&device).unwrap_err();
        assert!(sentence.ends_with("of the node cannot be used in a microVM"), "{device}: {sentence}");
    }
}

#[test]
fn block_devices_are_taken_with_what_their_rules_allow() {
    let device =
        json!({"path": "/dev/xvda", "type": "b", "major": 7, "minor": 3, "fileMode": 0o640, "uid": 5, "gid": 6});
    let ordinary = json!({"path": "/dev/null"});
    for (rule, access) in [
        (json!({"allow": true, "type": "b", "major": 7, "minor": 3, "access": "r"}), "r"),
        (json!({"allow": true, "type": "b", "major": 7, "minor": 3, "access": "rwm"}), "rwm"),
        (json!({"allow": true, "type": "b", "major": 7, "access": "rw"}), "rw"),
        (json!({"allow": true, "access": "rwm"}), "rwm"),
    ] {
        let mut linux = linux(&json!([ordinary, device]), &json!([deny_all(), rule]));
        let [taken] = &take_block(&mut linux).unwrap()[..] else { panic!("not one") };
        assert_eq!((taken.path.as_str(), taken.major, taken.minor), ("/dev/xvda", 7, 3));
        assert_eq!((taken.mode, taken.uid, taken.gid), (0o640, 5, 6));
        assert_eq!(taken.access.to_string(), access, "{rule}");
        assert_eq!(linux.devices.len(), 1);
        check(&linux.devices).unwrap();
    }
}

#[test]
fn a_block_device_that_cannot_be_used_is_refused_by_name() {
    let nobodys = json!({"path": "/dev/xvda", "type": "b", "major": 7});
    assert_eq!(
        checked(&nobodys).unwrap_err(),
        "device /dev/xvda: the specification does not say which block device of the node it is"
    );
    let one = json!([{"path": "/dev/xvda", "type": "b", "major": 7, "minor": 3}]);
    for rules in [
        json!([]),
        json!([deny_all()]),
        json!([{"allow": true, "type": "c", "access": "rwm"}]),
        json!([{"allow": true, "type": "b", "major": 7, "minor": 4, "access": "rwm"}]),
        json!([{"allow": true, "type": "b", "major": 7, "minor": 3, "access": "m"}]),
    ] {
        let error = take_block(&mut linux(&one, &rules)).unwrap_err().to_string();
        assert_eq!(error, "device /dev/xvda: no rule lets the container read it");
    }
}

#[test]
fn rules_about_single_block_devices_do_not_go_into_the_guest() {
    let kept = json!([deny_all(), {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
        {"allow": true, "type": "b", "access": "m"}]);
    let mut all = kept.clone();
    all.as_array_mut().unwrap().push(json!({"allow": true, "type": "b", "major": 7, "minor": 3, "access": "rwm"}));
    let mut resources = json!({"devices": all}).as_object().unwrap().clone();
    drop_block_rules(&mut resources);
    assert_eq!(resources["devices"], kept);
    drop_block_rules(&mut Map::new());
}
