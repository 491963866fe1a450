//! The host's side of the conversation with `node-serve` in the node.
//!
//! The script's output and the mark of its end share one stream, so that the end can't overtake the output:
//! the byte 0x1e (record separator), the token of the request, a space, the exit code, a newline.

const MARK: u8 = 0x1e;
/// A mark line longer than this is output that happens to contain the mark byte.
const LONGEST_MARK: usize = 64;

/// The request that makes the node run `script`.
pub(crate) fn run_request(token: &str, script: &str) -> Vec<u8> {
    let mut request = format!("run {token} {}\n", script.len()).into_bytes();
    request.extend_from_slice(script.as_bytes());
    request
}

/// The request that makes the node power off.
pub(crate) const OFF_REQUEST: &[u8] = b"off\n";

/// Separates one script's output from the mark that ends it.
#[derive(Debug)]
pub(crate) struct OutputScanner {
    token: String,
    /// Bytes from a mark byte on, until they prove to be the mark or not.
    held: Vec<u8>,
}

impl OutputScanner {
    pub(crate) fn new(token: &str) -> Self {
        OutputScanner { token: token.to_owned(), held: Vec::new() }
    }

    /// Takes the next bytes of the stream; appends the script's output to `output`.
    /// Returns the exit code when the script has ended.
    pub(crate) fn scan(&mut self, bytes: &[u8], output: &mut Vec<u8>) -> Option<i32> {
        for &byte in bytes {
            if self.held.is_empty() && byte != MARK {
                output.push(byte);
                continue;
            }
            if byte == MARK {
                output.append(&mut self.held);
            }
            self.held.push(byte);
            if byte == b'\n' {
                if let Some(code) = self.parse_mark() {
                    return Some(code);
                }
                output.append(&mut self.held);
            } else if self.held.len() > LONGEST_MARK {
                output.append(&mut self.held);
            }
        }
        None
    }

    fn parse_mark(&self) -> Option<i32> {
        let line = std::str::from_utf8(self.held.get(1..)?).ok()?;
        line.strip_prefix(&self.token)?.strip_prefix(' ')?.trim_end().parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan_all(chunks: &[&[u8]]) -> (Vec<u8>, Option<i32>) {
        let mut scanner = OutputScanner::new("t1");
        let mut output = Vec::new();
        let mut code = None;
        for chunk in chunks {
            code = code.or(scanner.scan(chunk, &mut output));
        }
        (output, code)
    }

    #[test]
    fn output_without_a_final_newline_is_kept_exact() {
        assert_eq!(scan_all(&[b"hello\x1et1 0\n"]), (b"hello".to_vec(), Some(0)));
    }

    #[test]
    fn a_mark_split_over_reads_is_found() {
        assert_eq!(scan_all(&[b"a\n\x1e", b"t1 ", b"13", b"7\n"]), (b"a\n".to_vec(), Some(137)));
    }

    #[test]
    fn a_foreign_mark_is_output() {
        assert_eq!(scan_all(&[b"\x1et0 0\nx\x1e\x1et1 2\n"]), (b"\x1et0 0\nx\x1e".to_vec(), Some(2)));
    }

    #[test]
    fn binary_output_passes_unchanged() {
        let bytes: Vec<u8> = (0..=255).collect();
        let (output, code) = scan_all(&[&bytes, &bytes, b"\x1et1 0\n"]);
        assert_eq!(output, [bytes.clone(), bytes].concat());
        assert_eq!(code, Some(0));
    }

    #[test]
    fn a_request_carries_its_length_in_bytes() {
        assert_eq!(run_request("t1", "echo é"), "run t1 7\necho é".as_bytes());
    }
}
