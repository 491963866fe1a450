//! Reads what `images/bench/measure` prints: fio's terse lines of several guests, stamped with the node's clock.

use super::result::Job;
use anyhow::{Context, Result, bail, ensure};

/// How far guest and node may differ on how long a guest's jobs took. The guest's clock is what fio reads.
const CLOCK_TOLERANCE: f64 = 0.01;

/// Fields of fio's terse format, version 3, counted from 0.
mod field {
    pub const VERSION: usize = 0;
    pub const JOB: usize = 2;
    pub const ERROR: usize = 4;
    /// Of reads: KiB in all, bandwidth, requests a second, milliseconds.
    pub const READS: usize = 5;
    /// The same of writes.
    pub const WRITES: usize = 46;
    pub const KIB: usize = 0;
    pub const MILLISECONDS: usize = 3;
}

/// One job of one guest.
#[derive(Debug, PartialEq)]
pub struct Sample {
    pub contender: String,
    pub job: String,
    /// Under the instruction clock: instructions.
    pub nanoseconds_per_request: f64,
}

/// Two readings of the clocks, in nanoseconds.
#[derive(Clone, Copy, Debug)]
struct Clocks {
    node: u64,
    guest: u64,
}

/// Samples of every job of every boot, in the order of the text. An incomplete boot is an error.
pub fn parse(text: &str, jobs: &[Job]) -> Result<Vec<Sample>> {
    let mut samples = Vec::new();
    let mut boot = Boot::default();
    for line in text.lines() {
        let Some((contender, node, said)) = stamped(line) else { continue };
        if let Some(guest) = said.strip_prefix("clock ") {
            let guest = guest.parse().with_context(|| format!("the guest's clock shows `{guest}`"))?;
            if let Some(complete) = boot.clock(contender, Clocks { node, guest }, jobs)? {
                samples.extend(complete);
                boot = Boot::default();
            }
        } else if said.starts_with("3;fio-") {
            boot.samples.push(sample(contender, said, jobs)?);
        }
    }
    ensure!(boot.begun.is_none(), "a guest did not come to its end");
    ensure!(!samples.is_empty(), "no guest said anything");
    Ok(samples)
}

/// `CONTENDER ROUND NANOSECONDS LINE`. Our own VMM's runner puts `[seconds] ` before a guest's line.
fn stamped(line: &str) -> Option<(&str, u64, &str)> {
    let mut words = line.trim_end().splitn(4, ' ');
    let contender = words.next()?;
    words.next()?.parse::<u32>().ok()?;
    let node = words.next()?.parse().ok()?;
    let said = words.next()?;
    let said = match said.strip_prefix('[') {
        Some(rest) => rest.split_once("] ")?.1,
        None => said,
    };
    Some((contender, node, said))
}

#[derive(Default)]
struct Boot {
    begun: Option<Clocks>,
    samples: Vec<Sample>,
}

impl Boot {
    /// Takes note of the clocks before the first job, or returns the samples after the last one.
    fn clock(&mut self, contender: &str, now: Clocks, jobs: &[Job]) -> Result<Option<Vec<Sample>>> {
        let Some(begun) = self.begun else {
            self.begun = Some(now);
            return Ok(None);
        };
        let node = now.node.saturating_sub(begun.node) as f64;
        let guest = now.guest.saturating_sub(begun.guest) as f64;
        let difference = (guest - node).abs() / node;
        ensure!(
            difference <= CLOCK_TOLERANCE,
            "the clocks disagree on {contender}: {guest} ns in the guest, {node} ns in the node"
        );
        let done: Vec<&str> = self.samples.iter().map(|sample| sample.job.as_str()).collect();
        let wanted: Vec<&str> = jobs.iter().map(|job| job.name.as_str()).collect();
        ensure!(done == wanted, "a guest of {contender} did {done:?} instead of {wanted:?}");
        Ok(Some(std::mem::take(&mut self.samples)))
    }
}

