//! The phases of a start, told by those who know: the VMM says when its machine was made, the guest when its kernel gave way to its
//! init.
//!
//! When this program reads an answer depends on which of the node's processes runs next, and so would a phase that ends with that.

use agent_protocol::agent;
use anyhow::{Context, Result};
use std::time::Duration;
use vmm_protocol::{Moment, Stage};

/// What the agent calls the end of the guest kernel's own start.
const KERNEL: &str = "kernel";

/// One start; times are of the node's monotonic clock.
#[derive(Debug)]
pub struct Start {
    pub began: Duration,
    /// The VMM's answer.
    pub machine: Vec<Moment>,
    /// The guest's answer, and when it came.
    pub guest: agent::Moments,
    pub answered: Duration,
}

/// What a phase is called, and how long it took.
pub type Phase = (&'static str, Duration);

impl Start {
    pub fn total(&self) -> Duration {
        self.answered.saturating_sub(self.began)
    }

    /// Of a guest that booted, and whose agent gave its sign at `ready`.
    pub fn booted(&self, ready: Duration) -> Result<Vec<Phase>> {
        self.phases(&[
            ("vmm-agent-machine", self.ended(Stage::Devices)?),
            ("vmm-agent-kernel", self.kernel_ended()?),
            ("vmm-agent-init", ready),
            ("vmm-agent-answer", self.answered),
        ])
    }

    /// Of a guest from a template: it goes on where it was.
    pub fn restored(&self) -> Result<Vec<Phase>> {
        self.phases(&[("vmm-agent-machine", self.ended(Stage::Restored)?), ("vmm-agent-answer", self.answered)])
    }

    /// The stages of which the VMM tells, by their ends.
    pub fn machine_stages(&self) -> Vec<(String, Duration)> {
        let end = |moment: &Moment| (format!("{:?}", moment.stage).to_lowercase(), Duration::from_nanos(moment.at_ns));
        self.machine.iter().map(end).collect()
    }

    /// The stages of which the guest tells, by their ends. Those of a template ended before it was saved.
    pub fn guest_stages(&self) -> Vec<(String, Duration)> {
        let end = |moment: &agent::Moment| Some((moment.name.clone(), self.moved(moment.at_ns)?));
        self.guest.ended.iter().filter_map(end).filter(|(_, end)| *end > self.began).collect()
    }

    /// Each begins where the one before it ended.
    fn phases(&self, ends: &[Phase]) -> Result<Vec<Phase>> {
        let mut begin = self.began;
        let phase = |&(name, end): &Phase| {
            let length = end.checked_sub(begin).with_context(|| format!("{name} ended before it began"))?;
            begin = end;
            Ok((name, length))
        };
        ends.iter().map(phase).collect()
    }

    fn ended(&self, stage: Stage) -> Result<Duration> {
        let moment = self.machine.iter().find(|moment| moment.stage == stage);
        let moment = moment.with_context(|| format!("the VMM does not tell of {stage:?}"))?;
        Ok(Duration::from_nanos(moment.at_ns))
    }

    fn kernel_ended(&self) -> Result<Duration> {
        let moment = self.guest.ended.iter().find(|moment| moment.name == KERNEL);
        let moment = moment.context("the agent does not tell of its kernel")?;
        self.moved(moment.at_ns).context("the guest's clock runs backwards")
    }

    /// A time of the guest's clock, which is moved so that the answer left the guest when it came: late by the answer's way.
    fn moved(&self, at_ns: u64) -> Option<Duration> {
        self.answered.checked_sub(Duration::from_nanos(self.guest.now_ns.checked_sub(at_ns)?))
    }
}

#[cfg(test)]
mod tests {
    use super::Start;
    use agent_protocol::agent;
    use std::time::Duration;
    use vmm_protocol::{Moment, Stage};

    fn start() -> Start {
        let kernel = agent::Moment { name: "kernel".into(), at_ns: 30, ..Default::default() };
        Start {
            began: Duration::from_nanos(1000),
            machine: vec![
                Moment { stage: Stage::Jail, at_ns: 1002 },
                Moment { stage: Stage::Devices, at_ns: 1010 },
                Moment { stage: Stage::Restored, at_ns: 1011 },
            ],
            guest: agent::Moments { now_ns: 50, ended: vec![kernel], ..Default::default() },
            answered: Duration::from_nanos(1070),
        }
    }

    fn nanoseconds(phases: Vec<super::Phase>) -> Vec<u128> {
        phases.into_iter().map(|(_, time)| time.as_nanos()).collect()
    }

    #[test]
    fn phases_follow_each_other_and_are_all_of_a_start() {
        let start = start();
        // The guest's kernel ended 20 ns before the answer.
        assert_eq!(nanoseconds(start.booted(Duration::from_nanos(1066)).unwrap()), [10, 40, 16, 4]);
        assert_eq!(nanoseconds(start.restored().unwrap()), [11, 59]);
        assert_eq!(start.total(), Duration::from_nanos(70));
    }

    #[test]
    fn what_a_templates_guest_did_before_it_was_saved_is_no_stage() {
        let start = start();
        let names: Vec<String> = start.machine_stages().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["jail", "devices", "restored"]);
        assert_eq!(start.guest_stages(), [("kernel".to_owned(), Duration::from_nanos(1050))]);
        let later = Start { began: Duration::from_nanos(1050), ..start };
        assert_eq!(later.guest_stages(), []);
    }

    #[test]
    fn phases_that_cannot_be_are_errors() {
        let early = start().booted(Duration::from_nanos(1049)).unwrap_err();
        assert_eq!(early.to_string(), "vmm-agent-init ended before it began");
        let silent = Start { machine: Vec::new(), ..start() };
        assert_eq!(silent.restored().unwrap_err().to_string(), "the VMM does not tell of Restored");
    }
}
