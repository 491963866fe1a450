//! `StopSandbox`: ends the microVM with all that runs in it. The sandbox can still be asked about. Idempotent.

use super::{PodSandbox, api};
use crate::error::TaskError;
use crate::task::process::Exit;
use std::sync::Arc;

pub(super) async fn stop(
    sandbox: Arc<PodSandbox>,
    request: api::StopSandboxRequest,
) -> Result<api::StopSandboxResponse, TaskError> {
    sandbox.named(&request.sandbox_id)?;
    end(&sandbox).await;
    Ok(api::StopSandboxResponse::new())
}

pub(super) async fn end(sandbox: &PodSandbox) {
    let _whole = sandbox.change.lock().await;
    sandbox.pod.destroy_vm().await;
    sandbox.life.send_if_modified(|life| life.stop(Exit::now(Exit::KILLED)));
}
