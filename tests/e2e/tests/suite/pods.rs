//! What the containers of a pod share, and how a pod ends.

use e2e::cri::messages::{ContainerState, DNSConfig, Int64Value, NamespaceMode};
use e2e::cri::{Container, Pod, Sandboxer};
use e2e::leaks::{Traces, assert_nothing_left_since};
use e2e::vmm::Vmm;
use e2e::{BUSYBOX, FOREVER, eventually, kill_process};

crate::for_each_sandboxer!(
    long: containers_share_memory_names_and_network,
    processes_are_a_containers_own_or_its_targets,
    containers_share_their_processes_when_asked,
    a_lost_machine_ends_its_pod,
    what_a_microvm_cannot_give_is_refused
);

fn containers_share_memory_names_and_network(sandboxer: Sandboxer) {
    let before = Traces::now();
    let dns = DNSConfig {
        servers: vec!["192.0.2.53".into()],
        searches: vec!["pods.test".into()],
        options: vec!["ndots:5".into()],
        ..Default::default()
    };
    let pod = Pod::new("shared", sandboxer).annotation("io.bulkhead.memory_mib", "200");
    let pod = pod.config(|config| config.dns_config = Some(dns).into()).run();
    let first = pod.container("first", BUSYBOX).command(&FOREVER).start();
    let second = pod.container("second", BUSYBOX).command(&FOREVER).start();

    // Shared memory, as large as everywhere.
    assert_eq!(
        first.shell("echo from first > /dev/shm/note; df -k /dev/shm | tail -1 | awk '{print $2}'").stdout(),
        "65536\n"
    );
    assert_eq!(second.shell("cat /dev/shm/note").stdout(), "from first\n");
    // IPC, UTS and network: one namespace each, not the other container's but the pod's.
    for kind in ["ipc", "uts", "net"] {
        let namespace = |container: &Container| container.shell(&format!("readlink /proc/self/ns/{kind}")).stdout();
        assert_eq!(namespace(&first), namespace(&second), "{kind}");
    }
    for container in [&first, &second] {
        assert_eq!(container.shell("hostname; cat /etc/hostname").stdout(), "shared\nshared\n");
        let resolv_conf = container.shell("cat /etc/resolv.conf").stdout();
        assert_eq!(resolv_conf, "search pods.test\nnameserver 192.0.2.53\noptions ndots:5\n");
        assert!(container.shell("cat /etc/hosts").stdout().contains("localhost"));
    }
    // The annotation has reached the machine.
    let limit = first.shell("cat /sys/fs/cgroup/memory.max").stdout();
    let mebibytes = limit.trim().parse::<u64>().expect("a number") >> 20;
    assert!((150..200).contains(&mebibytes), "{mebibytes} MiB");
    // containerd's default from 2.0 on.
    if Sandboxer::Shim.available() {
        low_ports_are_for_every_user(&pod);
    }
    drop(pod);
    assert_nothing_left_since(&before);
}

fn low_ports_are_for_every_user(pod: &Pod) {
    let server = pod.container("low", BUSYBOX).shell("exec httpd -f -p 80 -h /").security(|security| {
        security.run_as_user = Some(Int64Value { value: 1000, ..Default::default() }).into();
        security.capabilities.mut_or_insert_default().drop_capabilities = vec!["ALL".into()];
    });
    let server = server.start();
    eventually("port 80 answers", || server.shell("wget -q -O - http://127.0.0.1/etc/hostname").stdout() == "shared\n");
    assert_eq!(server.shell("id -u; grep CapEff /proc/self/status").stdout(), "1000\nCapEff:\t0000000000000000\n");
}

fn processes_are_a_containers_own_or_its_targets(sandboxer: Sandboxer) {
    let before = Traces::now();
    let pod = Pod::new("apart", sandboxer).run();
    let first = pod.container("first", BUSYBOX).command(&["/bin/sleep", "7001"]).start();
    let second = pod.container("second", BUSYBOX).command(&["/bin/sleep", "7002"]).start();
    assert!(sees(&first, "sleep 7001") && !sees(&first, "sleep 7002"));
    assert!(sees(&second, "sleep 7002") && !sees(&second, "sleep 7001"));

    // An ephemeral container sees its target's processes, and those alone.
    let debug = pod.container("debug", BUSYBOX).command(&FOREVER).security(|security| {
        let options = security.namespace_options.mut_or_insert_default();
        (options.pid, options.target_id) = (NamespaceMode::TARGET.into(), second.id().into());
    });
    let debug = debug.start();
    assert!(sees(&debug, "sleep 7002") && sees(&debug, "sleep 3600") && !sees(&debug, "sleep 7001"));
    assert!(sees(&second, "sleep 3600"));

    // It goes with its target, whose process holds the namespace.
    second.stop(std::time::Duration::ZERO).expect("it stops");
    assert_eq!((second.wait(), debug.wait()), (137, 137));
    assert!(first.running() && pod.ready());
    drop(pod);
    assert_nothing_left_since(&before);
}

