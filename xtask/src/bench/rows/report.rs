//! The result: a table for people, JSON for programs.

use super::sample::Measured;
use crate::bench::statistics::{Summary, summarize};
use node_vm::Edition;
use serde_json::{Map, Value, json};
use std::fmt::Write;

#[derive(Debug)]
pub struct Report<'a> {
    edition: Edition,
    quick: bool,
    measured: &'a Measured,
}

impl<'a> Report<'a> {
    pub fn new(edition: Edition, quick: bool, measured: &'a Measured) -> Self {
        Self { edition, quick, measured }
    }

    pub fn to_json(&self) -> String {
        let mut rows = Map::new();
        for (row, contender, values) in self.measured.values() {
            let Some(Summary { median, spread }) = summarize(&values) else { continue };
            let figure = json!({ "median": median, "spread": spread, "values": values });
            let row = rows.entry(row).or_insert_with(|| json!({}));
            row[contender] = figure;
        }
        let failures = self.measured.failures.iter();
        let failures = failures.map(|failure| json!({ "step": failure.step, "reason": failure.reason }));
        let result = json!({
            "clock": "instructions: the node's clock advances one nanosecond for each",
            "edition": self.edition.to_string(),
            "quick": self.quick,
            "nodes": self.measured.nodes,
            "rows": rows,
            "failures": Value::Array(failures.collect()),
        });
        format!("{result:#}\n")
    }

    pub fn to_text(&self) -> String {
        let mut text = String::from("| row | contender | median | half spread | n |\n|---|---|---|---|---|\n");
        for (row, contender, values) in self.measured.values() {
            let Some(Summary { median, spread }) = summarize(&values) else { continue };
            let _ = writeln!(text, "| {row} | {contender} | {median:.4} | {:.2} % | {} |", spread * 50.0, values.len());
        }
        for ((step, reason), count) in self.measured.troubles() {
            let _ = writeln!(text, "repeated: {step}: {reason} ({count})");
        }
        text
    }
}
