//! The network that CNI made for a pod is the guest's, and works.

use e2e::cni::{Network, bridge, macvlan, ptp};
use e2e::cri::{Container, Pod, Sandboxer};
use e2e::leaks::{Traces, assert_nothing_left_since};
use e2e::netns::Netns;
use e2e::{BUSYBOX, FOREVER, PATIENCE, eventually, noise, probe, run, sha256, try_run};
use std::io::{Read, Write};
use std::net::{TcpListener, UdpSocket};

crate::for_each_sandboxer!(
    long: the_guest_has_the_interfaces_that_cni_made,
    pods_reach_each_other_and_services,
    pods_of_macvlan_reach_each_other
);

/// `eth0`'s MTU.
const MTU: u64 = 1400;

/// Much longer than a segment, and still quick under emulation.
const TRANSFER: usize = 1 << 20;

/// One machine, many facts: a boot takes seconds under emulation.
fn the_guest_has_the_interfaces_that_cni_made(sandboxer: Sandboxer) {
    let neighbour = "ip -n $namespace neighbour replace 10.77.0.200 lladdr 02:00:00:00:00:99 dev eth0";
    let network = Network::new(&[("eth0", bridge()), ("net1", ptp())], neighbour);
    let before = Traces::now();
    {
        let pod = Pod::new("interfaces", sandboxer).run();
        let netns = Netns::with_address(&pod.ip());
        let container = pod.container("idle", BUSYBOX).command(&FOREVER).start();
        names_addresses_and_limits_are_the_same(&container, &netns);
        routes_are_the_same(&container, &netns);
        let neighbours = container.shell("cat /proc/net/arp").success().stdout();
        let fixed = neighbours.lines().find(|line| line.starts_with("10.77.0.200 ")).expect("the static neighbour");
        assert!(fixed.contains("02:00:00:00:00:99") && fixed.contains("0x6"), "{fixed}");
        echo_requests_are_answered(&container, &netns);
        datagrams_travel_both_ways(&container);
        for gateway in ["10.77.0.1", "fd77::1"] {
            large_frames_travel_both_ways(&container, &netns, gateway);
        }
    }
    assert_nothing_left_since(&before);
    drop(network);
}

fn names_addresses_and_limits_are_the_same(container: &Container, netns: &Netns) {
    let links = container.shell("ls /sys/class/net").success().stdout();
    assert_eq!(links.split_whitespace().collect::<Vec<_>>(), ["eth0", "lo", "net1"]);
    for (interface, mtu) in [("eth0", MTU), ("net1", 1500)] {
        let read = |file: &str| format!("cat /sys/class/net/{interface}/{file}");
        let here = container.shell(&read("address")).success().stdout();
        assert_eq!(here, netns.run(&["cat", &format!("/sys/class/net/{interface}/address")]), "{interface}");
        assert_eq!(container.shell(&read("mtu")).success().stdout().trim(), mtu.to_string(), "{interface}");
    }
    let list = "ip -o address | awk '$3 ~ /^inet/ {print $2, $4}' | sort";
    let addresses = container.shell(list).success().stdout();
    assert_eq!(addresses, netns.run(&["sh", "-c", list]));
}

/// The kernel's own files have the same form on both sides; interfaces are named in them.
fn routes_are_the_same(container: &Container, netns: &Netns) {
    let v4 = "tail -n +2 /proc/net/route | awk '{print $1, $2, $3, $7, $8}' | sort";
    assert_eq!(container.shell(v4).success().stdout(), netns.run(&["sh", "-c", v4]));
    let v6 = "awk '$10 ~ /eth0|net1/ && $1 !~ /^ff/ {print $10, $1, $2, $5}' /proc/net/ipv6_route | sort";
    assert_eq!(container.shell(v6).success().stdout(), netns.run(&["sh", "-c", v6]));
}

fn echo_requests_are_answered(container: &Container, netns: &Netns) {
    for (interface, family) in [("eth0", "-4"), ("eth0", "-6"), ("net1", "-4")] {
        let address = netns.address(interface, family);
        eventually("the pod answers", || try_run(&["busybox", "ping", "-c", "1", "-W", "5", &address]).code == 0);
    }
    for gateway in ["10.77.0.1", "fd77::1", "10.78.0.1"] {
        container.exec(&["/bin/ping", "-c", "1", "-W", "5", gateway]).success();
    }
    // As long as the MTU, and not to be cut.
    container.exec(&["/bin/ping", "-c", "1", "-W", "5", "-s", "1372", "10.77.0.1"]).success();
}

/// A name server is what everybody has a client for.
fn datagrams_travel_both_ways(container: &Container) {
    let socket = UdpSocket::bind("10.77.0.1:53").expect("the bridge has the address");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let server = std::thread::spawn(move || {
        let mut query = [0; 512];
        let (length, client) = socket.recv_from(&mut query).expect("the pod asks");
        socket.send_to(&name_answer(&query[..length]), client).expect("the pod is there");
    });
    let answer = container.exec(&["/bin/nslookup", "-type=a", "service.example.", "10.77.0.1"]).stdout();
    assert!(answer.contains("10.1.2.3"), "{answer}");
    server.join().expect("the server does not panic");
}

/// The query with one address in answer.
fn name_answer(query: &[u8]) -> Vec<u8> {
    let mut answer = query.to_vec();
    // It is an answer, and recursion is available; there is one record.
    (answer[2], answer[3], answer[7]) = (0x81, 0x80, 1);
    // The name is the one of the query; type A, class IN, a minute, four bytes.
    answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 10, 1, 2, 3]);
    answer
}

