//! The PCI bus, as sysfs shows it. There is no hot-plug controller: the shim says when to look.

use crate::error::Error;
use crate::id::PciAddress;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};

/// A driver answers within a rescan; this is for a machine that is very slow.
const DEADLINE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(5);

/// For what was written to a disk to get there. The shim gives up then.
const WRITE_BACK: Duration = Duration::from_secs(300);
const SLOW_POLL: Duration = Duration::from_millis(500);

/// What is between a device that is memory and its disk, by the beginnings of names.
const MEMORY: [&str; 3] = ["ndbus", "region", "namespace"];

#[derive(Clone, Debug)]
pub struct PciBus {
    sysfs: Arc<Path>,
    /// Held while devices come or go: what a rescan is about to find is not there yet for who removes it.
    change: Arc<Mutex<()>>,
}

impl PciBus {
    /// `sysfs` is `/sys`, except in tests.
    pub fn new(sysfs: &Path) -> Self {
        Self { sysfs: sysfs.join("bus/pci").into(), change: Arc::default() }
    }

    /// Has the kernel find devices that were attached. Returns when their drivers are bound.
    pub async fn rescan(&self) -> Result<(), Error> {
        let _change = self.change.lock().await;
        write(self.sysfs.join("rescan")).await
    }

    /// The same, if it has not found the device at `address` before.
    pub async fn find_new(&self, address: &PciAddress) -> Result<(), Error> {
        if self.device(address).exists() { Ok(()) } else { self.rescan().await }
    }

    /// Has the kernel let go of a device that it will not find again. One that is gone already is no error.
    pub async fn remove(&self, address: &PciAddress) -> Result<(), Error> {
        if let Some(disk) = self.look(address, "block") {
            unused(Path::new("/dev").join(disk)).await;
        }
        let _change = self.change.lock().await;
        let device = self.device(address);
        if device.exists() { write(device.join("remove")).await } else { Ok(()) }
    }

    /// The device node of a disk that was attached at `address`.
    pub async fn disk(&self, address: &PciAddress) -> Result<PathBuf, Error> {
        self.rescan().await?;
        self.settle(address).await?;
        Ok(Path::new("/dev").join(self.find("disk", address, "block").await?))
    }

    /// The name that the kernel gave the network interface at `address`, which a rescan has found.
    pub async fn interface(&self, address: &PciAddress) -> Result<String, Error> {
        self.find("interface", address, "net").await
    }

    /// The driver of memory goes on after a rescan: its disk has a name before it can be opened, and loses partitions that
    /// it is given too early. Whoever reads this file waits for the driver.
    async fn settle(&self, address: &PciAddress) -> Result<(), Error> {
        let bus = below(&self.device(address), "virtio").and_then(|virtio| below(&virtio, MEMORY[0]));
        let Some(file) = bus.map(|bus| bus.join("wait_probe")) else { return Ok(()) };
        let shown = file.display().to_string();
        let read = tokio::task::spawn_blocking(move || std::fs::read(file)).await;
        read.map_err(std::io::Error::other).flatten().map_err(Error::system("read", shown))?;
        Ok(())
    }

    /// `<device>/virtio<n>/<class>/<name>`, when it is there; of memory
    /// `<device>/virtio<n>/ndbus<n>/region<n>/namespace<n>.<n>/<class>/<name>`.
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
        let mut place = below(&self.device(address), "virtio")?;
        for part in MEMORY {
            match below(&place, part) {
                Some(next) => place = next,
                None => break,
            }
        }
        let name = std::fs::read_dir(place.join(class)).ok()?.flatten().next()?;
        name.file_name().into_string().ok()
    }

    fn device(&self, address: &PciAddress) -> PathBuf {
        self.sysfs.join("devices").join(address.as_str())
    }
}

/// The directory in `directory` that has a name which begins so. (A region has a file `namespace_seed` too.)
fn below(directory: &Path, prefix: &str) -> Option<PathBuf> {
    let mut entries = std::fs::read_dir(directory).ok()?.flatten();
    let found = entries.find(|entry| {
        entry.file_name().as_encoded_bytes().starts_with(prefix.as_bytes())
            && entry.file_type().is_ok_and(|kind| kind.is_dir())
    });
    found.map(|entry| entry.path())
}

/// Waits until a disk is not mounted any more. The removal of one that is, or that is still written to while it is unmounted, would hold the
/// lock of the bus as long as that takes, and nothing could be attached.
async fn unused(disk: PathBuf) {
    let end = Instant::now() + WRITE_BACK;
    let mut pause = POLL;
    loop {
        let disk = disk.clone();
        let open = move || std::fs::File::options().read(true).custom_flags(libc::O_EXCL).open(disk).map(drop);
        let busy = |error: std::io::Error| error.kind() == std::io::ErrorKind::ResourceBusy;
        if !tokio::task::spawn_blocking(open).await.is_ok_and(|opened| opened.is_err_and(busy)) {
            return;
        }
        if Instant::now() > end {
            tracing::warn!("a disk is in use, and is removed");
            return;
        }
        sleep(pause).await;
        pause = (2 * pause).min(SLOW_POLL);
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

    #[tokio::test]
    async fn memory_is_found_where_its_driver_puts_it() {
        let (sysfs, bus) = bus();
        let device = "bus/pci/devices/0000:00:07.0/virtio5/ndbus1/region1/namespace1.0/block/pmem1";
        std::fs::create_dir_all(sysfs.path().join(device)).unwrap();
        let seed = "bus/pci/devices/0000:00:07.0/virtio5/ndbus1/region1/namespace_seed";
        std::fs::write(sysfs.path().join(seed), "namespace1.0\n").unwrap();
        let address = PciAddress::parse("0000:00:07.0").unwrap();
        let error = bus.disk(&address).await.unwrap_err().to_string();
        assert!(error.contains("ndbus1/wait_probe: No such file"), "{error}");
        std::fs::write(sysfs.path().join("bus/pci/devices/0000:00:07.0/virtio5/ndbus1/wait_probe"), "1\n").unwrap();
        assert_eq!(bus.disk(&address).await.unwrap(), Path::new("/dev/pmem1"));
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
