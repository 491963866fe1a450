//! Pods that serve: to each other, to their own sidecars, and to kubelet's probes.

use e2e::cri::{Container, NewContainer, Pod, Sandboxer};
use e2e::{BUSYBOX, DEBIAN, eventually, probe};
use std::time::{Duration, Instant};

crate::for_each_sandboxer!(
    long: servers_answer_their_sidecar_another_pod_and_the_node,
    probes_tell_a_service_that_is_ready_from_one_that_is_not,
    two_replicas_with_a_proxy_start_at_once_and_end_in_grace
);

const GRACE: Duration = Duration::from_secs(30);

/// The node's own address on the bridge of its pods, where `hostPort` is to be had.
const BRIDGE: &str = "10.88.0.1";

const SERVICE: &str = include_str!("../../programs/service.py");

/// `programs/service.py`, listening on `address`.
fn service<'pod>(pod: &'pod Pod, name: &str, address: &str, port: u16) -> NewContainer<'pod> {
    pod.container(name, DEBIAN).command(&["/usr/bin/python3", "-c", SERVICE, address, &port.to_string()])
}

/// nginx with a sidecar that asks it over localhost and a port of the node, and redis with a client in that other pod.
fn servers_answer_their_sidecar_another_pod_and_the_node(sandboxer: Sandboxer) {
    let web = Pod::new("web", sandboxer).host_port(18080, 80).run();
    let nginx = web.container("nginx", DEBIAN).command(&["/usr/sbin/nginx", "-g", "daemon off;"]).start();
    let sidecar = web.container("sidecar", DEBIAN).command(&["/usr/bin/sleep", "3600"]).start();
    let store = Pod::new("store", sandboxer).run();
    let command = ["/usr/bin/redis-server", "--dir", "/tmp", "--bind", "0.0.0.0", "--protected-mode", "no"];
    let redis = store.container("redis", DEBIAN).command(&command).start();

    let curl = ["/usr/bin/curl", "--silent", "--retry", "9", "--retry-connrefused", "http://localhost/"];
    assert!(sidecar.exec(&curl).success().stdout().contains("Welcome to nginx"));
    for (ip, port) in [(web.ip().as_str(), 80), (BRIDGE, 18080)] {
        let (status, page) = probe::http(ip, port, "/").expect("nginx answers the node");
        assert!(status == 200 && page.contains("Welcome to nginx"), "{status} {page}");
    }

    let ip = store.ip();
    let redis_cli = |words: &[&str]| sidecar.exec(&[&["/usr/bin/redis-cli", "-h", &ip], words].concat());
    eventually("redis answers the other pod", || redis_cli(&["ping"]).stdout() == "PONG\n");
    redis_cli(&["set", "tenant", "bulkhead"]).success();
    assert_eq!(redis.exec(&["/usr/bin/redis-cli", "get", "tenant"]).success().stdout(), "bulkhead\n");
    nginx.stop(GRACE).expect("nginx stops");
    assert_eq!(nginx.wait(), 0);
}

/// A python service that warms up, with a readiness probe by HTTP, a startup probe by TCP, a liveness probe by exec.
fn probes_tell_a_service_that_is_ready_from_one_that_is_not(sandboxer: Sandboxer) {
    let pod = Pod::new("probes", sandboxer).run();
    let ip = pod.ip();
    assert!(!probe::tcp(&ip, 8080), "somebody listens before the service");
    let new = |attempt| service(&pod, "service", "0.0.0.0", 8080).env("READY_FILE", "/tmp/ready").attempt(attempt);
    let container = new(0).start();
    eventually("the service listens", || probe::tcp(&ip, 8080));
    let ready = || probe::http(&ip, 8080, "/ready").map(|(status, _)| status);
    assert_eq!(ready(), Some(503));
    container.shell("touch /tmp/ready").success();
    assert_eq!(ready(), Some(200));

    assert!(alive(&container));
    container.shell("touch /tmp/broken").success();
    assert!(!alive(&container));
    container.stop(GRACE).expect("it stops");
    assert_eq!(container.wait(), 0);
    container.remove().expect("it is removed");
    assert_eq!(ready(), None);
    let container = new(1).start();
    eventually("the service listens again", || ready() == Some(503));
    container.shell("touch /tmp/ready").success();
    assert_eq!(ready(), Some(200));
    assert!(alive(&container));

    // Both are answered before their timeout while another container uses every processor.
    let _load = pod.container("load", BUSYBOX).shell("while :; do :; done & while :; do :; done").start();
    for _ in 0..5 {
        assert!(alive(&container));
        assert_eq!(ready(), Some(200));
    }
}

fn alive(container: &Container) -> bool {
    let probe = ["/bin/sh", "-c", "test ! -e /tmp/broken"];
    let done = container.try_exec(&probe, Some(Duration::from_secs(10)));
    done.expect("the probe runs").code == 0
}

/// What a serverless platform makes of one request too many: two replicas from nothing, each a user's container and the
/// proxy in front of it.
fn two_replicas_with_a_proxy_start_at_once_and_end_in_grace(sandboxer: Sandboxer) {
    std::thread::scope(|scope| {
        let replicas: Vec<_> =
            ["replica-a", "replica-b"].map(|name| scope.spawn(move || replica(name, sandboxer))).into_iter().collect();
        for replica in replicas {
            replica.join().expect("a replica serves");
        }
    });
}

fn replica(name: &str, sandboxer: Sandboxer) {
    let pod = Pod::new(name, sandboxer).run();
    let user = service(&pod, "user", "127.0.0.1", 8080).start();
    let proxy = service(&pod, "proxy", "0.0.0.0", 8012).env("UPSTREAM", "127.0.0.1:8080").start();
    let ip = pod.ip();
    let hello = (200, format!("hello from {name}\n"));
    eventually("the replica is ready", || probe::http(&ip, 8012, "/ready") == Some(hello.clone()));
    assert!(!probe::tcp(&ip, 8080), "the user's port is open to others");
    let mut tunnel = pod.port_forward(8080);
    tunnel.send(b"GET / HTTP/1.0\r\n\r\n");
    tunnel.read_until(|bytes| bytes.ends_with(hello.1.as_bytes()));

    // A request that is under way when the replica is ended is answered.
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| probe::get(&ip, 8012, "/slow", GRACE));
        eventually("the request is under way", || user.log().stdout().contains("slow"));
        let asked = Instant::now();
        let stops = [&user, &proxy].map(|container| scope.spawn(|| container.stop(GRACE)));
        for stop in stops {
            stop.join().expect("a stop is answered").expect("it stops");
        }
        assert!(asked.elapsed() < GRACE, "the grace was used up");
        assert_eq!(slow.join().expect("the request ends"), Some(hello));
    });
    assert_eq!((user.wait(), proxy.wait()), (0, 0));
    assert!(user.log().stdout().ends_with("done\n"), "{}", user.log().stdout());
}
