//! Shutdown: nothing runs and everything is on disk before the guest powers off.

use crate::agent::Agent;
use crate::cgroup::Cgroup;
use crate::error::Error;
use crate::spec::CGROUP_PARENT;
use agent_protocol::agent::Empty;
use std::sync::Arc;
use std::time::Duration;

/// How long killed processes may take to be gone.
const KILLED: Duration = Duration::from_secs(2);

/// So that the answer is sent before the power is off. Nobody depends on it.
const ANSWER: Duration = Duration::from_millis(20);

pub(super) async fn shutdown(agent: Arc<Agent>) -> Result<Empty, Error> {
    let all = Cgroup::new(agent.paths.cgroups.join(CGROUP_PARENT));
    all.kill()?;
    if !all.emptied(KILLED).await {
        tracing::warn!("processes are left after the kill");
    }
    // First: the shim waits for two seconds, and what else is written nobody reads again.
    let volumes = Arc::clone(&agent);
    tokio::task::spawn_blocking(move || volumes.volumes.write_back()).await.ok();
    for container in agent.containers.all() {
        container.shut_down().await;
    }
    tokio::task::spawn_blocking(move || {
        agent.volumes.shut_down();
        nix::unistd::sync();
    })
    .await
    .ok();
    tokio::spawn(async {
        tokio::time::sleep(ANSWER).await;
        std::process::exit(0);
    });
    Ok(Empty::new())
}
