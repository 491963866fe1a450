//! What is aimed at (`tests/bench/targets.json`), and whether it is reached.

use super::result::BenchResult;
use crate::run;
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use std::fmt;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    pub row: String,
    pub contender: String,
    /// In the row's unit; or, with `of`, as a multiple of that contender's figure.
    pub at_most: f64,
    pub of: Option<String>,
    /// Why it is missed, and what is next: a figure that misses its target is not documented without.
    pub reason: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Met,
    Missed,
    /// A figure that it takes is not there.
    Unknown,
}

impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.of {
            Some(of) => write!(formatter, "{} × {of}", self.at_most),
            None => write!(formatter, "{}", self.at_most),
        }
    }
}

pub fn read() -> Result<Vec<Target>> {
    let path = run::workspace().join("tests/bench/targets.json");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} holds no targets", path.display()))
}

impl Target {
    /// What is compared with `at_most`.
    pub fn reached(&self, result: &BenchResult) -> Option<f64> {
        let ours = result.find(&self.row, &self.contender)?.median;
        match &self.of {
            Some(of) => Some(ours / result.find(&self.row, of)?.median),
            None => Some(ours),
        }
    }

    pub fn verdict(&self, result: &BenchResult) -> Verdict {
        match self.reached(result) {
            None => Verdict::Unknown,
            Some(value) if value <= self.at_most => Verdict::Met,
            Some(_) => Verdict::Missed,
        }
    }
}

/// An error names the figures that miss their targets for no given reason.
pub fn check_reasons(targets: &[Target], result: &BenchResult) -> Result<()> {
    let bare = targets.iter().filter(|target| target.verdict(result) == Verdict::Missed && target.reason.is_none());
    let bare: Vec<String> = bare.map(|target| format!("{} of {}", target.row, target.contender)).collect();
    ensure!(bare.is_empty(), "tests/bench/targets.json gives no reason why these are missed: {}", bare.join(", "));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Target, Verdict, check_reasons};
    use crate::bench::rows::result::tests::result;
    use crate::bench::rows::row::{CONTENDERS, ROWS};

    fn target(of: Option<&str>, reason: Option<&str>) -> Target {
        let reason = reason.map(str::to_owned);
        Target {
            row: "exec".into(),
            contender: "bulkhead-cold".into(),
            at_most: 0.7,
            of: of.map(str::to_owned),
            reason,
        }
    }

    #[test]
    fn a_target_is_a_figure_or_a_multiple_of_anothers() {
        let result = result(&[("exec", "bulkhead-cold", 0.6), ("exec", "runc", 0.8)]);
        assert_eq!(target(None, None).verdict(&result), Verdict::Met);
        assert_eq!(target(Some("runc"), None).verdict(&result), Verdict::Missed);
        assert_eq!(target(Some("qemu"), None).verdict(&result), Verdict::Unknown);
        assert_eq!(target(Some("runc"), None).to_string(), "0.7 × runc");
    }

    #[test]
    fn a_missed_target_needs_a_reason() {
        let result = result(&[("exec", "bulkhead-cold", 0.9)]);
        assert!(check_reasons(&[target(None, None)], &result).is_err());
        assert!(check_reasons(&[target(None, Some("why"))], &result).is_ok());
    }

    #[test]
    fn every_target_has_a_row_and_a_contender() {
        for target in super::read().unwrap() {
            assert!(ROWS.iter().any(|row| row.name == target.row), "{}", target.row);
            let contenders = [Some(&target.contender), target.of.as_ref()];
            assert!(contenders.into_iter().flatten().all(|name| CONTENDERS.contains(&name.as_str())), "{target:?}");
        }
    }
}
