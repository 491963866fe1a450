//! How vCPU threads ask the main thread for work.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Wake, Waker};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const ROUTES: u64 = 1 << 63;

/// What the main thread has to look at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted(u64);

impl Wanted {
    /// Interrupt routes are stale.
    pub fn routes(self) -> bool {
        self.0 & ROUTES != 0
    }

    /// Slots whose function wants to be serviced.
    pub fn slots(self) -> impl Iterator<Item = u8> {
        (0..32).filter(move |slot| self.0 & (1 << slot) != 0)
    }
}

/// Requests collapse: a guest that asks a million times costs one round of the main thread at a time.
#[derive(Debug)]
pub struct Attention {
    wanted: AtomicU64,
    event: EventFd,
}

impl Attention {
    pub fn new() -> io::Result<Self> {
        Ok(Self { wanted: AtomicU64::new(0), event: EventFd::new(EFD_NONBLOCK)? })
    }

    /// Readable while something is wanted.
    pub fn event(&self) -> &EventFd {
        &self.event
    }

    pub fn want_service(&self, slot: u8) {
        self.want(1 << (slot % 32));
    }

    /// Lets the threads of a slot's device ask for service too.
    pub fn waker(self: &Arc<Self>, slot: u8) -> Waker {
        Waker::from(Arc::new(Slot { attention: Arc::clone(self), slot }))
    }

    pub fn want_routes(&self) {
        self.want(ROUTES);
    }

    fn want(&self, bits: u64) {
        // The bits first: whoever sees the event must see them.
        if self.wanted.fetch_or(bits, Ordering::AcqRel) & bits != bits
            && let Err(error) = self.event.write(1)
        {
            crate::guest_warn!(%error, "cannot wake the main thread");
        }
    }

    /// Takes what is wanted.
    pub fn take(&self) -> Wanted {
        // The event first: bits that are set after it raise it again. Nothing to read is fine.
        let _ = self.event.read();
        Wanted(self.wanted.swap(0, Ordering::AcqRel))
    }
}

#[derive(Debug)]
struct Slot {
    attention: Arc<Attention>,
    slot: u8,
}

impl Wake for Slot {
    fn wake(self: Arc<Self>) {
        self.attention.want_service(self.slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_collapse_until_they_are_taken() {
        let attention = Attention::new().unwrap();
        for _ in 0..1000 {
            attention.want_service(3);
            attention.want_service(31);
            attention.want_routes();
        }
        assert!(attention.event().read().unwrap() <= 3);
        attention.want_service(4);
        let wanted = attention.take();
        assert!(wanted.routes());
        assert_eq!(wanted.slots().collect::<Vec<_>>(), [3, 4, 31]);
        assert_eq!(attention.take(), Wanted::default());
    }
}