fn sample(contender: &str, line: &str, jobs: &[Job]) -> Result<Sample> {
    let fields: Vec<&str> = line.split(';').collect();
    let number = |index: usize| -> Result<u64> {
        let text = fields.get(index).with_context(|| format!("fio's line ends before field {index}"))?;
        text.parse().with_context(|| format!("field {index} of fio's line is `{text}`"))
    };
    ensure!(number(field::VERSION)? == 3, "not fio's terse format 3");
    let name = *fields.get(field::JOB).context("fio's line names no job")?;
    let job = jobs.iter().find(|job| job.name == name).with_context(|| format!("nobody asked for the job {name}"))?;
    ensure!(number(field::ERROR)? == 0, "{name} failed on {contender} with error {}", fields[field::ERROR]);

    let (moved, idle) = if job.writes { (field::WRITES, field::READS) } else { (field::READS, field::WRITES) };
    ensure!(number(idle + field::KIB)? == 0, "{name} moved data in the other direction");
    let bytes = number(moved + field::KIB)? << 10;
    if bytes != job.bytes {
        bail!("{name} moved {bytes} bytes instead of {} on {contender}", job.bytes);
    }
    let nanoseconds = number(moved + field::MILLISECONDS)? as f64 * 1e6;
    let nanoseconds_per_request = nanoseconds / job.requests() as f64;
    Ok(Sample { contender: contender.to_owned(), job: job.name.clone(), nanoseconds_per_request })
}

#[cfg(test)]
mod tests {
    use super::{parse, stamped};
    use crate::bench::result::Job;

    fn jobs() -> Vec<Job> {
        Job::parse_all("r randread 4k 1 16m\nw write 1m 16 2m\n").unwrap()
    }

    /// A line of fio with `reads` and `writes` as KiB and milliseconds.
    fn terse(job: &str, error: u32, reads: (u64, u64), writes: (u64, u64)) -> String {
        let mut fields = vec!["0".to_owned(); 130];
        fields[..3].clone_from_slice(&["3".into(), "fio-3.39".into(), job.into()]);
        fields[4] = error.to_string();
        (fields[5], fields[8]) = (reads.0.to_string(), reads.1.to_string());
        (fields[46], fields[49]) = (writes.0.to_string(), writes.1.to_string());
        fields.join(";")
    }

    fn boot(first: &str, second: &str, guest_end: u64) -> String {
        format!(
            "qemu 1 1000000000 clock 5000000000\nqemu 1 1000000001 job r\nqemu 1 1100000000 {first}\r\n\
             qemu 1 1200000000 {second}\nqemu 1 2000000000 clock {guest_end}\nqemu 1 2100000000 goodbye\n"
        )
    }

    fn whole(guest_end: u64) -> String {
        boot(&terse("r", 0, (16 << 10, 4096), (0, 0)), &terse("w", 0, (0, 0), (2048, 3)), guest_end)
    }

    #[test]
    fn a_request_takes_the_jobs_time_divided_by_their_number() {
        let samples = parse(&whole(6_000_000_000), &jobs()).unwrap();
        assert_eq!(samples.len(), 2);
        assert_eq!((samples[0].job.as_str(), samples[0].nanoseconds_per_request), ("r", 1e6));
        assert_eq!((samples[1].contender.as_str(), samples[1].nanoseconds_per_request), ("qemu", 1.5e6));
    }

    #[test]
    fn clocks_that_disagree_are_an_error() {
        assert!(parse(&whole(6_009_000_000), &jobs()).is_ok());
        assert!(parse(&whole(6_011_000_000), &jobs()).unwrap_err().to_string().contains("disagree"));
    }

    #[test]
    fn a_job_that_failed_or_did_less_is_an_error() {
        let good = terse("w", 0, (0, 0), (2048, 3));
        let failed = boot(&terse("r", 5, (16 << 10, 4096), (0, 0)), &good, 6_000_000_000);
        assert!(parse(&failed, &jobs()).unwrap_err().to_string().contains("error 5"));
        let short = boot(&terse("r", 0, (8 << 10, 4096), (0, 0)), &good, 6_000_000_000);
        assert!(parse(&short, &jobs()).unwrap_err().to_string().contains("instead of"));
    }

    #[test]
    fn a_guest_that_did_not_do_every_job_is_an_error() {
        let text = whole(6_000_000_000);
        let without: String =
            text.lines().filter(|line| !line.contains(";w;")).map(|line| format!("{line}\n")).collect();
        assert!(parse(&without, &jobs()).is_err());
        let cut: String = text.lines().take(3).map(|line| format!("{line}\n")).collect();
        assert!(parse(&cut, &jobs()).is_err());
        assert!(parse("", &jobs()).is_err());
    }

    #[test]
    fn the_runners_own_stamp_is_left_out() {
        assert_eq!(stamped("bulkhead 2 17 [  0.123] clock 9\r"), Some(("bulkhead", 17, "clock 9")));
        assert_eq!(stamped("booting a node"), None);
    }
}
