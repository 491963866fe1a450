//! `Update`: changes a container's resources in the guest.

use super::pod::Pod;
use crate::error::TaskError;
use agent_protocol::agent::UpdateRequest;
use containerd_shim_protos::api::UpdateTaskRequest;
use containerd_shim_protos::types::empty::Empty;
use std::sync::Arc;

pub async fn update(pod: Arc<Pod>, request: UpdateTaskRequest) -> Result<Empty, TaskError> {
    let container = pod.container(&request.id)?;
    if container.is_sandbox {
        return Ok(Empty::new());
    }
    container.in_use()?;
    let resources = request.resources.into_option().unwrap_or_default().value;
    let object: Result<serde_json::Map<String, serde_json::Value>, _> = serde_json::from_slice(&resources);
    if let Err(error) = object {
        return Err(TaskError::Invalid(format!("not OCI resources: {error}")));
    }
    let update = UpdateRequest { container_id: container.id.to_string(), resources, ..Default::default() };
    pod.vm()?.agent().update(&update).await?;
    Ok(Empty::new())
}
