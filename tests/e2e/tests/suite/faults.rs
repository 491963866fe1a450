//! Anything may die at any moment: exit codes are right and nothing leaks.

use e2e::leaks::{Traces, assert_nothing_left_since, new_process};
use e2e::{BUSYBOX, Container, FOREVER, eventually, kill_process};

#[test]
fn a_killed_vmm_ends_its_container_with_137() {
    let before = Traces::now();
    let container = Container::new(BUSYBOX, "overlayfs").command(&FOREVER).start();
    kill_process(container.pid());
    assert_eq!(container.delete_stopped(), 137);
    assert_nothing_left_since(&before);
}

#[test]
fn a_killed_shim_leaves_nothing() {
    let before = Traces::now();
    let container = Container::new(BUSYBOX, "overlayfs").command(&FOREVER).start();
    kill_process(new_process(&before, "containerd-shim"));
    eventually("containerd notices", || container.status() != "RUNNING");
    drop(container);
    assert_nothing_left_since(&before);
}

#[test]
fn a_crashed_guest_ends_its_container_with_137() {
    let before = Traces::now();
    let container = Container::new(BUSYBOX, "overlayfs").argument("--cap-add=CAP_SYS_ADMIN");
    let container = container.command(&FOREVER).start();
    // The tenant may do that to its own kernel.
    container.shell("mkdir /tmp/proc && mount -t proc proc /tmp/proc && echo c > /tmp/proc/sysrq-trigger");
    assert_eq!(container.delete_stopped(), 137);
    assert_nothing_left_since(&before);
}
