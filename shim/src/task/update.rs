//! `Update`: changes a container's resources in the guest.

use super::pod::Pod;
use crate::error::TaskError;
use crate::sandbox::guest_resources;
use agent_protocol::agent::UpdateRequest;
use containerd_shim_protos::api::UpdateTaskRequest;
use containerd_shim_protos::types::empty::Empty;
use std::sync::Arc;

pub async fn update(pod: Arc<Pod>, request: UpdateTaskRequest) -> Result<Empty, TaskError> {
    let container = pod.container(&request.id)?;
    if container.is_sandbox {
        return Err(TaskError::Unsupported("changing the resources of a microVM that runs"));
    }
    container.in_use()?;
    let invalid = |error: serde_json::Error| TaskError::Invalid(format!("not OCI resources: {error}"));
    let json = request.resources.into_option().unwrap_or_default().value;
    let mut resources = serde_json::from_slice(&json).map_err(invalid)?;
    guest_resources(&mut resources)?;
    let resources = serde_json::to_vec(&resources).map_err(invalid)?;
    let update = UpdateRequest { container_id: container.id.to_string(), resources, ..Default::default() };
    pod.vm()?.agent().update(&update).await?;
    Ok(Empty::new())
}
