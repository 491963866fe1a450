//! Partitions of the disks that hold layers. One is there for as long as a mount uses it: several may read one as a device.

use super::super::{blocking, partition};
use crate::error::Error;
use crate::id::PciAddress;
use agent_protocol::agent::Layer as Message;
use std::collections::HashMap;
use std::path::PathBuf;

/// Partitions that a disk may have.
const MAX_NUMBER: u32 = 255;

/// A disk and the number of a partition there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub address: PciAddress,
    pub number: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub key: Key,
    start: u64,
    length: u64,
}

impl Part {
    pub fn parse(message: &Message) -> Result<Self, Error> {
        if !(1..=MAX_NUMBER).contains(&message.part) {
            return Err(Error::invalid("part", &message.part.to_string(), "it is no number of a partition"));
        }
        let key = Key { address: PciAddress::parse(&message.pci_address)?, number: message.part };
        Ok(Self { key, start: message.offset, length: message.length })
    }
}

#[derive(Debug, Default)]
pub(super) struct Parts {
    added: HashMap<Key, Added>,
}

#[derive(Debug)]
struct Added {
    disk: PathBuf,
    node: PathBuf,
    users: usize,
}

impl Parts {
    /// The partition's device node.
    pub async fn add(&mut self, part: &Part, disk: PathBuf) -> Result<PathBuf, Error> {
        if let Some(added) = self.added.get_mut(&part.key) {
            added.users += 1;
            return Ok(added.node.clone());
        }
        let (of, on) = (part.clone(), disk.clone());
        let node = blocking(move || {
            let found = partition::add(&on, of.key.number, of.start, of.length);
            found.map_err(Error::system("find", format!("layer {} on {}", of.key.number, on.display())))
        });
        let node = node.await?;
        self.added.insert(part.key.clone(), Added { disk, node: node.clone(), users: 1 });
        Ok(node)
    }

    /// Nobody has mounted them any more. One that cannot be removed is logged: it goes with its disk.
    pub async fn remove(&mut self, keys: &[Key]) {
        for key in keys {
            let Some(added) = self.added.get_mut(key) else { continue };
            added.users -= 1;
            if added.users > 0 {
                continue;
            }
            let Some(Added { disk, .. }) = self.added.remove(key) else { continue };
            let number = key.number;
            let delete =
                move || partition::delete(&disk, number).map_err(Error::system("forget a layer on", disk.display()));
            if let Err(error) = blocking(delete).await {
                tracing::warn!(%error, "a part of a disk stays");
            }
        }
    }
}
