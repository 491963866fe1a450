//! Networks that are not as they should be: a sentence, or a pod that works, and nothing left behind.

use e2e::cni::{Network, bridge};
use e2e::cri::{Pod, Sandboxer};
use e2e::leaks::{Traces, assert_nothing_left_since, new_process};
use e2e::netns::Netns;
use e2e::{BUSYBOX, Container, FOREVER, Running, eventually, kill_process};

crate::for_each_sandboxer!(
    long: a_result_that_is_no_result_ends_the_pod_in_a_sentence,
    a_namespace_that_vanished_is_named,
    two_interfaces_of_one_name_in_the_result_are_no_obstacle
);

fn start(netns: &Netns) -> Running {
    let container = Container::new(BUSYBOX, "overlayfs").argument("--with-ns").argument(&netns.flag());
    container.command(&FOREVER).start()
}

fn refused(network: &str) -> String {
    let container = Container::new(BUSYBOX, "overlayfs").argument("--with-ns").argument(network);
    let finished = container.command(&["/bin/true"]).run();
    assert_ne!(finished.code, 0, "{network} was accepted");
    finished.stderr()
}

/// A bridge's interface is made, then `then` is run. The error names all of `words`.
#[track_caller]
fn pod_is_refused(sandboxer: Sandboxer, then: &str, words: &[&str]) {
    let network = Network::new(&[("eth0", bridge())], then);
    let before = Traces::now();
    let refusal = Pod::new("unlucky", sandboxer).try_run().expect_err("it is refused").to_string();
    for word in words {
        assert!(refusal.contains(word), "{word:?} is not in: {refusal}");
    }
    assert_nothing_left_since(&before);
    drop(network);
}

/// containerd's own sentence: it reads the result.
fn a_result_that_is_no_result_ends_the_pod_in_a_sentence(sandboxer: Sandboxer) {
    pod_is_refused(
        sandboxer,
        "result='this is no JSON'",
        &["failed to setup network for sandbox", "invalid character"],
    );
}

fn a_namespace_that_vanished_is_named(sandboxer: Sandboxer) {
    let words = ["network namespace /var/run/netns/cni-", " cannot be opened: No such file"];
    pod_is_refused(sandboxer, "ip netns delete $namespace", &words);
}

/// The guest gets what is in the namespace, whatever the plugin says about it.
fn two_interfaces_of_one_name_in_the_result_are_no_obstacle(sandboxer: Sandboxer) {
    let twice = "result=$(echo \"$result\" | sed 's/\"name\": \"veth[^\"]*\"/\"name\": \"eth0\"/')
        [ \"$(echo \"$result\" | grep -c '\"name\": \"eth0\"')\" = 2 ] || exit 1";
    let network = Network::new(&[("eth0", bridge())], twice);
    let before = Traces::now();
    {
        let pod = Pod::new("twice", sandboxer).run();
        assert!(pod.ip().starts_with("10.77."), "{}", pod.ip());
        let container = pod.container("idle", BUSYBOX).command(&FOREVER).start();
        assert_eq!(container.shell("ls /sys/class/net").stdout(), "eth0\nlo\n");
        container.exec(&["/bin/ping", "-c", "1", "-W", "5", "10.77.0.1"]).success();
    }
    assert_nothing_left_since(&before);
    drop(network);
}

#[test]
#[ignore = "`make test-long`"]
fn networks_that_a_microvm_cannot_have_are_refused_in_a_sentence() {
    let before = Traces::now();
    let missing = refused("network:/run/netns/e2e-none");
    assert!(missing.contains("network namespace /run/netns/e2e-none cannot be opened: No such file"), "{missing}");
    let file = refused("network:/etc/hostname");
    assert!(file.contains("/etc/hostname is not a network namespace"), "{file}");
    let node = refused("network:/proc/1/ns/net");
    assert!(node.contains("a microVM cannot share the node's network"), "{node}");
    {
        let tunnel = Netns::empty();
        tunnel.run(&["ip", "tuntap", "add", "tun7", "mode", "tun"]);
        tunnel.run(&["ip", "link", "set", "tun7", "up"]);
        let text = refused(&tunnel.flag());
        assert!(text.contains("interface tun7 is not an Ethernet interface"), "{text}");
    }
    {
        // Two machines cannot have one interface; the first keeps it.
        let netns = Netns::empty();
        netns.link_to_the_node();
        let first = start(&netns);
        let text = refused(&netns.flag());
        assert!(text.contains("interface eth0 has an ingress queueing discipline already"), "{text}");
        first.exec(&["/bin/ping", "-c", "1", "-W", "5", "10.76.0.1"]).success();
    }
    assert_nothing_left_since(&before);
}

/// A namespace with loopback alone is what CNI leaves when it was told to make nothing.
#[test]
#[ignore = "`make test-long`"]
fn a_namespace_without_interfaces_is_a_pod_without_a_network() {
    let netns = Netns::empty();
    let container = Container::new(BUSYBOX, "overlayfs").argument("--with-ns").argument(&netns.flag());
    let links = container.shell("ls /sys/class/net; ping -c 1 127.0.0.1 >/dev/null && echo up").run().success();
    assert_eq!(links.stdout().split_whitespace().collect::<Vec<_>>(), ["lo", "up"]);
}

/// CRI removes a pod's namespace with the pod; another client of containerd may go on with it.
#[test]
#[ignore = "`make test-long`"]
fn a_namespace_serves_again_after_its_vmm_or_shim_was_killed() {
    let netns = Netns::empty();
    netns.link_to_the_node();
    let before = Traces::now();
    for victim in ["bulkhead-vmm", "containerd-shim"] {
        let container = start(&netns);
        container.exec(&["/bin/ping", "-c", "1", "-W", "5", "10.76.0.1"]).success();
        assert!(Traces::now().since(&before).iter().any(|trace| trace.contains("ingress")), "nothing to look for");
        kill_process(new_process(&before, victim));
        eventually("containerd notices", || container.status() != "RUNNING");
        drop(container);
        assert_nothing_left_since(&before);
    }
    start(&netns).exec(&["/bin/ping", "-c", "1", "-W", "5", "10.76.0.1"]).success();
}
