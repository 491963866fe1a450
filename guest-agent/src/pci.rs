//! The PCI bus, as sysfs shows it. There is no hot-plug controller: the shim says when to look.

use crate::error::Error;
use crate::id::PciAddress;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// A driver answers within a rescan; this is for a machine that is very slow.
const DEADLINE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(5);

#[derive(Clone, Debug)]
pub struct PciBus {
    sysfs: Arc<Path>,
}

impl PciBus {
    /// `sysfs` is `/sys`, except in tests.
    pub fn new(sysfs: &Path) -> Self {
        Self { sysfs: sysfs.join("bus/pci").into() }
    }

    /// Has the kernel find devices that were attached. Returns when their drivers are bound.
    pub async fn rescan(&self) -> Result<(), Error> {
        write(self.sysfs.join("rescan")).await
    }

    /// Has the kernel let go of a device. One that is gone already is no error.
    pub async fn remove(&self, address: &PciAddress) -> Result<(), Error> {
        let device = self.device(address);
        if !device.exists() {
            return Ok(());
        }
        write(device.join("remove")).await
    }

    /// The device node of a disk that was attached at `address`.
    pub async fn disk(&self, address: &PciAddress) -> Result<PathBuf, Error> {
        self.rescan().await?;
        Ok(Path::new("/dev").join(self.find("disk", address, "block").await?))
    }

    /// The name that the kernel gave the network interface at `address`, which a rescan has found.
    pub async fn interface(&self, address: &PciAddress) -> Result<String, Error> {
        self.find("interface", address, "net").await
    }

    /// `<device>/virtio<n>/<class>/<name>`, when it is there.
    async fn find(&self, what: &'static str, address: &PciAddress, class: &str) -> Result<String, Error> {
        let found = async {
            loop {
                if let Some(name) = self.look(address, class) {
                    return name;
                }
                tokio::time::sleep(POLL).await;
            }
        };
        let late = |_| Error::Deadline {
            operation: "finding the",
            object: format!("{what} at {}", address.as_str()),
            seconds: DEADLINE.as_secs(),
        };
        tokio::time::timeout(DEADLINE, found).await.map_err(late)
    }

    fn look(&self, address: &PciAddress, class: &str) -> Option<String> {
        let names = |path: PathBuf| std::fs::read_dir(path).into_iter().flatten().flatten();
        let virtio =
            names(self.device(address)).find(|entry| entry.file_name().as_encoded_bytes().starts_with(b"virtio"))?;
        let name = names(virtio.path().join(class)).next()?;
        name.file_name().into_string().ok()
    }

    fn device(&self, address: &PciAddress) -> PathBuf {
        self.sysfs.join("devices").join(address.as_str())
    }
}

/// The write returns when the kernel is done, so it must not hold the event loop.
async fn write(path: PathBuf) -> Result<(), Error> {
    let shown = path.display().to_string();
    let written = tokio::task::spawn_blocking(move || std::fs::write(path, "1")).await;
    written.map_err(std::io::Error::other).flatten().map_err(Error::system("write to", shown))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bus() -> (tempfile::TempDir, PciBus) {
        let sysfs = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(sysfs.path().join("bus/pci/devices/0000:00:05.0/virtio4/block/vdb")).unwrap();
        let bus = PciBus::new(sysfs.path());
        (sysfs, bus)
    }

    #[tokio::test]
    async fn a_disk_is_found_by_its_address_after_a_rescan() {
        let (sysfs, bus) = bus();
        let address = PciAddress::parse("0000:00:05.0").unwrap();
        assert_eq!(bus.disk(&address).await.unwrap(), Path::new("/dev/vdb"));
        assert_eq!(std::fs::read_to_string(sysfs.path().join("bus/pci/rescan")).unwrap(), "1");
    }

    #[tokio::test(start_paused = true)]
    async fn a_disk_that_never_comes_is_an_error_with_its_address() {
        let (_sysfs, bus) = bus();
        let error = bus.disk(&PciAddress::parse("0000:00:06.0").unwrap()).await.unwrap_err();
        assert_eq!(error.to_string(), "finding the disk at 0000:00:06.0 took longer than 10 s");
    }

    #[tokio::test]
    async fn removal_is_idempotent() {
        let (sysfs, bus) = bus();
        bus.remove(&PciAddress::parse("0000:00:06.0").unwrap()).await.unwrap();
        bus.remove(&PciAddress::parse("0000:00:05.0").unwrap()).await.unwrap();
        assert!(sysfs.path().join("bus/pci/devices/0000:00:05.0/remove").exists());
    }
}
