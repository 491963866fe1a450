//! `ShutdownSandbox`: nothing of the sandbox is left, and the shim ends. Also asked after a creation that failed.

use super::{PodSandbox, api, stop};
use crate::error::TaskError;
use crate::identifier::Identifier;
use std::sync::Arc;

pub(super) async fn shutdown(
    sandbox: Arc<PodSandbox>,
    request: api::ShutdownSandboxRequest,
) -> Result<api::ShutdownSandboxResponse, TaskError> {
    let id: Identifier = request.sandbox_id.parse()?;
    if id != sandbox.pod.id {
        return Err(TaskError::NoSandbox(id));
    }
    stop::end(&sandbox).await;
    sandbox.pod.end();
    Ok(api::ShutdownSandboxResponse::new())
}
