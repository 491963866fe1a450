//! Layers of images: parts of read-only disks, each mounted once however many containers are made of it.
//!
//! ```text
//! <run>/l/<k>     k counts up. Short names: 128 of them must fit the page that mount(2) takes as options
//! ```

use super::{blocking, partition, unmount_disk};
use crate::error::Error;
use crate::id::PciAddress;
use crate::pci::PciBus;
use agent_protocol::MAX_LAYERS;
use agent_protocol::agent::Layer as Message;
use nix::mount::{MsFlags, mount};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use tokio::sync::Mutex;

/// Partitions that a disk may have.
const MAX_PART: u32 = 255;

/// Where a layer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    key: Key,
    start: u64,
    length: u64,
}

/// A disk and the number of a partition there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    address: PciAddress,
    part: u32,
}

impl Layer {
    /// Top first, as the shim lists them.
    pub fn parse_all(layers: &[Message]) -> Result<Vec<Self>, Error> {
        if layers.is_empty() || layers.len() > MAX_LAYERS {
            let reason = format!("it must have 1 to {MAX_LAYERS} of them");
            return Err(Error::invalid("number of layers", &layers.len().to_string(), reason));
        }
        let layers = layers.iter().map(|layer| {
            if !(1..=MAX_PART).contains(&layer.part) {
                return Err(Error::invalid("part", &layer.part.to_string(), "it is no number of a partition"));
            }
            let key = Key { address: PciAddress::parse(&layer.pci_address)?, part: layer.part };
            Ok(Self { key, start: layer.offset, length: layer.length })
        });
        layers.collect()
    }
}

/// The pod's layers.
#[derive(Debug)]
pub struct Layers {
    directory: PathBuf,
    pci: PciBus,
    mounted: Mutex<Mounted>,
}

#[derive(Debug, Default)]
struct Mounted {
    last: u32,
    places: HashMap<Key, Place>,
}

#[derive(Clone, Debug)]
struct Place {
    path: PathBuf,
    disk: PathBuf,
    users: usize,
}

/// Layers that a container uses. They stay mounted until they are given to [`Layers::release`].
#[derive(Debug, Default)]
pub struct Held(Vec<Key>);

impl Layers {
    pub fn new(directory: PathBuf, pci: PciBus) -> Self {
        Self { directory, pci, mounted: Mutex::default() }
    }

    /// Mounts what is not mounted yet. Returns the directories in the order of `layers`.
    pub async fn acquire(&self, layers: &[Layer]) -> Result<(Held, Vec<PathBuf>), Error> {
        let mut mounted = self.mounted.lock().await;
        let (mut held, mut paths) = (Held::default(), Vec::with_capacity(layers.len()));
        let mut disks = HashMap::new();
        for layer in layers {
            match self.acquire_one(&mut mounted, &mut disks, layer).await {
                Ok(path) => {
                    held.0.push(layer.key.clone());
                    paths.push(path);
                }
                Err(error) => {
                    release(&mut mounted, held).await;
                    return Err(error);
                }
            }
        }
        Ok((held, paths))
    }

    async fn acquire_one(
        &self,
        mounted: &mut Mounted,
        disks: &mut HashMap<PciAddress, PathBuf>,
        layer: &Layer,
    ) -> Result<PathBuf, Error> {
        if let Some(place) = mounted.places.get_mut(&layer.key) {
            place.users += 1;
            return Ok(place.path.clone());
        }
        // Each look has the kernel scan the bus.
        let address = &layer.key.address;
        let disk = match disks.get(address) {
            Some(disk) => disk.clone(),
            None => disks.entry(address.clone()).insert_entry(self.pci.disk(address).await?).get().clone(),
        };
        mounted.last += 1;
        let path = self.directory.join(mounted.last.to_string());
        let (of, on, target) = (layer.clone(), disk.clone(), path.clone());
        blocking(move || mount_layer(&of, &on, &target)).await?;
        mounted.places.insert(layer.key.clone(), Place { path: path.clone(), disk, users: 1 });
        Ok(path)
    }

