//! Events to containerd, strictly in the order in which they happened.
//!
//! One task sends one event after the other and does not go on before containerd took it, across restarts of
//! containerd: an exit that overtakes a start makes containerd forget a container. What is queued is bounded.

use crate::clock;
use crate::identifier::Identifier;
use containerd_shim_protos::api::ForwardRequest;
use containerd_shim_protos::protobuf::{MessageFull, well_known_types::any::Any};
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim_async::{Client, EventsClient};
use std::time::{Duration, SystemTime};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};
use ttrpc::context;

/// Events kept while containerd is away.
const CAPACITY: usize = 4096;

/// For one event to be taken.
const DEADLINE: Duration = Duration::from_secs(5);

/// Between attempts to reach containerd: doubled from the first to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(2);

/// Queue of events; clones share it.
#[derive(Clone, Debug)]
pub struct Events {
    namespace: Identifier,
    queue: mpsc::Sender<Item>,
}

enum Item {
    Event(Box<Envelope>),
    /// Answered when everything before it was taken.
    Flush(oneshot::Sender<()>),
}

impl Events {
    /// Starts the sender. `address` is the path of containerd's ttrpc socket; empty means that no one listens.
    pub fn to_containerd(namespace: Identifier, address: &str) -> Self {
        let (queue, items) = mpsc::channel(CAPACITY);
        tokio::spawn(send_all(address.trim_start_matches("unix://").to_owned(), items));
        Self { namespace, queue }
    }

    /// Queues an event and returns at once.
    pub fn publish<E: MessageFull>(&self, topic: &str, event: &E) {
        let Ok(value) = event.write_to_bytes() else {
            tracing::error!(topic, "event cannot be encoded");
            return;
        };
        let type_url = E::descriptor().full_name().to_owned();
        let envelope = Envelope {
            timestamp: Some(clock::timestamp(SystemTime::now())).into(),
            namespace: self.namespace.to_string(),
            topic: topic.to_owned(),
            event: Some(Any { type_url, value, ..Default::default() }).into(),
            ..Default::default()
        };
        if self.queue.try_send(Item::Event(Box::new(envelope))).is_err() {
            tracing::error!(topic, "event is lost: {CAPACITY} events wait for containerd");
        }
    }

    /// Waits until everything queued so far was taken.
    pub async fn flush(&self, limit: Duration) {
        let (done, taken) = oneshot::channel();
        if self.queue.try_send(Item::Flush(done)).is_ok() && timeout(limit, taken).await.is_err() {
            tracing::warn!("containerd did not take all events within {limit:?}");
        }
    }
}

async fn send_all(address: String, mut items: mpsc::Receiver<Item>) {
    let mut connection = None;
    while let Some(item) = items.recv().await {
        match item {
            Item::Flush(done) => drop(done.send(())),
            Item::Event(_) if address.is_empty() => {}
            Item::Event(envelope) => send(&address, &mut connection, *envelope).await,
        }
    }
}

/// Returns when containerd took the event, or refused it for good.
async fn send(address: &str, connection: &mut Option<EventsClient>, envelope: Envelope) {
    let topic = envelope.topic.clone();
    let request = ForwardRequest { envelope: Some(envelope).into(), ..Default::default() };
    let mut pause = FIRST_PAUSE;
    loop {
        if connection.is_none() {
            *connection = Client::connect(&format!("unix://{address}")).await.ok().map(EventsClient::new);
        }
        if let Some(client) = connection {
            match client.forward(context::with_duration(DEADLINE), &request).await {
                Ok(_) => return,
                Err(ttrpc::Error::RpcStatus(status)) if !is_timeout(&status) => {
                    tracing::warn!(topic, error = status.message, "containerd refused an event");
                    return;
                }
                Err(error) => tracing::debug!(topic, %error, "event not taken, trying again"),
            }
            *connection = None;
        }
        sleep(pause).await;
        pause = (pause * 2).min(LAST_PAUSE);
    }
}

/// The client's own deadline comes as a status, too.
fn is_timeout(status: &ttrpc::Status) -> bool {
    status.code() == ttrpc::Code::DEADLINE_EXCEEDED
}

#[cfg(test)]
mod tests;
