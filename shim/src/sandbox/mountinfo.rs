//! The kernel's table of mounts (`/proc/self/mountinfo`, proc(5)). Pure.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// One mount.
pub(super) struct Mount<'a> {
    pub id: &'a [u8],
    pub device: &'a [u8],
    /// What of the device's file system is mounted.
    pub root: PathBuf,
    pub point: PathBuf,
    /// The type of the file system and what it was mounted from, where the line has them.
    pub source: Option<(&'a [u8], PathBuf)>,
}

/// In the kernel's order: a later mount hides an earlier one at the same point. Lines that are none are left out.
pub(super) fn mounts(table: &[u8]) -> impl DoubleEndedIterator<Item = Mount<'_>> {
    table.split(|&byte| byte == b'\n').filter_map(Mount::parse)
}

impl<'a> Mount<'a> {
    fn parse(line: &'a [u8]) -> Option<Self> {
        let mut fields = line.split(|&byte| byte == b' ');
        let (id, device) = (fields.next()?, fields.nth(1)?);
        let (root, point) = (unescaped(fields.next()?), unescaped(fields.next()?));
        // Options, and as many more fields as the kernel likes, end with a dash.
        let mut tail = fields.skip_while(|field| *field != b"-").skip(1);
        let source = tail.next().zip(tail.next().map(unescaped));
        Some(Self { id, device, root, point, source })
    }
}

/// Blanks, newlines and backslashes are written as `\` and three octal digits.
fn unescaped(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        match rest {
            [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..] => {
                bytes.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = tail;
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn only_octal_escapes_are_undone() {
        assert_eq!(unescaped(br"a\040b\134\011"), Path::new("a b\\\t"));
        assert_eq!(unescaped(br"a\134b\011\9\"), Path::new("a\\b\t\\9\\"));
        assert_eq!(unescaped(br"\4\0\04\400\"), Path::new(r"\4\0\04\400\"));
    }
}
