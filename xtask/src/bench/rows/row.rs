//! The rows of the table, as data: what each figure is, in which unit, and whose there are.

pub struct Row {
    /// As the node's program says it.
    pub name: &'static str,
    pub title: &'static str,
    pub unit: &'static str,
}

const fn row(name: &'static str, title: &'static str, unit: &'static str) -> Row {
    Row { name, title, unit }
}

pub const ROWS: &[Row] = &[
    row("vmm-init", "VMM start to guest init, same kernel and init", "s"),
    row("vmm-agent", "VMM start to the agent's first answer", "s"),
    row("vmm-agent-machine", "of it: until the machine is made", "s"),
    row("vmm-agent-kernel", "from there to the guest's init", "s"),
    row("vmm-agent-init", "from there to the agent's sign", "s"),
    row("vmm-agent-answer", "from there to its answer", "s"),
    row("exits", "exits from the guest until its init", "exits"),
    row("exits-page", "of them: page faults", "exits"),
    row("exits-port", "of them: I/O ports", "exits"),
    row("exits-msr", "of them: model specific registers", "exits"),
    row("exits-cpuid", "of them: CPUID", "exits"),
    row("exits-halt", "of them: halted", "exits"),
    row("exits-other", "of them: others", "exits"),
    row("pod-run", "RunPodSandbox", "s"),
    row("pod-create", "CreateContainer", "s"),
    row("pod-start", "StartContainer", "s"),
    row("pod-ready", "the three together", "s"),
    row("phase-containerd", "from the request to the shim's program", "s"),
    row("phase-shim", "from there to the VMM's or runc's", "s"),
    row("phase-sandbox", "from there to the sandbox", "s"),
    row("phase-create", "from there to the created container", "s"),
    row("phase-start", "from there to the running one", "s"),
    row("syscalls", "system calls of the node while a pod starts", "calls"),
    row("exec-first", "first ExecSync of `true` in a pod", "s"),
    row("exec", "ExecSync of `true` after that", "s"),
    row("output", "what a command in a pod prints, read by containerd", "ns/byte"),
    row("pod-stop", "StopPodSandbox", "s"),
    row("pod-remove", "RemovePodSandbox", "s"),
    row("pod-gone", "the two together", "s"),
    row("memory-per-pod", "node's memory for an idle pod", "MiB"),
    row("pss-shim", "share of the shim (Pss)", "MiB"),
    row("pss-vmm", "share of the VMM with its guest (Pss)", "MiB"),
    row("pss-file-server", "share of the file server (Pss)", "MiB"),
    row("pss-container", "share of the container's process (Pss)", "MiB"),
    row("vmm-private", "VMM's own memory besides its guest's", "MiB"),
    row("density", "idle pods in 512 MiB", "pods"),
    row("idle-processor", "processor of 40 idle pods", "% of one"),
    row("churn", "start and removal of a pod, 100 in a row", "s"),
    row("link-up", "TCP from a guest to its node", "ns/byte"),
    row("link-down", "TCP from a node to its guest", "ns/byte"),
    row("link-latency", "datagram of 64 bytes to a guest and back", "µs"),
    row("link-datagrams", "the same, 32 at once", "µs"),
    row("network-up", "TCP from a pod to one of runc", "ns/byte"),
    row("network-down", "TCP from a pod of runc", "ns/byte"),
    row("network-datagrams", "datagrams of 64 bytes that arrive at a pod of runc", "1/s"),
    row("network-latency", "ping there and back", "ms"),
    row("block-random-read-1", "a random read of 4 KiB, one at a time", "ns"),
    row("block-random-read-16", "the same, 16 in flight", "ns"),
    row("block-random-write-1", "a random write of 4 KiB, one at a time", "ns"),
    row("block-random-write-16", "the same, 16 in flight", "ns"),
];

/// In the order of the table's columns.
pub const CONTENDERS: [&str; 5] = ["bulkhead-cold", "bulkhead-template", "runc", "qemu", "qemu-vhost"];

/// Whether its unit has time in it. Memory, pods and events are counted.
pub fn is_timed(name: &str) -> bool {
    !matches!(unit(name), "MiB" | "pods" | "exits" | "calls")
}

/// Empty for a row that is not in the table.
pub fn unit(name: &str) -> &'static str {
    ROWS.iter().find(|row| row.name == name).map_or("", |row| row.unit)
}
