//! The OCI specification as the guest is to see it. Pure.
//!
//! Host paths are replaced or refused; nothing that the node's client asked for is dropped in silence, except what has no
//! meaning inside a microVM (each case says why).

mod hooks;
mod known;

use super::devices;
use super::labels;
use super::mount::TreeOptions;
use super::oci::{Linux, Process, Spec, SpecMount};
use super::spec::{SpecError, shown};
use serde_json::{Map, Value};
use std::path::PathBuf;

/// Mount types that the guest's kernel provides by itself.
const GUEST_MOUNTS: [&str; 8] = ["cgroup", "cgroup2", "devpts", "mqueue", "proc", "ramfs", "sysfs", "tmpfs"];

/// A mount of the specification whose source is a path of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HostMount {
    /// Position among the specification's mounts.
    pub index: usize,
    pub destination: PathBuf,
    pub source: PathBuf,
    pub options: TreeOptions,
}

/// The mounts that must be made reachable before the guest can make them.
pub(super) fn host_mounts(spec: &Spec) -> Result<Vec<HostMount>, SpecError> {
    let from_host = spec.mounts.iter().enumerate().filter(|(_, mount)| is_host_mount(mount));
    from_host.map(|(index, mount)| host_mount(index, mount)).collect()
}

fn is_host_mount(mount: &SpecMount) -> bool {
    let bound = mount.options.iter().any(|option| option == "bind" || option == "rbind");
    bound || mount.kind == "bind"
}

fn host_mount(index: usize, mount: &SpecMount) -> Result<HostMount, SpecError> {
    let has = |names: &[&str]| mount.options.iter().any(|option| names.contains(&option.as_str()));
    if !mount.source.is_absolute() {
        return Err(refused(mount, "its source is not an absolute path"));
    }
    let mapped = ["uidMappings", "gidMappings"].iter().any(|key| mount.other.get(*key).is_some_and(is_set));
    if has(&["idmap", "ridmap"]) || mapped {
        return Err(refused(mount, "id-mapped mounts are not supported"));
    }
    if has(&["shared", "rshared"]) {
        return Err(refused(mount, "mounts made in a microVM cannot propagate to the node"));
    }
    let options = TreeOptions {
        recursive: has(&["rbind"]),
        // Read-only means the whole tree: below the file server the guest can't tell mounts apart.
        read_only: has(&["ro", "rro"]),
        follows_source: has(&["slave", "rslave"]),
    };
    Ok(HostMount { index, destination: mount.destination.clone(), source: mount.source.clone(), options })
}

fn refused(mount: &SpecMount, reason: &str) -> SpecError {
    SpecError::Mount { destination: mount.destination.display().to_string(), reason: reason.to_owned() }
}

fn unsupported<T>(what: impl Into<String>) -> Result<T, SpecError> {
    Err(SpecError::Unsupported(what.into()))
}

/// Rewrites the specification. `sources` has one path in the guest for each of [`host_mounts`], in order.
pub(super) fn guest_spec(spec: &Spec, sources: &[String]) -> Result<Spec, SpecError> {
    let mut spec = spec.clone();
    check_kind(&spec)?;
    // They steer OCI runtimes; the guest's is not the client's to steer.
    spec.annotations.clear();
    spec.process = spec.process.map(guest_process).transpose()?;
    spec.mounts = guest_mounts(&spec.mounts, sources)?;
    spec.linux = Some(guest_linux(spec.linux.unwrap_or_default())?);
    Ok(spec)
}

/// Refuses what a whole pod asks for and cannot have, before its microVM boots: its members would ask for the same.
pub fn check_pod(spec: &Spec) -> Result<(), SpecError> {
    check_kind(spec)?;
    spec.process.clone().map(guest_process).transpose()?;
    guest_linux(spec.linux.clone().unwrap_or_default())?;
    Ok(())
}

fn check_kind(spec: &Spec) -> Result<(), SpecError> {
    hooks::check(&spec.hooks)?;
    if spec.other.contains_key("vm") || spec.other.contains_key("windows") {
        return unsupported("the specification is not one of a Linux container");
    }
    known::check_spec(spec)
}

/// An `exec`'s process, or a container's first.
pub fn guest_process(mut process: Process) -> Result<Process, SpecError> {
    known::check_process(&process)?;
    labels::take(&mut process)?;
    Ok(process)
}

fn guest_mounts(mounts: &[SpecMount], sources: &[String]) -> Result<Vec<SpecMount>, SpecError> {
    let mut sources = sources.iter();
    let translate = |mount: &SpecMount| {
        let mut mount = mount.clone();
        if is_host_mount(&mount) {
            let source = sources.next().ok_or_else(|| refused(&mount, "it was not prepared"))?;
            mount.source = source.into();
            // Relations to the source's mounts are the node's part.
            mount.options.retain(|option| !["slave", "rslave", "private", "rprivate"].contains(&option.as_str()));
        } else if !GUEST_MOUNTS.contains(&mount.kind.as_str()) {
            return Err(refused(&mount, &format!("type {:?} is not supported", mount.kind)));
        }
        Ok(mount)
    };
    mounts.iter().map(translate).collect()
}

