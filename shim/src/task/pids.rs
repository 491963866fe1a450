//! `Pids`: one entry for each process of a container. To the node all of them are the VMM's process; numbers from
//! the guest would name someone else's processes here.

use super::pod::Pod;
use crate::error::TaskError;
use agent_protocol::agent::ContainerRequest;
use containerd_shim_protos::api::{PidsRequest, PidsResponse, ProcessInfo};
use std::time::Duration;
use tokio::time::timeout;

/// containerd asks when it restarts, and gives up on the shim after 5 s.
const GUEST_LIMIT: Duration = Duration::from_secs(1);

/// Most entries.
const MAX_PROCESSES: usize = 4096;

pub async fn pids(pod: &Pod, request: &PidsRequest) -> Result<PidsResponse, TaskError> {
    let container = pod.container(&request.id)?;
    let mut count = 1;
    if !container.is_sandbox && container.init.phase().exit().is_none() {
        let guest = ContainerRequest { container_id: container.id.to_string(), ..Default::default() };
        if let Ok(Ok(list)) = timeout(GUEST_LIMIT, pod.vm()?.agent().list_processes(&guest)).await {
            count = list.pids.len().clamp(1, MAX_PROCESSES);
        }
    }
    let process = ProcessInfo { pid: container.pid, ..Default::default() };
    Ok(PidsResponse { processes: vec![process; count], ..Default::default() })
}
