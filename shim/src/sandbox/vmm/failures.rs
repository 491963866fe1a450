//! Devices that the node fails: the guest sees only errors, so that the shim's log is where an operator learns why.

use super::super::spec::PodName;
use super::client::Said;
use crate::sandbox::agent::printable;
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;
use vmm_protocol::DeviceId;

/// What the attached devices are, in words for the operator.
#[derive(Clone, Debug, Default)]
pub(super) struct Names(Arc<Mutex<HashMap<DeviceId, String>>>);

impl Names {
    pub fn insert(&self, device: DeviceId, name: &str) {
        self.lock().insert(device, name.to_owned());
    }

    pub fn remove(&self, device: DeviceId) {
        self.lock().remove(&device);
    }

    fn of(&self, device: DeviceId) -> String {
        self.lock().get(&device).cloned().unwrap_or_else(|| format!("device {}", device.0))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<DeviceId, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Logs each failure once, until the VMM is gone.
pub(super) async fn log(pod: PodName, names: Names, mut said: watch::Receiver<Said>) {
    let mut logged = BTreeSet::new();
    loop {
        let (failed, closed) = {
            let said = said.borrow_and_update();
            (said.failed.clone(), said.closed.is_some())
        };
        for (device, reason) in failed.into_iter().filter(|(device, _)| logged.insert(*device)) {
            let PodName { name, namespace } = &pod;
            let (device, reason) = (names.of(DeviceId(device)), printable(&reason));
            tracing::warn!(pod_name = name, pod_namespace = namespace, "{device}: {reason}; the guest gets I/O errors");
        }
        if closed || said.changed().await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_goes_by_its_name_while_it_is_attached() {
        let names = Names::default();
        names.insert(DeviceId(3), "disk /x of container web");
        assert_eq!(names.of(DeviceId(3)), "disk /x of container web");
        names.remove(DeviceId(3));
        assert_eq!(names.of(DeviceId(3)), "device 3");
    }
}
