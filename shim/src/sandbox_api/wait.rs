//! `WaitSandbox`: answers when the sandbox has ended, whatever ended it.

use super::{PodSandbox, api};
use crate::clock;
use crate::error::TaskError;
use crate::task::process::Exit;

pub(super) async fn wait(
    sandbox: &PodSandbox,
    request: &api::WaitSandboxRequest,
) -> Result<api::WaitSandboxResponse, TaskError> {
    sandbox.named(&request.sandbox_id)?;
    let mut life = sandbox.life.subscribe();
    // The sender lives as long as `sandbox`.
    let exit = life.wait_for(|life| life.exit().is_some()).await.ok().and_then(|life| life.exit());
    let exit = exit.unwrap_or_else(|| Exit::now(Exit::KILLED));
    Ok(api::WaitSandboxResponse {
        exit_status: exit.status,
        exited_at: Some(clock::timestamp(exit.at)).into(),
        ..Default::default()
    })
}
