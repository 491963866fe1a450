//! When the guest was done with what: the part of a trace that only the guest knows.

use agent_protocol::agent;
use nix::time::{ClockId, clock_gettime};

/// The ends of stages that follow each other. Noting one costs a look at the clock.
#[derive(Clone, Debug, Default)]
pub struct Moments(Vec<(&'static str, u64)>);

impl Moments {
    /// The stage has just ended.
    pub fn note(&mut self, stage: &'static str) {
        self.0.push((stage, now()));
    }

    pub fn append(&mut self, mut later: Self) {
        self.0.append(&mut later.0);
    }

    /// What the shim is told.
    pub fn answer(self) -> agent::Moments {
        let moment =
            |(name, at_ns): (&str, u64)| agent::Moment { name: name.to_owned(), at_ns, ..agent::Moment::default() };
        let ended = self.0.into_iter().map(moment).collect();
        agent::Moments { now_ns: now(), ended, ..agent::Moments::default() }
    }
}

/// Nanoseconds since the guest's kernel began.
fn now() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(0, |time| time.tv_sec() * 1_000_000_000 + time.tv_nsec());
    time.try_into().unwrap_or_default()
}
