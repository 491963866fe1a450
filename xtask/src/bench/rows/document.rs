//! docs/performance.md and its charts, made of a result. Only what stands between two marks is replaced.

use super::result::BenchResult;
use super::table::{remarks, table};
use super::target::{self, Target};
use super::{chart, row};
use crate::run;
use anyhow::{Context, Result};
use std::fmt::Write;

const BEGIN: &str = "<!-- made by `cargo xtask bench document` -->\n";
const END: &str = "<!-- end of what is made -->\n";

/// Below docs/.
const CHARTS: &str = "performance";

pub fn write(result: &BenchResult) -> Result<()> {
    let targets = target::read()?;
    target::check_reasons(&targets, result)?;
    let docs = run::workspace().join("docs");
    let page = docs.join("performance.md");
    let text = std::fs::read_to_string(&page).with_context(|| format!("cannot read {}", page.display()))?;
    let charts = chart::draw(result, &docs.join(CHARTS))?;
    let names = charts.iter().filter_map(|chart| chart.file_name()?.to_str().map(str::to_owned)).collect::<Vec<_>>();
    let text = replace(&text, &section(result, &targets, &names)).context("docs/performance.md has lost its marks")?;
    std::fs::write(&page, text).with_context(|| format!("cannot write {}", page.display()))
}

fn section(result: &BenchResult, targets: &[Target], charts: &[String]) -> String {
    let mut text = format!("\nEdition of the node: {}. Clock: {}.\n\n", result.edition, result.clock);
    if result.quick {
        text.push_str("A part of it is from a quick run, of fewer repetitions.\n\n");
    }
    text.push_str(&table(result, targets));
    let counts: Vec<String> = row::ROWS.iter().filter_map(|row| count(result, row.name)).collect();
    let _ = writeln!(text, "\nValues for a figure: {}.\n", counts.join(", "));
    text.push_str(&remarks(result, targets));
    for chart in charts {
        let _ = writeln!(text, "\n![{}]({CHARTS}/{chart})", chart.trim_end_matches(".svg"));
    }
    text.push('\n');
    text
}

/// The fewest of any contender.
fn count(result: &BenchResult, row: &str) -> Option<String> {
    let figures = result.figures.iter().filter(|figure| figure.row == row);
    figures.map(|figure| figure.values.len()).min().map(|count| format!("{row} {count}"))
}

fn replace(text: &str, section: &str) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}{section}{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::{BEGIN, END, replace};

    #[test]
    fn what_people_wrote_stays() {
        let text = format!("one\n{BEGIN}old\n{END}two\n");
        assert_eq!(replace(&text, "new\n").unwrap(), format!("one\n{BEGIN}new\n{END}two\n"));
        assert_eq!(replace("one", "new"), None);
    }

    #[test]
    fn the_page_has_its_marks() {
        let page = std::fs::read_to_string(crate::run::workspace().join("docs/performance.md")).unwrap();
        assert!(replace(&page, "").is_some());
    }
}
