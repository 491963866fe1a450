//! Passes on that the guest ran a container out of memory.

use super::pod::Pod;
use super::vm::MicroVm;
use agent_protocol::agent::{Empty, event::Kind};
use containerd_shim_protos::events::task::TaskOOM;
use containerd_shim_protos::topics::TASK_OOM_EVENT_TOPIC;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;

/// Between two events: the guest makes them.
const PAUSE: Duration = Duration::from_millis(50);

/// Follows the guest's events, in the background, until the microVM is gone.
pub fn watch(pod: &Arc<Pod>, vm: &Arc<dyn MicroVm>) {
    let (pod, vm) = (pod.clone(), vm.clone());
    tokio::spawn(async move {
        while let Ok(event) = vm.agent().next_event(&Empty::new()).await {
            if let Some(Kind::OutOfMemory(event)) = event.kind {
                // Only a container of this pod can be named.
                if let Ok(container) = pod.container(&event.container_id) {
                    tracing::info!(container = %container.id, "container is out of memory");
                    let event = TaskOOM { container_id: container.id.to_string(), ..Default::default() };
                    pod.events.publish(TASK_OOM_EVENT_TOPIC, &event);
                }
            }
            sleep(PAUSE).await;
        }
    });
}
