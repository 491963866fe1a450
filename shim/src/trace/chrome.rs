//! The file: a JSON object that trace viewers read (ui.perfetto.dev, chrome://tracing).

use super::Recorded;
use serde_json::{Value, json};

pub(super) fn encode(spans: &[Recorded]) -> Vec<u8> {
    let mut rows: Vec<&str> = Vec::new();
    for span in spans {
        if !rows.contains(&&*span.row) {
            rows.push(&span.row);
        }
    }
    let number = |row: &str| rows.iter().position(|known| *known == row).unwrap_or_default();
    let name = |(number, row): (usize, &&str)| json!({"ph": "M", "name": "thread_name", "pid": 1, "tid": number, "args": {"name": row}});
    let span = |span: &Recorded| {
        let (start, length) = (microseconds(span.start), microseconds(span.end - span.start));
        json!({"ph": "X", "name": span.name, "pid": 1, "tid": number(&span.row), "ts": start, "dur": length})
    };
    let events: Vec<Value> = rows.iter().enumerate().map(name).chain(spans.iter().map(span)).collect();
    json!({"displayTimeUnit": "ms", "traceEvents": events}).to_string().into_bytes()
}

/// The format's unit. Nanoseconds are kept as its fraction: a node would be up for 100 days before they are lost.
#[expect(clippy::cast_precision_loss, reason = "53 bits are enough")]
fn microseconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_named_and_spans_are_in_them() {
        let span = |row: &'static str, name: &'static str, start, end| Recorded {
            row: row.into(),
            name: name.into(),
            start,
            end,
        };
        let spans = [span("shim", "sandbox", 1000, 5500), span("vmm", "jail", 2000, 3000)];
        let golden = concat!(
            r#"{"displayTimeUnit":"ms","traceEvents":["#,
            r#"{"args":{"name":"shim"},"name":"thread_name","ph":"M","pid":1,"tid":0},"#,
            r#"{"args":{"name":"vmm"},"name":"thread_name","ph":"M","pid":1,"tid":1},"#,
            r#"{"dur":4.5,"name":"sandbox","ph":"X","pid":1,"tid":0,"ts":1.0},"#,
            r#"{"dur":1.0,"name":"jail","ph":"X","pid":1,"tid":1,"ts":2.0}]}"#
        );
        assert_eq!(String::from_utf8(encode(&spans)).unwrap(), golden);
    }
}
