//! Memory that a guest gets while it runs, up to its pod's size.
//!
//! The guest says that it will need more, and nothing else. How much that is and where it ends is decided here: in steps of half of
//! what it has, so that a guest which always wants more has all of it after a few.

use super::{Inner, SandboxError};
use agent_protocol::agent::AddMemoryRequest;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::Mutex;
use vmm_protocol::MEMORY_BLOCK_MIB;

/// Linux adds memory in pieces of this size, each with all of its page structures.
const STEP_MIB: u32 = 128;

/// What a machine has and may have.
#[derive(Debug)]
pub(super) struct Memory {
    started_mib: u32,
    growth_mib: u32,
    /// Besides what it has started with. Held while the guest takes what it is given.
    given: Mutex<Given>,
    /// Somebody waits for the next piece.
    waited_for: AtomicBool,
}

#[derive(Debug, Default)]
struct Given {
    mib: u32,
    failed: bool,
}

impl Memory {
    pub fn new(started_mib: u32, growth_mib: u32) -> Self {
        Self { started_mib, growth_mib, given: Mutex::default(), waited_for: AtomicBool::new(false) }
    }

    /// What the guest has from the start.
    pub fn started_mib(&self) -> u32 {
        self.started_mib
    }

    /// What comes after `given`, all of it.
    fn next(&self, given: u32) -> Option<u32> {
        let has = self.started_mib.saturating_add(given);
        let step = (has / 2).checked_next_multiple_of(STEP_MIB)?.max(STEP_MIB);
        (given < self.growth_mib).then(|| given.saturating_add(step).min(self.growth_mib))
    }
}

/// Gives a guest the next piece, in the background. While it takes one it may ask for another, and no more.
pub(super) fn grow(inner: &Arc<Inner>) {
    if inner.memory.waited_for.swap(true, Ordering::AcqRel) {
        return;
    }
    let inner = Arc::clone(inner);
    tokio::spawn(async move {
        let mut given = inner.memory.given.lock().await;
        inner.memory.waited_for.store(false, Ordering::Release);
        let Some(mib) = inner.memory.next(given.mib).filter(|_| !given.failed) else { return };
        match give(&inner, mib).await {
            Ok(()) => {
                tracing::debug!(mib = inner.memory.started_mib + mib, "the guest has more memory");
                given.mib = mib;
            }
            // The node is busy. The guest asks again, and what is given is a total.
            Err(error) if error.is_deadline() => tracing::warn!(%error, "the guest gets memory later"),
            Err(error) => {
                // It goes on with what it has. Asking again would not help, and the guest may ask for ever.
                tracing::warn!(%error, "the guest gets no more memory");
                given.failed = true;
                // Best effort: it waits for a while only.
                let _ = inner.agent.add_memory(&AddMemoryRequest::default()).await;
            }
        }
    });
}

async fn give(inner: &Inner, mib: u32) -> Result<(), SandboxError> {
    let address = inner.vmm.grow(mib).await?;
    let request = AddMemoryRequest { pci_address: address.to_string(), mib, ..AddMemoryRequest::default() };
    inner.agent.add_memory(&request).await?;
    Ok(())
}

/// Of memory that comes later: whole blocks.
pub(super) fn growth(started_mib: u32, most_mib: u32) -> u32 {
    most_mib.saturating_sub(started_mib).next_multiple_of(MEMORY_BLOCK_MIB)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(started: u32, growth: u32) -> Vec<u32> {
        let memory = Memory::new(started, growth);
        std::iter::successors(Some(0), |given| memory.next(*given)).skip(1).collect()
    }

    #[test]
    fn a_guest_that_always_wants_more_has_its_pods_size_after_a_few_steps() {
        assert_eq!(steps(128, 384), [128, 256, 384]);
        assert_eq!(steps(128, 42), [42]);
        assert!(steps(128, 0).is_empty());
        let large = steps(128, (1 << 20) - 128);
        assert_eq!((large.len(), large.last()), (22, Some(&((1 << 20) - 128))));
        assert!(large.iter().rev().skip(1).all(|mib| mib % STEP_MIB == 0));
    }

    #[test]
    fn growth_is_whole_blocks() {
        assert_eq!(growth(128, 169), 42);
        assert_eq!(growth(128, 512), 384);
        assert_eq!(growth(128, 128), 0);
        assert_eq!(growth(128, 64), 0);
        assert_eq!(growth(128, vmm_protocol::MAX_MEMORY_MIB), vmm_protocol::MAX_MEMORY_MIB - 128);
    }
}
