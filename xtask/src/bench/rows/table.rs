//! A result for people: Markdown.

use super::result::{BenchResult, Figure};
use super::row::{CONTENDERS, ROWS, Row};
use super::target::{Target, Verdict};
use std::fmt::Write;

/// Rows with a figure, the contenders that there are, and the targets beside them.
pub fn table(result: &BenchResult, targets: &[Target]) -> String {
    let there = |contender: &&&str| result.figures.iter().any(|figure| figure.contender == **contender);
    let contenders: Vec<&str> = CONTENDERS.iter().filter(there).copied().collect();
    let mut text = format!("| figure | unit | {} | target |\n", contenders.join(" | "));
    let _ = writeln!(text, "|{}", "---|".repeat(contenders.len() + 3));
    for row in ROWS {
        let figures: Vec<Option<&Figure>> =
            contenders.iter().map(|contender| result.find(row.name, contender)).collect();
        if figures.iter().all(Option::is_none) {
            continue;
        }
        let _ = write!(text, "| {} | {} |", row.title, row.unit);
        for figure in figures {
            text.push_str(&figure.map_or_else(|| " |".to_owned(), |figure| format!(" {} |", cell(figure))));
        }
        let _ = writeln!(text, " {} |", goals(row, result, targets));
    }
    text
}

/// One value alone tells nothing of how it repeats.
fn cell(figure: &Figure) -> String {
    let median = number(figure.median);
    if figure.values.len() > 1 { format!("{median} ± {:.1} %", figure.spread * 50.0) } else { median }
}

/// With four digits that count.
fn number(value: f64) -> String {
    match value {
        value if value >= 1000.0 => format!("{value:.0}"),
        value if value >= 100.0 => format!("{value:.1}"),
        value if value >= 10.0 => format!("{value:.2}"),
        value if value >= 1.0 => format!("{value:.3}"),
        value => format!("{value:.4}"),
    }
}

fn goals(row: &Row, result: &BenchResult, targets: &[Target]) -> String {
    let goal = |target: &Target| {
        let reached = target.reached(result)?;
        let verdict = if target.verdict(result) == Verdict::Met { "met" } else { "**missed**" };
        let reached = if target.of.is_some() { format!(" ({reached:.2})") } else { String::new() };
        Some(format!("{} ≤ {target}: {verdict}{reached}", target.contender))
    };
    targets.iter().filter(|target| target.row == row.name).filter_map(goal).collect::<Vec<_>>().join("; ")
}

/// Why targets are missed, and what had to be repeated.
pub fn remarks(result: &BenchResult, targets: &[Target]) -> String {
    let mut text = String::new();
    for target in targets.iter().filter(|target| target.verdict(result) == Verdict::Missed) {
        let reason = target.reason.as_deref().unwrap_or("no reason is known yet.");
        let _ = writeln!(text, "- {} of {} misses {target}: {reason}", target.row, target.contender);
    }
    for target in targets.iter().filter(|target| target.verdict(result) == Verdict::Unknown) {
        let _ = writeln!(text, "- {} of {} (target: {target}) is not measured.", target.row, target.contender);
    }
    for ((step, reason), count) in result.troubles() {
        let _ = writeln!(text, "- Repeated ({count}): `{step}`: {reason}");
    }
    text
}

/// How a result differs from an older one: figures as multiples of what they were.
pub fn comparison(old: &BenchResult, new: &BenchResult) -> String {
    let mut text = String::from("| figure | contender | unit | before | now | ratio |\n|---|---|---|---|---|---|\n");
    for row in ROWS {
        for figure in new.figures.iter().filter(|figure| figure.row == row.name) {
            let Some(before) = old.find(row.name, &figure.contender) else { continue };
            let (was, is) = (before.median, figure.median);
            let ratio = is / was;
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} | {ratio:.3} |",
                row.title,
                figure.contender,
                row.unit,
                number(was),
                number(is)
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{comparison, remarks, table};
    use crate::bench::rows::result::tests::result;
    use crate::bench::rows::target::Target;

    fn target() -> Target {
        let reason = Some("it is slow.".to_owned());
        Target { row: "exec".into(), contender: "bulkhead-cold".into(), at_most: 0.7, of: Some("runc".into()), reason }
    }

    #[test]
    fn a_table_has_targets_beside_its_figures() {
        let result = result(&[("exec", "bulkhead-cold", 0.09), ("exec", "bulkhead-cold", 0.11), ("exec", "runc", 0.1)]);
        assert_eq!(
            table(&result, &[target()]),
            "| figure | unit | bulkhead-cold | runc | target |\n|---|---|---|---|---|\n\
             | ExecSync of `true` after that | s | 0.1000 ± 10.0 % | 0.1000 | bulkhead-cold ≤ 0.7 × runc: **missed** (1.00) |\n"
        );
        assert_eq!(remarks(&result, &[target()]), "- exec of bulkhead-cold misses 0.7 × runc: it is slow.\n");
    }

    #[test]
    fn a_change_is_a_ratio() {
        let text = comparison(&result(&[("exec", "runc", 0.2)]), &result(&[("exec", "runc", 0.1)]));
        assert!(text.ends_with("| ExecSync of `true` after that | runc | s | 0.2000 | 0.1000 | 0.500 |\n"), "{text}");
    }
}
