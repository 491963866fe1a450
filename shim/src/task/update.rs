//! `Update`: changes a container's resources in the guest.

use super::container::Container;
use super::pod::Pod;
use crate::bundle;
use crate::error::TaskError;
use crate::sandbox::{guest_resources, memory_limit};
use agent_protocol::agent::UpdateRequest;
use containerd_shim_protos::api::UpdateTaskRequest;
use containerd_shim_protos::types::empty::Empty;
use serde_json::{Map, Value};
use std::sync::Arc;

const MIB: u64 = 1 << 20;

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
    let vm = pod.vm()?;
    check_memory(&container, &resources, vm.memory_mib())?;
    let resources = serde_json::to_vec(&resources).map_err(invalid)?;
    let update = UpdateRequest { container_id: container.id.to_string(), resources, ..Default::default() };
    vm.agent().update(&update).await?;
    Ok(Empty::new())
}

/// Refuses a limit that could never be reached. The one that the container was created with may be such a limit, and
/// containerd says it again with every change of something else.
fn check_memory(container: &Container, resources: &Map<String, Value>, machine_mib: u32) -> Result<(), TaskError> {
    let positive = |limit: Option<i64>| limit.and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or_default();
    let limit = positive(memory_limit(resources));
    if limit <= u64::from(machine_mib) * MIB {
        return Ok(());
    }
    let first = bundle::read_spec(&container.bundle)?.and_then(|spec| memory_limit(&spec.linux?.resources));
    if limit <= positive(first) {
        return Ok(());
    }
    let mib = limit.div_ceil(MIB);
    Err(TaskError::Invalid(format!("a limit of {mib} MiB is more than the microVM's {machine_mib} MiB")))
}
