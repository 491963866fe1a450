//! The network that CNI made for a pod is the guest's, and works.

use e2e::leaks::{Traces, assert_nothing_left_since};
use e2e::netns::{Netns, bridge, ptp, run, try_run};
use e2e::{BUSYBOX, Container, DEBIAN, PATIENCE, Running, eventually, noise, sha256};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};

fn start(image: &str, netns: &Netns) -> Running {
    let container = Container::new(image, "overlayfs").argument("--with-ns").argument(&netns.flag());
    container.command(&["/bin/sleep", "3600"]).start()
}

fn refused(network: &str) -> String {
    let container = Container::new(BUSYBOX, "overlayfs").argument("--with-ns").argument(network);
    let finished = container.command(&["/bin/true"]).run();
    assert_ne!(finished.code, 0, "{network} was accepted");
    finished.stderr()
}

/// One machine, many facts: a boot takes seconds under emulation.
#[test]
#[ignore = "`make test-long`"]
fn the_guest_has_the_interfaces_that_cni_made() {
    let netns = Netns::new().add("eth0", bridge()).add("net1", ptp());
    netns.run(&["ip", "neighbour", "replace", "10.77.0.200", "lladdr", "02:00:00:00:00:99", "dev", "eth0"]);
    let before = Traces::now();
    {
        let container = start(BUSYBOX, &netns);
        names_addresses_and_limits_are_the_same(&container, &netns);
        routes_are_the_same(&container, &netns);
        let neighbours = container.shell("cat /proc/net/arp").success().stdout();
        let fixed = neighbours.lines().find(|line| line.starts_with("10.77.0.200 ")).expect("the static neighbour");
        assert!(fixed.contains("02:00:00:00:00:99") && fixed.contains("0x6"), "{fixed}");
        echo_requests_are_answered(&container, &netns);
        datagrams_travel_both_ways(&container);
        large_frames_travel_both_ways(&container, &netns);
    }
    assert_nothing_left_since(&before);
}

fn names_addresses_and_limits_are_the_same(container: &Running, netns: &Netns) {
    let links = container.shell("ls /sys/class/net").success().stdout();
    assert_eq!(links.split_whitespace().collect::<Vec<_>>(), ["eth0", "lo", "net1"]);
    for (interface, mtu) in [("eth0", "1400"), ("net1", "1500")] {
        let read = |file: &str| format!("cat /sys/class/net/{interface}/{file}");
        let here = container.shell(&read("address")).success().stdout();
        assert_eq!(here, netns.run(&["cat", &format!("/sys/class/net/{interface}/address")]), "{interface}");
        assert_eq!(container.shell(&read("mtu")).success().stdout().trim(), mtu, "{interface}");
    }
    let list = "ip -o address | awk '$3 ~ /^inet/ {print $2, $4}' | sort";
    let addresses = container.shell(list).success().stdout();
    assert_eq!(addresses, netns.run(&["sh", "-c", list]));
}

/// The kernel's own files have the same form on both sides; interfaces are named in them.
fn routes_are_the_same(container: &Running, netns: &Netns) {
    let v4 = "tail -n +2 /proc/net/route | awk '{print $1, $2, $3, $7, $8}' | sort";
    assert_eq!(container.shell(v4).success().stdout(), netns.run(&["sh", "-c", v4]));
    let v6 = "awk '$10 ~ /eth0|net1/ && $1 !~ /^ff/ {print $10, $1, $2, $5}' /proc/net/ipv6_route | sort";
    assert_eq!(container.shell(v6).success().stdout(), netns.run(&["sh", "-c", v6]));
}

