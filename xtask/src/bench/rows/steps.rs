//! What is measured, as data: a step is a call of the node's program that measures one contender once.

use std::time::Duration;

/// What a step needs of its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Programs alone; containerd does not run.
    Programs,
}

#[derive(Clone, Copy, Debug)]
pub struct Step {
    pub stage: Stage,
    pub measurement: &'static str,
    pub contender: &'static str,
    /// How often it is measured; once more before that, for the node's caches.
    pub rounds: u32,
    /// The same of a quick run; 0 leaves it out.
    pub quick_rounds: u32,
    /// Seconds of the node's clock that it may take.
    pub limit: u32,
    /// Wall time: an emulated node that stands still has no other end.
    pub deadline: Duration,
}

/// A VMM and a guest alone. They take a fifth of a second.
const fn program(measurement: &'static str, contender: &'static str) -> Step {
    let deadline = Duration::from_secs(120);
    Step { stage: Stage::Programs, measurement, contender, rounds: 5, quick_rounds: 2, limit: 5, deadline }
}

const STEPS: &[Step] =
    &[program("vmm-init", "bulkhead"), program("vmm-init", "qemu"), program("vmm-agent", "bulkhead")];

impl Step {
    pub fn name(&self) -> String {
        format!("{} {}", self.measurement, self.contender)
    }
}

/// The steps whose names contain one of `parts`, or all.
pub fn chosen(parts: &[String], rounds: Option<u32>, quick: bool) -> Vec<Step> {
    let wanted = |step: &&Step| parts.is_empty() || parts.iter().any(|part| step.name().contains(part.as_str()));
    let steps = STEPS.iter().filter(wanted).map(|step| {
        let planned = if quick { step.quick_rounds } else { step.rounds };
        Step { rounds: rounds.unwrap_or(planned), ..*step }
    });
    steps.filter(|step| step.rounds > 0).collect()
}

pub fn names() -> String {
    STEPS.iter().map(Step::name).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::{STEPS, chosen};

    #[test]
    fn parts_of_names_choose_steps() {
        let names = |parts: &[&str]| {
            let parts: Vec<String> = parts.iter().map(|&part| part.to_owned()).collect();
            chosen(&parts, None, false).iter().map(super::Step::name).collect::<Vec<_>>()
        };
        assert_eq!(names(&["vmm-init qemu", "agent"]), ["vmm-init qemu", "vmm-agent bulkhead"]);
        assert_eq!(names(&[]).len(), STEPS.len());
        assert_eq!(chosen(&["agent".to_owned()], Some(3), true)[0].rounds, 3);
    }
}
