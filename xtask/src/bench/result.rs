//! Jobs, and what came out of them: as a table for people and as JSON for programs.

use super::output::{Failure, Measured, Sample};
use super::statistics::{Summary, summarize};
use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fmt::Write;

/// A line of `images/bench/jobs`.
#[derive(Debug)]
pub struct Job {
    pub name: String,
    pub writes: bool,
    pub block: u64,
    pub bytes: u64,
}

impl Job {
    pub fn parse_all(text: &str) -> Result<Vec<Self>> {
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        lines.map(|line| Self::parse(line).with_context(|| format!("not a job: {line}"))).collect()
    }

    fn parse(line: &str) -> Result<Self> {
        let words: Vec<&str> = line.split(' ').collect();
        let [name, pattern, block, _depth, bytes] = words[..] else { bail!("not five words") };
        let writes = match pattern {
            "read" | "randread" => false,
            "write" | "randwrite" => true,
            _ => bail!("{pattern} is neither reading nor writing"),
        };
        let job = Job { name: name.to_owned(), writes, block: size(block)?, bytes: size(bytes)? };
        anyhow::ensure!(job.requests() * job.block == job.bytes, "{bytes} is no multiple of {block}");
        Ok(job)
    }

    pub fn requests(&self) -> u64 {
        self.bytes / self.block
    }
}

fn size(text: &str) -> Result<u64> {
    let (digits, shift) = match text.strip_suffix(['k', 'm']) {
        Some(digits) => (digits, if text.ends_with('k') { 10 } else { 20 }),
        None => (text, 0),
    };
    let number: u64 = digits.parse().with_context(|| format!("{text} is no size"))?;
    anyhow::ensure!(number > 0 && number < 1 << 30, "{text} is out of range");
    Ok(number << shift)
}

/// The figures of one contender in one job.
#[derive(Debug)]
struct Figure {
    contender: String,
    values: Vec<f64>,
    summary: Summary,
}

/// The figures of one job, in the order in which the contenders ran; the first one is ours.
#[derive(Debug)]
pub struct Row {
    job: String,
    figures: Vec<Figure>,
}

pub fn rows(jobs: &[Job], samples: &[Sample]) -> Result<Vec<Row>> {
    let mut contenders: Vec<&str> = Vec::new();
    for sample in samples {
        if !contenders.contains(&sample.contender.as_str()) {
            contenders.push(&sample.contender);
        }
    }
    let figure = |job: &Job, contender: &str| {
        let mine = samples.iter().filter(|sample| sample.job == job.name && sample.contender == contender);
        let values: Vec<f64> = mine.map(|sample| sample.nanoseconds_per_request).collect();
        let summary = summarize(&values).with_context(|| format!("{contender} has no figures of {}", job.name))?;
        Ok(Figure { contender: contender.to_owned(), values, summary })
    };
    let row = |job: &Job| {
        let figures: Result<Vec<Figure>> = contenders.iter().map(|contender| figure(job, contender)).collect();
        Ok(Row { job: job.name.clone(), figures: figures? })
    };
    jobs.iter().map(row).collect()
}

impl Row {
    /// Our figure as a share of `other`'s.
    fn ratio(&self, other: &Figure) -> f64 {
        self.figures[0].summary.median / other.summary.median
    }
}

/// Markdown: medians with their spread, and ours as a share of each of the others.
pub fn table(rows: &[Row]) -> String {
    let mut text = String::new();
    let Some(first) = rows.first() else { return text };
    let mut heads = vec!["instructions for a request".to_owned()];
    heads.extend(first.figures.iter().map(|figure| figure.contender.clone()));
    heads.extend(first.figures[1..].iter().map(|figure| format!("ratio to {}", figure.contender)));
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    text.push_str(&line(&heads));
    let _ = writeln!(text, "|{}", "---|".repeat(heads.len()));
    for row in rows {
        let mut cells = vec![row.job.clone()];
        cells.extend(
            row.figures
                .iter()
                .map(|figure| format!("{:.0} ± {:.1} %", figure.summary.median, figure.summary.spread * 50.0)),
        );
        cells.extend(row.figures[1..].iter().map(|figure| format!("{:.2}", row.ratio(figure))));
        text.push_str(&line(&cells));
    }
    text
}

