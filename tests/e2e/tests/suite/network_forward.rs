//! Connections to a pod's ports by way of the node: `kubectl port-forward`.

use e2e::cri::{Pod, Sandboxer};
use e2e::leaks::{Traces, assert_nothing_left_since};
use e2e::netns::Netns;
use e2e::{DEBIAN, eventually, noise, sha256};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};

crate::for_each_sandboxer!(
    long: ports_are_forwarded_to_whatever_address_the_program_listens_on
);

/// What a server waits for before it answers, unless input ends earlier.
const REQUEST: usize = 1 << 20;

/// Listens on each address, from port 8001 up. What was sent comes back in reverse.
const SERVERS: &str = "
import socket, sys, threading
def serve(listener):
    while True:
        connection, _ = listener.accept()
        data = b''
        while len(data) < 1 << 20 and (chunk := connection.recv(65536)): data += chunk
        connection.sendall(data[::-1])
        connection.close()
for number, address in enumerate(sys.argv[1:]):
    family = socket.AF_INET6 if ':' in address else socket.AF_INET
    listener = socket.create_server((address, 8001 + number), family=family)
    threading.Thread(target=serve, args=(listener,)).start()
print('serving', flush=True)
";

fn ports_are_forwarded_to_whatever_address_the_program_listens_on(sandboxer: Sandboxer) {
    let before = Traces::now();
    let pod = Pod::new("forwarded", sandboxer).run();
    let own = pod.ip();
    let command = ["/usr/bin/python3", "-c", SERVERS, "127.0.0.1", "::1", &own];
    let servers = pod.container("servers", DEBIAN).command(&command).start();
    eventually("the servers listen", || servers.log().stdout() == "serving\n");

    let request = noise(REQUEST);
    let reversed: Vec<u8> = request.iter().rev().copied().collect();
    for port in [8001, 8002, 8003] {
        let mut tunnel = pod.port_forward(port);
        tunnel.send(&request);
        let answer = tunnel.read_until(|bytes| bytes.len() == REQUEST);
        assert_eq!(sha256(answer), sha256(&reversed), "by port {port}");
    }
    // Where nobody listens it is said so, and nothing else suffers.
    let (bytes, error) = pod.port_forward(8999).finish();
    assert!(bytes.is_empty() && error.contains("connection reset by peer"), "{error}");

    // containerd dials 127.0.0.1 first, and its protocol cannot end one direction alone: what it would do in the pod's
    // namespace is done here, by both addresses.
    let netns = Netns::with_address(&own);
    for dialled in ["127.0.0.1", "::1"] {
        for port in [8001, 8002, 8003] {
            let half = &request[REQUEST / 2..];
            let answer = netns.inside(|| {
                let mut connection = TcpStream::connect((dialled, port)).expect("the shim accepts");
                connection.write_all(half).expect("the server reads");
                connection.shutdown(Shutdown::Write).expect("one direction ends");
                let mut answer = Vec::new();
                connection.read_to_end(&mut answer).map(|_| answer).expect("the other goes on")
            });
            assert_eq!(sha256(&answer), sha256(&reversed[..REQUEST / 2]), "{} by {dialled} {port}", answer.len());
        }
        let nobody = netns.inside(|| {
            let mut connection = TcpStream::connect((dialled, 8999)).expect("the shim accepts");
            connection.read(&mut [0; 1]).map_err(|error| error.kind())
        });
        assert_eq!(nobody, Err(ErrorKind::ConnectionReset));
    }
    // The other programs of the node are not steered anywhere.
    assert!(TcpStream::connect("127.0.0.1:8001").is_err(), "the node's own loopback is forwarded");
    drop(pod);
    assert_nothing_left_since(&before);
}
