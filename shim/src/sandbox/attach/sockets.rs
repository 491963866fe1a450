//! Sockets of the node that a container mounts.

use super::super::policy::Resolved;
use super::super::{Inner, SandboxError};
use crate::identifier::Identifier;
use agent_protocol::agent::SocketVolume;
use agent_protocol::agent::prepare_volume_request::Kind;
use agent_protocol::{VOLUME_FILE, VOLUMES};
use std::os::unix::fs::MetadataExt;

impl Inner {
    /// Returns where the guest has the socket that stands for it, with the same mode and owner.
    pub(super) async fn place_socket(&self, container: &Identifier, found: Resolved) -> Result<String, SandboxError> {
        let metadata = found.metadata().map_err(SandboxError::host("look at", &found.path.display()))?;
        let volume = self.configuration.next_id().await;
        // Before it is made: whoever detaches the container finds it.
        self.sockets.add(volume.clone(), container, found);
        let kind = Kind::Socket(SocketVolume {
            mode: metadata.mode() & 0o7777,
            uid: metadata.uid(),
            gid: metadata.gid(),
            ..SocketVolume::default()
        });
        self.agent.make_volume(&volume, kind).await?;
        Ok(format!("{VOLUMES}/{volume}/{VOLUME_FILE}"))
    }
}
