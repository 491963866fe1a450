//! When a measurement begins: at rest, and always at the same distance from the node's tick.

use anyhow::Result;
use nix::time::{ClockId, ClockNanosleepFlags, clock_gettime, clock_nanosleep};
use std::time::{Duration, Instant};

/// For what others still do after they answered: programs that end, containerd and its collector of garbage.
const SETTLE: Duration = Duration::from_secs(2);

/// A multiple of every tick that a kernel may have (`CONFIG_HZ` of 100, 250, 300 and 1000).
const PERIOD: Duration = Duration::from_millis(100);

/// After a tick, and before the next one of a kernel that has 250 in a second: neither may come a moment sooner or later.
const PHASE: Duration = Duration::from_millis(2);

/// Waits until nothing is left of what was done before, and for the tick. Returns when it is.
///
/// Who waits for a tick, or is interrupted by one more of them, would otherwise take one of two times by chance, and a median is either.
pub fn settle() -> Result<Instant> {
    let now: Duration = clock_gettime(ClockId::CLOCK_MONOTONIC)?.into();
    let begin = next(now + SETTLE);
    clock_nanosleep(ClockId::CLOCK_MONOTONIC, ClockNanosleepFlags::TIMER_ABSTIME, &begin.into())?;
    Ok(Instant::now())
}

/// The first moment after this one at which a measurement may begin.
fn next(now: Duration) -> Duration {
    let periods = now.as_nanos() / PERIOD.as_nanos() + 1;
    PERIOD * u32::try_from(periods).unwrap_or(u32::MAX) + PHASE
}

#[cfg(test)]
mod tests {
    use super::next;
    use std::time::Duration;

    #[test]
    fn measurements_begin_at_one_distance_from_a_tick() {
        let ms = Duration::from_millis;
        assert_eq!(next(ms(200)), ms(302));
        assert_eq!(next(ms(299)), ms(302));
        assert_eq!(next(Duration::from_micros(299_999)), ms(302));
    }
}
