//! A volume that is in the guest, and its source on the node.

use super::push::push;
use super::read::{self, MAX_VOLUME, ReadError, Tree};
use super::{PlaceError, Room, reading};
use crate::identifier::Identifier;
use crate::sandbox::agent::Agent;
use crate::sandbox::file_id::FileId;
use agent_protocol::agent::{PushedVolume, prepare_volume_request};
use agent_protocol::files::MAX_ENTRIES;
use std::collections::HashSet;
use std::path::PathBuf;

/// Directory of a volume that holds one file: nobody sees it.
const DIRECTORY_MODE: u32 = 0o755;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Directory,
    File,
}

/// A file or directory of the node, by its real name; another one that takes the name is not it.
#[derive(Clone, Debug)]
pub(super) struct Source {
    pub path: PathBuf,
    pub key: FileId,
    pub kind: Kind,
}

impl Source {
    /// `None`: a directory without the layout of kubelet's configurations.
    pub async fn read(&self) -> Result<Option<Tree>, ReadError> {
        let Self { path, key, kind } = self.clone();
        reading(move || match kind {
            Kind::Directory => read::read_volume(&path, key),
            Kind::File => read::read_file(&path, key).map(Some),
        })
        .await
    }

    pub async fn version(&self) -> Result<Option<PathBuf>, ReadError> {
        let Self { path, key, .. } = self.clone();
        reading(move || read::version(&path, key)).await
    }
}

/// A volume of the guest that holds what its source did when it was read last.
#[derive(Debug)]
pub(super) struct Placed {
    pub id: String,
    pub source: Source,
    /// Containers that mount it.
    pub users: HashSet<Identifier>,
    generation: u64,
    /// `None`: the guest may have anything, since the last call failed.
    fingerprint: Option<[u8; 32]>,
    bytes: u64,
    /// Where `..data` led when the volume was looked at last.
    pub version: Option<PathBuf>,
    /// It has changed a moment ago, and may not be complete.
    pub again: bool,
}

impl Placed {
    /// Makes the volume in the guest, and fills it.
    pub async fn new(agent: &Agent, id: String, source: Source, tree: Tree, room: Room) -> Result<Self, PlaceError> {
        let volume = match source.kind {
            Kind::File => one_file(MAX_VOLUME),
            Kind::Directory => PushedVolume {
                limit: MAX_VOLUME,
                entries: u32::try_from(MAX_ENTRIES).unwrap_or(u32::MAX),
                ..of_directory(&source).await?
            },
        };
        prepare(agent, &id, volume).await?;
        let (generation, bytes) = (0, 0);
        let users = HashSet::new();
        let mut placed = Self { id, source, users, generation, fingerprint: None, bytes, version: None, again: true };
        if let Err(error) = placed.fill(agent, tree, room).await {
            agent.forget_volume(&placed.id).await;
            return Err(error);
        }
        Ok(placed)
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Brings what the source holds now into the guest.
    pub async fn refresh(&mut self, agent: &Agent, room: Room) -> Result<(), PlaceError> {
        // What cannot be followed any more stays as it was.
        let Some(tree) = self.source.read().await? else { return Ok(()) };
        self.fill(agent, tree, room).await
    }

    async fn fill(&mut self, agent: &Agent, tree: Tree, room: Room) -> Result<(), PlaceError> {
        room.check(tree.bytes)?;
        let fingerprint = tree.fingerprint();
        if self.fingerprint == Some(fingerprint) {
            return Ok(());
        }
        let bytes = tree.bytes;
        self.fingerprint = None;
        self.generation += 1;
        push(agent, &self.id, self.generation, tree).await?;
        (self.fingerprint, self.bytes) = (Some(fingerprint), bytes);
        tracing::debug!(volume = self.id, generation = self.generation, bytes, "a volume's content is in the guest");
        Ok(())
    }
}

/// Mode and owner of the volume's top directory.
async fn of_directory(source: &Source) -> Result<PushedVolume, ReadError> {
    let Source { path, key, .. } = source.clone();
    let (mode, uid, gid) = reading(move || read::owner(&path, key)).await?;
    Ok(PushedVolume { mode, uid, gid, ..PushedVolume::default() })
}

/// The volume of a file that is mounted alone.
pub(super) fn one_file(limit: u64) -> PushedVolume {
    PushedVolume { limit, entries: 1, mode: DIRECTORY_MODE, ..PushedVolume::default() }
}

pub(super) async fn prepare(agent: &Agent, id: &str, volume: PushedVolume) -> Result<(), PlaceError> {
    Ok(agent.make_volume(id, prepare_volume_request::Kind::Pushed(volume)).await?)
}
