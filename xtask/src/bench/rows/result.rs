//! The file that a run leaves: every value, for programs. docs/performance.md tells what is in it.

use super::row;
use super::sample::{Failure, Measured};
use crate::bench::statistics::{Summary, summarize};
use anyhow::{Context, Result};
use node_vm::{Clock, Edition};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct BenchResult {
    pub clock: String,
    pub edition: String,
    /// Fewer repetitions, fewer rows.
    pub quick: bool,
    /// How many nodes it took.
    pub nodes: u32,
    pub figures: Vec<Figure>,
    /// Calls that were repeated, or given up.
    pub failures: Vec<Failure>,
}

/// One contender in one row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    pub row: String,
    pub contender: String,
    pub unit: String,
    pub median: f64,
    /// The largest less the smallest, as a share of the median.
    pub spread: f64,
    pub values: Vec<f64>,
}

impl BenchResult {
    pub fn new(clock: Clock, edition: Edition, quick: bool, measured: Measured) -> Self {
        let figure = |(row, contender, values): (&str, &str, Vec<f64>)| {
            let Summary { median, spread } = summarize(&values)?;
            let unit = row::unit(row).to_owned();
            Some(Figure { row: row.to_owned(), contender: contender.to_owned(), unit, median, spread, values })
        };
        let clock = match clock {
            Clock::Instructions => "instructions: the node's clock advances one nanosecond for each",
            Clock::Wall => "wall: the time of the machine that the node runs on",
        };
        Self {
            clock: clock.to_owned(),
            edition: edition.to_string(),
            quick,
            nodes: measured.nodes,
            figures: measured.values().into_iter().filter_map(figure).collect(),
            failures: measured.failures,
        }
    }

    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is no result of a benchmark", path.display()))
    }

    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        std::fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))
    }

    pub fn find(&self, row: &str, contender: &str) -> Option<&Figure> {
        self.figures.iter().find(|figure| figure.row == row && figure.contender == contender)
    }

    /// Takes over what `newer` has measured.
    pub fn update(&mut self, newer: Self) {
        self.figures.retain(|figure| newer.find(&figure.row, &figure.contender).is_none());
        self.figures.extend(newer.figures);
        self.failures.extend(newer.failures);
        self.nodes += newer.nodes;
        self.quick |= newer.quick;
    }

    /// How often each step failed, and how.
    pub fn troubles(&self) -> BTreeMap<(&str, &str), usize> {
        let mut counts = BTreeMap::new();
        for failure in &self.failures {
            *counts.entry((failure.step.as_str(), failure.reason.as_str())).or_default() += 1;
        }
        counts
    }
}

#[cfg(test)]
pub mod tests {
    use super::{BenchResult, Figure};
    use crate::bench::rows::sample::{Measured, Sample};
    use node_vm::{Clock, Edition};

    pub fn result(samples: &[(&str, &str, f64)]) -> BenchResult {
        let sample = |&(row, contender, value): &(&str, &str, f64)| Sample {
            row: row.into(),
            contender: contender.into(),
            value,
        };
        let measured = Measured { samples: samples.iter().map(sample).collect(), ..Measured::default() };
        BenchResult::new(Clock::Instructions, Edition::Trixie, false, measured)
    }

    #[test]
    fn a_result_has_this_form() {
        let result = result(&[("vmm-init", "qemu", 0.25), ("vmm-init", "qemu", 0.75)]);
        let golden = r#"{"clock":"instructions: the node's clock advances one nanosecond for each","edition":"trixie","quick":false,"nodes":0,"figures":[{"row":"vmm-init","contender":"qemu","unit":"s","median":0.5,"spread":1.0,"values":[0.25,0.75]}],"failures":[]}"#;
        assert_eq!(serde_json::to_string(&result).unwrap(), golden);
        assert_eq!(serde_json::from_str::<BenchResult>(golden).unwrap(), result);
    }

    #[test]
    fn newer_figures_replace_older_ones() {
        let mut old = result(&[("exec", "runc", 1.0), ("exec", "bulkhead-cold", 2.0)]);
        old.update(result(&[("exec", "runc", 3.0)]));
        let medians: Vec<f64> = old.figures.iter().map(|figure: &Figure| figure.median).collect();
        assert_eq!(medians, [2.0, 3.0]);
    }
}
