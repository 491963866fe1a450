//! Profiles and labels of the node's security modules. Pure.
//!
//! The guest's kernel has neither AppArmor nor SELinux, and a profile's rules never reach a runtime, only its name. What
//! containerd puts on every container by itself keeps containers apart from the node and from each other: the microVM does.
//! Whatever a pod names itself is refused. docs/adr/0011-security-modules.md has the reasons.

use super::oci::Process;
use super::spec::{SpecError, shown};
use serde_json::Value;

/// The profiles that containerd's clients give to containers that ask for none.
const DEFAULT_PROFILES: [&str; 3] = ["cri-containerd.apparmor.d", "docker-default", "nerdctl-default"];

/// Asks for no confinement.
const UNCONFINED: &str = "unconfined";

/// The types of the node's policy for containers: ordinary, with an init system, in a virtual machine, privileged.
const DEFAULT_TYPES: [&str; 4] = ["container_t", "container_init_t", "container_kvm_t", "spc_t"];

/// Takes the labels off a process, or refuses them.
pub(super) fn take(process: &mut Process) -> Result<(), SpecError> {
    if let Some(profile) = text(process, "apparmorProfile")? {
        check_profile(&profile)?;
    }
    if let Some(label) = text(process, "selinuxLabel")? {
        check_label(&label)?;
    }
    Ok(())
}

fn text(process: &mut Process, key: &str) -> Result<Option<String>, SpecError> {
    match process.other.remove(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text).filter(|text| !text.is_empty())),
        Some(_) => Err(SpecError::Unsupported(format!("process.{key} is not a text"))),
    }
}

fn check_profile(profile: &str) -> Result<(), SpecError> {
    if profile == UNCONFINED || DEFAULT_PROFILES.contains(&profile) {
        return Ok(());
    }
    Err(SpecError::Unsupported(format!(
        "AppArmor profile \"{}\" of the node cannot be applied in a microVM: use RuntimeDefault or Unconfined",
        shown(profile)
    )))
}

/// A label is `user:role:type`, then a level that may have colons in it. The level is what keeps containers apart.
fn check_label(label: &str) -> Result<(), SpecError> {
    let mut parts = label.splitn(4, ':');
    let (user, role, kind) = (parts.next(), parts.next(), parts.next());
    let of_the_node = user == Some("system_u") && role == Some("system_r");
    if of_the_node && kind.is_some_and(|kind| DEFAULT_TYPES.contains(&kind)) {
        return Ok(());
    }
    Err(SpecError::Unsupported(format!(
        "SELinux label \"{}\" of the node cannot be applied in a microVM: leave seLinuxOptions out",
        shown(label)
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn taken(labels: Value) -> Result<Process, String> {
        let mut process = serde_json::from_value(labels).unwrap();
        take(&mut process).map(|()| process).map_err(|error| error.to_string())
    }

    #[test]
    fn what_containerd_puts_on_every_container_is_taken_off() {
        for labels in [
            json!({"apparmorProfile": "cri-containerd.apparmor.d"}),
            json!({"apparmorProfile": "unconfined", "selinuxLabel": ""}),
            json!({"apparmorProfile": null}),
            json!({"selinuxLabel": "system_u:system_r:container_t:s0:c4,c5"}),
            json!({"selinuxLabel": "system_u:system_r:spc_t"}),
        ] {
            let process = taken(labels.clone());
            assert_eq!(process.map(|process| process.other.len()), Ok(0), "{labels}");
        }
    }

    #[test]
    fn what_a_pod_names_itself_is_refused_by_name() {
        let cases = [
            (
                json!({"apparmorProfile": "mine"}),
                "AppArmor profile \"mine\" of the node cannot be applied in a microVM: use RuntimeDefault or Unconfined",
            ),
            (
                json!({"selinuxLabel": "system_u:system_r:svirt_t:s0"}),
                "SELinux label \"system_u:system_r:svirt_t:s0\" of the node cannot be applied in a microVM: leave \
                 seLinuxOptions out",
            ),
        ];
        for (labels, sentence) in cases {
            assert_eq!(taken(labels).unwrap_err(), sentence);
        }
        for label in ["container_t", "user_u:system_r:container_t:s0", "system_u:user_r:container_t:s0", ":::"] {
            assert!(taken(json!({"selinuxLabel": label})).is_err(), "{label}");
        }
        assert!(taken(json!({"apparmorProfile": 7})).unwrap_err().contains("not a text"));
    }

    #[test]
    fn a_refused_name_is_quoted_and_cut() {
        let sentence = taken(json!({"apparmorProfile": "\n".repeat(5000)})).unwrap_err();
        assert!(sentence.len() < 500 && !sentence.contains('\n'), "{sentence}");
    }
}
