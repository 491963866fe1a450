//! What a container uses, what it may use, and what happens when it wants more.

use e2e::cri::messages::PodSandboxConfig;
use e2e::cri::{Container, Pod, Sandboxer};
use e2e::{BUSYBOX, eventually};

crate::for_each_sandboxer!(long: containers_are_counted_limited_and_killed_one_by_one);

const MIB: u64 = 1 << 20;

/// One pod, many facts: a boot takes seconds under emulation.
fn containers_are_counted_limited_and_killed_one_by_one(sandboxer: Sandboxer) {
    let pod = Pod::new("counted", sandboxer);
    // As kubelet does when every container has a limit.
    let limit = |config: &mut PodSandboxConfig| {
        config.linux.mut_or_insert_default().resources.mut_or_insert_default().memory_limit_in_bytes = 256 << 20;
    };
    let pod = pod.config(limit).run();
    let script = "ballast=$(head -c 25165824 /dev/zero | tr '\\0' x); echo written > /file; sleep 3600 & wait";
    let steady = pod.container("steady", BUSYBOX).shell(script).memory_limit(96 << 20).start();
    let greedy = pod.container("greedy", BUSYBOX).shell("tail /dev/zero").memory_limit(32 << 20).start();
    the_machine_has_room_for_the_pods_limits(&steady);
    a_container_that_wants_too_much_ends_alone(&greedy, &steady);
    a_child_that_wants_too_much_does_not_end_its_container(&pod);
    a_container_is_counted(&steady);
    the_pod_is_counted(&pod);
    new_limits_hold_at_once(&steady);
}

fn the_machine_has_room_for_the_pods_limits(steady: &Container<'_>) {
    let total = steady.shell("awk '/MemTotal/ { print $2 }' /proc/meminfo").stdout();
    let mebibytes = total.trim().parse::<u64>().expect("a number") / 1024;
    assert!((256..=320).contains(&mebibytes), "{mebibytes} MiB for limits of 256 MiB");
}

fn a_container_that_wants_too_much_ends_alone(greedy: &Container<'_>, steady: &Container<'_>) {
    assert_eq!(greedy.wait(), 137);
    eventually("containerd has the reason", || greedy.status().reason == "OOMKilled");
    assert!(steady.running() && steady.shell("true").code == 0);
}

fn a_child_that_wants_too_much_does_not_end_its_container(pod: &Pod) {
    let parent = pod.container("parent", BUSYBOX).memory_limit(32 << 20);
    let parent = parent.shell("tail /dev/zero; echo $?; exit 5").start();
    assert_eq!((parent.wait(), parent.log().stdout().as_str()), (5, "137\n"));
}

fn a_container_is_counted(steady: &Container<'_>) {
    eventually("the ballast is counted", || steady.stats().memory.working_set_bytes.value > 24 * MIB);
    let stats = steady.stats();
    assert!(stats.memory.working_set_bytes.value < 96 * MIB, "{stats}");
    assert!(stats.memory.usage_bytes.value >= stats.memory.working_set_bytes.value, "{stats}");
    assert!(stats.cpu.usage_core_nano_seconds.value > 0, "{stats}");
    // containerd looks at its snapshots every few seconds.
    eventually("the written file is counted", || steady.stats().writable_layer.inodes_used.value > 0);
}

/// From the node's own cgroups, in which the VMM is.
fn the_pod_is_counted(pod: &Pod) {
    let stats = pod.stats();
    assert!(stats.linux.cpu.usage_core_nano_seconds.value > 0, "{stats}");
    assert!(stats.linux.memory.working_set_bytes.value > 24 * MIB, "{stats}");
    assert!(stats.linux.containers.iter().any(|container| container.attributes.metadata.name == "steady"), "{stats}");
}

fn new_limits_hold_at_once(steady: &Container<'_>) {
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
