//! What to boot, from the pod's OCI specification. Pure.

use super::cgroup;
use super::id::SandboxId;
use super::oci::{Linux, Spec};
use super::rate::{self, Rate};
use super::size::{MEMORY, VCPUS, Wanted};
use super::storage::{self, Storage};
use crate::identifier::Identifier;
use bulkhead_config::SCRATCH_MIB;
use std::collections::BTreeMap;
use std::path::PathBuf;
use vmm_protocol::{MAX_MEMORY_MIB, MAX_VCPUS, MIN_MEMORY_MIB};

/// Annotations that are ours.
const PREFIX: &str = "io.bulkhead.";
const ANNOTATIONS: [&str; 6] = [MEMORY, VCPUS, rate::BYTES, rate::OPERATIONS, storage::SCRATCH, storage::EMPTY_DIRS];

/// What Kubernetes calls the pod, as the CRI plugin says it.
pub const POD_UID: &str = "io.kubernetes.cri.sandbox-uid";
pub const POD_NAME: &str = "io.kubernetes.cri.sandbox-name";
pub const POD_NAMESPACE: &str = "io.kubernetes.cri.sandbox-namespace";

/// In characters.
const MAX_SHOWN: usize = 128;

/// Linux's limit for host names.
const MAX_HOSTNAME: usize = 64;

/// kubelet's are 32 or 36 characters long.
const MAX_POD_UID: usize = 64;

const MAX_OOM_SCORE: u16 = 1000;

/// A sandbox to be booted: everything that was asked for, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SandboxSpec {
    pub(super) id: SandboxId,
    pub(super) hostname: String,
    pub(super) pod: PodName,
    /// `None`: not a pod of kubelet's.
    pub(super) pod_uid: Option<PodUid>,
    /// For the containers to share. `None`: containerd mounts its own.
    pub(super) files: Option<PodFiles>,
    pub(super) size: Wanted,
    pub(super) disk_rate: Rate,
    pub(super) storage: Storage,
    /// Kernel settings that are to hold in the guest itself.
    pub(super) sysctls: BTreeMap<String, String>,
    /// Relative to the root of the cgroup hierarchy.
    pub(super) cgroup: PathBuf,
    /// Of the VMM and the file server on the node, from 0 to [`MAX_OOM_SCORE`].
    pub(super) oom_score: u16,
    /// Where CNI made the pod's network. `None`: the guest has loopback alone.
    pub(super) netns: Option<PathBuf>,
}

/// What its owner calls the pod, for the operator to read. Empty: nobody said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodName {
    pub name: String,
    pub namespace: String,
}

/// The name of the pod's directory below kubelet's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodUid(String);

impl PodUid {
    /// `None` if it could be anything but the name of one directory: whoever has no pod directory can use none.
    pub fn new(uid: &str) -> Option<Self> {
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        (!uid.is_empty() && uid.len() <= MAX_POD_UID && uid.bytes().all(legal)).then(|| Self(uid.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Files that the pod's containers share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodFiles {
    pub hostname: Vec<u8>,
    pub hosts: Vec<u8>,
    pub resolv_conf: Vec<u8>,
}

/// Why a specification is refused. Each is one sentence for whoever wrote it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    #[error("annotation {0} is not known: {known} are", known = ANNOTATIONS.join(", "))]
    UnknownAnnotation(String),
    #[error("annotation {key} must be a number from {low} to {high}, not {found:?}")]
    Annotation { key: &'static str, low: u32, high: u32, found: String },
    #[error(
        "annotation {} must be like `cache=100,data=2000`, names of volumes with numbers from {} to {}, not {found:?}",
        storage::EMPTY_DIRS, SCRATCH_MIB.start(), SCRATCH_MIB.end()
    )]
    EmptyDirs { found: String },
    #[error("linux.cgroupsPath {0:?} is not a path below the cgroup hierarchy")]
    CgroupsPath(String),
    #[error("mount {destination}: {reason}")]
    Mount { destination: String, reason: String },
    #[error("root filesystem: {0}")]
    Rootfs(String),
    /// Something that can't be had inside a microVM, or not yet.
    #[error("{0}")]
    Unsupported(String),
}

/// A name of somebody else's, as far as it is repeated in a sentence: on one line, and not long.
pub(super) fn shown(name: &str) -> String {
    name.escape_debug().take(MAX_SHOWN).collect()
}

impl SandboxSpec {
    /// `spec` is the sandbox's, or that of a container that is alone in its sandbox.
    pub fn from_oci(namespace: &Identifier, id: &Identifier, spec: &Spec) -> Result<Self, SpecError> {
        check_annotations(spec)?;
        let id = SandboxId::new(namespace, id);
        let linux = spec.linux.clone().unwrap_or_default();
        let named = |key| spec.annotations.get(key).map_or_else(String::new, |name| shown(name));
        let hostname = if spec.hostname.is_empty() { id.id.as_str() } else { &spec.hostname };
        Ok(Self {
            hostname: hostname.chars().take(MAX_HOSTNAME).collect(),
            pod: PodName { name: named(POD_NAME), namespace: named(POD_NAMESPACE) },
            pod_uid: spec.annotations.get(POD_UID).and_then(|uid| PodUid::new(uid)),
            files: None,
            size: Wanted::from_oci(spec, &linux)?,
            disk_rate: Rate::from_oci(spec)?,
            storage: Storage::from_oci(spec)?,
            netns: netns(&linux),
            sysctls: linux.sysctl,
            cgroup: cgroup::location(&linux.cgroups_path, &id)?,
            oom_score: oom_score(spec),
            id,
        })
    }

