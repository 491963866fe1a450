//! What the containers of a pod share, and how a pod ends.

use e2e::cri::messages::{ContainerState, DNSConfig, NamespaceMode};
use e2e::cri::{Container, Pod, Sandboxer};
use e2e::leaks::{Traces, assert_nothing_left_since};
use e2e::vmm::Vmm;
use e2e::{BUSYBOX, eventually};

crate::for_each_sandboxer!(containers_share_memory_names_and_network, a_lost_machine_ends_its_pod,);

const FOREVER: [&str; 2] = ["/bin/sleep", "3600"];

fn containers_share_memory_names_and_network(sandboxer: Sandboxer) {
    let before = Traces::now();
    let dns = DNSConfig {
        servers: vec!["192.0.2.53".into()],
        searches: vec!["pods.test".into()],
        options: vec!["ndots:5".into()],
        ..Default::default()
    };
    let pod = Pod::new("shared", sandboxer).config(|config| config.dns_config = Some(dns).into()).run();
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
    drop(pod);
    assert_nothing_left_since(&before);
}

fn a_lost_machine_ends_its_pod(sandboxer: Sandboxer) {
    let before = Traces::now();
    let others: Vec<u32> = Vmm::all().iter().map(|vmm| vmm.pid).collect();
    let pod = Pod::new("lost", sandboxer).run();
    let containers = ["one", "two"].map(|name| pod.container(name, BUSYBOX).command(&FOREVER).start());
    let vmm = Vmm::all().into_iter().find(|vmm| !others.contains(&vmm.pid)).expect("the pod's machine");
    let killed = std::process::Command::new("kill").args(["-9", &vmm.pid.to_string()]).status();
    assert!(killed.expect("kill runs").success());
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
#[test]
fn namespaces_of_the_node_are_refused() {
    let before = Traces::now();
    let pod = |name| Pod::new(name, Sandboxer::PodSandbox);
    let node = || NamespaceMode::NODE.into();
    for (pod, what) in [
        (pod("host-network").namespaces(|options| options.network = node()), "network"),
        (pod("host-pid").namespaces(|options| options.pid = node()), "process ids"),
        (pod("host-ipc").namespaces(|options| options.ipc = node()), "IPC"),
    ] {
        let refusal = pod.try_run().expect_err("it is refused").to_string();
        assert!(refusal.contains(&format!("a microVM cannot share the node's {what}")), "{refusal}");
    }
    assert_nothing_left_since(&before);
}
