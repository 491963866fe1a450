//! What must not grow again (`tests/bench/budget.json`): the phases of a start, each of which may be a little more than the baseline's
//! largest value, and no more. A short phase could double, and be lost in the whole.

use super::result::{BenchResult, Figure};
use super::row;
use crate::run;
use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// What is measured for it: programs alone, which take seconds and repeat within a few thousandths.
pub const STEPS: [&str; 1] = ["vmm-agent"];

pub const ROUNDS: u32 = 3;

/// For the one who sees it fail.
const FURTHER: &str = "\
`cargo xtask bench --only trace` shows what such starts do, and when: target/bench/node/vmm-*.trace.json, for ui.perfetto.dev.
`cargo xtask bench compare target/bench/budget.json` has the phases as multiples of the baseline's.";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Budget {
    /// How much a median may be, as a multiple of the baseline's largest value.
    allowance: f64,
    figures: Vec<Guarded>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Guarded {
    /// For people.
    phase: String,
    row: String,
    contender: String,
}

/// Fails with every phase that is over its budget, or that is not there. Tells how near the others are.
pub fn check(result: &BenchResult) -> Result<()> {
    let (within, excesses) = compare(&budget()?, &baseline()?, result);
    within.iter().for_each(|line| println!("budget: {line}"));
    if !excesses.is_empty() {
        bail!("the budget (tests/bench/budget.json) is not kept:\n{}\n{FURTHER}", excesses.join("\n"));
    }
    Ok(())
}

fn budget() -> Result<Budget> {
    let path = run::workspace().join("tests/bench/budget.json");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is no budget", path.display()))
}

fn baseline() -> Result<BenchResult> {
    BenchResult::read(&run::workspace().join("tests/bench/baseline.json"))
}

/// What is within its limit, and what is not.
fn compare(budget: &Budget, baseline: &BenchResult, result: &BenchResult) -> (Vec<String>, Vec<String>) {
    let (mut within, mut excesses) = (Vec::new(), Vec::new());
    for Guarded { phase, row, contender } in &budget.figures {
        let name = format!("{phase} ({row} of {contender})");
        // What the guest's kernel does beside its init comes before or after the end of a phase: short ones have two values.
        let largest = |figure: &Figure| figure.values.iter().copied().reduce(f64::max);
        let before = baseline.find(row, contender).and_then(largest);
        match (before, result.find(row, contender).map(|figure| figure.median)) {
            (None, _) => excesses.push(format!("{name}: the baseline has none")),
            (_, None) => excesses.push(format!("{name}: not measured")),
            (Some(before), Some(now)) => {
                let (limit, percent, unit) = (before * budget.allowance, (now / before - 1.0) * 100.0, row::unit(row));
                let line = format!("{name}: {now:.5} {unit}, {percent:+.1} %; the limit is {limit:.5} {unit}");
                if now > limit { excesses.push(line) } else { within.push(line) }
            }
        }
    }
    (within, excesses)
}

#[cfg(test)]
mod tests {
    use super::{Budget, Guarded, baseline, budget, compare};
    use crate::bench::rows::result::tests::result;
    use crate::bench::rows::row::ROWS;

    #[test]
    fn five_per_cent_more_are_allowed_and_a_missing_figure_is_not() {
        let guarded = |row: &str| Guarded { phase: "a phase".into(), row: row.into(), contender: "runc".into() };
        let budget = Budget { allowance: 1.05, figures: vec![guarded("exec"), guarded("churn")] };
        let baseline = result(&[("exec", "runc", 0.6), ("exec", "runc", 1.0), ("churn", "runc", 1.0)]);
        let (within, excesses) =
            compare(&budget, &baseline, &result(&[("exec", "runc", 1.04), ("churn", "runc", 0.5)]));
        assert_eq!((within.len(), excesses.len()), (2, 0));
        let (within, excesses) = compare(&budget, &baseline, &result(&[("exec", "runc", 1.06)]));
        assert!(within.is_empty());
        let slow = "a phase (exec of runc): 1.06000 s, +6.0 %; the limit is 1.05000 s";
        assert_eq!(excesses, [slow, "a phase (churn of runc): not measured"]);
    }

    #[test]
    fn a_phase_is_over_its_budget_while_the_whole_start_is_not() {
        let start = |init: f64| {
            let rows = [("vmm-agent", 0.12 + init), ("vmm-agent-kernel", 0.12), ("vmm-agent-init", init)];
            result(&rows.map(|(row, value)| (row, "bulkhead-cold", value)))
        };
        let known = |guarded: &Guarded| start(1.0).find(&guarded.row, &guarded.contender).is_some();
        let budget = budget().unwrap();
        let budget = Budget { figures: budget.figures.into_iter().filter(known).collect(), ..budget };
        let (within, excesses) = compare(&budget, &start(0.003), &start(0.003 * 1.06));
        assert_eq!((within.len(), excesses.len()), (2, 1));
        assert!(excesses[0].contains("(vmm-agent-init of bulkhead-cold)"), "{excesses:?}");
    }

    #[test]
    fn every_budget_is_that_of_a_row_with_a_baseline() {
        let (budget, baseline) = (budget().unwrap(), baseline().unwrap());
        assert_eq!(compare(&budget, &baseline, &baseline).1, [""; 0]);
        for Guarded { row, .. } in budget.figures {
            assert!(ROWS.iter().any(|known| known.name == row), "{row}");
        }
    }
}
