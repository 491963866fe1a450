//! Whether two runs of the same program gave the same figures.

use super::result::{BenchResult, Figure};
use anyhow::{Result, bail, ensure};

/// Rows by how their names begin, and by what share their medians may differ. Others are not bound.
const BOUNDS: [(&str, f64); 4] = [("vmm-init", 0.01), ("vmm-agent", 0.01), ("pod-", 0.03), ("exec", 0.03)];

/// Some take two milliseconds, and repeat within 3 %: only the whole is bound.
const PARTS: &str = "vmm-agent-";

pub fn check(one: &BenchResult, other: &BenchResult) -> Result<()> {
    ensure!(one.clock == other.clock && one.edition == other.edition, "the runs are of two clocks or two editions");
    let differences = differences(one, other);
    if !differences.is_empty() {
        bail!("the runs differ:\n{}", differences.join("\n"));
    }
    Ok(())
}

fn differences(one: &BenchResult, other: &BenchResult) -> Vec<String> {
    let mut found = Vec::new();
    for (figure, most) in bound(one) {
        let name = format!("{} of {}", figure.row, figure.contender);
        let Some(again) = other.find(&figure.row, &figure.contender) else {
            found.push(format!("{name} is in one of them alone"));
            continue;
        };
        let difference = (again.median / figure.median - 1.0).abs();
        if difference > most {
            let (percent, most) = (difference * 100.0, most * 100.0);
            found.push(format!("{name} by {percent:.1} %; at most {most} % are allowed"));
        }
    }
    let alone = bound(other).filter(|(figure, _)| one.find(&figure.row, &figure.contender).is_none());
    found.extend(alone.map(|(figure, _)| format!("{} of {} is in one of them alone", figure.row, figure.contender)));
    found
}

fn bound(result: &BenchResult) -> impl Iterator<Item = (&Figure, f64)> {
    let whole = result.figures.iter().filter(|figure| !figure.row.starts_with(PARTS));
    whole.filter_map(|figure| {
        BOUNDS.iter().find(|(begin, _)| figure.row.starts_with(begin)).map(|(_, most)| (figure, *most))
    })
}

#[cfg(test)]
mod tests {
    use super::differences;
    use crate::bench::rows::result::tests::result;

    #[test]
    fn programs_alone_are_held_to_less_than_pods() {
        let run = |vmm, pod| result(&[("vmm-agent", "bulkhead-cold", vmm), ("pod-ready", "runc", pod)]);
        assert!(differences(&run(1.0, 1.0), &run(1.009, 0.975)).is_empty());
        let found = differences(&run(1.0, 1.0), &run(1.02, 1.05));
        assert_eq!(found[0], "vmm-agent of bulkhead-cold by 2.0 %; at most 1 % are allowed");
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn a_run_that_has_less_does_not_agree() {
        let (one, other) =
            (result(&[("exec", "runc", 1.0)]), result(&[("exec", "qemu", 1.0), ("output", "runc", 1.0)]));
        let found = differences(&one, &other);
        assert_eq!(found, ["exec of runc is in one of them alone", "exec of qemu is in one of them alone"]);
    }
}
