//! `Resume`: lets a paused container's processes go on.

use super::pod::Pod;
use super::process::{Change, Question};
use crate::error::TaskError;
use agent_protocol::agent::ContainerRequest;
use containerd_shim_protos::api::ResumeRequest;
use containerd_shim_protos::events::task::TaskResumed;
use containerd_shim_protos::topics::TASK_RESUMED_EVENT_TOPIC;
use containerd_shim_protos::types::empty::Empty;
use std::sync::Arc;

pub async fn resume(pod: Arc<Pod>, request: ResumeRequest) -> Result<Empty, TaskError> {
    let container = pod.container(&request.id)?;
    container.in_use()?;
    container.init.allows(Question::Resume)?;
    let guest = ContainerRequest { container_id: container.id.to_string(), ..Default::default() };
    pod.vm()?.agent().resume(&guest).await?;
    container.init.change(Change::Resumed)?;
    let event = TaskResumed { container_id: container.id.to_string(), ..Default::default() };
    pod.events.publish(TASK_RESUMED_EVENT_TOPIC, &event);
    Ok(Empty::new())
}
