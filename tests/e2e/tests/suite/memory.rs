//! A guest starts with little memory and gets more when its containers need it, up to what its pod may have.

use e2e::log::ContainerdLog;
use e2e::node_config::{NodeConfig, templates_are_off};
use e2e::vmm::Vmm;
use e2e::{BUSYBOX, Container, FOREVER, Running, eventually};

const SMALL: u64 = 128;
const POD: u64 = 600;

/// 400 MiB at once, held until `sleep` has ended.
const BURST: &str = "dd if=/dev/zero bs=419430400 count=1 2>/dev/null | sleep 2";

fn pod() -> Container {
    let size = format!("io.bulkhead.memory_mib={POD}");
    Container::new(BUSYBOX, "overlayfs").argument("--annotation").argument(&size)
}

/// With its cgroup at the usual place, where ctr puts nothing by itself.
fn pod_with_cgroup() -> Container {
    pod().argument("--mount").argument("type=cgroup,src=cgroup,dst=/sys/fs/cgroup,options=ro")
}

/// A file of the container's cgroup. ctr makes no namespace for it, so that the container sees all cgroups of the guest.
fn cgroup_file(container: &Running, name: &str) -> String {
    let read = container.shell(&format!("cat /sys/fs/cgroup$(cut -d : -f 3 /proc/1/cgroup)/{name}"));
    read.success().stdout()
}

/// Of the guest, in MiB.
fn total(container: &Running) -> u64 {
    let kib = container.shell("awk '/MemTotal/ { print $2 }' /proc/meminfo").stdout();
    kib.trim().parse::<u64>().expect("a number") / 1024
}

/// What the VMM has of the node's memory, in MiB.
fn resident(container: &Running) -> u64 {
    let vmm = Vmm { pid: container.pid() };
    let kib = vmm.status(vmm.pid, "VmRSS").trim_end_matches(" kB").parse::<u64>();
    kib.expect("a number") / 1024
}

fn grows(container: &Running) {
    assert!(total(container) < SMALL, "an idle pod has {} MiB", total(container));
    container.shell("true").success();
    assert!(total(container) < SMALL, "a pod that does little has {} MiB", total(container));
    container.shell(BURST).success();
    let has = total(container);
    assert!((400..POD).contains(&has), "{has} MiB after a burst of 400");
}

#[test]
fn a_burst_is_given_memory_instead_of_being_killed() {
    let log = ContainerdLog::from_now_on();
    let container = pod().command(&FOREVER).start();
    grows(&container);
    // Memory that is free goes back, as of any guest.
    eventually("the node has its memory back", || resident(&container) < 250);
    container.shell(BURST).success();
    for complaint in ["no more memory", "not all of the new memory"] {
        assert_eq!(log.lines_with(complaint), Vec::<String>::new());
    }
}

#[test]
fn a_machine_that_has_booted_grows_too() {
    let _config = (!templates_are_off()).then(|| NodeConfig::with("templates = false\n"));
    grows(&pod().command(&FOREVER).start());
}

#[test]
fn whoever_wants_more_than_the_pod_may_have_is_killed() {
    let container = pod().command(&FOREVER).start();
    assert_eq!(container.shell("tail /dev/zero").code, 137);
    let has = total(&container);
    assert!((POD - SMALL..POD).contains(&has), "{has} MiB after all was wanted");
    container.shell("true").success();
}

#[test]
fn a_container_ends_at_its_own_limit_however_much_the_pod_has() {
    let container = pod_with_cgroup().argument("--memory-limit").argument("209715200").command(&FOREVER).start();
    assert_eq!(container.shell("tail /dev/zero").code, 137);
    let has = total(&container);
    assert!(has < 400, "{has} MiB for a limit of 200");
    let events = cgroup_file(&container, "memory.events");
    assert!(events.lines().any(|line| line == "oom_kill 1"), "{events}");
}

#[test]
fn programs_see_what_the_pod_may_have() {
    let tmpfs = "type=tmpfs,src=tmpfs,dst=/scratch,options=rw";
    let container = pod_with_cgroup().argument("--mount").argument(tmpfs).command(&FOREVER).start();
    let limit = cgroup_file(&container, "memory.max");
    let mib = limit.trim().parse::<u64>().expect("a limit") >> 20;
    assert!((POD - SMALL..POD).contains(&mib), "{mib} MiB");
    let size = container.shell("df -m /scratch | awk 'END { print $2 }'").stdout();
    let half = size.trim().parse::<u64>().expect("a size");
    assert!(((POD - SMALL) / 2..POD / 2).contains(&half), "{half} MiB");
}
