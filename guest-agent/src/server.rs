//! The agent's vsock services, and the sign to the node that they listen.

use crate::agent::Agent;
use crate::rpc::Service;
use crate::{forward, streams};
use agent_protocol::{AGENT_PORT, FORWARD_PORT, READY_PORT, SOCKET_PORT, STREAM_PORT, agent_ttrpc, sockets};
use futures::{StreamExt, future};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio_vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockAddr, VsockListener, VsockStream};
use ttrpc::asynchronous::transport::Listener;

/// Stream connections whose channel is not claimed yet.
const MAX_GREETINGS: usize = 1024;

/// The node resets the ready connection at once.
const READY: Duration = Duration::from_secs(10);

/// Out of descriptors or memory: both may pass.
const RETRY: Duration = Duration::from_millis(100);

/// Listens, tells the node, and serves until the runtime ends.
pub async fn serve(agent: Arc<Agent>) -> io::Result<()> {
    let calls = listen(AGENT_PORT)?;
    let streams = listen(STREAM_PORT)?;
    let forwarded = listen(FORWARD_PORT)?;
    let claims = listen(SOCKET_PORT)?;
    let accepted = calls.incoming().filter(|accepted| future::ready(accepted.as_ref().is_ok_and(is_node)));
    let service = Arc::new(Service::new(Arc::clone(&agent)));
    let mut server = ttrpc::r#async::Server::new()
        .add_listener(Listener::new(accepted))
        .register_service(agent_ttrpc::create_agent(service));
    server.start().await.map_err(io::Error::other)?;
    tokio::spawn(tell_ready());
    tokio::spawn(serve_connections(forwarded, forward::MAX_CONNECTIONS, forward::serve));
    let pod = Arc::clone(&agent.sockets);
    let claim = move |stream| {
        let pod = Arc::clone(&pod);
        async move { pod.serve(stream).await }
    };
    tokio::spawn(serve_connections(claims, sockets::MAX_CONNECTIONS, claim));
    serve_streams(agent, streams).await
}

fn listen(port: u32) -> io::Result<VsockListener> {
    VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, port))
}

/// A process in the guest must not reach the agent, should the kernel ever get a loopback transport.
fn is_node(stream: &VsockStream) -> bool {
    stream.peer_addr().is_ok_and(|peer| peer.cid() == VMADDR_CID_HOST)
}

async fn serve_streams(agent: Arc<Agent>, listener: VsockListener) -> io::Result<()> {
    let greetings = Arc::new(Semaphore::new(MAX_GREETINGS));
    loop {
        let permit = Arc::clone(&greetings).acquire_owned().await.map_err(io::Error::other)?;
        let stream = match listener.accept().await {
            Ok((stream, _)) if is_node(&stream) => stream,
            Ok(_) => continue,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a stream");
                tokio::time::sleep(RETRY).await;
                continue;
            }
        };
        let agent = Arc::clone(&agent);
        tokio::spawn(async move {
            streams::serve(agent, stream).await;
            drop(permit);
        });
    }
}

async fn serve_connections<F>(listener: VsockListener, most: usize, serve: impl Fn(VsockStream) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let connections = Arc::new(Semaphore::new(most));
    while let Ok(permit) = Arc::clone(&connections).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) if is_node(&stream) => {
                let served = serve(stream);
                tokio::spawn(async move {
                    served.await;
                    drop(permit);
                });
            }
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// The connection carries nothing and is refused: the attempt is the message.
async fn tell_ready() {
    let attempt = VsockStream::connect(VsockAddr::new(VMADDR_CID_HOST, READY_PORT));
    if tokio::time::timeout(READY, attempt).await.is_err() {
        tracing::warn!("the node does not answer on the ready port");
    }
}