/// The pod fetches bytes and brings them back. Segments and checksums are left to others on the way: the tap sees frames
/// that no wire would take. Without checksum offload there is no segmentation offload either.
fn large_frames_travel_both_ways(container: &Container, netns: &Netns, gateway: &str) {
    let bytes = noise(TRANSFER);
    let listener = TcpListener::bind((gateway, 0)).expect("the bridge has the address");
    let port = listener.local_addr().expect("an address").port();
    let accept = || listener.accept().expect("the pod connects").0;
    std::thread::scope(|scope| {
        let before = frames(netns, "tx");
        scope.spawn(|| accept().write_all(&bytes).expect("the pod reads"));
        let sum = container.shell(&format!("nc {gateway} {port} >/bytes; sha256sum /bytes")).success().stdout();
        assert_eq!(sum.split_whitespace().next(), Some(sha256(&bytes).as_str()));
        assert_long(before, frames(netns, "tx"), &format!("to the pod by {gateway}"));

        let before = frames(netns, "rx");
        let reader = scope.spawn(|| {
            let mut back = Vec::new();
            accept().read_to_end(&mut back).map(|_| back).expect("the pod sends")
        });
        container.shell(&format!("nc {gateway} {port} </bytes")).success();
        assert_eq!(sha256(&reader.join().expect("the reader does not panic")), sha256(&bytes));
        assert_long(before, frames(netns, "rx"), &format!("from the pod by {gateway}"));
    });
}

/// Packets and bytes that `eth0`'s tap has sent to the VMM, or received.
fn frames(netns: &Netns, direction: &str) -> [u64; 2] {
    ["packets", "bytes"].map(|unit| {
        let counter = format!("/sys/class/net/bulkhead0/statistics/{direction}_{unit}");
        netns.run(&["cat", &counter]).trim().parse().expect("a number")
    })
}

#[track_caller]
fn assert_long(before: [u64; 2], after: [u64; 2], way: &str) {
    let [packets, bytes] = [after[0] - before[0], after[1] - before[1]];
    assert!(bytes >= TRANSFER as u64, "{bytes} bytes {way}");
    // A sender that is paced because the node is busy puts two segments into a frame (`net.ipv4.tcp_min_tso_segs`), and the
    // first and last frames of a burst may have one. Without offload, no frame is longer than the MTU and its header.
    assert!(2 * bytes > 3 * MTU * packets, "{packets} frames for {bytes} bytes {way}");
}

fn pods_reach_each_other_and_services(sandboxer: Sandboxer) {
    let one = Pod::new("server", sandboxer).run();
    let server = one.container("server", BUSYBOX).command(&FOREVER).start();
    server.shell("mkdir /www; echo served >/www/index.html; httpd -h /www -p 8080").success();
    let other = Pod::new("client", sandboxer).run();
    let client = other.container("client", BUSYBOX).command(&FOREVER).start();
    let netns = Netns::with_address(&one.ip());
    for (family, open, close) in [("-4", "", ""), ("-6", "[", "]")] {
        let url = format!("http://{open}{}{close}:8080/", netns.address("eth0", family));
        assert_eq!(client.exec(&["/bin/wget", "-q", "-O", "-", &url]).success().stdout(), "served\n", "{url}");
    }
    assert_eq!(probe::http(&one.ip(), 8080, "/"), Some((200, "served\n".to_owned())));
    // As kube-proxy makes a service: an address of nobody's, translated on the node.
    let rule = format!("tcp dport 80 ip daddr 10.99.0.1 dnat to {}:8080", one.ip());
    run(&["nft", "add table ip e2e-service"]);
    run(&["nft", "add chain ip e2e-service prerouting { type nat hook prerouting priority dstnat; }"]);
    run(&["nft", &format!("add rule ip e2e-service prerouting {rule}")]);
    // The answer must come back by the way of the node, whose translation it is.
    run(&["nft", "add chain ip e2e-service postrouting { type nat hook postrouting priority srcnat; }"]);
    run(&["nft", "add rule ip e2e-service postrouting ip daddr 10.88.0.0/16 ct status dnat masquerade"]);
    let fetched = client.exec(&["/bin/wget", "-q", "-O", "-", "http://10.99.0.1/"]);
    run(&["nft", "delete table ip e2e-service"]);
    assert_eq!(fetched.success().stdout(), "served\n");
}

/// What macvlan puts its interfaces on. Nothing else is connected to it.
struct Parent;

impl Drop for Parent {
    fn drop(&mut self) {
        try_run(&["ip", "link", "delete", "e2e-parent"]);
    }
}

fn pods_of_macvlan_reach_each_other(sandboxer: Sandboxer) {
    if try_run(&["modprobe", "macvlan"]).code != 0 {
        println!("test skipped: this node's kernel has no macvlan");
        return;
    }
    run(&["ip", "link", "add", "e2e-parent", "type", "dummy"]);
    let parent = Parent;
    run(&["ip", "link", "set", "e2e-parent", "up"]);
    let before = Traces::now();
    {
        let _network = Network::new(&[("eth0", macvlan("e2e-parent"))], "");
        let one = Pod::new("server", sandboxer).run();
        let server = one.container("server", BUSYBOX).command(&FOREVER).start();
        server.shell("mkdir /www; echo served >/www/index.html; httpd -h /www -p 8080").success();
        let other = Pod::new("client", sandboxer).run();
        let client = other.container("client", BUSYBOX).command(&FOREVER).start();
        let url = format!("http://{}:8080/", one.ip());
        assert_eq!(client.exec(&["/bin/wget", "-q", "-O", "-", &url]).success().stdout(), "served\n");
        for (from, to) in [(&client, one.ip()), (&server, other.ip())] {
            from.exec(&["/bin/ping", "-c", "1", "-W", "5", &to]).success();
        }
    }
    assert_nothing_left_since(&before);
    drop(parent);
}
