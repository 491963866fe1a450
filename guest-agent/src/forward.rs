//! Connections that the node forwards to a TCP port of the pod, as `kubectl port-forward` does.
//!
//! A program may listen on loopback only, or on one address of the pod only: each is tried until one takes the
//! connection.

pub use agent_protocol::forward::MAX_CONNECTIONS;
use agent_protocol::forward::{CONNECTED, REFUSED};
use nix::ifaddrs::getifaddrs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// The shim sends the port at once.
const PORT: Duration = Duration::from_secs(10);

/// All addresses are the guest's own: they answer at once, unless the listener's backlog is full.
const CONNECT: Duration = Duration::from_secs(5);

/// Addresses that are tried.
const MAX_ADDRESSES: usize = 16;

/// Serves one connection to its end.
pub async fn serve(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    if let Err(error) = relay(&mut stream).await {
        tracing::debug!(%error, "forwarded connection ended");
    }
}

async fn relay(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> io::Result<()> {
    let port = timeout(PORT, stream.read_u16_le()).await??;
    match connect(port).await {
        Ok(mut target) => {
            stream.write_u8(CONNECTED).await?;
            copy_bidirectional(stream, &mut target).await.map(drop)
        }
        Err(error) => {
            stream.write_u8(REFUSED).await?;
            stream.shutdown().await?;
            Err(error)
        }
    }
}

async fn connect(port: u16) -> io::Result<TcpStream> {
    let mut last = io::Error::from(io::ErrorKind::ConnectionRefused);
    for address in candidates(own_addresses()) {
        match timeout(CONNECT, TcpStream::connect(SocketAddr::new(address, port))).await {
            Ok(Ok(target)) => return Ok(target),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(last)
}

/// Loopback first: that is what the caller asked for.
fn candidates(own: impl Iterator<Item = IpAddr>) -> Vec<IpAddr> {
    let loopback = [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()];
    // A link-local address says nothing without its interface.
    let link_local = |address: &IpAddr| matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
    let own = own.filter(|own| !own.is_loopback() && !link_local(own));
    loopback.into_iter().chain(own).take(MAX_ADDRESSES).collect()
}

fn own_addresses() -> impl Iterator<Item = IpAddr> {
    getifaddrs().into_iter().flatten().filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|address| address.ip().into());
        v4.or_else(|| address.as_sockaddr_in6().map(|address| address.ip().into()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn both_directions_end_by_themselves() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (mut node, guest) = tokio::io::duplex(64);
        tokio::spawn(serve(guest));
        node.write_u16_le(port).await.unwrap();
        let (mut target, _) = listener.accept().await.unwrap();
        assert_eq!(node.read_u8().await.unwrap(), CONNECTED);
        node.write_all(b"request").await.unwrap();
        node.shutdown().await.unwrap();
        let mut request = Vec::new();
        target.read_to_end(&mut request).await.unwrap();
        assert_eq!(request, b"request");
        target.write_all(b"answer").await.unwrap();
        drop(target);
        let mut answer = Vec::new();
        node.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"answer");
    }

    #[tokio::test]
    async fn a_port_that_nobody_listens_on_is_refused() {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap().local_addr().unwrap().port();
        let (mut node, guest) = tokio::io::duplex(64);
        tokio::spawn(serve(guest));
        node.write_u16_le(port).await.unwrap();
        let mut answer = Vec::new();
        node.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, [REFUSED]);
    }

    #[test]
    fn loopback_comes_first_and_once() {
        let own = ["127.0.0.1", "10.88.0.5", "fe80::1", "fd88::5", "::1"].map(|address| address.parse().unwrap());
        let tried: Vec<String> = candidates(own.into_iter()).iter().map(|address| address.to_string()).collect();
        assert_eq!(tried, ["127.0.0.1", "::1", "10.88.0.5", "fd88::5"]);
    }
}
