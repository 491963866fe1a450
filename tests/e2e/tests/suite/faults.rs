//! Anything may die at any moment: exit codes are right and nothing leaks.

use e2e::leaks::{Traces, assert_nothing_left_since};
use e2e::{BUSYBOX, Container, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn kill_process(pid: u32) {
    let pid = Pid::from_raw(i32::try_from(pid).expect("a pid"));
    kill(pid, Signal::SIGKILL).expect("the process is there");
}

#[test]
fn a_killed_vmm_ends_its_container_with_137() {
    let before = Traces::now();
    let container = Container::new(BUSYBOX, "overlayfs").command(&["/bin/sleep", "3600"]).start();
    kill_process(container.pid());
    assert_eq!(container.delete_stopped(), 137);
    assert_nothing_left_since(&before);
}

#[test]
fn a_killed_shim_leaves_nothing() {
    let before = Traces::now();
    let container = Container::new(BUSYBOX, "overlayfs").command(&["/bin/sleep", "3600"]).start();
    let shims: Vec<u32> = Traces::now()
        .since(&before)
        .iter()
        .filter_map(|trace| trace.strip_prefix("processes: ")?.split_once(" containerd-shim"))
        .filter_map(|(pid, _)| pid.parse().ok())
        .collect();
    assert_eq!(shims.len(), 1, "one shim per pod");
    kill_process(shims[0]);
    eventually("containerd notices", || container.status() != "RUNNING");
    drop(container);
    assert_nothing_left_since(&before);
}

#[test]
fn a_crashed_guest_ends_its_container_with_137() {
    let before = Traces::now();
    let container = Container::new(BUSYBOX, "overlayfs").argument("--cap-add=CAP_SYS_ADMIN");
    let container = container.command(&["/bin/sleep", "3600"]).start();
    // The tenant may do that to its own kernel.
    container.shell("mkdir /tmp/proc && mount -t proc proc /tmp/proc && echo c > /tmp/proc/sysrq-trigger");
    assert_eq!(container.delete_stopped(), 137);
    assert_nothing_left_since(&before);
}
