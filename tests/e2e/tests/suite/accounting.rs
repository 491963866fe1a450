//! What a container uses, what it may use, and what happens when it wants more.

use e2e::cri::messages::PodSandboxStats;
use e2e::cri::{Container, Pod, Sandboxer};
use e2e::vmm::Vmm;
use e2e::{BUSYBOX, eventually, probe};

crate::for_each_sandboxer!(
    long: containers_are_counted_limited_and_killed_one_by_one,
    a_pod_may_use_all_of_its_limits,
    what_a_container_frees_goes_back_to_the_node
);

const MIB: u64 = 1 << 20;

/// One pod, many facts: a boot takes seconds under emulation.
fn containers_are_counted_limited_and_killed_one_by_one(sandboxer: Sandboxer) {
    let pod = Pod::new("counted", sandboxer).memory_limits(256 << 20).run();
    let script = "ballast=$(head -c 25165824 /dev/zero | tr '\\0' x); sleep 3600 & wait";
    let steady = pod.container("steady", BUSYBOX).shell(script).memory_limit(96 << 20).start();
    let greedy = pod.container("greedy", BUSYBOX).shell("tail /dev/zero").memory_limit(32 << 20).start();
    the_machine_has_no_more_than_room_for_the_pods_limits(&steady);
    a_container_that_wants_too_much_ends_alone(&greedy, &steady);
    a_child_that_wants_too_much_does_not_end_its_container(&pod);
    a_child_ends_a_container_that_is_to_end_as_a_whole(&pod);
    a_container_is_counted(&steady);
    the_pod_is_counted(&pod);
    new_limits_hold_at_once(&steady);
}

/// It has less until its containers need it.
fn the_machine_has_no_more_than_room_for_the_pods_limits(steady: &Container<'_>) {
    let total = steady.shell("awk '/MemTotal/ { print $2 }' /proc/meminfo").stdout();
    let mebibytes = total.trim().parse::<u64>().expect("a number") / 1024;
    assert!((64..=256 + 64 + 8).contains(&mebibytes), "{mebibytes} MiB for limits of 256 MiB");
}

fn a_container_that_wants_too_much_ends_alone(greedy: &Container<'_>, steady: &Container<'_>) {
    ends_for_want_of_memory(greedy);
    assert!(steady.running() && steady.shell("true").code == 0);
}

fn a_child_that_wants_too_much_does_not_end_its_container(pod: &Pod) {
    let parent = pod.container("parent", BUSYBOX).memory_limit(32 << 20);
    let parent = parent.shell("tail /dev/zero; echo $?; exit 5").start();
    assert_eq!((parent.wait(), parent.log().stdout().as_str()), (5, "137\n"));
}

/// What kubelet asks for on nodes with cgroup v2: the group, and no swap.
fn a_child_ends_a_container_that_is_to_end_as_a_whole(pod: &Pod) {
    let parent = pod.container("group", BUSYBOX).memory_limit(32 << 20).resources(|resources| {
        resources.memory_swap_limit_in_bytes = resources.memory_limit_in_bytes;
        resources.unified.insert("memory.oom.group".into(), "1".into());
    });
    let parent = parent.shell("tail /dev/zero; exit 5").start();
    ends_for_want_of_memory(&parent);
}

fn ends_for_want_of_memory(container: &Container<'_>) {
    assert_eq!(container.wait(), 137);
    eventually("containerd has the reason", || container.status().reason == "OOMKilled");
}

fn a_container_is_counted(steady: &Container<'_>) {
    eventually("the ballast is counted", || steady.stats().memory.working_set_bytes.value > 24 * MIB);
    let stats = steady.stats();
    assert!(stats.memory.working_set_bytes.value < 96 * MIB, "{stats:?}");
    assert!(stats.memory.usage_bytes.value >= stats.memory.working_set_bytes.value, "{stats:?}");
    assert!(stats.cpu.usage_core_nano_seconds.value > 0, "{stats:?}");
    // containerd looks at its snapshots every few seconds.
    let written = || steady.stats().writable_layer.used_bytes.value;
    eventually("the snapshot is counted", || steady.stats().writable_layer.inodes_used.value > 0);
    let before = written();
    steady.shell("head -c 8388608 /dev/zero >/file; sync").success();
    eventually("the written file is counted", || (8 * MIB..10 * MIB).contains(&written().saturating_sub(before)));
}

/// From the node's own cgroups, in which the VMM is, and from the interface in the pod's namespace on the node.
fn the_pod_is_counted(pod: &Pod) {
    let network = |stats: &PodSandboxStats| {
        let interface = &stats.linux.network.default_interface;
        [interface.rx_bytes.value, interface.tx_bytes.value]
    };
    let before = network(&pod.stats());
    assert!(!probe::tcp(&pod.ip(), 9), "nobody listens there");
    let stats = pod.stats();
    let after = network(&stats);
    assert!(after[0] > before[0] && after[1] > before[1], "{before:?} {after:?}");
    assert_eq!(stats.linux.network.default_interface.name, "eth0", "{stats:?}");
    assert!(stats.linux.cpu.usage_core_nano_seconds.value > 0, "{stats:?}");
    assert!(stats.linux.memory.working_set_bytes.value > 24 * MIB, "{stats:?}");
    // The shell and its child; the other containers have ended.
    assert_eq!(stats.linux.process.process_count.value, 2, "{stats:?}");
    assert!(stats.linux.containers.iter().any(|container| container.attributes.metadata.name == "steady"), "{stats:?}");
}

