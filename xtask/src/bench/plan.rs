//! Which boots are to be made.

use super::output::Sample;
use super::result::Job;

/// In the order of the table's columns; ours and what it is compared with first. `images/bench/measure` has a function for each.
pub const CONTENDERS: [&str; 3] = ["bulkhead", "qemu", "qemu-tuned"];

/// The jobs of one boot.
#[derive(Clone, Debug)]
struct Boot {
    contender: &'static str,
    round: u32,
    jobs: Vec<String>,
}

/// Boots, one after the other. Contenders take turns, so that a node that changes with time changes for all.
#[derive(Debug)]
pub struct Plan(Vec<Boot>);

impl Plan {
    pub fn new(jobs: &[Job], rounds: u32) -> Self {
        Self::of(jobs, rounds, &CONTENDERS)
    }

    pub fn of(jobs: &[Job], rounds: u32, contenders: &[&'static str]) -> Self {
        let jobs: Vec<String> = jobs.iter().map(|job| job.name.clone()).collect();
        let boots = (1..=rounds).flat_map(|round| contenders.iter().map(move |contender| (*contender, round)));
        Self(boots.map(|(contender, round)| Boot { contender, round, jobs: jobs.clone() }).collect())
    }

    /// What is left when these are there.
    pub fn without(&self, samples: &[Sample]) -> Self {
        let done = |boot: &Boot, job: &str| {
            samples.iter().any(|sample| {
                (sample.contender.as_str(), sample.round, sample.job.as_str()) == (boot.contender, boot.round, job)
            })
        };
        let mut boots = self.0.clone();
        for boot in &mut boots {
            let jobs = std::mem::take(&mut boot.jobs);
            boot.jobs = jobs.into_iter().filter(|job| !done(boot, job)).collect();
        }
        boots.retain(|boot| !boot.jobs.is_empty());
        Self(boots)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// As `images/bench/measure` reads it: a line `CONTENDER ROUND JOB,JOB` for each boot.
    pub fn to_text(&self) -> String {
        let lines: Vec<String> =
            self.0.iter().map(|boot| format!("{} {} {}", boot.contender, boot.round, boot.jobs.join(","))).collect();
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::Plan;
    use crate::bench::output::Sample;
    use crate::bench::result::Job;

    #[test]
    fn what_is_done_is_not_done_again() {
        let jobs = Job::parse_all("r randread 4k 1 16m\nw write 4k 1 16m\n").unwrap();
        let plan = Plan::new(&jobs, 1);
        assert_eq!(plan.to_text(), "bulkhead 1 r,w\nqemu 1 r,w\nqemu-tuned 1 r,w");
        let sample = |contender: &str, job: &str| Sample {
            contender: contender.to_owned(),
            round: 1,
            job: job.to_owned(),
            nanoseconds_per_request: 1.0,
        };
        let done = [sample("bulkhead", "r"), sample("qemu", "r"), sample("qemu", "w")];
        let left = plan.without(&done);
        assert_eq!(left.to_text(), "bulkhead 1 w\nqemu-tuned 1 r,w");
        assert!(!left.is_empty() && plan.0.len() == 3);
    }
}
