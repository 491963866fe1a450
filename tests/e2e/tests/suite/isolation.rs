//! The VMM of a running container, seen from the node.

use e2e::vmm::Vmm;
use e2e::{BUSYBOX, Container, FOREVER, Running};
use std::collections::BTreeMap;
use std::fs;

struct Subject {
    vmm: Vmm,
    _container: Running,
}

impl Subject {
    fn new(snapshotter: &str) -> Self {
        let container = Container::new(BUSYBOX, snapshotter).command(&FOREVER).start();
        let vmm = Vmm { pid: container.pid() };
        assert!(Vmm::all().iter().any(|other| other.pid == vmm.pid), "the task's pid is not a VMM's");
        Self { vmm, _container: container }
    }

    /// Asserts a field of every thread's status.
    fn every_thread(&self, field: &str, wanted: &str) {
        let threads = self.vmm.threads();
        assert!(threads.len() >= 3, "a VMM has a main thread, a vCPU and devices: {threads:?}");
        for thread in threads {
            let name = self.vmm.read(&format!("task/{thread}/comm"));
            assert_eq!(self.vmm.status(thread, field), wanted, "{field} of thread {}", name.trim());
        }
    }
}

/// One machine, many facts: a boot takes seconds under emulation.
#[test]
fn the_vmm_of_a_shared_root_filesystem_is_jailed() {
    let subject = Subject::new("overlayfs");
    the_vmm_has_no_capability_at_all(&subject);
    the_vmm_cannot_gain_privileges_and_every_thread_is_filtered(&subject);
    the_vmm_has_an_empty_read_only_root(&subject);
    the_vmm_has_no_network_interface(&subject);
    the_vmm_has_only_the_descriptors_it_needs(&subject, "overlayfs");
    each_vmm_has_a_user_and_group_of_its_own(&subject, &Subject::new("overlayfs"));
}

#[test]
fn the_vmm_of_a_disk_has_only_the_descriptors_it_needs() {
    the_vmm_has_only_the_descriptors_it_needs(&Subject::new("blockfile"), "blockfile");
}

fn the_vmm_has_no_capability_at_all(subject: &Subject) {
    for field in ["CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb"] {
        subject.every_thread(field, "0000000000000000");
    }
}

fn the_vmm_cannot_gain_privileges_and_every_thread_is_filtered(subject: &Subject) {
    subject.every_thread("NoNewPrivs", "1");
    subject.every_thread("Seccomp", "2");
}

fn each_vmm_has_a_user_and_group_of_its_own(one: &Subject, other: &Subject) {
    let owner = |subject: &Subject, field| {
        let ids = subject.vmm.status(subject.vmm.pid, field);
        let ids: Vec<u32> = ids.split(' ').map(|id| id.parse().expect("a number")).collect();
        assert!(ids[0] >= 2_000_000_000 && ids.iter().all(|id| *id == ids[0]), "{field} {ids:?}");
        ids[0]
    };
    assert_ne!(owner(one, "Uid"), owner(other, "Uid"));
    assert_ne!(owner(one, "Gid"), owner(other, "Gid"));
    one.every_thread("Groups", "");
}

fn the_vmm_has_an_empty_read_only_root(subject: &Subject) {
    assert_eq!(fs::read_dir(subject.vmm.root()).expect("the root can be listed").count(), 0);
    let error = fs::write(subject.vmm.root().join("probe"), "x").expect_err("the root takes no file");
    assert_eq!(error.raw_os_error(), Some(libc::EROFS));
    let mounts = subject.vmm.read("mountinfo");
    assert_eq!(mounts.lines().count(), 1, "{mounts}");
}

fn the_vmm_has_no_network_interface(subject: &Subject) {
    let table = subject.vmm.read("net/dev");
    let interfaces: Vec<&str> =
        table.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim()).collect();
    // Every network namespace has a loopback; this one is down, so it has no address either.
    assert_eq!(interfaces, ["lo"]);
    assert_eq!(subject.vmm.read("net/fib_trie").trim(), "");
    let node = fs::read_link("/proc/self/ns/net").expect("the node's network namespace");
    assert_ne!(fs::read_link(format!("/proc/{}/ns/net", subject.vmm.pid)).expect("the VMM's network namespace"), node);
}

/// Every descriptor has a reason to be there.
fn the_vmm_has_only_the_descriptors_it_needs(subject: &Subject, snapshotter: &str) {
    let mut unexplained = BTreeMap::new();
    for (number, target) in subject.vmm.descriptors() {
        let explained = match number {
            0 => target == "socket",
            1 => target == "/dev/null",
            2 => target == "pipe",
            _ => {
                let kinds = ["socket", "pipe", "anon_inode:eventfd", "anon_inode:eventpoll", "/dev/kvm"];
                let machine = ["anon_inode:kvm-vm", "anon_inode:kvm-vcpu"];
                let images = ["/vmlinux", "/guest.erofs"];
                kinds.contains(&target.as_str())
                    || machine.iter().any(|prefix| target.starts_with(prefix))
                    || images.iter().any(|suffix| target.ends_with(suffix))
                    || (snapshotter == "blockfile" && target.contains("blockfile"))
            }
        };
        if !explained {
            unexplained.insert(number, target);
        }
    }
    assert!(unexplained.is_empty(), "{unexplained:?}");
}
