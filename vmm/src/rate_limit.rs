//! A bound on log messages that a guest can provoke.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const WINDOW: Duration = Duration::from_secs(5);
const MESSAGES_PER_WINDOW: u32 = 10;

/// Lets ten messages through every five seconds. One per call site: see [`guest_warn`](crate::guest_warn).
#[derive(Debug, Default)]
pub struct RateLimit {
    window: Mutex<Option<(Instant, u32)>>,
}

impl RateLimit {
    pub const fn new() -> Self {
        Self { window: Mutex::new(None) }
    }

    /// Whether the caller may log now.
    pub fn allow(&self) -> bool {
        self.allow_at(Instant::now())
    }

    fn allow_at(&self, now: Instant) -> bool {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        match window.as_mut() {
            Some((start, count)) if now.duration_since(*start) < WINDOW => {
                *count = count.saturating_add(1);
                *count <= MESSAGES_PER_WINDOW
            }
            _ => {
                *window = Some((now, 1));
                true
            }
        }
    }
}

/// `tracing::warn!` for what the guest causes: at most ten messages per five seconds and call site.
#[macro_export]
macro_rules! guest_warn {
    ($($argument:tt)+) => {{
        static LIMIT: $crate::rate_limit::RateLimit = $crate::rate_limit::RateLimit::new();
        if LIMIT.allow() {
            tracing::warn!($($argument)+);
        }
    }};
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_passes_ten_messages_per_window() {
        let limit = RateLimit::new();
        let start = Instant::now();
        assert_eq!((0..1000).filter(|_| limit.allow_at(start)).count(), 10);
        assert_eq!((0..1000).filter(|_| limit.allow_at(start + WINDOW)).count(), 10);
    }
}
