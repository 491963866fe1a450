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
    pub round: u32,
    pub job: String,
    /// Under the instruction clock: instructions.
    pub nanoseconds_per_request: f64,
}

/// A boot that did not do all that it was asked for.
#[derive(Debug, PartialEq)]
pub struct Failure {
    pub contender: String,
    pub reason: String,
}

/// What some nodes said.
#[derive(Debug, Default)]
pub struct Measured {
    pub samples: Vec<Sample>,
    /// How many there were, with those that failed.
    pub boots: usize,
    pub failures: Vec<Failure>,
}

/// Two readings of the clocks, in nanoseconds.
#[derive(Clone, Copy, Debug)]
struct Clocks {
    node: u64,
    guest: u64,
}

/// Samples of every job that was done, in the order of the text. A job that fio failed is an error; one that no guest came to
/// the end of is not there.
pub fn parse(text: &str, jobs: &[Job]) -> Result<Measured> {
    let mut measured = Measured::default();
    let mut boot: Option<Boot> = None;
    for line in text.lines() {
        let Some(line) = Line::parse(line) else { continue };
        if let Some(names) = line.said.strip_prefix("boot ") {
            measured.take(boot.replace(Boot::new(&line, names)));
        } else if let Some(boot) = &mut boot {
            boot.hear(&line, jobs)?;
        }
    }
    measured.take(boot);
    Ok(measured)
}

impl Measured {
    fn take(&mut self, boot: Option<Boot>) {
        let Some(boot) = boot else { return };
        self.boots += 1;
        if boot.samples.len() < boot.wanted {
            let reason = boot.trouble.unwrap_or_else(|| "its node stood still".to_owned());
            self.failures.push(Failure { contender: boot.contender, reason });
        }
        self.samples.extend(boot.samples);
    }
}

/// `CONTENDER ROUND NANOSECONDS LINE`. Our own VMM's runner puts `[seconds] ` before a guest's line.
#[derive(Debug, PartialEq)]
struct Line<'a> {
    contender: &'a str,
    round: u32,
    node: u64,
    said: &'a str,
}

impl<'a> Line<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut words = line.trim_end().splitn(4, ' ');
        let contender = words.next()?;
        let round = words.next()?.parse().ok()?;
        let node = words.next()?.parse().ok()?;
        let said = words.next()?;
        let said = match said.strip_prefix('[') {
            Some(rest) => rest.split_once("] ")?.1,
            None => said,
        };
        Some(Self { contender, round, node, said })
    }
}

/// One guest.
#[derive(Debug)]
struct Boot {
    contender: String,
    wanted: usize,
    /// The clocks before and after the job that runs.
    clocks: Vec<Clocks>,
    running: Option<Sample>,
    samples: Vec<Sample>,
    /// The first thing that went wrong.
    trouble: Option<String>,
}

impl Boot {
    fn new(line: &Line<'_>, names: &str) -> Self {
        Self {
            contender: line.contender.to_owned(),
            wanted: names.split(',').count(),
            clocks: Vec::new(),
            running: None,
            samples: Vec::new(),
            trouble: None,
        }
    }

    fn hear(&mut self, line: &Line<'_>, jobs: &[Job]) -> Result<()> {
        if line.said.starts_with("job ") {
            self.clocks.clear();
            self.running = None;
        } else if let Some(guest) = line.said.strip_prefix("clock ") {
            let guest = guest.parse().with_context(|| format!("the guest's clock shows `{guest}`"))?;
            self.clocks.push(Clocks { node: line.node, guest });
        } else if line.said.starts_with("3;fio-") {
            self.running = Some(sample(line, jobs)?);
        } else if let Some(name) = line.said.strip_prefix("done ") {
            self.finish(name)?;
        } else if let Some(reason) = trouble(line.said) {
            self.trouble.get_or_insert(reason);
        }
        Ok(())
    }

    /// Accepts the job's sample if its guest's clock can be trusted.
    fn finish(&mut self, name: &str) -> Result<()> {
        let sample = self.running.take().filter(|sample| sample.job == name);
        let sample = sample.with_context(|| format!("fio said nothing of {name}"))?;
        let [before, after] = self.clocks[..] else { bail!("{name} lacks a reading of the clock") };
        let node = after.node.saturating_sub(before.node) as f64;
        let guest = after.guest.saturating_sub(before.guest) as f64;
        if (guest - node).abs() <= node * CLOCK_TOLERANCE {
            self.samples.push(sample);
        } else {
            let reason = format!("the clocks disagree: {guest} ns in the guest, {node} ns in the node");
            self.trouble.get_or_insert(reason);
        }
        Ok(())
    }
}

