//! A guest's console, read until the guest has said something.

use anyhow::{Result, bail};
use std::io::{BufRead, BufReader, Read};

/// Reads until a line has `text`. What was said before is the error's, when the console ends without it.
pub fn wait_for(console: impl Read, text: &str) -> Result<()> {
    let mut console = BufReader::new(console);
    let mut said = String::new();
    let mut line = Vec::new();
    while console.read_until(b'\n', &mut line)? > 0 {
        let words = String::from_utf8_lossy(&line);
        if words.contains(text) {
            return Ok(());
        }
        said.push_str(&words);
        line.clear();
    }
    bail!("the console ended without `{text}`; it said:\n{said}")
}

#[cfg(test)]
mod tests {
    use super::wait_for;

    #[test]
    fn a_console_that_ends_too_early_is_quoted() {
        assert!(wait_for(&b"one\nit runs here\ntwo"[..], "it runs").is_ok());
        let error = wait_for(&b"one\ntwo"[..], "it runs").unwrap_err();
        assert!(error.to_string().ends_with("one\ntwo"));
    }
}
