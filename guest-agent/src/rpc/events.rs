//! NextEvent: answers when there is one. Who needs memory comes first: others wait for it.

use crate::agent::Agent;
use agent_protocol::agent::{Empty, Event, OutOfMemory, SocketConnection, event::Kind};

pub(super) async fn next(agent: &Agent) -> Event {
    let (mut oom, mut sockets) = tokio::join!(agent.next_oom_event.lock(), agent.sockets.next.lock());
    // The agent itself holds a sender of both, so that the channels never close.
    let kind = tokio::select! {
        biased;
        () = agent.pressure.wanted() => Some(Kind::MemoryWanted(Empty::default())),
        container = oom.recv() => container.map(|container| {
            Kind::OutOfMemory(OutOfMemory { container_id: container.to_string(), ..Default::default() })
        }),
        waiting = sockets.recv() => waiting.map(|waiting| {
            let volume = waiting.volume.as_str().to_owned();
            Kind::SocketConnection(SocketConnection { volume, connection: waiting.number, ..Default::default() })
        }),
    };
    Event { kind, ..Default::default() }
}