    /// Lets go of a disk that is about to go, also of layers that are still said to be in use.
    pub async fn forget(&self, address: &PciAddress) {
        let mut mounted = self.mounted.lock().await;
        let of_disk: Vec<_> = mounted.places.keys().filter(|key| key.address == *address).cloned().collect();
        for key in of_disk {
            tracing::warn!(address = address.as_str(), part = key.part, "a layer in use goes with its disk");
            if let Some(place) = mounted.places.get_mut(&key) {
                place.users = 1;
            }
            release(&mut mounted, Held(vec![key])).await;
        }
    }

    /// Unmounts what nobody uses any more, so that its disk may go.
    pub async fn release(&self, held: Held) {
        release(&mut *self.mounted.lock().await, held).await;
    }
}

/// What cannot be unmounted is logged: the disk goes under its feet, and it can only be read.
async fn release(mounted: &mut Mounted, held: Held) {
    for key in held.0 {
        let Some(place) = mounted.places.get_mut(&key) else { continue };
        place.users -= 1;
        if place.users > 0 {
            continue;
        }
        let Some(Place { path, disk, .. }) = mounted.places.remove(&key) else { continue };
        let unmount = move || {
            unmount_disk(&path)?;
            std::fs::remove_dir(&path).map_err(Error::system("remove", path.display()))?;
            partition::delete(&disk, key.part).map_err(Error::system("forget a layer on", disk.display()))
        };
        if let Err(error) = blocking(unmount).await {
            tracing::warn!(%error, "an image layer stays");
        }
    }
}

fn mount_layer(layer: &Layer, disk: &Path, target: &Path) -> Result<(), Error> {
    let what = || format!("layer {} on {}", layer.key.part, disk.display());
    let part = partition::add(disk, layer.key.part, layer.start, layer.length);
    let part = part.map_err(Error::system("find", what()))?;
    let mounted = std::fs::create_dir_all(target).map_err(Error::system("create", target.display())).and_then(|()| {
        mount(Some(&part), target, Some("erofs"), MsFlags::MS_RDONLY, None::<&str>)
            .map_err(Error::system("mount as erofs", what()))
    });
    if mounted.is_err() {
        std::fs::remove_dir(target).ok();
        partition::delete(disk, layer.key.part).ok();
    }
    mounted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(pci_address: &str, part: u32) -> Message {
        Message { pci_address: pci_address.to_owned(), part, length: 4096, ..Message::default() }
    }

    #[test]
    fn the_number_of_layers_and_parts_has_limits() {
        let one = message("0000:00:05.0", 1);
        assert_eq!(Layer::parse_all(&vec![one.clone(); MAX_LAYERS]).unwrap().len(), MAX_LAYERS);
        assert!(Layer::parse_all(&[]).is_err());
        assert!(Layer::parse_all(&vec![one; MAX_LAYERS + 1]).is_err());
        for part in [0, 256] {
            assert!(Layer::parse_all(&[message("0000:00:05.0", part)]).is_err());
        }
        assert!(Layer::parse_all(&[message("../05.0", 1)]).is_err());
    }

    #[tokio::test]
    async fn a_layer_that_cannot_be_mounted_leaves_nothing() {
        let sysfs = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(sysfs.path().join("bus/pci/devices/0000:00:05.0/virtio4/block/none")).unwrap();
        let layers = Layers::new(sysfs.path().join("l"), PciBus::new(sysfs.path()));
        let wanted = Layer::parse_all(&[message("0000:00:05.0", 3)]).unwrap();
        let error = layers.acquire(&wanted).await.unwrap_err().to_string();
        assert!(error.starts_with("cannot find layer 3 on /dev/none: "), "{error}");
        assert!(layers.mounted.lock().await.places.is_empty());
        layers.release(Held(vec![wanted[0].key.clone()])).await;
    }
}
