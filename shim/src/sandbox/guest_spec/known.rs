//! The keys of a specification that something here or the guest's crun acts on. crun passes over the keys that it does not
//! know, so whoever asked for more would never be told. Pure.

use super::{SpecError, is_set, shown, unsupported};
use crate::sandbox::oci::{Linux, Process, Spec};
use serde_json::{Map, Value};

// What `oci.rs` names is known already. Those that are refused are known as well: they have sentences of their own.
const SPEC: [&str; 4] = ["domainname", "ociVersion", "vm", "windows"];
const PROCESS: [&str; 13] = [
    "apparmorProfile",
    "capabilities",
    "consoleSize",
    "cwd",
    "env",
    "execCPUAffinity",
    "ioPriority",
    "noNewPrivileges",
    "oomScoreAdj",
    "rlimits",
    "scheduler",
    "selinuxLabel",
    "user",
];
const LINUX: [&str; 11] = [
    "gidMappings",
    "intelRdt",
    "maskedPaths",
    "mountLabel",
    "netDevices",
    "personality",
    "readonlyPaths",
    "rootfsPropagation",
    "seccomp",
    "timeOffsets",
    "uidMappings",
];
const RESOURCES: [&str; 9] =
    ["blockIO", "cpu", "devices", "hugepageLimits", "memory", "network", "pids", "rdma", "unified"];

pub(super) fn check_spec(spec: &Spec) -> Result<(), SpecError> {
    check("", &SPEC, &spec.other)
}

pub(super) fn check_process(process: &Process) -> Result<(), SpecError> {
    check("process.", &PROCESS, &process.other)
}

pub(super) fn check_linux(linux: &Linux) -> Result<(), SpecError> {
    check("linux.", &LINUX, &linux.other)
}

pub(super) fn check_resources(resources: &Map<String, Value>) -> Result<(), SpecError> {
    check("linux.resources.", &RESOURCES, resources)
}

fn check(place: &str, known: &[&str], found: &Map<String, Value>) -> Result<(), SpecError> {
    match found.iter().find(|(key, value)| !known.contains(&key.as_str()) && is_set(value)) {
        None => Ok(()),
        Some((key, _)) => {
            let key = shown(key);
            unsupported(format!("{place}{key} of the specification is not known"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn everything(spec: Value) -> Result<(), String> {
        let spec: Spec = serde_json::from_value(spec).unwrap();
        let linux = spec.linux.clone().unwrap_or_default();
        check_spec(&spec)
            .and_then(|()| check_process(&spec.process.unwrap_or_default()))
            .and_then(|()| check_linux(&linux))
            .and_then(|()| check_resources(&linux.resources))
            .map_err(|error| error.to_string())
    }

    /// Every field that the specification's Go types have for Linux in containerd 1.7, 2.1 and 2.2.
    #[test]
    fn what_containerd_can_write_is_known() {
        let process = json!({
            "terminal": true, "consoleSize": {"height": 1, "width": 1}, "user": {"uid": 1}, "args": ["sh"],
            "env": ["A=b"], "cwd": "/", "capabilities": {"bounding": ["CAP_KILL"]}, "rlimits": [{"type": "RLIMIT_CORE"}],
            "noNewPrivileges": true, "apparmorProfile": "x", "oomScoreAdj": 1, "scheduler": {"policy": "SCHED_OTHER"},
            "selinuxLabel": "x", "ioPriority": {"class": "IOPRIO_CLASS_BE"}, "execCPUAffinity": {"initial": "0"},
        });
        let resources = json!({
            "devices": [{"allow": false}], "memory": {"limit": 1}, "cpu": {"shares": 1}, "pids": {"limit": 1},
            "blockIO": {"weight": 1}, "hugepageLimits": [{"limit": 1}], "network": {"classID": 1},
            "rdma": {"x": {"hcaHandles": 1}}, "unified": {"memory.high": "1"},
        });
        let linux = json!({
            "uidMappings": [{"size": 1}], "gidMappings": [{"size": 1}], "sysctl": {"a": "b"}, "resources": resources,
            "cgroupsPath": "/x", "namespaces": [{"type": "pid"}], "devices": [{"path": "/dev/null"}],
            "netDevices": {"eth0": {"name": "x"}}, "seccomp": {"defaultAction": "SCMP_ACT_ALLOW"},
            "rootfsPropagation": "rslave", "maskedPaths": ["/x"], "readonlyPaths": ["/x"], "mountLabel": "x",
            "intelRdt": {"closID": "x"}, "personality": {"domain": "LINUX"}, "timeOffsets": {"monotonic": {"secs": 1}},
        });
        let spec = json!({
            "ociVersion": "1.2.1", "process": process, "root": {"path": "rootfs"}, "hostname": "x", "domainname": "x",
            "mounts": [{"destination": "/proc"}], "hooks": {"poststop": [{"path": "/x"}]}, "annotations": {"a": "b"},
            "linux": linux,
        });
        assert_eq!(everything(spec), Ok(()));
    }

    #[test]
    fn what_nobody_acts_on_is_refused_by_name() {
        for (spec, key) in [
            (json!({"zos": {"x": 1}}), "zos"),
            (json!({"process": {"commandLine": "sh"}}), "process.commandLine"),
            (json!({"linux": {"memoryPolicy": {"mode": "MPOL_BIND"}}}), "linux.memoryPolicy"),
            (json!({"linux": {"resources": {"misc": false}}}), "linux.resources.misc"),
            (json!({"a\nb": 1}), "a\\nb"),
        ] {
            assert_eq!(everything(spec), Err(format!("{key} of the specification is not known")));
        }
        assert!(everything(json!({"x".repeat(5000): 1})).unwrap_err().len() < 256);
    }

    #[test]
    fn an_unknown_key_that_asks_for_nothing_passes() {
        assert_eq!(everything(json!({"solaris": null, "linux": {"memoryPolicy": {}, "x": "", "y": []}})), Ok(()));
    }
}
