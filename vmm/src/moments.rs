//! What a machine's making took. Noting it costs a look at the clock.

use nix::time::{ClockId, clock_gettime};
use vmm_protocol::{Moment, Stage};

/// The ends of the stages so far.
#[derive(Debug, Default)]
pub struct Moments(Vec<Moment>);

impl Moments {
    /// The stage has just ended.
    pub fn note(&mut self, stage: Stage) {
        let Ok(now) = clock_gettime(ClockId::CLOCK_MONOTONIC) else { return };
        let nanoseconds = now.tv_sec().saturating_mul(1_000_000_000).saturating_add(now.tv_nsec());
        self.0.push(Moment { stage, at_ns: nanoseconds.try_into().unwrap_or_default() });
    }

    /// Puts what followed behind.
    pub fn append(&mut self, mut later: Self) {
        self.0.append(&mut later.0);
    }

    pub fn into_list(self) -> Vec<Moment> {
        self.0
    }
}
