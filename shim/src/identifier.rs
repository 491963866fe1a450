//! Names that containerd gives: containers, execs, namespaces. They become path components and log fields,
//! so they are parsed once, at the edge.

use std::fmt;
use std::str::FromStr;

/// containerd's own limit, in bytes.
const MAX_LENGTH: usize = 76;

/// A name that is safe as one path component: letters, digits, `.`, `_` and `-`, starting with a letter or digit.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identifier(String);

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not a valid identifier")]
pub struct InvalidIdentifier(String);

impl Identifier {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Identifier {
    type Err = InvalidIdentifier;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let first_ok = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        let rest_ok = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
        if first_ok && rest_ok && text.len() <= MAX_LENGTH {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidIdentifier(text.chars().take(MAX_LENGTH).collect()))
        }
    }
}

impl fmt::Display for Identifier {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl fmt::Debug for Identifier {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containerd_names_are_accepted() {
        for text in ["a", "web-1.example_2", "k8s.io", "moby", &"f".repeat(64)] {
            assert_eq!(text.parse::<Identifier>().unwrap().as_str(), text);
        }
    }

    #[test]
    fn names_that_could_leave_their_directory_are_refused() {
        for text in ["", ".", "..", "../x", "a/b", "-x", "a b", "a\0", "ä", &"f".repeat(77)] {
            assert!(text.parse::<Identifier>().is_err(), "{text:?}");
        }
    }
}
