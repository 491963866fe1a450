//! CRI log files: a line for each line that a container wrote, with a time, a stream and whether the line goes on.

use std::fs;
use std::path::{Path, PathBuf};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// A line of a container, or a part of one that was too long for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub stream: Stream,
    /// False: the next line of the same stream goes on with this one.
    pub whole: bool,
    pub text: String,
}

/// A container's log file.
#[derive(Clone, Debug)]
pub struct Log {
    path: PathBuf,
}

impl Log {
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is written so far. The last line may be half there; it is left out.
    #[track_caller]
    pub fn lines(&self) -> Vec<Line> {
        let bytes = fs::read(&self.path).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let parsed = whole.lines().map(|line| parse(line).unwrap_or_else(|| panic!("no CRI log line: {line:?}")));
        parsed.collect()
    }

    /// What a stream carried, put together again.
    #[track_caller]
    pub fn text(&self, stream: Stream) -> String {
        let parts = self.lines().into_iter().filter(|line| line.stream == stream);
        parts.map(|line| if line.whole { line.text + "\n" } else { line.text }).collect()
    }

    #[track_caller]
    pub fn stdout(&self) -> String {
        self.text(Stream::Stdout)
    }

    #[track_caller]
    pub fn stderr(&self) -> String {
        self.text(Stream::Stderr)
    }
}

fn parse(line: &str) -> Option<Line> {
    let mut parts = line.splitn(4, ' ');
    let (_time, stream, tag, text) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let stream = match stream {
        "stdout" => Stream::Stdout,
        "stderr" => Stream::Stderr,
        _ => return None,
    };
    let whole = match tag {
        "F" => true,
        "P" => false,
        _ => return None,
    };
    Some(Line { stream, whole, text: text.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_a_stream_and_says_whether_it_goes_on() {
        let line = parse("2026-01-01T00:00:00.0Z stderr P two words ").unwrap();
        assert_eq!(line, Line { stream: Stream::Stderr, whole: false, text: "two words ".into() });
        assert_eq!(parse("2026-01-01T00:00:00.0Z stdout F ").unwrap().text, "");
        assert_eq!(parse("2026-01-01T00:00:00.0Z stdin F x"), None);
        assert_eq!(parse("plain"), None);
    }
}