/// What a line says of a guest's end, if it is not the end of a guest that is done.
fn trouble(said: &str) -> Option<String> {
    if said.contains("PANIC: ") || said.contains("Oops: ") || said.contains("Kernel panic") {
        // Without the kernel's time.
        return Some(said.rsplit_once("] ").map_or(said, |(_, rest)| rest).to_owned());
    }
    if said == "it stood still" {
        return Some(said.to_owned());
    }
    match said.strip_prefix("end ")? {
        "0" => Some("the guest ended".to_owned()),
        code => Some(format!("the VMM ended with code {code}")),
    }
}

fn sample(line: &Line<'_>, jobs: &[Job]) -> Result<Sample> {
    let contender = line.contender;
    let fields: Vec<&str> = line.said.split(';').collect();
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
    Ok(Sample { contender: contender.to_owned(), round: line.round, job: job.name.clone(), nanoseconds_per_request })
}

#[cfg(test)]
mod tests {
    use super::{Line, parse};
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

    fn run(job: &str, terse: &str, guest_end: u64) -> String {
        format!(
            "qemu 1 999 job {job}\nqemu 1 1000000000 clock 5000000000\nqemu 1 1100000000 {terse}\r\n\
             qemu 1 2000000000 clock {guest_end}\nqemu 1 2000000001 done {job}\n"
        )
    }

    /// A guest that was asked for both jobs and said this.
    fn boot(said: &str) -> String {
        format!("qemu 1 1 boot r,w\nqemu 1 2 hello\n{said}")
    }

    fn first() -> String {
        run("r", &terse("r", 0, (16 << 10, 4096), (0, 0)), 6_000_000_000)
    }

    fn second() -> String {
        run("w", &terse("w", 0, (0, 0), (2048, 3)), 6_000_000_000)
    }

    #[test]
    fn a_request_takes_the_jobs_time_divided_by_their_number() {
        let measured = parse(&boot(&format!("{}{}qemu 1 3 end 0\n", first(), second())), &jobs()).unwrap();
        assert_eq!((measured.samples.len(), measured.boots), (2, 1));
        assert!(measured.failures.is_empty());
        let [read, write] = &measured.samples[..] else { panic!() };
        assert_eq!((read.job.as_str(), read.nanoseconds_per_request), ("r", 1e6));
        assert_eq!((write.contender.as_str(), write.round, write.nanoseconds_per_request), ("qemu", 1, 1.5e6));
    }

    #[test]
    fn a_job_whose_clocks_disagree_is_left_out() {
        let terse = terse("r", 0, (16 << 10, 4096), (0, 0));
        assert_eq!(parse(&boot(&run("r", &terse, 6_009_000_000)), &jobs()).unwrap().samples.len(), 1);
        let measured = parse(&boot(&run("r", &terse, 6_011_000_000)), &jobs()).unwrap();
        assert!(measured.samples.is_empty());
        assert!(measured.failures[0].reason.contains("disagree"));
    }

    #[test]
    fn a_job_that_failed_or_did_less_is_an_error() {
        let error = |terse: &str| parse(&boot(&run("r", terse, 6_000_000_000)), &jobs()).unwrap_err().to_string();
        assert!(error(&terse("r", 5, (16 << 10, 4096), (0, 0))).contains("error 5"));
        assert!(error(&terse("r", 0, (8 << 10, 4096), (0, 0))).contains("instead of"));
    }

    #[test]
    fn a_boot_that_fails_keeps_what_it_did() {
        let half = second().lines().take(2).map(|line| format!("{line}\n")).collect::<String>();
        let panic =
            "qemu 1 7 [  1.5] [    1.391972] traps: PANIC: double fault\nqemu 1 8 Kernel panic - not\nqemu 1 9 end 0\n";
        let text = format!(
            "{}qemu 1 9 boot w\nqemu 1 9 it stood still\nqemu 1 9 end 137\nqemu 1 9 boot w\n{}",
            boot(&(first() + &half + panic)),
            half
        );
        let measured = parse(&text, &jobs()).unwrap();
        assert_eq!((measured.samples.len(), measured.boots), (1, 3));
        let reasons: Vec<&str> = measured.failures.iter().map(|failure| failure.reason.as_str()).collect();
        assert_eq!(reasons, ["traps: PANIC: double fault", "it stood still", "its node stood still"]);
    }

    #[test]
    fn the_runners_own_stamp_is_left_out() {
        let line = Line::parse("bulkhead 2 17 [  0.123] clock 9\r").unwrap();
        assert_eq!((line.contender, line.round, line.node, line.said), ("bulkhead", 2, 17, "clock 9"));
        assert_eq!(Line::parse("booting a node"), None);
    }
}
