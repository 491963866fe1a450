//! Root file systems made of Debian packages, with mmdebstrap.

use crate::{debian, run};
use anyhow::{Context, Result};
use std::path::Path;
use std::process::Command;

/// Directories of /usr/share that nothing run by a test reads: half of a small system.
const UNWANTED: &[&str] = &["doc", "man", "info", "locale", "i18n", "lintian", "bash-completion"];

/// What to make.
pub struct Root<'a> {
    pub suite: &'a str,
    /// mmdebstrap's name for the packages that are there anyway.
    pub variant: &'a str,
    /// A file with more packages, one a line.
    pub packages: &'a Path,
    /// More arguments of mmdebstrap.
    pub options: &'a [&'a str],
}

impl Root<'_> {
    /// Makes it at `to`: a directory, or an archive if the name ends in `.tar`.
    pub fn make(&self, to: &Path, log: &Path) -> Result<()> {
        let text = std::fs::read_to_string(self.packages);
        let text = text.with_context(|| format!("cannot read {}", self.packages.display()))?;
        let mut command = Command::new("mmdebstrap");
        command.args(["--mode=root", &format!("--variant={}", self.variant)]);
        command.arg(format!("--include={}", package_names(&text).join(",")));
        command.arg(format!("--keyring={}", debian::KEYRING));
        // A mirror's copy of a testing suite may be past its date; its signature is checked all the same.
        command.args(["--aptopt=Acquire::Check-Valid-Until \"false\"", "--aptopt=APT::Install-Recommends \"false\""]);
        command.args(UNWANTED.iter().map(|path| format!("--dpkgopt=path-exclude=/usr/share/{path}/*")));
        command.args(self.options).arg(self.suite).arg(to).arg(debian::mirror()?);
        // Times inside the result: equal inputs give equal archives.
        run::run_logged(command.env("SOURCE_DATE_EPOCH", "0"), log)
    }
}

fn package_names(text: &str) -> Vec<&str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn comments_and_blank_lines_are_no_packages() {
        assert_eq!(super::package_names("# why\n\ncurl\n  fio \n"), ["curl", "fio"]);
    }
}
