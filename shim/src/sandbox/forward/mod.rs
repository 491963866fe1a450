//! Connections to the pod's loopback addresses on the node become connections in the guest: `kubectl port-forward`.
//!
//! containerd dials `localhost:PORT` in the pod's network namespace on the node, where a runc pod's programs would listen.
//! There is one listener for each IP version here, and [`steer`] sends it what arrives for a loopback address, whatever
//! the port; the connection's own address says which port was meant. Only programs of the node are in that namespace.

mod steer;

use super::{Inner, SandboxError};
use agent_protocol::FORWARD_PORT;
use agent_protocol::forward::{CONNECTED, MAX_CONNECTIONS};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Weak;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// For the agent to find out who listens on the port: longer than its own limits, which are for each of its addresses.
const CONNECT: Duration = Duration::from_secs(30);

/// Out of descriptors or memory: both may pass.
const RETRY: Duration = Duration::from_millis(100);

/// The listeners of a pod's network namespace.
#[derive(Debug)]
pub(super) struct Listeners {
    v4: std::net::TcpListener,
    /// `None` on a node without IPv6.
    v6: Option<std::net::TcpListener>,
    /// Ends the steering when it is closed.
    steering: OwnedFd,
}

impl Listeners {
    /// Opens them in the calling thread's network namespace.
    pub fn open() -> io::Result<Self> {
        let v4 = listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
        let v6 = listen(SocketAddr::from((Ipv6Addr::LOCALHOST, 0))).ok();
        let steering = steer::steer(v4.as_fd(), v6.as_ref().map(AsFd::as_fd))?;
        Ok(Self { v4, v6, steering })
    }
}

fn listen(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Forwards until the task is aborted or the sandbox is gone; connections end with it.
pub(super) async fn serve(listeners: Listeners, sandbox: Weak<Inner>) {
    let result = accept(listeners, sandbox).await;
    if let Err(error) = result {
        tracing::warn!(%error, "connections are not forwarded any more");
    }
}

async fn accept(listeners: Listeners, sandbox: Weak<Inner>) -> io::Result<()> {
    let Listeners { v4, v6, steering: _steering } = listeners;
    let v4 = TcpListener::from_std(v4)?;
    let v6 = v6.map(TcpListener::from_std).transpose()?;
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        if connections.len() >= MAX_CONNECTIONS {
            connections.join_next().await;
        }
        let accepted = tokio::select! {
            accepted = v4.accept() => accepted,
            accepted = accept_if(v6.as_ref()) => accepted,
        };
        match accepted {
            Ok((connection, _)) => drop(connections.spawn(forward(connection, sandbox.clone()))),
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection to forward");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

async fn accept_if(listener: Option<&TcpListener>) -> io::Result<(TcpStream, SocketAddr)> {
    match listener {
        Some(listener) => listener.accept().await,
        None => std::future::pending().await,
    }
}

async fn forward(mut connection: TcpStream, sandbox: Weak<Inner>) {
    let Ok(port) = connection.local_addr().map(|address| address.port()) else { return };
    let guest = match sandbox.upgrade() {
        Some(sandbox) => connect(&sandbox, port).await,
        None => return,
    };
    match guest {
        // An error is the end of one of the two, which both will see.
        Ok(mut guest) => drop(copy_bidirectional(&mut connection, &mut guest).await),
        Err(error) => {
            tracing::info!(port, %error, "a connection was not forwarded");
            // A reset: the caller must not take it for a program that said nothing.
            let _ = connection.set_zero_linger();
        }
    }
}

async fn connect(sandbox: &Inner, port: u16) -> Result<UnixStream, SandboxError> {
    let failed = || SandboxError::host("connect to", &format!("port {port} in the guest"));
    let mut guest = sandbox.vmm.connect(FORWARD_PORT, super::boot::CONNECT).await?;
    let ask = async {
        guest.write_u16_le(port).await?;
        guest.read_u8().await
    };
    match timeout(CONNECT, ask).await {
        Ok(Ok(CONNECTED)) => Ok(guest),
        Ok(Ok(_)) => Err(failed()(io::Error::from(io::ErrorKind::ConnectionRefused))),
        Ok(Err(error)) => Err(failed()(error)),
        Err(_) => Err(SandboxError::deadline(format!("connecting to port {port} in the guest"), CONNECT)),
    }
}
