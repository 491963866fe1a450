//! Device nodes that a container may ask for: those that are the same in every Linux. All others belong to the node. Pure.

use super::oci::Device;
use super::spec::SpecError;
use serde_json::Value;

/// Character devices with their numbers, which say what a node is; its path is only a name.
const GUEST_DEVICES: [(&str, u64, u64); 10] = [
    ("/dev/console", 5, 1),
    ("/dev/full", 1, 7),
    ("/dev/fuse", 10, 229),
    ("/dev/net/tun", 10, 200),
    ("/dev/null", 1, 3),
    ("/dev/ptmx", 5, 2),
    ("/dev/random", 1, 8),
    ("/dev/tty", 5, 0),
    ("/dev/urandom", 1, 9),
    ("/dev/zero", 1, 5),
];

pub(super) fn check(devices: &[Device]) -> Result<(), SpecError> {
    match devices.iter().find(|device| !is_guests(device)) {
        None => Ok(()),
        Some(device) => Err(SpecError::Unsupported(format!(
            "device {} of the node cannot be used in a microVM",
            device.path.chars().take(256).collect::<String>()
        ))),
    }
}

/// What is left out is what it should be.
fn is_guests(device: &Device) -> bool {
    let is = |key: &str, wanted: u64| device.other.get(key).is_none_or(|value| value.as_u64() == Some(wanted));
    let character = device.other.get("type").and_then(Value::as_str).is_none_or(|kind| ["c", "u"].contains(&kind));
    let same = |(path, major, minor): &(&str, u64, u64)| {
        device.path == *path && character && is("major", *major) && is("minor", *minor)
    };
    GUEST_DEVICES.iter().any(same)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn checked(device: Value) -> Result<(), String> {
        check(&[serde_json::from_value(device).unwrap()]).map_err(|error| error.to_string())
    }

    #[test]
    fn what_every_linux_has_is_the_guests() {
        assert_eq!(
            checked(json!({"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 438})),
            Ok(())
        );
        assert_eq!(checked(json!({"path": "/dev/null"})), Ok(()));
    }

    #[test]
    fn another_device_is_refused_whatever_it_is_called() {
        for device in [
            json!({"path": "/dev/sda", "type": "b", "major": 8, "minor": 0}),
            json!({"path": "/dev/null", "type": "b", "major": 8, "minor": 0}),
            json!({"path": "/dev/null", "type": "c", "major": 10, "minor": 232}),
            json!({"path": "/dev/null", "type": "p"}),
            json!({"path": "/dev/../dev/null"}),
        ] {
            let sentence = checked(device.clone()).unwrap_err();
            assert!(sentence.ends_with("of the node cannot be used in a microVM"), "{device}: {sentence}");
        }
    }
}
