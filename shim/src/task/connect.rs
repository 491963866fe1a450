//! `Connect`: whether the shim lives. Never fails: containerd asks when it restarts, and an error would make it
//! delete the pod.

use super::pod::Pod;
use containerd_shim_protos::api::{ConnectRequest, ConnectResponse};

pub fn connect(pod: &Pod, request: &ConnectRequest) -> ConnectResponse {
    let container = pod.container(&request.id);
    ConnectResponse {
        shim_pid: std::process::id(),
        task_pid: container.map_or_else(|_| pod.vmm_pid(), |container| container.pid),
        ..Default::default()
    }
}
