//! How large a microVM is: the annotation's number, else what the limits need, else the node's default. It starts with a part of it.

use super::memory::growth;
use super::oci::{Linux, Spec};
use super::spec::{SpecError, annotation};
use bulkhead_config::Config;
use std::path::Path;
use vmm_protocol::{MAX_MEMORY_MIB, MAX_VCPUS, MIN_MEMORY_MIB};

pub(super) const MEMORY: &str = "io.bulkhead.memory_mib";
pub(super) const VCPUS: &str = "io.bulkhead.vcpus";

/// The sums of a pod's container limits, as kubelet sends them and containerd notes them on the sandbox. Zero and less: no
/// container has one.
pub const POD_MEMORY: &str = "io.kubernetes.cri.sandbox-memory";
pub const POD_QUOTA: &str = "io.kubernetes.cri.sandbox-cpu-quota";
pub const POD_PERIOD: &str = "io.kubernetes.cri.sandbox-cpu-period";

/// What the guest's kernel and agent need besides the limits, in MiB.
const GUEST_OVERHEAD_MIB: u64 = 64;

/// Of a page and of what the guest's kernel keeps for each, in bytes: it takes this part of the memory at once.
const PAGE: u64 = 4096;
const PAGE_STRUCTURE: u64 = 64;

/// What pages may be, at most, for each one that a container may use: itself, and one of image layers that are mapped.
const MAPPED: u64 = 2;

const MIB: u64 = 1 << 20;

/// What a pod asks for. The node has the last word: [`Self::on`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    memory_mib: Amount,
    vcpus: Amount,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Amount {
    Default,
    Exactly(u32),
    /// For the limit of the only container.
    ForLimit(u32),
    /// For the limits of those containers of a pod that have one. Whether others have none, kubelet does not say.
    ForLimits(u32),
}

/// What a machine starts with, in MiB, if its pod is as large. Smaller ones start with all that they may have.
const START_MIB: u32 = 128;

/// A machine's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size {
    /// From its start.
    pub memory_mib: u32,
    /// Later, when the guest needs it.
    pub growth_mib: u32,
    pub vcpus: u8,
}

impl Size {
    /// Of a machine for nobody in particular: what templates are made of.
    pub fn smallest(config: &Config) -> Self {
        Self { memory_mib: config.memory_mib.min(START_MIB), growth_mib: 0, vcpus: 1 }
    }

    /// All that the pod may have.
    pub fn most_mib(self) -> u32 {
        self.memory_mib.saturating_add(self.growth_mib)
    }
}

/// What the node says of a pod's size.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Node {
    memory_mib: Option<u32>,
    /// kubelet limits a pod's cgroup when each of its containers has a limit.
    pod_has_memory_limit: bool,
    pod_has_cpu_limit: bool,
}

impl Wanted {
    pub fn from_oci(spec: &Spec, linux: &Linux) -> Result<Self, SpecError> {
        Ok(Self { memory_mib: memory(spec, linux)?, vcpus: vcpus(spec, linux)? })
    }

    pub fn on(self, node: &Node, config: &Config) -> Size {
        // Limits may be higher than what the node has.
        let most = node.memory_mib.unwrap_or(MAX_MEMORY_MIB).clamp(MIN_MEMORY_MIB, MAX_MEMORY_MIB);
        let vcpus = self.vcpus.or(u32::from(config.vcpus), node.pod_has_cpu_limit, u32::from(MAX_VCPUS));
        let pod_mib = self.memory_mib.or(config.memory_mib, node.pod_has_memory_limit, most);
        let memory_mib = pod_mib.min(Size::smallest(config).memory_mib);
        Size { memory_mib, growth_mib: growth(memory_mib, pod_mib), vcpus: u8::try_from(vcpus).unwrap_or(MAX_VCPUS) }
    }
}

impl Amount {
    /// `most` bounds what follows from limits; the other numbers have been checked.
    fn or(self, default: u32, pod_has_limit: bool, most: u32) -> u32 {
        match self {
            Self::Default => default,
            Self::Exactly(amount) => amount,
            Self::ForLimits(amount) if !pod_has_limit => amount.min(most).max(default),
            Self::ForLimit(amount) | Self::ForLimits(amount) => amount.min(most),
        }
    }
}

impl Node {
    /// `sandbox` is where the sandbox's cgroup is to be, below the root `cgroups`; the pod's is its parent. What cannot be
    /// read is no limit: too large a machine does less harm than too small a one.
    pub fn read(cgroups: &Path, sandbox: &Path) -> Self {
        let read = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
        let pod = cgroups.join(sandbox.parent().unwrap_or(Path::new("")));
        let limited = |name| read(&pod.join(name)).starts_with(|first: char| first.is_ascii_digit());
        Self {
            memory_mib: total_mib(&read(Path::new("/proc/meminfo"))),
            pod_has_memory_limit: limited("memory.max"),
            pod_has_cpu_limit: limited("cpu.max"),
        }
    }
}

