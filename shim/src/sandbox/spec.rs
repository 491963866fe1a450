//! What to boot, from the pod's OCI specification and the node's configuration. Pure.

use super::cgroup;
use super::id::SandboxId;
use super::oci::{Linux, Spec};
use crate::identifier::Identifier;
use bulkhead_config::Config;
use std::collections::BTreeMap;
use std::path::PathBuf;
use vmm_protocol::{MAX_MEMORY_MIB, MAX_VCPUS, MIN_MEMORY_MIB};

/// Annotations that are ours.
const PREFIX: &str = "io.bulkhead.";
const MEMORY: &str = "io.bulkhead.memory_mib";
const VCPUS: &str = "io.bulkhead.vcpus";

/// The sums of a pod's container limits, as kubelet sends them and containerd notes them on the sandbox. Zero and less: not
/// every container has one.
const POD_MEMORY: &str = "io.kubernetes.cri.sandbox-memory";
const POD_QUOTA: &str = "io.kubernetes.cri.sandbox-cpu-quota";
const POD_PERIOD: &str = "io.kubernetes.cri.sandbox-cpu-period";

/// What the guest's kernel and agent need besides a container's memory limit, in MiB.
const GUEST_OVERHEAD_MIB: u64 = 64;

const MIB: u64 = 1 << 20;

/// Linux's limit for host names.
const MAX_HOSTNAME: usize = 64;

const MAX_OOM_SCORE: u16 = 1000;

