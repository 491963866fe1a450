//! NextEvent: answers when there is one.

use crate::agent::Agent;
use agent_protocol::agent::{Event, OutOfMemory, event};

pub(super) async fn next(agent: &Agent) -> Event {
    let mut events = agent.next_oom_event.lock().await;
    // The agent itself holds a sender, so the channel never closes.
    let container = events.recv().await.map(|container| container.to_string()).unwrap_or_default();
    let out_of_memory = OutOfMemory { container_id: container, ..Default::default() };
    Event { kind: Some(event::Kind::OutOfMemory(out_of_memory)), ..Default::default() }
}