fn echo_requests_are_answered(container: &Running, netns: &Netns) {
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
fn datagrams_travel_both_ways(container: &Running) {
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

/// Long enough that the kernel leaves segments and checksums to others, in both directions.
fn large_frames_travel_both_ways(container: &Running, netns: &Netns) {
    let bytes = noise(4 << 20);
    let listener = TcpListener::bind("10.77.0.1:0").expect("the bridge has the address");
    let port = listener.local_addr().expect("an address").port();
    let sent = bytes.clone();
    let sender = std::thread::spawn(move || {
        let (mut connection, _) = listener.accept().expect("the pod connects");
        connection.write_all(&sent).expect("the pod reads");
    });
    let sum = container.shell(&format!("nc 10.77.0.1 {port} | sha256sum")).success().stdout();
    sender.join().expect("the sender does not panic");
    assert_eq!(sum.split_whitespace().next(), Some(sha256(&bytes).as_str()));

    container.shell("nc -l -p 5001 </dev/null 2>/dev/null | sha256sum >/sum &").success();
    let address = netns.address("eth0", "-4");
    eventually("the pod listens", || container.shell("grep -q :1389 /proc/net/tcp /proc/net/tcp6").code == 0);
    let mut connection = TcpStream::connect((address.as_str(), 5001)).expect("the pod listens");
    connection.write_all(&bytes).expect("the pod reads");
    connection.shutdown(Shutdown::Write).expect("an end");
    eventually("the pod has it all", || container.shell("cat /sum").stdout().starts_with(&sha256(&bytes)));
}

/// containerd dials localhost in the pod's namespace on the node.
#[test]
#[ignore = "`make test-long`"]
fn ports_are_forwarded_to_whatever_address_the_program_listens_on() {
    let netns = Netns::new().add("eth0", bridge());
    let before = Traces::now();
    {
        let container = start(DEBIAN, &netns);
        let own = netns.address("eth0", "-4");
        for (address, port) in [("127.0.0.1", 8001), ("::1", 8002), (own.as_str(), 8003)] {
            let server = format!("python3 -m http.server --bind {address} --directory /etc {port}");
            container.shell(&format!("{server} >/dev/null 2>&1 </dev/null &")).success();
        }
        let get = |port: u16, dialled: &str| {
            let fetch = || -> std::io::Result<String> {
                let mut connection = TcpStream::connect((dialled, port))?;
                connection.write_all(b"GET /hostname HTTP/1.0\r\n\r\n")?;
                let mut answer = String::new();
                connection.read_to_string(&mut answer).map(|_| answer)
            };
            netns.inside(fetch).unwrap_or_default()
        };
        for port in [8001, 8002, 8003] {
            for dialled in ["127.0.0.1", "::1"] {
                eventually("the port is forwarded", || get(port, dialled).starts_with("HTTP/1.0 200"));
            }
        }
        // Where nobody listens there is a reset, and nothing else suffers.
        let nobody = netns.inside(|| {
            let mut connection = TcpStream::connect("127.0.0.1:8999").expect("the shim accepts");
            connection.read(&mut [0; 1]).map_err(|error| error.kind())
        });
        assert_eq!(nobody, Err(std::io::ErrorKind::ConnectionReset));
        much_travels_both_ways_and_ends_by_halves(&container, &netns);
        // The other programs of the node are not steered anywhere.
        assert!(TcpStream::connect("127.0.0.1:8001").is_err(), "the node's own loopback is forwarded");
    }
    assert_nothing_left_since(&before);
}

fn much_travels_both_ways_and_ends_by_halves(container: &Running, netns: &Netns) {
    let server = "import socket\n\
        s = socket.create_server(('127.0.0.1', 8004))\n\
        c, _ = s.accept()\n\
        data = b''\n\
        while chunk := c.recv(65536): data += chunk\n\
        c.sendall(data[::-1])\n";
    container.exec_with_input(&["/bin/sh", "-c", "cat >/server.py"], server.as_bytes()).success();
    container.shell("python3 /server.py >/dev/null 2>&1 </dev/null &").success();
    eventually("the server listens", || container.shell("grep -q 0100007F:1F44 /proc/net/tcp").code == 0);
    let bytes = noise(2 << 20);
    let answer = netns.inside(|| {
        let mut connection = TcpStream::connect("127.0.0.1:8004").expect("the shim accepts");
        connection.write_all(&bytes).expect("the server reads");
        connection.shutdown(Shutdown::Write).expect("one direction ends");
        let mut answer = Vec::new();
        connection.read_to_end(&mut answer).expect("the other goes on");
        answer
    });
    let reversed: Vec<u8> = bytes.iter().rev().copied().collect();
    assert_eq!(sha256(&answer), sha256(&reversed), "{} bytes came back", answer.len());
}

#[test]
#[ignore = "`make test-long`"]
fn pods_reach_each_other_and_services() {
    let (one, other) = (Netns::new().add("eth0", bridge()), Netns::new().add("eth0", bridge()));
    let server = start(BUSYBOX, &one);
    server.shell("mkdir /www; echo served >/www/index.html; httpd -h /www -p 8080").success();
    let client = start(BUSYBOX, &other);
    for (family, open, close) in [("-4", "", ""), ("-6", "[", "]")] {
        let url = format!("http://{open}{}{close}:8080/", one.address("eth0", family));
        assert_eq!(client.exec(&["/bin/wget", "-q", "-O", "-", &url]).success().stdout(), "served\n", "{url}");
    }
    // As kube-proxy makes a service: an address of nobody's, translated on the node.
    let rule = format!("tcp dport 80 ip daddr 10.99.0.1 dnat to {}:8080", one.address("eth0", "-4"));
    run(&["nft", "add table ip e2e-service"]);
    run(&["nft", "add chain ip e2e-service prerouting { type nat hook prerouting priority dstnat; }"]);
    run(&["nft", &format!("add rule ip e2e-service prerouting {rule}")]);
    // The answer must come back by the way of the node, whose translation it is.
    run(&["nft", "add chain ip e2e-service postrouting { type nat hook postrouting priority srcnat; }"]);
    run(&["nft", "add rule ip e2e-service postrouting ip daddr 10.77.0.0/16 ct status dnat masquerade"]);
    let fetched = client.exec(&["/bin/wget", "-q", "-O", "-", "http://10.99.0.1/"]);
    run(&["nft", "delete table ip e2e-service"]);
    assert_eq!(fetched.success().stdout(), "served\n");
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
        let tunnel = Netns::new();
        tunnel.run(&["ip", "tuntap", "add", "tun7", "mode", "tun"]);
        tunnel.run(&["ip", "link", "set", "tun7", "up"]);
        let text = refused(&tunnel.flag());
        assert!(text.contains("interface tun7 is not an Ethernet interface"), "{text}");
    }
    {
        // Two machines cannot have one interface; the first keeps it.
        let netns = Netns::new().add("eth0", bridge());
        let first = start(BUSYBOX, &netns);
        let text = refused(&netns.flag());
        assert!(text.contains("interface eth0 has an ingress queueing discipline already"), "{text}");
        first.exec(&["/bin/ping", "-c", "1", "-W", "5", "10.77.0.1"]).success();
    }
    assert_nothing_left_since(&before);
}

/// A namespace with loopback alone is what CNI leaves when it was told to make nothing.
#[test]
#[ignore = "`make test-long`"]
fn a_namespace_without_interfaces_is_a_pod_without_a_network() {
    let netns = Netns::new();
    let container = Container::new(BUSYBOX, "overlayfs").argument("--with-ns").argument(&netns.flag());
    let links = container.shell("ls /sys/class/net; ping -c 1 127.0.0.1 >/dev/null && echo up").run().success();
    assert_eq!(links.stdout().split_whitespace().collect::<Vec<_>>(), ["lo", "up"]);
}
