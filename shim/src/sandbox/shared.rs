//! What a container shares with the other containers of its pod. Pure.
//!
//! Its specification names these things as they are on the node: namespaces by a process, shared memory and files by a path.
//! The guest has its own. Network, IPC and host name of the guest are the pod's anyway.

use super::oci::{Spec, SpecMount};
use super::spec::SpecError;
use crate::identifier::Identifier;
use agent_protocol::agent::create_container_request::Pid_namespace;
use agent_protocol::{HOSTNAME, HOSTS, POD_FILES, POD_SHM, RESOLV_CONF};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Where a container expects shared memory.
const SHM: &str = "/dev/shm";

/// Where a container expects the pod's files, and what they are called in the guest.
const FILES: [(&str, &str); 3] =
    [("/etc/hostname", HOSTNAME), ("/etc/hosts", HOSTS), ("/etc/resolv.conf", RESOLV_CONF)];

/// The pod that a new container belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    pub id: Identifier,
    /// What containerd was told to be the pod's process on the node.
    pub pid: u32,
    /// The containers by what containerd was told to be their process on the node.
    pub containers: BTreeMap<u32, Identifier>,
    /// Whether the pod's files are in the guest: containerd has none to mount.
    pub has_files: bool,
}

/// Whose process ids a container sees.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Pids {
    #[default]
    Own,
    Pod,
    Container(Identifier),
}

impl Pids {
    /// As the agent is told.
    pub fn to_request(&self) -> Option<Pid_namespace> {
        match self {
            Self::Own => None,
            Self::Pod => Some(Pid_namespace::PodPids(agent_protocol::agent::Empty::default())),
            Self::Container(id) => Some(Pid_namespace::PidsOfContainer(id.to_string())),
        }
    }
}

/// What was taken out of a specification, to be given back as it is in the guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Shared {
    pub pids: Pids,
    /// Position and mount options of the shared memory.
    shm: Option<(usize, Vec<String>)>,
    files: bool,
}

impl Shared {
    /// Takes out of a specification what names the pod by its traces on the node.
    pub fn take(spec: &mut Spec, pod: Option<&Pod>) -> Result<Self, SpecError> {
        let Some(pod) = pod else { return Ok(Self::default()) };
        let pids = take_pids(spec, pod)?;
        let index = spec.mounts.iter().position(|mount| is_pods_shm(mount, pod));
        let shm = index.map(|index| (index, spec.mounts.remove(index).options));
        Ok(Self { pids, shm, files: pod.has_files })
    }

    /// Completes the specification that the guest is to see.
    pub fn give(&self, spec: &mut Spec) {
        if let Some((index, options)) = &self.shm {
            let access = if options.iter().any(|option| option == "ro") { "ro" } else { "rw" };
            spec.mounts.insert(*index, bind(SHM, POD_SHM.into(), access));
        }
        if !self.files {
            return;
        }
        let access = if spec.root.as_ref().is_some_and(|root| root.readonly) { "ro" } else { "rw" };
        for (destination, name) in FILES {
            if !spec.mounts.iter().any(|mount| mount.destination == Path::new(destination)) {
                spec.mounts.push(bind(destination, Path::new(POD_FILES).join(name), access));
            }
        }
    }
}

fn bind(destination: &str, source: PathBuf, access: &str) -> SpecMount {
    SpecMount {
        destination: destination.into(),
        kind: "bind".to_owned(),
        source,
        options: vec!["bind".to_owned(), access.to_owned()],
        ..SpecMount::default()
    }
}

/// A path there is `/proc/<pid>/ns/pid`, with a pid that containerd was told.
fn take_pids(spec: &mut Spec, pod: &Pod) -> Result<Pids, SpecError> {
    let namespaces = spec.linux.iter_mut().flat_map(|linux| &mut linux.namespaces);
    let Some(namespace) = namespaces.into_iter().find(|namespace| namespace.kind == "pid") else {
        return Ok(Pids::Own);
    };
    let path = std::mem::take(&mut namespace.path);
    if path.is_empty() {
        return Ok(Pids::Own);
    }
    let pid = path.strip_prefix("/proc/").and_then(|rest| rest.strip_suffix("/ns/pid")?.parse::<u32>().ok());
    match pid {
        Some(pid) if pid == pod.pid => Ok(Pids::Pod),
        Some(pid) if pod.containers.contains_key(&pid) => Ok(Pids::Container(pod.containers[&pid].clone())),
        _ => Err(SpecError::Unsupported(format!(
            "pid namespace {path:?} is not that of a container in the same pod, which is all that a microVM can share"
        ))),
    }
}

