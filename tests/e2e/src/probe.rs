//! Probes as kubelet makes them, from the node to a pod's address.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

/// kubelet's default is one second; a node under emulation gets more.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A TCP probe: whether somebody listens.
pub fn tcp(ip: &str, port: u16) -> bool {
    TcpStream::connect_timeout(&address(ip, port), TIMEOUT).is_ok()
}

/// An HTTP probe: status and body, if there was an answer in time.
pub fn http(ip: &str, port: u16, path: &str) -> Option<(u16, String)> {
    get(ip, port, path, TIMEOUT)
}

/// Gets a page that may take its time.
pub fn get(ip: &str, port: u16, path: &str, timeout: Duration) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address(ip, port), timeout).ok()?;
    stream.set_read_timeout(Some(timeout)).ok()?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: {ip}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split_whitespace().nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}

#[track_caller]
fn address(ip: &str, port: u16) -> SocketAddr {
    let ip: IpAddr = ip.parse().unwrap_or_else(|_| panic!("the pod has no address but {ip:?}"));
    SocketAddr::new(ip, port)
}
