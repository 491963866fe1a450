//! Figures as the node's program prints them, and what did not come to a figure.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// One figure.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    pub row: String,
    pub contender: String,
    pub value: f64,
}

/// A call that did not do its work within its limits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    pub step: String,
    pub reason: String,
}

/// What came out of a run.
#[derive(Debug, Default)]
pub struct Measured {
    pub samples: Vec<Sample>,
    pub failures: Vec<Failure>,
    /// How many nodes it took.
    pub nodes: u32,
}

/// The figures in what a call printed. Other lines are none.
pub fn parse(text: &str, contender: &str) -> Vec<Sample> {
    let sample = |line: &str| {
        let value: Value = serde_json::from_str(line).ok()?;
        let (row, value) = (value["row"].as_str()?.to_owned(), value["value"].as_f64()?);
        Some(Sample { row, contender: contender.to_owned(), value })
    };
    text.lines().filter_map(sample).collect()
}

impl Measured {
    /// Values by row and contender, in the order in which they came first.
    pub fn values(&self) -> Vec<(&str, &str, Vec<f64>)> {
        let mut rows: Vec<(&str, &str, Vec<f64>)> = Vec::new();
        for Sample { row, contender, value } in &self.samples {
            match rows.iter_mut().find(|(other, of, _)| other == row && of == contender) {
                Some((_, _, values)) => values.push(*value),
                None => rows.push((row, contender, vec![*value])),
            }
        }
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::{Measured, Sample, parse};

    #[test]
    fn figures_stand_among_other_lines() {
        let text = "a word\n{\"row\":\"r\",\"value\":0.25}\n{\"row\":\"r\"}\n{\"row\":\"r\",\"value\":2}\n";
        let sample = |value| Sample { row: "r".to_owned(), contender: "c".to_owned(), value };
        assert_eq!(parse(text, "c"), [sample(0.25), sample(2.0)]);
    }

    #[test]
    fn values_are_gathered_by_row() {
        let sample = |row: &str, value| Sample { row: row.to_owned(), contender: "c".to_owned(), value };
        let measured =
            Measured { samples: vec![sample("b", 1.0), sample("a", 2.0), sample("b", 3.0)], ..Measured::default() };
        assert_eq!(measured.values(), [("b", "c", vec![1.0, 3.0]), ("a", "c", vec![2.0])]);
    }
}
