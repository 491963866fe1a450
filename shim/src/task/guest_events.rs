//! What the guest tells by itself, in the background, until its microVM is gone.

use super::oom::Told;
use super::pod::Pod;
use super::vm::MicroVm;
use agent_protocol::agent::{Empty, event::Kind};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;

/// Between two events: the guest makes them.
const PAUSE: Duration = Duration::from_millis(50);

/// The same after a connection: some hundred a second are no harm.
const BRIEF: Duration = Duration::from_millis(2);

pub fn watch(pod: &Arc<Pod>, vm: &Arc<dyn MicroVm>) {
    let (pod, vm) = (pod.clone(), vm.clone());
    tokio::spawn(async move {
        let mut told = Told::default();
        while let Ok(event) = vm.agent().next_event(&Empty::new()).await {
            let pause = match event.kind {
                Some(Kind::OutOfMemory(event)) => {
                    told.tell(&pod, &event);
                    PAUSE
                }
                Some(Kind::SocketConnection(connection)) => {
                    vm.carry(&connection);
                    BRIEF
                }
                Some(Kind::MemoryWanted(_)) => {
                    vm.grow();
                    PAUSE
                }
                _ => PAUSE,
            };
            sleep(pause).await;
        }
    });
}
