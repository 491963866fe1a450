//! How many lines may pass: a burst, then a trickle. No clock of its own.

use std::time::{Duration, Instant};

/// Between two reports of dropped lines.
const REPORT: Duration = Duration::from_secs(10);

/// Lines in hand, earned one by one.
#[derive(Debug)]
pub(super) struct Budget {
    burst: u32,
    interval: Duration,
    left: u32,
    earned_until: Instant,
    dropped: u32,
    reported: Option<Instant>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Forward,
    /// So many were dropped since the last report.
    ForwardAfter(u32),
    Drop,
}

impl Budget {
    /// `burst` at once, and another line after each `interval`, which is not zero.
    pub fn new(burst: u32, interval: Duration, now: Instant) -> Self {
        Self { burst, interval, left: burst, earned_until: now, dropped: 0, reported: None }
    }

    pub fn spend(&mut self, now: Instant) -> Verdict {
        self.earn(now);
        if self.left == 0 {
            self.dropped = self.dropped.saturating_add(1);
            return Verdict::Drop;
        }
        self.left -= 1;
        let told = self.reported.is_some_and(|then| now.saturating_duration_since(then) < REPORT);
        if self.dropped == 0 || told {
            return Verdict::Forward;
        }
        self.reported = Some(now);
        Verdict::ForwardAfter(self.dropped())
    }

    /// Those that were not reported yet.
    pub fn dropped(&mut self) -> u32 {
        std::mem::take(&mut self.dropped)
    }

    fn earn(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.earned_until);
        let earned = u32::try_from(elapsed.as_nanos() / self.interval.as_nanos()).unwrap_or(u32::MAX);
        if earned >= self.burst - self.left {
            self.left = self.burst;
            self.earned_until = now;
        } else {
            self.left += earned;
            // The begun interval counts for the next line.
            self.earned_until += self.interval * earned;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_millis(100);

    fn exhausted(start: Instant) -> Budget {
        let mut budget = Budget::new(3, INTERVAL, start);
        for _ in 0..3 {
            assert_eq!(budget.spend(start), Verdict::Forward);
        }
        budget
    }

    #[test]
    fn a_flood_becomes_a_trickle() {
        let start = Instant::now();
        let mut budget = exhausted(start);
        let millis = (1..=60_000).map(|millis| start + Duration::from_millis(millis));
        let passed = millis.filter(|&now| budget.spend(now) != Verdict::Drop).count();
        assert_eq!(passed, 600);
    }

    #[test]
    fn what_was_dropped_is_told_with_the_next_line_and_then_now_and_then() {
        let start = Instant::now();
        let mut budget = exhausted(start);
        assert_eq!(budget.spend(start), Verdict::Drop);
        assert_eq!(budget.spend(start), Verdict::Drop);
        assert_eq!(budget.spend(start + INTERVAL), Verdict::ForwardAfter(2));
        assert_eq!(budget.spend(start + INTERVAL), Verdict::Drop);
        assert_eq!(budget.spend(start + 2 * INTERVAL), Verdict::Forward);
        assert_eq!(budget.spend(start + INTERVAL + REPORT), Verdict::ForwardAfter(1));
        assert_eq!(budget.dropped(), 0);
    }

    #[test]
    fn silence_earns_a_burst_and_no_more() {
        let start = Instant::now();
        let mut budget = exhausted(start);
        let later = start + Duration::from_secs(3600);
        for _ in 0..3 {
            assert_eq!(budget.spend(later), Verdict::Forward);
        }
        assert_eq!(budget.spend(later), Verdict::Drop);
    }
}
