//! What must not grow again (`tests/bench/budget.json`): figures that may be a little more than the baseline's, and no more.

use super::result::BenchResult;
use crate::run;
use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// What is measured for it: programs alone, which take seconds and repeat within a few thousandths.
pub const STEPS: [&str; 1] = ["vmm-agent"];

pub const ROUNDS: u32 = 3;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// How much a figure may be, as a multiple of the baseline's.
    pub allowance: f64,
    pub figures: Vec<Guarded>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Guarded {
    pub row: String,
    pub contender: String,
}

/// Fails with every figure that is over its budget, or that is not there.
pub fn check(result: &BenchResult) -> Result<()> {
    let directory = run::workspace().join("tests/bench");
    let path = directory.join("budget.json");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let budget: Budget = serde_json::from_str(&text).with_context(|| format!("{} is no budget", path.display()))?;
    let excesses = excesses(&budget, &BenchResult::read(&directory.join("baseline.json"))?, result);
    if !excesses.is_empty() {
        bail!("the budget (tests/bench/budget.json) is not kept:\n{}", excesses.join("\n"));
    }
    Ok(())
}

fn excesses(budget: &Budget, baseline: &BenchResult, result: &BenchResult) -> Vec<String> {
    let excess = |Guarded { row, contender }: &Guarded| {
        let median = |of: &BenchResult| of.find(row, contender).map(|figure| figure.median);
        let Some(before) = median(baseline) else { return Some(format!("the baseline has no {row} of {contender}")) };
        let Some(now) = median(result) else { return Some(format!("{row} of {contender} was not measured")) };
        let limit = before * budget.allowance;
        (now > limit).then(|| format!("{row} of {contender} is {now:.4}; at most {limit:.4} are allowed"))
    };
    budget.figures.iter().filter_map(excess).collect()
}

#[cfg(test)]
mod tests {
    use super::{Budget, Guarded, excesses};
    use crate::bench::rows::result::tests::result;

    #[test]
    fn five_per_cent_more_are_allowed_and_a_missing_figure_is_not() {
        let guarded = |row: &str| Guarded { row: row.into(), contender: "runc".into() };
        let budget = Budget { allowance: 1.05, figures: vec![guarded("exec"), guarded("churn")] };
        let baseline = result(&[("exec", "runc", 1.0), ("churn", "runc", 1.0)]);
        assert!(excesses(&budget, &baseline, &result(&[("exec", "runc", 1.04), ("churn", "runc", 0.5)])).is_empty());
        let found = excesses(&budget, &baseline, &result(&[("exec", "runc", 1.06)]));
        assert_eq!(found, ["exec of runc is 1.0600; at most 1.0500 are allowed", "churn of runc was not measured"]);
    }
}