    /// The same, with files in the guest's memory.
    #[must_use]
    pub fn with_files(self, files: PodFiles) -> Self {
        Self { files: Some(files), ..self }
    }
}

/// Without a path, the runtime is to make an empty one, and the guest's is that.
fn netns(linux: &Linux) -> Option<PathBuf> {
    let network = linux.namespaces.iter().find(|namespace| namespace.kind == "network")?;
    (!network.path.is_empty()).then(|| PathBuf::from(&network.path))
}

/// Never below 0: whoever may protect a process of the node from the OOM killer cannot protect a tenant's memory with it.
/// A pod sandbox asks for -998, as its process would be a tiny one.
pub fn oom_score(spec: &Spec) -> u16 {
    let asked = spec.process.as_ref().and_then(|process| process.other.get("oomScoreAdj")?.as_i64());
    u16::try_from(asked.unwrap_or(0).max(0)).unwrap_or(MAX_OOM_SCORE).min(MAX_OOM_SCORE)
}

/// Checks the annotations that are ours. A pod's members carry those of the pod: they size nothing there, and a mistake
/// is one all the same.
pub fn check_annotations(spec: &Spec) -> Result<(), SpecError> {
    let unknown = |key: &&String| key.starts_with(PREFIX) && !ANNOTATIONS.contains(&key.as_str());
    if let Some(key) = spec.annotations.keys().find(unknown) {
        return Err(SpecError::UnknownAnnotation(key.clone()));
    }
    annotation(spec, MEMORY, MIN_MEMORY_MIB, MAX_MEMORY_MIB)?;
    annotation(spec, VCPUS, 1, u32::from(MAX_VCPUS))?;
    Rate::from_oci(spec)?;
    Storage::from_oci(spec)?;
    Ok(())
}

pub(super) fn annotation(spec: &Spec, key: &'static str, low: u32, high: u32) -> Result<Option<u32>, SpecError> {
    let Some(text) = spec.annotations.get(key) else { return Ok(None) };
    match text.parse().ok().filter(|number| (low..=high).contains(number)) {
        Some(number) => Ok(Some(number)),
        None => Err(SpecError::Annotation { key, low, high, found: text.chars().take(64).collect() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn parse(spec: Value) -> Result<SandboxSpec, SpecError> {
        let spec = serde_json::from_value(spec).unwrap();
        SandboxSpec::from_oci(&"default".parse().unwrap(), &"pod".parse().unwrap(), &spec)
    }

    #[test]
    fn a_host_without_a_name_is_called_as_its_pod() {
        assert_eq!(parse(json!({})).unwrap().hostname, "pod");
    }

    #[test]
    fn a_vmm_is_never_protected_from_the_oom_killer() {
        for (asked, score) in
            [(json!(-998), 0), (json!(0), 0), (json!(985), 985), (json!(70_000), 1000), (json!("x"), 0)]
        {
            let spec = parse(json!({"process": {"args": ["sh"], "oomScoreAdj": asked}})).unwrap();
            assert_eq!(spec.oom_score, score, "{asked}");
        }
        assert_eq!(parse(json!({})).unwrap().oom_score, 0);
    }

    #[test]
    fn a_pods_uid_names_one_directory() {
        let uid = |uid: &str| parse(json!({"annotations": {POD_UID: uid}})).unwrap().pod_uid;
        for good in ["0b8e7a52-59c1-4d7b-9d5f-7fb1c0d51c2e", "b0d2b9f7a4a04e0c9d3c2f4b1a7e6d5c"] {
            assert_eq!(uid(good).unwrap().as_str(), good);
        }
        for bad in ["", "..", "a/b", "a b", &"a".repeat(65)] {
            assert_eq!(uid(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_pods_sysctls_are_the_guests() {
        let spec = parse(json!({"linux": {"sysctl": {"net.ipv4.ip_forward": "1"}}})).unwrap();
        assert_eq!(spec.sysctls, [("net.ipv4.ip_forward".to_owned(), "1".to_owned())].into());
    }

    #[test]
    fn bad_annotations_are_named() {
        let cases = [
            (
                "io.bulkhead.memory_mib",
                "63",
                "annotation io.bulkhead.memory_mib must be a number from 64 to 1048576, not \"63\"",
            ),
            ("io.bulkhead.vcpus", "many", "annotation io.bulkhead.vcpus must be a number from 1 to 32, not \"many\""),
            (
                "io.bulkhead.kernel",
                "/x",
                "annotation io.bulkhead.kernel is not known: io.bulkhead.memory_mib, io.bulkhead.vcpus, \
                 io.bulkhead.disk_mib_per_second, io.bulkhead.disk_operations_per_second, io.bulkhead.scratch_mib, \
                 io.bulkhead.empty_dir_mib are",
            ),
        ];
        for (key, value, sentence) in cases {
            let error = parse(json!({"annotations": {key: value}})).unwrap_err();
            assert_eq!(error.to_string(), sentence);
        }
    }
}