fn new_limits_hold_at_once(steady: &Container<'_>) {
    let too_much = steady.update(|resources| resources.memory_limit_in_bytes = 1 << 30).expect_err("it is too much");
    assert!(too_much.to_string().contains("a limit of 1024 MiB is more than the microVM's 328 MiB"), "{too_much}");
    let changed = steady.update(|resources| {
        resources.memory_limit_in_bytes = 64 << 20;
        (resources.cpu_quota, resources.cpu_period, resources.cpu_shares) = (20_000, 100_000, 512);
        // Of the node's processors: the guest's are others.
        resources.cpuset_cpus = "0".into();
    });
    changed.expect("limits can be changed");
    let files = ["memory.max", "cpu.max"].map(|name| format!("/sys/fs/cgroup/{name}"));
    let limits = steady.exec(&["/bin/cat", &files[0], &files[1]]).stdout();
    assert_eq!(limits, format!("{}\n20000 100000\n", 64 << 20));
}

/// The pod's cgroup on the node has a limit, with room for what the machine takes besides the containers. It is one as
/// kubelet makes it with systemd's driver.
fn a_pod_may_use_all_of_its_limits(sandboxer: Sandboxer) {
    let pod = Pod::new("full", sandboxer).in_a_slice().memory_limits(168 << 20).run();
    // `dd` holds its buffer as long as nobody reads it.
    let ballast = "dd if=/dev/zero bs=100663296 count=1 | sleep 3600";
    let full = pod.container("full", BUSYBOX).shell(ballast).memory_limit(104 << 20).start();
    eventually("the ballast is there", || full.stats().memory.working_set_bytes.value > 96 * MIB);
    let greedy = pod.container("greedy", BUSYBOX).shell("tail /dev/zero").memory_limit(32 << 20).start();
    a_container_that_wants_too_much_ends_alone(&greedy, &full);
    let files = pod.container("files", BUSYBOX).shell("sleep 3600").memory_limit(32 << 20).start();
    the_nodes_memory_for_files_is_the_pods(&pod, &files);
    the_vmm_is_below_the_slice(&pod);
    assert!(full.running() && files.running());
    let events = std::fs::read_to_string(pod.cgroup().join("memory.events")).expect("the pod's events");
    assert!(events.lines().any(|line| line == "oom_kill 0"), "{events}");
}

/// The guest remembers them, so the file server has them open.
fn the_nodes_memory_for_files_is_the_pods(pod: &Pod, container: &Container<'_>) {
    let slab = || {
        let stat = std::fs::read_to_string(pod.cgroup().join("memory.stat")).expect("the pod's memory");
        let slab = stat.lines().find_map(|line| line.strip_prefix("slab "));
        slab.and_then(|slab| slab.parse::<u64>().ok()).expect("the kernel's memory for the pod")
    };
    let before = slab();
    container.shell("mkdir /files; cd /files; seq 4000 | xargs touch").success();
    let taken = slab().saturating_sub(before);
    assert!((4 * MIB..32 * MIB).contains(&taken), "{taken} bytes for 4000 files");
}

fn the_vmm_is_below_the_slice(pod: &Pod) {
    let slice = pod.cgroup().strip_prefix("/sys/fs/cgroup").expect("a cgroup").to_owned();
    let below = format!("0::/{}/", slice.display());
    assert!(Vmm::all().iter().any(|vmm| vmm.read("cgroup").starts_with(&below)), "no VMM is in {below}");
    let stats = pod.stats();
    assert!(stats.linux.memory.working_set_bytes.value > 96 * MIB, "{stats:?}");
    assert!(stats.linux.cpu.usage_core_nano_seconds.value > 0, "{stats:?}");
}

fn what_a_container_frees_goes_back_to_the_node(sandboxer: Sandboxer) {
    let others: Vec<u32> = Vmm::all().iter().map(|vmm| vmm.pid).collect();
    let pod = Pod::new("freed", sandboxer).memory_limits(192 << 20).run();
    let vmm = Vmm::all().into_iter().find(|vmm| !others.contains(&vmm.pid)).expect("the pod's VMM");
    let used = || vmm.status(vmm.pid, "RssAnon").trim_end_matches(" kB").parse::<u64>().expect("kilobytes") << 10;
    let idle = used();
    let script = "dd if=/dev/zero bs=134217728 count=1 | until [ -e /tmp/enough ]; do sleep 1; done; sleep 3600";
    let container = pod.container("uses", BUSYBOX).shell(script).start();
    eventually("the ballast is there", || used() > idle + 120 * MIB);
    container.shell("touch /tmp/enough");
    // Of what the container itself takes, little is free in pieces of 2 MiB.
    eventually("the ballast is gone", || used() < idle + 48 * MIB);
    assert!(container.running());
}
