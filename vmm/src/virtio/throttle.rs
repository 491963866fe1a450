//! How fast a guest may use a disk: so many bytes and operations a second, and a second's worth at once.
//!
//! Each limit keeps the moment at which everything that was let through would be done at its rate. It is computed from
//! elapsed time alone, so that no timer's coarseness changes the rate.

use std::time::{Duration, Instant};
use vmm_protocol::RateLimit;

/// How far a disk that was idle may run ahead of its rate.
const BURST: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct Throttle {
    bytes: Option<Pace>,
    operations: Option<Pace>,
}

impl Throttle {
    pub fn new(limit: RateLimit, now: Instant) -> Self {
        let pace = |rate| Pace { rate, done: now };
        let operations = limit.operations_per_second.map(|rate| pace(u64::from(rate.get())));
        Self { bytes: limit.bytes_per_second.map(|rate| pace(rate.get())), operations }
    }

    /// Counts an operation that moves so many bytes.
    pub fn count(&mut self, bytes: u64, now: Instant) {
        for (pace, units) in [(&mut self.bytes, bytes), (&mut self.operations, 1)] {
            if let Some(pace) = pace {
                pace.count(units, now);
            }
        }
    }

    /// When the next operation may begin; `None` is at once.
    pub fn next(&self, now: Instant) -> Option<Instant> {
        let paces = [&self.bytes, &self.operations].into_iter().flatten();
        paces.filter_map(|pace| pace.done.checked_sub(BURST)).max().filter(|moment| *moment > now)
    }
}

#[derive(Debug)]
struct Pace {
    /// Units a second; not zero.
    rate: u64,
    done: Instant,
}

impl Pace {
    fn count(&mut self, units: u64, now: Instant) {
        let nanoseconds = u128::from(units) * 1_000_000_000 / u128::from(self.rate);
        let duration = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
        let from = self.done.max(now);
        // Centuries from now: the guest asked for more than there is.
        self.done = from.checked_add(duration).unwrap_or(from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::{NonZeroU32, NonZeroU64};

    fn throttle(bytes: u64, operations: u32, now: Instant) -> Throttle {
        let limit =
            RateLimit { bytes_per_second: NonZeroU64::new(bytes), operations_per_second: NonZeroU32::new(operations) };
        Throttle::new(limit, now)
    }

    /// How long so many operations of so many bytes take when each begins as soon as it may.
    fn elapsed(throttle: &mut Throttle, start: Instant, operations: u32, bytes: u64) -> Duration {
        let mut now = start;
        for _ in 0..operations {
            throttle.count(bytes, now);
            now = throttle.next(now).unwrap_or(now);
        }
        now - start
    }

    #[test]
    fn a_rate_holds_for_any_size_of_request_after_a_second_at_once() {
        let start = Instant::now();
        for size in [1_u64, 500, 4000, 100_000, 1_000_000] {
            let operations = u32::try_from(5_000_000 / size).unwrap();
            let took = elapsed(&mut throttle(1_000_000, 0, start), start, operations, size);
            assert_eq!(took, Duration::from_secs(4), "requests of {size} bytes");
        }
        let took = elapsed(&mut throttle(0, 1000, start), start, 5000, 1 << 20);
        assert_eq!(took, Duration::from_secs(4));
    }

    #[test]
    fn the_slower_limit_counts() {
        let start = Instant::now();
        assert_eq!(elapsed(&mut throttle(1_000_000, 10, start), start, 50, 1000), Duration::from_secs(4));
        assert_eq!(elapsed(&mut throttle(1000, 1_000_000, start), start, 5, 1000), Duration::from_secs(4));
    }

    #[test]
    fn idle_time_saves_one_second_and_no_more() {
        let start = Instant::now();
        let mut throttle = throttle(1000, 0, start);
        throttle.count(1000, start);
        assert_eq!(throttle.next(start), None);
        let later = start + Duration::from_secs(60);
        throttle.count(1000, later);
        assert_eq!(throttle.next(later), None);
        throttle.count(1000, later);
        assert_eq!(throttle.next(later), Some(later + Duration::from_secs(1)));
    }

    #[test]
    fn numbers_beyond_time_do_not_overflow() {
        let start = Instant::now();
        let mut throttle = throttle(1, 1, start);
        throttle.count(u64::MAX, start);
        throttle.count(u64::MAX, start);
        assert!(throttle.next(start).is_some());
    }
}
