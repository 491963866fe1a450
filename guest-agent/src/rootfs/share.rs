//! The pod's file share: one virtio-fs mount, made when the first container needs it.

use crate::error::Error;
use crate::pci::PciBus;
use agent_protocol::{SHARE_MOUNT, SHARE_TAG};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use std::time::Duration;
use tokio::sync::Mutex;

const DEADLINE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(5);

#[derive(Debug)]
pub struct Share {
    pci: PciBus,
    mounted: Mutex<bool>,
}

impl Share {
    pub fn new(pci: PciBus) -> Self {
        Self { pci, mounted: Mutex::new(false) }
    }

    /// For tests, which put a directory where the share would be.
    pub fn already_mounted(pci: PciBus) -> Self {
        Self { pci, mounted: Mutex::new(true) }
    }

    /// The share is mounted when this returns.
    pub async fn ensure(&self) -> Result<(), Error> {
        let mut mounted = self.mounted.lock().await;
        if *mounted {
            return Ok(());
        }
        std::fs::create_dir_all(SHARE_MOUNT).map_err(Error::system("create", SHARE_MOUNT))?;
        self.pci.rescan().await?;
        let late =
            |_| Error::Deadline { operation: "mounting", object: SHARE_MOUNT.to_owned(), seconds: DEADLINE.as_secs() };
        tokio::time::timeout(DEADLINE, appear()).await.map_err(late)??;
        *mounted = true;
        Ok(())
    }
}

async fn appear() -> Result<(), Error> {
    loop {
        let attempt = || mount(Some(SHARE_TAG), SHARE_MOUNT, Some("virtiofs"), MsFlags::empty(), None::<&str>);
        let result = tokio::task::spawn_blocking(attempt).await.map_err(Error::system("run", "a thread"))?;
        match result {
            Ok(()) => return Ok(()),
            // What the kernel answers when no device has the tag (yet).
            Err(Errno::EINVAL) => tokio::time::sleep(POLL).await,
            Err(errno) => return Err(Error::system("mount", SHARE_MOUNT)(errno)),
        }
    }
}