fn sees(container: &Container, command: &str) -> bool {
    container.shell("ps -o args").stdout().lines().any(|line| line.trim().trim_start_matches("/bin/") == command)
}

fn containers_share_their_processes_when_asked(sandboxer: Sandboxer) {
    let pod = Pod::new("together", sandboxer).shared_processes().run();
    let first = pod.container("first", BUSYBOX).command(&["/bin/sleep", "7001"]).start();
    // It leaves an orphan behind that ends later.
    let second = pod.container("second", BUSYBOX).shell("(sleep 0.2 &); exec sleep 7002").start();
    eventually("each sees the other's process", || sees(&first, "sleep 7002") && sees(&second, "sleep 7001"));
    assert!(
        !first.shell("cat /proc/1/cmdline").stdout().contains("sleep"),
        "a container is the namespace's first process"
    );
    eventually("orphans are reaped", || !second.shell("cat /proc/[0-9]*/stat").stdout().contains(") Z "));

    // The namespace outlives each of them.
    first.stop(std::time::Duration::ZERO).expect("it stops");
    assert_eq!(first.wait(), 137);
    first.remove().expect("it is removed");
    assert!(second.running() && !sees(&second, "sleep 7001"));
    let third = pod.container("third", BUSYBOX).command(&["/bin/sleep", "7003"]).start();
    eventually("a third joins", || sees(&second, "sleep 7003") && sees(&third, "sleep 7002"));
    let outside = third.shell("kill -9 1; sleep 0.5; echo alive").stdout();
    assert_eq!(outside, "alive\n");
}

fn a_lost_machine_ends_its_pod(sandboxer: Sandboxer) {
    let before = Traces::now();
    let others: Vec<u32> = Vmm::all().iter().map(|vmm| vmm.pid).collect();
    let pod = Pod::new("lost", sandboxer).run();
    let containers = ["one", "two"].map(|name| pod.container(name, BUSYBOX).command(&FOREVER).start());
    let vmm = Vmm::all().into_iter().find(|vmm| !others.contains(&vmm.pid)).expect("the pod's machine");
    kill_process(vmm.pid);
    for container in &containers {
        assert_eq!(container.wait(), 137);
    }
    eventually("the pod is not ready", || !pod.ready());
    let late = pod.container("late", BUSYBOX).command(&FOREVER).try_create().and_then(|late| late.start());
    late.expect_err("there is no machine for it");
    assert!(containers.iter().all(|container| container.status().state == ContainerState::CONTAINER_EXITED.into()));
    drop(pod);
    assert_nothing_left_since(&before);
}

/// Before anything boots, in one sentence.
fn what_a_microvm_cannot_give_is_refused(sandboxer: Sandboxer) {
    let before = Traces::now();
    let pod = |name| Pod::new(name, sandboxer);
    let node = || NamespaceMode::NODE.into();
    // containerd 2.1 itself crashes on this one when the shim makes the sandbox.
    if sandboxer == Sandboxer::PodSandbox {
        let refusal = pod("host-network").namespaces(|options| options.network = node()).try_run();
        let refusal = refusal.expect_err("it is refused").to_string();
        assert!(refusal.contains("a microVM cannot share the node's network"), "{refusal}");
    }
    for (pod, what) in [
        (pod("host-pid").namespaces(|options| options.pid = node()), "process ids"),
        (pod("host-ipc").namespaces(|options| options.ipc = node()), "IPC"),
    ] {
        let refusal = pod.try_run().expect_err("it is refused").to_string();
        assert!(refusal.contains(&format!("a microVM cannot share the node's {what}")), "{refusal}");
    }
    for (key, value, words) in [
        ("io.bulkhead.vcpus", "many", "many"),
        ("io.bulkhead.kernel", "/tmp/vmlinux", "annotation io.bulkhead.kernel is not known"),
    ] {
        let refusal = pod("annotated").annotation(key, value).try_run().expect_err("it is refused").to_string();
        assert!(refusal.contains(key) && refusal.contains(words), "{refusal}");
    }
    assert_nothing_left_since(&before);
}
