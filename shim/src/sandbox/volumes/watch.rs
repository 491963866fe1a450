//! Notices that volumes changed on the node: by the kernel's notices, or by looking once a second where there are none
//! left (128 for all programs of a user, unless the operator allows more).
#![expect(unsafe_code, reason = "a descriptor is registered with the event loop")]

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::Path;
use std::time::Duration;
use tokio::io::unix::AsyncFd;

/// Between two looks without notices.
const POLL: Duration = Duration::from_secs(1);

/// A new version is more than one change: the look comes after the last of them.
const SETTLE: Duration = Duration::from_millis(100);

/// With the trait that the runtime asks for.
#[derive(Debug)]
struct Notices(Inotify);

impl AsRawFd for Notices {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// One for all volumes of a pod.
#[derive(Debug)]
pub(super) struct Watcher {
    /// `None`: changes are looked for.
    inotify: Option<AsyncFd<Notices>>,
}

impl Watcher {
    pub fn new() -> Self {
        let notices = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC);
        let notices = notices.map_err(std::io::Error::from).and_then(|inotify| {
            // SAFETY: `Notices` owns its descriptor, which stays the same and open as long as it lives.
            Ok(unsafe { AsyncFd::register(Notices(inotify)) }?)
        });
        if let Err(error) = &notices {
            tracing::warn!(%error, "no notices of changes on this node: volumes are looked at each second");
        }
        Self { inotify: notices.ok() }
    }

    /// Watches a directory. Nothing of it stays in use: it can be unmounted.
    pub fn add(&mut self, path: &Path) {
        let mask = AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_DELETE;
        let mask = mask | AddWatchFlags::IN_ONLYDIR | AddWatchFlags::IN_DONT_FOLLOW;
        let Some(inotify) = &self.inotify else { return };
        if let Err(error) = inotify.get_ref().0.add_watch(path, mask) {
            tracing::warn!(%error, "a volume cannot be watched: volumes are looked at each second");
            self.inotify = None;
        }
    }

    /// Returns when something may have changed.
    pub async fn changed(&self) {
        let Some(inotify) = &self.inotify else { return tokio::time::sleep(POLL).await };
        match inotify.readable().await {
            Ok(mut ready) => {
                drain(&inotify.get_ref().0);
                ready.clear_ready();
                tokio::time::sleep(SETTLE).await;
                drain(&inotify.get_ref().0);
            }
            Err(_) => tokio::time::sleep(POLL).await,
        }
    }
}

/// What exactly changed does not matter.
fn drain(inotify: &Inotify) {
    while let Ok(events) = inotify.read_events() {
        if events.is_empty() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[tokio::test]
    async fn a_swap_is_noticed() {
        let root = tempfile::tempdir().unwrap();
        let mut watcher = Watcher::new();
        watcher.add(root.path());
        symlink("..1", root.path().join("..data_tmp")).unwrap();
        std::fs::rename(root.path().join("..data_tmp"), root.path().join("..data")).unwrap();
        tokio::time::timeout(Duration::from_secs(2), watcher.changed()).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn without_notices_there_is_a_look_each_second() {
        let watcher = Watcher { inotify: None };
        let started = tokio::time::Instant::now();
        watcher.changed().await;
        assert_eq!(started.elapsed(), POLL);
    }
}
