//! The guest's wall clock follows the node's.
//!
//! A guest counts time by the processor alone: it hears nothing of what the node's clock is corrected by, which is seconds in a day, or hours
//! when a node has just started.

#![expect(unsafe_code, reason = "AsyncFd::register takes the caller's word that the descriptor stays")]

use super::{Agent, AgentError};
use crate::clock::since_epoch;
use agent_protocol::agent::AdjustClockRequest;
use nix::errno::Errno;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, SystemTime};
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::time::Instant;

/// Between two looks. A counter whose rate is known to a hundred millionths is off by 30 ms then.
const INTERVAL: Duration = Duration::from_secs(300);

/// An answer that came faster tells the time well enough.
const QUICK: Duration = Duration::from_millis(10);
const TRIES: usize = 3;

/// A difference that is not worth a call.
const TOLERANCE: Duration = Duration::from_millis(1);

/// Keeps it right until the microVM is gone.
pub(super) async fn keep(agent: Agent, mut stopped: watch::Receiver<Option<String>>) {
    loop {
        let due = tokio::select! {
            due = due() => due,
            _ = stopped.wait_for(Option::is_some) => return,
        };
        let corrected = match due {
            Ok(()) => correct(&agent).await,
            Err(error) => return tracing::warn!(%error, "the guest's clock is left to itself"),
        };
        if let Err(error) = corrected {
            tracing::debug!(%error, "the guest's clock was not compared");
        }
    }
}

/// Returns after the interval, or when somebody has set the node's clock.
async fn due() -> io::Result<()> {
    let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
    let timer = TimerFd::new(ClockId::CLOCK_REALTIME, flags)?;
    let end = TimeSpec::from_duration(since_epoch(SystemTime::now()) + INTERVAL);
    let cancelled = TimerSetTimeFlags::TFD_TIMER_ABSTIME | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET;
    match timer.set(Expiration::OneShot(end), cancelled) {
        Err(Errno::ECANCELED) => return Ok(()),
        result => result?,
    }
    // SAFETY: the descriptor is owned, and stays the same until it is closed with this value.
    let timer = unsafe { AsyncFd::register(OwnedFd::from(timer)) }?;
    // In both cases.
    timer.readable().await.map(drop)
}

async fn correct(agent: &Agent) -> Result<(), AgentError> {
    let mut best: Option<Look> = None;
    for _ in 0..TRIES {
        let (node, asked) = (since_epoch(SystemTime::now()), Instant::now());
        let guest = agent.adjust_clock(&AdjustClockRequest::default()).await?.time_ns;
        let look = Look { node, took: asked.elapsed(), guest: Duration::from_nanos(guest) };
        best = best.filter(|best| best.took <= look.took).or(Some(look));
        if look.took < QUICK {
            break;
        }
    }
    let Some(by_ns) = best.and_then(Look::correction) else { return Ok(()) };
    tracing::debug!(by_ns, "the guest's clock is corrected");
    agent.adjust_clock(&AdjustClockRequest { by_ns, ..AdjustClockRequest::default() }).await.map(drop)
}

/// Both clocks, since 1970.
#[derive(Clone, Copy, Debug)]
struct Look {
    /// Before the guest was asked.
    node: Duration,
    took: Duration,
    guest: Duration,
}

impl Look {
    /// What the guest's clock is to be moved by, in nanoseconds, if that is more than nobody knows: the guest looked at its clock at any time until
    /// it answered.
    fn correction(self) -> Option<i64> {
        let middle = self.node + self.took / 2;
        let by = i128::try_from(middle.as_nanos()).ok()? - i128::try_from(self.guest.as_nanos()).ok()?;
        let unknown = (self.took / 2 + TOLERANCE).as_nanos();
        (by.unsigned_abs() > unknown).then(|| i64::try_from(by).ok()).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn correction(took_ms: u64, guest_ms: u64) -> Option<i64> {
        let look = Look {
            node: Duration::from_secs(1000),
            took: Duration::from_millis(took_ms),
            guest: Duration::from_millis(guest_ms),
        };
        look.correction()
    }

    #[test]
    fn a_guest_is_corrected_by_what_is_known() {
        assert_eq!(correction(4, 1_000_002), None);
        assert_eq!(correction(4, 1_000_005), None);
        assert_eq!(correction(4, 1_000_006), Some(-4_000_000));
        assert_eq!(correction(4, 999_000), Some(1_002_000_000));
        // An answer that took long may have been right when it left.
        assert_eq!(correction(100, 1_000_100), None);
        let far = Look { node: Duration::ZERO, took: Duration::ZERO, guest: Duration::from_nanos(u64::MAX) };
        assert_eq!(far.correction(), None, "nobody's clock is that wrong");
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_due_at_once() {
        assert!(tokio::time::timeout(Duration::from_millis(50), due()).await.is_err());
    }
}
