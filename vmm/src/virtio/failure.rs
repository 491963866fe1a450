//! What goes wrong with a device on the node's side, told once for each device: the guest only sees errors, and the
//! operator would see nothing.

use nix::errno::Errno;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use vmm_protocol::DeviceId;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Why a device cannot do what the guest asks of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The node has no place for what the guest writes.
    Full,
    /// The same, for the owner of the disk.
    Quota,
    /// The node's kernel could not keep what it had taken.
    LostWrite,
    /// What the disk consists of is shorter than it was.
    Cut,
    /// The node's kernel refuses.
    Backend(Errno),
}

impl From<&io::Error> for Failure {
    fn from(error: &io::Error) -> Self {
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOSPC) => Self::Full,
            Some(Errno::EDQUOT) => Self::Quota,
            Some(errno) => Self::Backend(errno),
            None => Self::Cut,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => formatter.write_str("the node's disk is full"),
            Self::Quota => formatter.write_str("the quota on the node's disk is used up"),
            Self::LostWrite => {
                formatter.write_str("the node lost something that was written to it, and it takes no more writes")
            }
            Self::Cut => formatter.write_str("its file on the node is shorter than it was"),
            Self::Backend(errno) => write!(formatter, "its disk on the node fails or is gone: {}", errno.desc()),
        }
    }
}

/// What devices have told, for the main thread.
#[derive(Debug)]
pub struct Failures {
    told: Mutex<Vec<(DeviceId, Failure)>>,
    event: EventFd,
}

impl Failures {
    pub fn new() -> io::Result<Self> {
        Ok(Self { told: Mutex::new(Vec::new()), event: EventFd::new(EFD_NONBLOCK)? })
    }

    /// Readable while there is something to take.
    pub fn event(&self) -> &EventFd {
        &self.event
    }

    pub fn take(&self) -> Vec<(DeviceId, Failure)> {
        // The event first: what is told after it raises it again. Nothing to read is fine.
        let _ = self.event.read();
        std::mem::take(&mut self.told.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn reporter(self: &Arc<Self>, device: DeviceId) -> Reporter {
        Reporter { failures: Arc::clone(self), device, reported: AtomicBool::new(false) }
    }
}

/// One device's way to tell.
#[derive(Debug)]
pub struct Reporter {
    failures: Arc<Failures>,
    device: DeviceId,
    reported: AtomicBool,
}

impl Reporter {
    /// Only the first failure is passed on.
    pub fn report(&self, failure: Failure) {
        if self.reported.swap(true, Ordering::Relaxed) {
            return;
        }
        self.failures.told.lock().unwrap_or_else(PoisonError::into_inner).push((self.device, failure));
        if let Err(error) = self.failures.event.write(1) {
            tracing::warn!(%error, "cannot wake the main thread");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_device_tells_its_first_failure_alone() {
        let failures = Arc::new(Failures::new().unwrap());
        let [one, other] = [1, 2].map(|id| failures.reporter(DeviceId(id)));
        one.report(Failure::Full);
        one.report(Failure::LostWrite);
        other.report(Failure::Cut);
        assert_eq!(failures.take(), [(DeviceId(1), Failure::Full), (DeviceId(2), Failure::Cut)]);
        one.report(Failure::Quota);
        assert_eq!(failures.take(), []);
        assert!(failures.event().read().is_err());
    }

    #[test]
    fn the_nodes_errors_are_told_apart() {
        let of = |errno| Failure::from(&io::Error::from_raw_os_error(errno));
        assert_eq!(of(libc::ENOSPC), Failure::Full);
        assert_eq!(of(libc::EDQUOT), Failure::Quota);
        assert_eq!(of(libc::EIO), Failure::Backend(Errno::EIO));
        assert_eq!(Failure::from(&io::Error::from(io::ErrorKind::UnexpectedEof)), Failure::Cut);
    }
}