/// From `/proc/meminfo`, which counts in KiB.
fn total_mib(meminfo: &str) -> Option<u32> {
    let kib: u64 =
        meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?.split_whitespace().next()?.parse().ok()?;
    u32::try_from(kib / 1024).ok()
}

fn memory(spec: &Spec, linux: &Linux) -> Result<Amount, SpecError> {
    if let Some(mib) = annotation(spec, MEMORY, MIN_MEMORY_MIB, MAX_MEMORY_MIB)? {
        return Ok(Amount::Exactly(mib));
    }
    let needed = |bytes: i64| {
        let limit = u64::try_from(bytes).ok().filter(|&bytes| bytes > 0)?.div_ceil(MIB);
        let mib = limit + (limit * MAPPED * PAGE_STRUCTURE).div_ceil(PAGE) + GUEST_OVERHEAD_MIB;
        Some(u32::try_from(mib).unwrap_or(u32::MAX))
    };
    if let Some(limits) = pod_limit(spec, POD_MEMORY) {
        return Ok(needed(limits).map_or(Amount::Default, Amount::ForLimits));
    }
    let limit = memory_limit(&linux.resources).and_then(needed);
    Ok(limit.map_or(Amount::Default, Amount::ForLimit))
}

/// Of OCI resources, in bytes. Zero and less mean "none".
pub fn memory_limit(resources: &serde_json::Map<String, serde_json::Value>) -> Option<i64> {
    resources.get("memory")?.get("limit")?.as_i64()
}

/// As many as the quota can use.
fn vcpus(spec: &Spec, linux: &Linux) -> Result<Amount, SpecError> {
    if let Some(vcpus) = annotation(spec, VCPUS, 1, u32::from(MAX_VCPUS))? {
        return Ok(Amount::Exactly(vcpus));
    }
    let needed = |quota: Option<i64>, period: Option<i64>| {
        let positive = |number: Option<i64>| u64::try_from(number?).ok().filter(|&number| number > 0);
        let vcpus = positive(quota)?.div_ceil(positive(period)?);
        Some(u32::try_from(vcpus).unwrap_or(u32::MAX))
    };
    if let Some(quota) = pod_limit(spec, POD_QUOTA) {
        let limits = needed(Some(quota), pod_limit(spec, POD_PERIOD));
        return Ok(limits.map_or(Amount::Default, Amount::ForLimits));
    }
    let cpu = |key| linux.resources.get("cpu")?.get(key)?.as_i64();
    Ok(needed(cpu("quota"), cpu("period")).map_or(Amount::Default, Amount::ForLimit))
}

