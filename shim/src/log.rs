//! Log lines into containerd's log: the FIFO `log` in the bundle, in the text format that containerd writes.
//!
//! The log must never stop the shim: the FIFO is opened for both directions, so that no reader is needed and a
//! restart of containerd is not noticed, and a line that does not fit is dropped. Each line is one write of at
//! most `PIPE_BUF` bytes, hence never torn.

use crate::clock;
use std::fmt::{self, Write as _};
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::SystemTime;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// `PIPE_BUF`: longest write that a pipe takes as a whole.
const MAX_LINE: usize = 4096;

/// Longest text of one field, before quoting.
const MAX_VALUE: usize = 1024;

/// Writes events; spans are not used in this crate.
#[derive(Debug)]
pub struct FifoLog {
    fifo: File,
    level: Level,
    /// Fields that every line of this shim carries.
    common: String,
}

impl FifoLog {
    /// Opens the FIFO that containerd made in the bundle.
    pub fn open(path: &Path, level: Level, common: &[(&str, &str)]) -> std::io::Result<Self> {
        let fifo = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC | libc::O_NOFOLLOW)
            .open(path)?;
        let mut fields = String::new();
        for (name, value) in common {
            push_field(&mut fields, name, value);
        }
        Ok(Self { fifo, level, common: fields })
    }

    /// Makes this the process's log, panics included.
    pub fn install(self) {
        if tracing::subscriber::set_global_default(self).is_ok() {
            std::panic::set_hook(Box::new(|panic| tracing::error!("shim panicked: {panic}")));
        }
    }

    fn line(&self, event: &Event<'_>, time: SystemTime) -> String {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let level = match *event.metadata().level() {
            Level::ERROR => "error",
            Level::WARN => "warning",
            Level::INFO => "info",
            Level::DEBUG | Level::TRACE => "debug",
        };
        let mut line = format!("time=\"{}\" level={level}", clock::rfc3339(time));
        push_field(&mut line, "msg", &fields.message);
        line.push_str(&self.common);
        line.push_str(&fields.others);
        truncate(&mut line, MAX_LINE - 1);
        line.push('\n');
        line
    }
}

impl Subscriber for FifoLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && metadata.level() <= &self.level
    }

    fn event(&self, event: &Event<'_>) {
        // A full or broken pipe loses the line, nothing else.
        let _ = (&self.fifo).write(self.line(event, SystemTime::now()).as_bytes());
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

#[derive(Default)]
struct Fields {
    message: String,
    others: String,
}

impl Fields {
    fn add(&mut self, field: &Field, value: String) {
        match field.name() {
            "message" => self.message = value,
            name => push_field(&mut self.others, name, &value),
        }
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value.to_owned());
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.add(field, with_causes(value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, format!("{value:?}"));
    }
}

/// An error's text and the texts of what caused it, on one line.
pub fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let _ = write!(text, ": {cause}");
        source = cause.source();
    }
    text
}

fn push_field(line: &mut String, name: &str, value: &str) {
    line.push(' ');
    line.push_str(name);
    line.push('=');
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._/@^+".contains(c);
    if !value.is_empty() && value.chars().all(plain) && value.len() <= MAX_VALUE {
        line.push_str(value);
        return;
    }
    line.push('"');
    for c in value.chars().take(MAX_VALUE) {
        match c {
            '"' | '\\' => line.extend(['\\', c]),
            '\n' => line.push_str("\\n"),
            c if c.is_control() => line.extend(c.escape_unicode()),
            c => line.push(c),
        }
    }
    line.push('"');
}

fn truncate(line: &mut String, length: usize) {
    if line.len() > length {
        let mut end = length;
        while !line.is_char_boundary(end) {
            end -= 1;
        }
        line.truncate(end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    /// The lines that `work` logs.
    fn logged(level: Level, work: impl FnOnce()) -> String {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let mut reader = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
        let log = FifoLog::open(&path, level, &[("namespace", "k8s.io"), ("pod", "p 1")]).unwrap();
        tracing::subscriber::with_default(log, work);
        let mut bytes = vec![0; 1 << 17];
        let length = reader.read(&mut bytes).unwrap_or(0);
        String::from_utf8(bytes[..length].to_vec()).unwrap()
    }

    #[test]
    fn lines_have_containerds_shape() {
        let text = logged(Level::INFO, || tracing::warn!(container = "c1", source = %"a \"b\"", "it\nbroke"));
        let (time, rest) = text.split_once(" level").unwrap();
        assert!(time.starts_with("time=\"2") && time.ends_with("Z\""), "{time}");
        assert_eq!(
            rest,
            "=warning msg=\"it\\nbroke\" namespace=k8s.io pod=\"p 1\" container=c1 source=\"a \\\"b\\\"\"\n"
        );
    }

    #[test]
    fn debug_lines_need_the_debug_level() {
        assert_eq!(logged(Level::INFO, || tracing::debug!("hidden")), "");
        assert!(logged(Level::DEBUG, || tracing::debug!("shown")).contains("msg=shown"));
    }

    #[test]
    fn a_line_never_exceeds_what_a_pipe_takes_whole() {
        let text =
            logged(Level::INFO, || tracing::info!(a = "é".repeat(9000), b = "x".repeat(9000), "{}", "y".repeat(9000)));
        assert!(text.len() <= MAX_LINE && text.ends_with('\n'), "{} bytes", text.len());
    }

    #[test]
    fn nobody_reading_blocks_nothing() {
        logged(Level::INFO, || (0..1000).for_each(|_| tracing::info!("{}", "x".repeat(900))));
    }
}
