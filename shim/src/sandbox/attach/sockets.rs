//! Sockets of the node that a container mounts.

use super::super::guest_spec::HostMount;
use super::super::oci::{Spec, SpecMount};
use super::super::policy::{ListedSocket, Resolved};
use super::super::{Inner, SandboxError};
use crate::identifier::Identifier;
use agent_protocol::agent::SocketVolume;
use agent_protocol::agent::prepare_volume_request::Kind;
use agent_protocol::{VOLUME_FILE, VOLUMES};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// A socket in a directory that a container mounts.
#[derive(Debug)]
pub(super) struct PlacedSocket {
    /// Where the container has the directory, and the socket.
    directory: PathBuf,
    at: PathBuf,
    /// Where the guest has what stands for it.
    source: String,
}

/// Puts the sockets over those that the file server shows, which lead nowhere.
pub(super) fn cover(spec: &mut Spec, sockets: Vec<PlacedSocket>) {
    for PlacedSocket { directory, at, source } in sockets {
        let Some(index) = spec.mounts.iter().rposition(|mount| mount.destination == directory) else { continue };
        let options = vec!["bind".to_owned(), "rprivate".to_owned()];
        let kind = "bind".to_owned();
        spec.mounts.insert(
            index + 1,
            SpecMount { destination: at, kind, source: source.into(), options, ..SpecMount::default() },
        );
    }
}

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

    /// The same of sockets in a directory that is mounted.
    pub(super) async fn place_listed(
        &self,
        container: &Identifier,
        mount: &HostMount,
        sockets: Vec<ListedSocket>,
    ) -> Result<Vec<PlacedSocket>, SandboxError> {
        let mut placed = Vec::with_capacity(sockets.len());
        for ListedSocket { name, socket } in sockets {
            let directory = mount.destination.clone();
            let source = self.place_socket(container, socket).await?;
            placed.push(PlacedSocket { at: directory.join(name), directory, source });
        }
        Ok(placed)
    }
}
