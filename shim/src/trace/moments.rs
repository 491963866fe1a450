//! What VMM and guest say of when they were done with what. Both may lie: names and numbers are bounded, and nothing is
//! shown outside of the call in which it can have happened.

use super::{GUEST, MAX_NAME, VMM, add, row_of};
use agent_protocol::agent;
use std::ops::Range;
use vmm_protocol::{MAX_MOMENTS, Moment, Stage};

/// Most moments of one answer of the guest.
const MAX_GUEST: usize = 32;

/// Shows the stages of a VMM's start, which lie in `call`. What follows until the call's end is the answer's way.
pub fn vmm(moments: &[Moment], call: Range<u64>) {
    let name = |stage| match stage {
        Stage::Program => "program",
        Stage::Jail => "jail",
        Stage::Memory => "memory",
        Stage::Kvm => "kvm",
        Stage::Devices => "devices",
        Stage::Restored => "devices restored",
        Stage::Threads => "threads",
    };
    let ends = moments.iter().take(MAX_MOMENTS).map(|moment| (name(moment.stage).to_owned(), moment.at_ns)).collect();
    for (name, stage) in stages(ends, &call) {
        add(VMM, name, stage.start, stage.end);
    }
}

/// Shows what the guest did until it answered. Its clock is moved so that the answer left it at the end of `call`, which is
/// late by the answer's way. `container`: in whose row.
pub fn guest(answer: &agent::Moments, call: Range<u64>, container: Option<&str>) {
    let moved = |at: u64| call.end.saturating_sub(answer.now_ns.saturating_sub(at));
    let name = |name: &str| crate::sandbox::printable(name).chars().take(MAX_NAME).collect::<String>();
    // The first stage is the kernel's, unless that ran before the call.
    let call = moved(0).clamp(call.start, call.end)..call.end;
    let ends = answer.ended.iter().take(MAX_GUEST).map(|moment| (name(&moment.name), moved(moment.at_ns))).collect();
    for (name, stage) in stages(ends, &call) {
        match container {
            None => add(GUEST, name, stage.start, stage.end),
            Some(container) => add(row_of(container), name, stage.start, stage.end),
        }
    }
}

/// The stages between moments: each begins where the one before it ended, the first with the call. Those that had ended
/// before the call are left out: a machine from a template has booted long ago.
fn stages(ends: Vec<(String, u64)>, call: &Range<u64>) -> Vec<(String, Range<u64>)> {
    let mut start = call.start;
    let mut stages = Vec::new();
    for (name, end) in ends.into_iter().filter(|(_, end)| *end > call.start) {
        let end = end.clamp(start, call.end);
        stages.push((name, start..end));
        start = end;
    }
    stages
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(ends: &[(&str, u64)]) -> Vec<(String, Range<u64>)> {
        stages(ends.iter().map(|(name, end)| ((*name).to_owned(), *end)).collect(), &(100..200))
    }

    #[test]
    fn stages_follow_each_other() {
        assert_eq!(ends(&[("a", 120), ("b", 150)]), [("a".to_owned(), 100..120), ("b".to_owned(), 120..150)]);
    }

    #[test]
    fn what_is_said_stays_within_the_call() {
        assert_eq!(ends(&[("a", u64::MAX), ("b", 110)]), [("a".to_owned(), 100..200), ("b".to_owned(), 200..200)]);
        assert_eq!(ends(&[("a", 150), ("b", 120)]), [("a".to_owned(), 100..150), ("b".to_owned(), 150..150)]);
    }

    #[test]
    fn what_ended_before_the_call_is_not_shown() {
        assert_eq!(ends(&[("kernel", 0), ("a", 100), ("b", 130)]), [("b".to_owned(), 100..130)]);
    }
}
