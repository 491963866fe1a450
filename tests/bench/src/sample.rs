//! A figure, as xtask reads it: a line of JSON.

use serde_json::json;
use std::time::Duration;

/// Prints one figure of the row `row`, in the row's unit.
pub fn tell(row: &str, value: f64) {
    println!("{}", json!({ "row": row, "value": value }));
}

pub fn tell_time(row: &str, time: Duration) {
    tell(row, time.as_secs_f64());
}