fn is_pods_shm(mount: &SpecMount, pod: &Pod) -> bool {
    // The podsandbox controller makes one for each pod. Where it does not, containerd falls back to one for each container.
    let of_the_node = Path::new("sandboxes").join(pod.id.as_str()).join("shm");
    let fallback = pod.has_files && mount.kind == "tmpfs";
    mount.destination == Path::new(SHM) && (mount.source.ends_with(of_the_node) || fallback)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(has_files: bool) -> Pod {
        let containers = [(11, "web".parse().unwrap())].into();
        Pod { id: "p1".parse().unwrap(), pid: 10, containers, has_files }
    }

    fn spec(spec: Value) -> Spec {
        serde_json::from_value(spec).unwrap()
    }

    fn with_pid_namespace(path: &str) -> Spec {
        spec(json!({"linux": {"namespaces": [{"type": "mount"}, {"type": "pid", "path": path}]}}))
    }

    #[test]
    fn a_pid_namespace_is_found_by_the_pid_that_containerd_knows() {
        for (path, pids) in [
            ("", Pids::Own),
            ("/proc/10/ns/pid", Pids::Pod),
            ("/proc/11/ns/pid", Pids::Container("web".parse().unwrap())),
        ] {
            let mut spec = with_pid_namespace(path);
            assert_eq!(Shared::take(&mut spec, Some(&pod(false))).unwrap().pids, pids);
            assert_eq!(spec, with_pid_namespace(""));
        }
    }

    #[test]
    fn pid_namespaces_of_others_are_refused_by_name() {
        for path in ["/proc/1/ns/pid", "/proc/self/ns/pid", "/proc/10/ns/../ns/pid", "/var/run/ns", "/proc/10/ns/pid/"]
        {
            let error = Shared::take(&mut with_pid_namespace(path), Some(&pod(false))).unwrap_err().to_string();
            assert!(error.starts_with(&format!("pid namespace {path:?} is not that of")), "{error}");
        }
    }

    #[test]
    fn shared_memory_of_the_pod_is_the_guests_and_keeps_its_place() {
        let mounts = |shm: Value| json!({"mounts": [{"destination": "/dev", "type": "tmpfs"}, shm, {"destination": "/dev/shm/x", "type": "tmpfs"}]});
        let node = json!({"destination": "/dev/shm", "type": "bind", "source": "/run/cri/sandboxes/p1/shm",
            "options": ["rbind", "rprivate", "rw"]});
        let guest = json!({"destination": "/dev/shm", "type": "bind", "source": "/dev/shm", "options": ["bind", "rw"]});
        let mut made = spec(mounts(node));
        let shared = Shared::take(&mut made, Some(&pod(false))).unwrap();
        assert_eq!(made.mounts.len(), 2);
        shared.give(&mut made);
        assert_eq!(made, spec(mounts(guest)));
    }

    #[test]
    fn other_shared_memory_is_left_alone() {
        let volume = json!({"mounts": [{"destination": "/dev/shm", "type": "bind", "source": "/sandboxes/p2/shm"}]});
        let own = json!({"mounts": [{"destination": "/dev/shm", "type": "tmpfs", "source": "shm"}]});
        for mounts in [volume, own] {
            let mut made = spec(mounts.clone());
            Shared::take(&mut made, Some(&pod(false))).unwrap().give(&mut made);
            assert_eq!(made, spec(mounts));
        }
    }

    #[test]
    fn the_pods_files_come_where_nothing_else_is_mounted() {
        let hosts = json!({"destination": "/etc/hosts", "type": "bind", "source": "/kubelet/hosts"});
        let shm = json!({"destination": "/dev/shm", "type": "tmpfs", "source": "shm"});
        let mut made = spec(json!({"root": {"readonly": true}, "mounts": [hosts, shm]}));
        Shared::take(&mut made, Some(&pod(true))).unwrap().give(&mut made);
        let mounts: Vec<_> = made
            .mounts
            .iter()
            .map(|mount| (mount.destination.to_str().unwrap(), mount.source.to_str().unwrap(), mount.options.join(",")))
            .collect();
        let expected = [
            ("/etc/hosts", "/kubelet/hosts", ""),
            ("/dev/shm", "/dev/shm", "bind,rw"),
            ("/etc/hostname", "/run/bulkhead/pod/hostname", "bind,ro"),
            ("/etc/resolv.conf", "/run/bulkhead/pod/resolv.conf", "bind,ro"),
        ];
        assert_eq!(mounts, expected.map(|(to, from, options)| (to, from, options.to_owned())));
    }
}
