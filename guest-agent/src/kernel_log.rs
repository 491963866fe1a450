//! The agent's log goes into the kernel's: one stream, one order, on the console that the node records.

use std::fmt::{self, Write as _};
use std::fs::{File, OpenOptions};
use std::io::Write;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// The kernel's own limit for a line is a little higher.
const MAX_LINE: usize = 900;

/// From here on `tracing` writes to the kernel log. Without `/dev/kmsg` it stays silent.
pub fn install() {
    let Ok(kmsg) = OpenOptions::new().write(true).open("/dev/kmsg") else { return };
    tracing::subscriber::set_global_default(KernelLog { kmsg }).ok();
    std::panic::set_hook(Box::new(|panic| tracing::error!(%panic, "the agent panicked")));
}

#[derive(Debug)]
struct KernelLog {
    kmsg: File,
}

impl Subscriber for KernelLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::INFO
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        let text = line.finish(*event.metadata().level());
        // One write is one record. A log that can't be written has nowhere to be reported.
        (&self.kmsg).write_all(text.as_bytes()).ok();
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// `message key=value …`
#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string can't fail.
        if field.name() == "message" {
            write!(self.message, "{value:?}").ok();
        } else {
            write!(self.fields, " {}={value:?}", field.name()).ok();
        }
    }
}

impl Line {
    /// With the kernel's priority in front, on one line.
    fn finish(self, level: Level) -> String {
        let priority = match level {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            _ => 7,
        };
        let text = format!("{}{}", self.message, self.fields);
        let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let cut = (0..=text.len().min(MAX_LINE)).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        format!("<{priority}>bulkhead-agent: {}", &text[..cut])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_a_priority_and_is_one_line() {
        let line = Line { message: "mount\nfailed".into(), fields: " path=\"/x\"".into() };
        assert_eq!(line.finish(Level::ERROR), "<3>bulkhead-agent: mount failed path=\"/x\"");
    }

    #[test]
    fn a_long_line_is_cut() {
        let line = Line { message: "é".repeat(5000), fields: String::new() };
        assert!(line.finish(Level::INFO).len() < MAX_LINE + 32);
    }
}