/// A sentence on boots that had to be repeated, for below the table.
pub fn repeats(measured: &Measured) -> String {
    let Measured { boots, failures, .. } = measured;
    let mut text = format!("{} of {boots} boots did not come to their end and were repeated", failures.len());
    let mut counts: BTreeMap<(&str, &str), u32> = BTreeMap::new();
    for failure in failures {
        *counts.entry((&failure.contender, &failure.reason)).or_default() += 1;
    }
    text.push_str(if counts.is_empty() { ".\n" } else { ":\n" });
    for ((contender, reason), count) in counts {
        let _ = writeln!(text, "{count} of {contender}: {reason}");
    }
    text
}

pub fn failures(failures: &[Failure]) -> Value {
    let list = failures.iter().map(|failure| json!({ "contender": failure.contender, "reason": failure.reason }));
    Value::Array(list.collect())
}

/// The same with every single value.
pub fn json(rows: &[Row]) -> Value {
    let mut jobs = Map::new();
    for row in rows {
        let mut contenders = Map::new();
        for figure in &row.figures {
            let Summary { median, spread } = figure.summary;
            let value = json!({ "median": median, "spread": spread, "values": figure.values });
            contenders.insert(figure.contender.clone(), value);
        }
        jobs.insert(row.job.clone(), Value::Object(contenders));
    }
    Value::Object(jobs)
}

#[cfg(test)]
mod tests {
    use super::{Job, json, repeats, rows, table};
    use crate::bench::output::{Failure, Measured, Sample};

    fn sample(contender: &str, value: f64) -> Sample {
        Sample { contender: contender.to_owned(), round: 1, job: "r".to_owned(), nanoseconds_per_request: value }
    }

    #[test]
    fn a_table_has_medians_spreads_and_our_share() {
        let jobs = Job::parse_all("# why\nr randread 4k 1 16m\n").unwrap();
        assert_eq!((jobs[0].requests(), jobs[0].writes), (4096, false));
        let samples = [sample("ours", 50.0), sample("theirs", 200.0), sample("ours", 51.0), sample("ours", 49.0)];
        let rows = rows(&jobs, &samples).unwrap();
        assert_eq!(
            table(&rows),
            "| instructions for a request | ours | theirs | ratio to theirs |\n|---|---|---|---|\n\
             | r | 50 ± 2.0 % | 200 ± 0.0 % | 0.25 |\n"
        );
        assert_eq!(json(&rows)["r"]["ours"]["values"][1], 51.0);
    }

    #[test]
    fn repeated_boots_are_told_with_their_reasons() {
        let failure = Failure { contender: "ours".to_owned(), reason: "it stood still".to_owned() };
        let again = Failure { contender: "ours".to_owned(), reason: "it stood still".to_owned() };
        let measured = Measured { boots: 5, failures: vec![failure, again], ..Measured::default() };
        assert_eq!(
            repeats(&measured),
            "2 of 5 boots did not come to their end and were repeated:\n2 of ours: it stood still\n"
        );
        assert!(repeats(&Measured::default()).ends_with("repeated.\n"));
    }

    #[test]
    fn a_contender_without_figures_is_an_error() {
        let jobs = Job::parse_all("r randread 4k 1 16m\nw write 4k 1 16m\n").unwrap();
        assert!(rows(&jobs, &[sample("ours", 1.0)]).is_err());
    }

    #[test]
    fn a_line_that_is_no_job_is_an_error() {
        for line in ["r randread 4k 1", "r trim 4k 1 16m", "r read 3k 1 16m", "r read 4x 1 16m", "r read 0 1 16m"] {
            assert!(Job::parse_all(line).is_err(), "{line}");
        }
    }

    #[test]
    fn the_jobs_of_the_recipe_are_jobs() {
        let text = std::fs::read_to_string(crate::bench::images::recipe().join("jobs")).unwrap();
        assert!(Job::parse_all(&text).unwrap().len() >= 8);
    }
}
