//! Layers of images: parts of read-only disks, each mounted once however many containers are made of it.
//!
//! ```text
//! <run>/l/<k>     k counts up. Short names: 128 of them must fit the page that mount(2) takes as options
//! ```

mod dax;
mod parts;

use super::{blocking, unmount_disk};
use crate::error::Error;
use crate::id::PciAddress;
use crate::pci::PciBus;
use agent_protocol::MAX_LAYERS;
use agent_protocol::agent::Layer as Message;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use parts::{Key, Part, Parts};
use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use tokio::sync::Mutex;

/// What mount(2) takes as options, its terminator included.
pub const MAX_OPTIONS: usize = 4096;

/// What the kernel calls disks that are memory.
const MEMORY: &str = "/dev/pmem";

/// Where a layer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    part: Part,
    /// Where its content is, when it only describes it.
    devices: Vec<Part>,
}

impl Layer {
    /// Top first, as the shim lists them.
    pub fn parse_all(layers: &[Message]) -> Result<Vec<Self>, Error> {
        check_number("number of layers", layers.len())?;
        let layers = layers.iter().map(|layer| {
            check_number("number of a layer's devices", layer.devices.len())?;
            if layer.devices.iter().any(|device| !device.devices.is_empty()) {
                return Err(Error::invalid("layer", "", "a device of its has devices"));
            }
            let devices = layer.devices.iter().map(Part::parse).collect::<Result<_, _>>()?;
            Ok(Self { part: Part::parse(layer)?, devices })
        });
        layers.collect()
    }
}

fn check_number(what: &'static str, number: usize) -> Result<(), Error> {
    if number <= MAX_LAYERS {
        return Ok(());
    }
    Err(Error::invalid(what, &number.to_string(), format!("it must be at most {MAX_LAYERS}")))
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
    parts: Parts,
    places: HashMap<Key, Place>,
}

#[derive(Clone, Debug)]
struct Place {
    path: PathBuf,
    /// Partitions that are there for it.
    parts: Vec<Key>,
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
                    held.0.push(layer.part.key.clone());
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
        if let Some(place) = mounted.places.get_mut(&layer.part.key) {
            place.users += 1;
            return Ok(place.path.clone());
        }
        mounted.last += 1;
        let path = self.directory.join(mounted.last.to_string());
        let mut place = Place { path: path.clone(), parts: Vec::new(), users: 1 };
        let mut nodes = Vec::with_capacity(layer.devices.len());
        let made = async {
            for part in layer.devices.iter().chain([&layer.part]) {
                // Each look has the kernel scan the bus.
                let address = &part.key.address;
                let disk = match disks.get(address) {
                    Some(disk) => disk.clone(),
                    None => disks.entry(address.clone()).insert_entry(self.pci.disk(address).await?).get().clone(),
                };
                nodes.push(mounted.parts.add(part, disk).await?);
                place.parts.push(part.key.clone());
            }
            let target = path.clone();
            blocking(move || mount_layer(&nodes, &target)).await
        };
        if let Err(error) = made.await {
            mounted.parts.remove(&place.parts).await;
            return Err(error);
        }
        mounted.places.insert(layer.part.key.clone(), place);
        Ok(path)
    }

    /// Lets go of a disk that is about to go, also of layers that are still said to be in use.
    pub async fn forget(&self, address: &PciAddress) {
        let mut mounted = self.mounted.lock().await;
        let uses = |place: &Place| place.parts.iter().any(|part| part.address == *address);
        let of_disk = mounted.places.iter().filter(|(_, place)| uses(place)).map(|(key, _)| key.clone());
        for key in of_disk.collect::<Vec<_>>() {
            tracing::warn!(address = address.as_str(), part = key.number, "a layer in use goes with its disk");
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
        let Some(Place { path, parts, .. }) = mounted.places.remove(&key) else { continue };
        let unmount = move || {
            unmount_disk(&path)?;
            std::fs::remove_dir(&path).map_err(Error::system("remove", path.display()))
        };
        if let Err(error) = blocking(unmount).await {
            tracing::warn!(%error, "an image layer stays");
        }
        mounted.parts.remove(&parts).await;
    }
}

/// The last of `nodes` is the layer, the others are its devices.
fn mount_layer(nodes: &[PathBuf], target: &Path) -> Result<(), Error> {
    let Some((layer, devices)) = nodes.split_last() else { return Ok(()) };
    let mut options: Vec<_> = devices.iter().map(|device| format!("device={}", device.display())).collect();
    let is_memory = layer.to_string_lossy().starts_with(MEMORY);
    if is_memory {
        options.push(dax::ALWAYS.to_owned());
    }
    let options = options.join(",");
    if options.len() >= MAX_OPTIONS {
        return Err(Error::invalid("layer", "", "it has more devices than mount(2) takes"));
    }
    std::fs::create_dir_all(target).map_err(Error::system("create", target.display()))?;
    let mounted = mount(Some(layer), target, Some("erofs"), MsFlags::MS_RDONLY, Some(options.as_str()));
    let mounted = mounted.map_err(io::Error::from).and_then(|()| if is_memory { dax::check(target) } else { Ok(()) });
    if mounted.is_err() {
        umount2(target, MntFlags::MNT_DETACH).ok();
        std::fs::remove_dir(target).ok();
    }
    mounted.map_err(Error::system("mount as erofs", format!("layer {}", layer.display())))
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
        assert!(Layer::parse_all(&vec![one; MAX_LAYERS + 1]).is_err());
        for part in [0, 256] {
            assert!(Layer::parse_all(&[message("0000:00:05.0", part)]).is_err());
        }
        assert!(Layer::parse_all(&[message("../05.0", 1)]).is_err());
    }

    #[test]
    fn a_layers_devices_are_parts_without_devices() {
        let device = message("0000:00:05.0", 2);
        let of = |devices| Message { devices, ..message("0000:00:05.0", 1) };
        let layers = Layer::parse_all(&[of(vec![device.clone(); 2])]).unwrap();
        assert_eq!(layers[0].devices.len(), 2);
        assert!(Layer::parse_all(&[of(vec![device.clone(); MAX_LAYERS + 1])]).is_err());
        assert!(Layer::parse_all(&[of(vec![of(vec![device])])]).is_err());
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
        layers.release(Held(vec![wanted[0].part.key.clone()])).await;
    }
}
