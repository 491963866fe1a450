//! Whether two runs of the same program gave the same figures.

use super::result::BenchResult;
use anyhow::{Result, bail};

/// Rows by how their names begin, and by what share their medians may differ. Others are not bound.
const BOUNDS: [(&str, f64); 4] = [("vmm-init", 0.01), ("vmm-agent", 0.01), ("pod-", 0.03), ("exec", 0.03)];

/// Some take two milliseconds, and repeat within 3 %: only the whole is bound.
const PARTS: &str = "vmm-agent-";

pub fn check(one: &BenchResult, other: &BenchResult) -> Result<()> {
    let differences = differences(one, other);
    if !differences.is_empty() {
        bail!("the runs differ:\n{}", differences.join("\n"));
    }
    Ok(())
}

fn differences(one: &BenchResult, other: &BenchResult) -> Vec<String> {
    let mut found = Vec::new();
    for figure in one.figures.iter().filter(|figure| !figure.row.starts_with(PARTS)) {
        let bound = BOUNDS.iter().find(|(begin, _)| figure.row.starts_with(begin));
        let (Some((_, most)), Some(again)) = (bound, other.find(&figure.row, &figure.contender)) else { continue };
        let difference = (again.median / figure.median - 1.0).abs();
        if difference > *most {
            let (row, contender) = (&figure.row, &figure.contender);
            let (percent, most) = (difference * 100.0, most * 100.0);
            found.push(format!("{row} of {contender} by {percent:.1} %; at most {most} % are allowed"));
        }
    }
    found
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
    fn figures_of_one_run_alone_say_nothing() {
        assert!(differences(&result(&[("exec", "runc", 1.0)]), &result(&[("exec", "qemu", 2.0)])).is_empty());
    }
}