fn guest_linux(mut linux: Linux) -> Result<Linux, SpecError> {
    known::check_linux(&linux)?;
    check_namespaces(&linux)?;
    // Containers share the guest's network. A path names a namespace of the node: the sandbox's, which is the guest's own.
    linux.namespaces.retain(|namespace| namespace.kind != "network" && namespace.path.is_empty());
    linux.cgroups_path.clear();
    // Follows from the process's label, and the guest's filesystems have none.
    linux.other.remove("mountLabel");
    for (key, what) in [
        ("uidMappings", "user namespaces are not supported"),
        ("gidMappings", "user namespaces are not supported"),
        ("netDevices", "network devices of the node cannot be moved into a microVM"),
        ("intelRdt", "Intel RDT is the node's and cannot be set for a container in a microVM"),
    ] {
        if linux.other.get(key).is_some_and(is_set) {
            return unsupported(what);
        }
    }
    if linux.other.get("seccomp").is_some_and(asks_listener) {
        return unsupported("a seccomp listener is a socket of the node and cannot be reached from a microVM");
    }
    devices::check(&linux.devices)?;
    guest_resources(&mut linux.resources)?;
    Ok(linux)
}

/// Whether a seccomp profile leaves the decision about a system call to another program.
fn asks_listener(profile: &Value) -> bool {
    let notifies = |rule: &Value, key: &str| rule.get(key).and_then(Value::as_str) == Some("SCMP_ACT_NOTIFY");
    let mut rules = profile.get("syscalls").and_then(Value::as_array).into_iter().flatten();
    profile.get("listenerPath").is_some_and(is_set)
        || notifies(profile, "defaultAction")
        || rules.any(|rule| notifies(rule, "action"))
}

fn check_namespaces(linux: &Linux) -> Result<(), SpecError> {
    let find = |kind: &str| linux.namespaces.iter().find(|namespace| namespace.kind == kind);
    if find("user").is_some() {
        return unsupported("user namespaces are not supported");
    }
    for (kind, what) in [("network", "network"), ("pid", "process ids"), ("ipc", "IPC")] {
        if find(kind).is_none() {
            return unsupported(format!(
                "a microVM cannot share the node's {what} (the specification has no {kind} namespace)"
            ));
        }
    }
    if find("mount").is_none() {
        return unsupported("a container must have a mount namespace of its own");
    }
    if find("pid").is_some_and(|namespace| !namespace.path.is_empty()) {
        return unsupported("a microVM cannot join a pid namespace of the node");
    }
    Ok(())
}

/// The `linux.resources` of a container that is created or updated, as the guest is to see them.
pub fn guest_resources(resources: &mut Map<String, Value>) -> Result<(), SpecError> {
    known::check_resources(resources)?;
    devices::drop_block_rules(resources);
    // Both name CPUs and memory nodes of the node, which the guest does not have.
    if let Some(cpu) = resources.get_mut("cpu").and_then(Value::as_object_mut) {
        cpu.remove("cpus");
        cpu.remove("mems");
    }
    let io = resources.get("blockIO").and_then(Value::as_object).into_iter().flatten();
    let of_devices = |key: &str| key.starts_with("throttle") || key == "weightDevice";
    if io.into_iter().any(|(key, value)| of_devices(key) && is_set(value)) {
        return unsupported("block I/O limits name devices of the node and cannot be set in a microVM");
    }
    guest_huge_pages(resources)?;
    for (key, what) in [("rdma", "RDMA"), ("network", "net_cls and net_prio")] {
        if resources.get(key).is_some_and(is_set) {
            return unsupported(format!("{what} limits cannot be set in a microVM"));
        }
    }
    Ok(())
}

/// kubelet sends a limit for every size of the node, zero where the pod asked for none: the guest has no huge pages at all.
fn guest_huge_pages(resources: &mut Map<String, Value>) -> Result<(), SpecError> {
    let Some(limits) = resources.remove("hugepageLimits") else { return Ok(()) };
    let asked = |limit: &&Value| limit.get("limit").is_none_or(|bytes| bytes.as_u64() != Some(0));
    match limits.as_array().into_iter().flatten().find(asked) {
        None => Ok(()),
        Some(limit) => {
            let size = limit.get("pageSize").and_then(Value::as_str).unwrap_or("unknown size");
            unsupported(format!("huge pages ({size:.16}) cannot be used in a microVM"))
        }
    }
}

/// Neither absent, null, nor empty.
fn is_set(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
        Value::String(text) => !text.is_empty(),
        Value::Bool(_) | Value::Number(_) => true,
    }
}

#[cfg(test)]
mod tests;