/// A sandbox to be booted: everything that was asked for, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SandboxSpec {
    pub(super) id: SandboxId,
    pub(super) hostname: String,
    /// For the containers to share. `None`: containerd mounts its own.
    pub(super) files: Option<PodFiles>,
    pub(super) memory_mib: u32,
    pub(super) vcpus: u8,
    /// Kernel settings that are to hold in the guest itself.
    pub(super) sysctls: BTreeMap<String, String>,
    /// Relative to the root of the cgroup hierarchy.
    pub(super) cgroup: PathBuf,
    /// Of the VMM and the file server on the node, from 0 to [`MAX_OOM_SCORE`].
    pub(super) oom_score: u16,
    /// Where CNI made the pod's network. `None`: the guest has loopback alone.
    pub(super) netns: Option<PathBuf>,
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
    #[error("annotation {0} is not known: {MEMORY} and {VCPUS} are")]
    UnknownAnnotation(String),
    #[error("annotation {key} must be a number from {low} to {high}, not {found:?}")]
    Annotation { key: &'static str, low: u32, high: u32, found: String },
    #[error("a microVM with {0} MiB of memory cannot boot: {MIN_MEMORY_MIB} MiB is the least")]
    TooLittleMemory(u64),
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

impl SandboxSpec {
    /// `spec` is the sandbox's, or that of a container that is alone in its sandbox.
    pub fn from_oci(namespace: &Identifier, id: &Identifier, spec: &Spec, config: &Config) -> Result<Self, SpecError> {
        check_annotations(spec)?;
        let id = SandboxId::new(namespace, id);
        let linux = spec.linux.clone().unwrap_or_default();
        let hostname = if spec.hostname.is_empty() { id.id.as_str() } else { &spec.hostname };
        Ok(Self {
            hostname: hostname.chars().take(MAX_HOSTNAME).collect(),
            files: None,
            memory_mib: memory(spec, &linux, config)?,
            vcpus: vcpus(spec, &linux, config)?,
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
fn oom_score(spec: &Spec) -> u16 {
    let asked = spec.process.as_ref().and_then(|process| process.other.get("oomScoreAdj")?.as_i64());
    u16::try_from(asked.unwrap_or(0).max(0)).unwrap_or(MAX_OOM_SCORE).min(MAX_OOM_SCORE)
}

/// Checks the annotations that are ours. A pod's members carry those of the pod: they size nothing there, and a mistake
/// is one all the same.
pub fn check_annotations(spec: &Spec) -> Result<(), SpecError> {
    let unknown = |key: &&String| key.starts_with(PREFIX) && ![MEMORY, VCPUS].contains(&key.as_str());
    if let Some(key) = spec.annotations.keys().find(unknown) {
        return Err(SpecError::UnknownAnnotation(key.clone()));
    }
    annotation(spec, MEMORY, MIN_MEMORY_MIB, MAX_MEMORY_MIB)?;
    annotation(spec, VCPUS, 1, u32::from(MAX_VCPUS))?;
    Ok(())
}

fn annotation(spec: &Spec, key: &'static str, low: u32, high: u32) -> Result<Option<u32>, SpecError> {
    let Some(text) = spec.annotations.get(key) else { return Ok(None) };
    match text.parse().ok().filter(|number| (low..=high).contains(number)) {
        Some(number) => Ok(Some(number)),
        None => Err(SpecError::Annotation { key, low, high, found: text.chars().take(64).collect() }),
    }
}

/// A number that containerd wrote.
fn pod_limit(spec: &Spec, key: &str) -> Option<i64> {
    spec.annotations.get(key)?.parse().ok()
}

/// The annotation, else what the pod's or the container's limit needs, else the node's default.
fn memory(spec: &Spec, linux: &Linux, config: &Config) -> Result<u32, SpecError> {
    if let Some(mib) = annotation(spec, MEMORY, MIN_MEMORY_MIB, MAX_MEMORY_MIB)? {
        return Ok(mib);
    }
    // Zero and negative limits mean "none".
    let limit = || linux.resources.get("memory").and_then(|memory| memory.get("limit")?.as_i64());
    let limit = pod_limit(spec, POD_MEMORY).or_else(limit);
    let mib = match limit.and_then(|bytes| u64::try_from(bytes).ok()).filter(|&bytes| bytes > 0) {
        Some(bytes) => bytes.div_ceil(MIB) + GUEST_OVERHEAD_MIB,
        None => u64::from(config.memory_mib),
    };
    if mib < u64::from(MIN_MEMORY_MIB) {
        return Err(SpecError::TooLittleMemory(mib));
    }
    Ok(u32::try_from(mib).unwrap_or(MAX_MEMORY_MIB).min(MAX_MEMORY_MIB))
}

/// The annotation, else what the pod's or the container's quota can use, else the node's default.
fn vcpus(spec: &Spec, linux: &Linux, config: &Config) -> Result<u8, SpecError> {
    if let Some(vcpus) = annotation(spec, VCPUS, 1, u32::from(MAX_VCPUS))? {
        return Ok(u8::try_from(vcpus).unwrap_or(MAX_VCPUS));
    }
    let cpu = |of_pod, key| {
        let limit = || linux.resources.get("cpu").and_then(|cpu| cpu.get(key)?.as_i64());
        u64::try_from(pod_limit(spec, of_pod).or_else(limit)?).ok()
    };
    match (cpu(POD_QUOTA, "quota"), cpu(POD_PERIOD, "period")) {
        (Some(quota @ 1..), Some(period @ 1..)) => {
            Ok(u8::try_from(quota.div_ceil(period)).unwrap_or(MAX_VCPUS).min(MAX_VCPUS))
        }
        _ => Ok(config.vcpus),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn parse(spec: Value) -> Result<SandboxSpec, SpecError> {
        let spec = serde_json::from_value(spec).unwrap();
        SandboxSpec::from_oci(&"default".parse().unwrap(), &"pod".parse().unwrap(), &spec, &Config::default())
    }

    #[test]
    fn an_empty_specification_gives_the_nodes_defaults() {
        let spec = parse(json!({})).unwrap();
        assert_eq!((spec.memory_mib, spec.vcpus, spec.hostname.as_str()), (512, 1, "pod"));
    }

    #[test]
    fn limits_size_the_machine() {
        let resources = json!({"memory": {"limit": 100 * MIB + 1}, "cpu": {"quota": 150_000, "period": 100_000}});
        let spec = parse(json!({"linux": {"resources": resources}})).unwrap();
        assert_eq!((spec.memory_mib, spec.vcpus), (101 + 64, 2));
    }

    #[test]
    fn a_pod_is_sized_by_the_limits_of_all_its_containers() {
        let pod = |memory: &str, quota: &str| {
            let spec = parse(json!({
                "annotations": {POD_MEMORY: memory, POD_QUOTA: quota, POD_PERIOD: "100000"},
                "linux": {"resources": {"memory": {"limit": MIB}, "cpu": {"shares": 2}}},
            }));
            spec.map(|spec| (spec.memory_mib, spec.vcpus)).unwrap()
        };
        assert_eq!(pod("314572800", "250000"), (300 + 64, 3));
        assert_eq!(pod("0", "0"), (512, 1));
        assert_eq!(pod("-1", "-1"), (512, 1));
    }

    #[test]
    fn no_limit_is_spelled_in_several_ways() {
        for limit in [json!(0), json!(-1), Value::Null] {
            let resources = json!({"memory": {"limit": limit}, "cpu": {"quota": -1, "period": 100_000}});
            let spec = parse(json!({"linux": {"resources": resources}})).unwrap();
            assert_eq!((spec.memory_mib, spec.vcpus), (512, 1));
        }
    }

    #[test]
    fn huge_limits_end_at_what_a_machine_can_have() {
        let resources = json!({"memory": {"limit": i64::MAX}, "cpu": {"quota": i64::MAX, "period": 1}});
        let spec = parse(json!({"linux": {"resources": resources}})).unwrap();
        assert_eq!((spec.memory_mib, spec.vcpus), (MAX_MEMORY_MIB, MAX_VCPUS));
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
    fn a_pods_sysctls_are_the_guests() {
        let spec = parse(json!({"linux": {"sysctl": {"net.ipv4.ip_forward": "1"}}})).unwrap();
        assert_eq!(spec.sysctls, [("net.ipv4.ip_forward".to_owned(), "1".to_owned())].into());
    }

    #[test]
    fn annotations_come_before_limits() {
        let spec = parse(json!({
            "annotations": {"io.bulkhead.memory_mib": "256", "io.bulkhead.vcpus": "4", "io.kubernetes.cri.x": "y"},
            "linux": {"resources": {"memory": {"limit": MIB}}},
        }));
        let spec = spec.unwrap();
        assert_eq!((spec.memory_mib, spec.vcpus), (256, 4));
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
                "annotation io.bulkhead.kernel is not known: io.bulkhead.memory_mib and io.bulkhead.vcpus are",
            ),
        ];
        for (key, value, sentence) in cases {
            let error = parse(json!({"annotations": {key: value}})).unwrap_err();
            assert_eq!(error.to_string(), sentence);
        }
    }
}