/// A number that containerd wrote.
fn pod_limit(spec: &Spec, key: &str) -> Option<i64> {
    spec.annotations.get(key)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const LIMITED: Node = Node { memory_mib: None, pod_has_memory_limit: true, pod_has_cpu_limit: true };
    const UNLIMITED: Node = Node { memory_mib: None, pod_has_memory_limit: false, pod_has_cpu_limit: false };

    fn size(spec: Value, node: &Node) -> (u32, u8) {
        let spec: Spec = serde_json::from_value(spec).unwrap();
        let wanted = Wanted::from_oci(&spec, &spec.linux.clone().unwrap_or_default()).unwrap();
        let size = wanted.on(node, &Config::default());
        (size.most_mib(), size.vcpus)
    }

    fn container(resources: &Value) -> Value {
        json!({"linux": {"resources": resources}})
    }

    fn pod(memory: &str, quota: &str) -> Value {
        json!({
            "annotations": {POD_MEMORY: memory, POD_QUOTA: quota, POD_PERIOD: "100000"},
            // The pause container's own.
            "linux": {"resources": {"memory": {"limit": MIB}, "cpu": {"shares": 2}}},
        })
    }

    #[test]
    fn machines_start_small_and_those_of_small_pods_with_everything() {
        let start = |mib: u32, config: &Config| {
            let wanted = Wanted { memory_mib: Amount::Exactly(mib), vcpus: Amount::Default };
            let size = wanted.on(&UNLIMITED, config);
            (size.memory_mib, size.growth_mib)
        };
        let config = Config::default();
        assert_eq!(start(512, &config), (128, 384));
        assert_eq!(start(129, &config), (128, 2));
        assert_eq!(start(128, &config), (128, 0));
        assert_eq!(start(64, &config), (64, 0));
        // A template is of the default's size at most: else it would be for no pod that says nothing.
        assert_eq!(start(512, &Config { memory_mib: 100, ..config }), (100, 412));
    }

    #[test]
    fn an_empty_specification_gives_the_nodes_defaults() {
        assert_eq!(size(json!({}), &UNLIMITED), (512, 1));
        assert_eq!(size(json!({}), &LIMITED), (512, 1));
    }

    #[test]
    fn the_limit_of_a_container_that_is_alone_sizes_the_machine() {
        let limits =
            container(&json!({"memory": {"limit": 100 * MIB + 1}, "cpu": {"quota": 150_000, "period": 100_000}}));
        assert_eq!(size(limits.clone(), &UNLIMITED), (101 + 4 + 64 + 1, 2));
        assert_eq!(size(limits, &LIMITED), (101 + 4 + 64 + 1, 2));
    }

    #[test]
    fn a_pod_is_sized_by_the_limits_of_all_its_containers() {
        assert_eq!(size(pod("314572800", "250000"), &LIMITED), (300 + 10 + 64, 3));
        for none in ["0", "-1"] {
            assert_eq!(size(pod(none, none), &LIMITED), (512, 1));
        }
    }

    #[test]
    fn a_pod_with_a_container_without_a_limit_is_not_sized_for_the_others_alone() {
        assert_eq!(size(pod("67108864", "50000"), &UNLIMITED), (512, 1));
        assert_eq!(size(pod("1073741824", "250000"), &UNLIMITED), (1024 + 32 + 64, 3));
        let memory = Node { pod_has_cpu_limit: false, ..LIMITED };
        assert_eq!(size(pod("67108864", "50000"), &memory), (64 + 2 + 64, 1));
    }

    #[test]
    fn the_guests_page_structures_are_room_besides_the_limits() {
        let gib = |count: u64| container(&json!({"memory": {"limit": count << 30}}));
        assert_eq!(size(gib(8), &UNLIMITED).0, 8192 + 256 + 64);
        assert_eq!(size(gib(64), &UNLIMITED).0, 65536 + 2048 + 64);
    }

    #[test]
    fn limits_beyond_the_node_end_at_what_it_has() {
        let node = Node { memory_mib: Some(2000), ..LIMITED };
        assert_eq!(size(pod("8589934592", "0"), &node), (2000, 1));
        assert_eq!(size(pod("1073741824", "0"), &node), (1024 + 32 + 64, 1));
        assert_eq!(total_mib("MemFree: 1 kB\nMemTotal:       2048000 kB\nx"), Some(2000));
        assert_eq!(total_mib("MemTotal: many\n"), None);
    }

    #[test]
    fn no_limit_is_spelled_in_several_ways() {
        for limit in [json!(0), json!(-1), Value::Null] {
            let resources = json!({"memory": {"limit": limit}, "cpu": {"quota": -1, "period": 100_000}});
            assert_eq!(size(container(&resources), &LIMITED), (512, 1));
        }
    }

    #[test]
    fn huge_limits_end_at_what_a_machine_can_have() {
        let resources = json!({"memory": {"limit": i64::MAX}, "cpu": {"quota": i64::MAX, "period": 1}});
        assert_eq!(size(container(&resources), &UNLIMITED), (MAX_MEMORY_MIB, MAX_VCPUS));
    }

    #[test]
    fn annotations_come_before_limits() {
        let spec = json!({
            "annotations": {MEMORY: "256", VCPUS: "4", POD_MEMORY: "1073741824", "io.kubernetes.cri.x": "y"},
        });
        assert_eq!(size(spec, &UNLIMITED), (256, 4));
    }

    #[test]
    fn the_pods_cgroup_is_the_sandboxs_parent() {
        let root = tempfile::tempdir().unwrap();
        let pod = root.path().join("kubepods/pod1");
        std::fs::create_dir_all(pod.join("c1")).unwrap();
        for (memory, cpu, limited) in
            [("max\n", "max 100000\n", [false; 2]), ("1048576\n", "50000 100000\n", [true; 2]), ("", "", [false; 2])]
        {
            std::fs::write(pod.join("memory.max"), memory).unwrap();
            std::fs::write(pod.join("cpu.max"), cpu).unwrap();
            let node = Node::read(root.path(), Path::new("kubepods/pod1/c1"));
            assert_eq!([node.pod_has_memory_limit, node.pod_has_cpu_limit], limited, "{memory}");
        }
        let nowhere = Node::read(root.path(), Path::new("c1"));
        assert!(!nowhere.pod_has_memory_limit && !nowhere.pod_has_cpu_limit);
    }
}
