//! `Pause`: stops a container's processes where they are.

use super::pod::Pod;
use super::process::{Change, Question};
use crate::error::TaskError;
use agent_protocol::agent::ContainerRequest;
use containerd_shim_protos::api::PauseRequest;
use containerd_shim_protos::events::task::TaskPaused;
use containerd_shim_protos::topics::TASK_PAUSED_EVENT_TOPIC;
use containerd_shim_protos::types::empty::Empty;
use std::sync::Arc;

pub async fn pause(pod: Arc<Pod>, request: PauseRequest) -> Result<Empty, TaskError> {
    let container = pod.container(&request.id)?;
    container.in_use()?;
    container.init.allows(Question::Pause)?;
    let guest = ContainerRequest { container_id: container.id.to_string(), ..Default::default() };
    pod.vm()?.agent().pause(&guest).await?;
    container.init.change(Change::Paused)?;
    let event = TaskPaused { container_id: container.id.to_string(), ..Default::default() };
    pod.events.publish(TASK_PAUSED_EVENT_TOPIC, &event);
    Ok(Empty::new())
}
