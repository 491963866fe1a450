//! Passes on that the guest ran a container out of memory.

use super::pod::Pod;
use crate::identifier::Identifier;
use agent_protocol::agent::OutOfMemory;
use containerd_shim_protos::events::task::TaskOOM;
use containerd_shim_protos::topics::TASK_OOM_EVENT_TOPIC;
use std::collections::HashMap;
use std::time::Duration;
use tokio::time::Instant;

/// Between two events of one container. containerd's queue is the pod's exits', too.
const INTERVAL: Duration = Duration::from_secs(1);

/// When containers' last events were told, in the last `INTERVAL`.
#[derive(Debug, Default)]
pub(super) struct Told(HashMap<Identifier, Instant>);

impl Told {
    pub fn tell(&mut self, pod: &Pod, event: &OutOfMemory) {
        // Only a container of this pod can be named.
        if let Ok(container) = pod.container(&event.container_id)
            && self.is_news(&container.id, Instant::now())
        {
            tracing::info!(container = %container.id, "container is out of memory");
            let event = TaskOOM { container_id: container.id.to_string(), ..Default::default() };
            pod.events.publish(TASK_OOM_EVENT_TOPIC, &event);
        }
    }

    fn is_news(&mut self, container: &Identifier, now: Instant) -> bool {
        self.0.retain(|_, told| now.duration_since(*told) < INTERVAL);
        if self.0.contains_key(container) {
            return false;
        }
        self.0.insert(container.clone(), now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_has_one_event_a_second() {
        let (web, other): (Identifier, Identifier) = ("web".parse().unwrap(), "other".parse().unwrap());
        let (mut told, begin) = (Told::default(), Instant::now());
        let news: Vec<_> =
            (0..30).filter(|tenths| told.is_news(&web, begin + Duration::from_millis(100) * *tenths)).collect();
        assert_eq!(news, [0, 10, 20]);
        let end = begin + Duration::from_millis(2900);
        assert!(told.is_news(&other, end), "another container's is its own");
        assert!(told.is_news(&web, end + INTERVAL));
        assert_eq!(told.0.len(), 1, "what is old is forgotten");
    }
}
