//! What is measured, as data: a step is a call of the node's program that measures one contender once.

use node_vm::Clock;

/// What a step needs of its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Programs alone; containerd does not run.
    Programs,
    /// Pods of containerd, one after the other.
    Pods,
    /// Eight pods at once, and as many as there is room for. Memory does not depend on the clock, so that the node has the host's:
    /// emulated guests are quicker there, and none was seen to spin.
    Memory,
    /// A hundred pods or so. Each takes half an hour of a processor.
    Many,
}

impl Stage {
    pub const ALL: [Self; 4] = [Self::Programs, Self::Pods, Self::Memory, Self::Many];
}

/// Seconds that an emulated processor takes for what is one second by the instruction clock.
const EMULATED: u32 = 40;

#[derive(Clone, Copy, Debug)]
pub struct Step {
    pub stage: Stage,
    pub measurement: &'static str,
    pub contender: &'static str,
    /// Whether it takes QEMU, or the kernel that runs on both VMMs: minutes to make.
    pub compared: bool,
    /// How often it is measured; once more before that, for the node's caches.
    pub rounds: u32,
    /// The same of a quick run; 0 leaves it out.
    pub quick_rounds: u32,
    /// Seconds of its clock that the node may be busy with it. Pauses do not count.
    pub limit: u32,
}

/// A VMM and a guest alone. They take a fifth of a second.
const fn program(measurement: &'static str, contender: &'static str) -> Step {
    Step { stage: Stage::Programs, measurement, contender, compared: false, rounds: 9, quick_rounds: 2, limit: 2 }
}

/// A pod from its start to its end takes seconds, most of them pauses. Half of a stop is grace periods of RCU, which end with a tick: one
/// value is 4 % off, and medians of 15 differed by 4.
const fn pod(measurement: &'static str, contender: &'static str) -> Step {
    Step { stage: Stage::Pods, measurement, contender, compared: false, rounds: 45, quick_rounds: 3, limit: 6 }
}

/// Pods at once, which are started one after the other.
const fn pods(measurement: &'static str, contender: &'static str, limit: u32) -> Step {
    Step { stage: Stage::Pods, measurement, contender, compared: false, rounds: 1, quick_rounds: 0, limit }
}

impl Step {
    const fn rounds(self, rounds: u32, quick_rounds: u32) -> Self {
        Self { rounds, quick_rounds, ..self }
    }

    const fn limit(self, limit: u32) -> Self {
        Self { limit, ..self }
    }

    const fn compared(self) -> Self {
        Self { compared: true, ..self }
    }

    const fn stage(self, stage: Stage) -> Self {
        Self { stage, ..self }
    }
}

const STEPS: &[Step] = &[
    program("vmm-init", "bulkhead-cold").compared(),
    program("vmm-init", "qemu").compared(),
    program("vmm-agent", "bulkhead-cold"),
    program("vmm-agent", "bulkhead-template"),
    program("exits", "bulkhead-cold").compared().rounds(3, 0),
    program("exits", "qemu").compared().rounds(3, 0),
    program("link", "bulkhead-cold").compared().rounds(3, 0),
    program("link", "qemu").compared().rounds(3, 0),
    program("link", "qemu-vhost").compared().rounds(3, 0),
    program("link-datagrams", "bulkhead-cold").compared().rounds(2, 0),
    program("link-datagrams", "qemu").compared().rounds(2, 0),
    program("link-datagrams", "qemu-vhost").compared().rounds(2, 0),
    program("trace", "bulkhead-cold").rounds(1, 0),
    program("trace", "bulkhead-template").rounds(1, 0),
    pod("pod", "bulkhead-cold"),
    pod("pod", "bulkhead-template"),
    pod("pod", "runc"),
    pod("phases", "bulkhead-cold").rounds(3, 0),
    pod("phases", "bulkhead-template").rounds(3, 0),
    pod("phases", "runc").rounds(3, 0),
    pod("syscalls", "bulkhead-cold").rounds(2, 0),
    pod("syscalls", "bulkhead-template").rounds(2, 0),
    pod("syscalls", "runc").rounds(2, 0),
    pod("network", "bulkhead-cold").limit(15).rounds(2, 0),
    pod("network", "bulkhead-template").limit(15).rounds(2, 0),
    pod("network", "runc").limit(15).rounds(2, 0),
    pod("output", "bulkhead-cold").rounds(2, 0),
    pod("output", "runc").rounds(2, 0),
    pods("memory", "bulkhead-cold", 25).rounds(2, 0).stage(Stage::Memory),
    pods("memory", "bulkhead-template", 25).rounds(2, 1).stage(Stage::Memory),
    pods("memory", "runc", 25).rounds(2, 0).stage(Stage::Memory),
    pods("density", "bulkhead-cold", 120).stage(Stage::Memory),
    pods("density", "bulkhead-template", 120).stage(Stage::Memory),
    pods("density", "runc", 120).stage(Stage::Memory),
    pods("idle", "bulkhead-template", 60).stage(Stage::Many),
    pods("idle", "runc", 60).stage(Stage::Many),
    pods("churn", "bulkhead-template", 150).stage(Stage::Many),
    pods("churn", "runc", 150).stage(Stage::Many),
];

impl Step {
    /// What its node's time is made of when pods are measured by `clock`.
    pub fn clock(&self, clock: Clock) -> Clock {
        if self.stage == Stage::Memory { Clock::Wall } else { clock }
    }

    /// Seconds that the node may be busy, as its clock counts them: an emulated processor is slow.
    pub fn busy_seconds(&self, clock: Clock) -> u32 {
        match self.clock(clock) {
            Clock::Instructions => self.limit,
            Clock::Wall => self.limit * EMULATED,
        }
    }

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
        assert_eq!(
            names(&["vmm-init qemu", "agent"]),
            ["vmm-init qemu", "vmm-agent bulkhead-cold", "vmm-agent bulkhead-template"]
        );
        assert_eq!(names(&[]).len(), STEPS.len());
        assert_eq!(chosen(&["agent".to_owned()], Some(3), true)[0].rounds, 3);
    }
}
