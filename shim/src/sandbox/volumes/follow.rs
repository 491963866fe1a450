//! Brings updates of volumes into the guest, until the pod ends.

use super::placed::{Kind, Placed};
use super::read::ReadError;
use super::watch::Watcher;
use super::{PlaceError, Pod, Room};
use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// After a change: older kubelets set owners and modes of a new version after its swap. Also after a failure.
const AGAIN: Duration = Duration::from_secs(1);

pub(super) async fn follow(pod: Arc<Pod>) {
    let mut stopped = pod.stopped.clone();
    tokio::select! {
        // A sender that was dropped means the same.
        _ = stopped.wait_for(Option::is_some) => {}
        () = look_for_ever(&pod) => {}
    }
}

async fn look_for_ever(pod: &Pod) {
    let mut watcher = Watcher::new();
    let mut watched = HashSet::new();
    let mut again = true;
    loop {
        let change = async {
            tokio::select! {
                () = watcher.changed() => {}
                () = pod.added.notified() => {}
            }
        };
        if again {
            let _ = timeout(AGAIN, change).await;
        } else {
            change.await;
        }
        let mut state = pod.state.lock().await;
        let bytes = state.bytes();
        again = false;
        for volume in state.volumes.values_mut().filter(|volume| volume.source.kind == Kind::Directory) {
            // Watched first: what changes after the look is noticed.
            if watched.insert(volume.id.clone()) {
                watcher.add(&volume.source.path);
            }
            let others = bytes.saturating_sub(volume.bytes());
            look(pod, volume, pod.room(others)).await;
            again |= volume.again;
        }
    }
}

async fn look(pod: &Pod, volume: &mut Placed, room: Room) {
    let version = match volume.source.version().await {
        Ok(version) => version,
        Err(error) => return given_up(volume, &error),
    };
    let changed = version != volume.version;
    if !changed && !volume.again {
        return;
    }
    (volume.version, volume.again) = (version, changed);
    match volume.refresh(&pod.agent, room).await {
        Ok(()) => {}
        Err(PlaceError::Read(error @ (ReadError::Replaced | ReadError::Io(_)))) => given_up(volume, &error),
        Err(PlaceError::Agent(error)) => {
            tracing::warn!(volume = volume.id, %error, "an update of a volume did not reach the guest");
            volume.again = true;
        }
        Err(error) => {
            // The containers keep what they have until there is a version that can be had.
            tracing::warn!(volume = volume.id, source = %volume.source.path.display(), %error, "a volume is not updated");
            volume.again = matches!(error, PlaceError::Read(ReadError::Changing));
        }
    }
}

/// kubelet removes the volumes of a pod before the pod is gone.
fn given_up(volume: &mut Placed, error: &ReadError) {
    volume.again = false;
    let gone = matches!(error, ReadError::Io(error) if error.kind() == io::ErrorKind::NotFound);
    if !gone {
        tracing::debug!(volume = volume.id, %error, "a volume is not looked at");
    }
}
