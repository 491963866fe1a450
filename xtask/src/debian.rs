//! Packages of a Debian suite other than the machine's own, without touching the machine's apt.
//!
//! apt runs with its own state, cache and source list in a scratch directory. The mirror is the one that the
//! machine already uses; what it serves is checked against the archive's keys as always.

use crate::run;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The keys that sign every Debian suite, from the package debian-archive-keyring.
pub const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The main archive's address, as this machine's apt is configured.
pub fn mirror() -> Result<String> {
    let release = std::fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    let own = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let own = own.context("/etc/os-release names no VERSION_CODENAME")?;
    // The code name is known once the lists have been fetched; before, there is what the source list says.
    for form in [["$(CODENAME) $(SITE)", "--release-info"], ["$(RELEASE) $(SITE)", "--no-release-info"]] {
        let mut apt = Command::new("apt-get");
        let targets = run::output(apt.args(["indextargets", "Created-By: Packages", "--format"]).args(form))?;
        if let Some(mirror) = find_mirror(&targets, own) {
            return Ok(mirror);
        }
    }
    bail!("apt has no source for Debian {own}")
}

fn find_mirror(targets: &str, codename: &str) -> Option<String> {
    let site = |line: &str| line.strip_prefix(codename)?.strip_prefix(' ').map(str::to_owned);
    targets.lines().find_map(site)
}

/// An up-to-date view of one suite.
pub struct Suite {
    directory: tempfile::TempDir,
}

impl Suite {
    /// Fetches the package lists of `name`, such as `trixie`.
    pub fn open(name: &str) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("bulkhead-apt-").tempdir()?;
        let root = directory.path();
        for part in ["state/lists/partial", "cache/archives/partial"] {
            std::fs::create_dir_all(root.join(part))?;
        }
        let sources = format!(
            "Types: deb deb-src\nURIs: {}\nSuites: {name}\nComponents: main\nArchitectures: amd64\nSigned-By: {KEYRING}\n",
            mirror()?
        );
        std::fs::write(root.join("suite.sources"), sources)?;
        let shown = root.display();
        let configuration = format!(
            "Dir::Etc::sourcelist \"{shown}/suite.sources\";\nDir::Etc::sourceparts \"-\";\n\
             Dir::State \"{shown}/state\";\nDir::Cache \"{shown}/cache\";\n\
             APT::Architecture \"amd64\";\nAPT::Sandbox::User \"root\";\nAPT::Update::Post-Invoke-Success {{}};\n"
        );
        std::fs::write(root.join("apt.conf"), configuration)?;
        let suite = Self { directory };
        run::run(suite.apt().arg("update")).with_context(|| format!("cannot read the package lists of {name}"))?;
        Ok(suite)
    }

    /// Puts the content of the binary package `name` below `into`.
    pub fn unpack(&self, name: &str, into: &Path) -> Result<()> {
        let scratch = tempfile::tempdir_in(self.directory.path())?;
        run::run(self.apt().args(["download", name]).current_dir(scratch.path()))?;
        let package = only_entry(scratch.path(), |path| path.extension().is_some_and(|end| end == "deb"))?;
        run::run(Command::new("dpkg-deb").arg("-x").arg(package).arg(into))
    }

    /// Unpacks the upstream source of the package `name`, without Debian's packaging, and returns the tree's
    /// path below `into`.
    pub fn unpack_source(&self, name: &str, into: &Path) -> Result<PathBuf> {
        let scratch = tempfile::tempdir_in(self.directory.path())?;
        let mut apt = self.apt();
        // Standard output repeats that the packaging is kept in git.
        apt.args(["source", "--tar-only", "--download-only", name]).current_dir(scratch.path()).stdout(Stdio::null());
        run::run(&mut apt)?;
        let archive = only_entry(scratch.path(), |path| path.to_string_lossy().contains(".orig.tar."))?;
        let tree = into.join("source");
        std::fs::create_dir(&tree)?;
        run::run(Command::new("tar").arg("-xf").arg(archive).arg("-C").arg(&tree).arg("--strip-components=1"))?;
        Ok(tree)
    }

    fn apt(&self) -> Command {
        let mut apt = Command::new("apt-get");
        apt.arg("-qq").env("APT_CONFIG", self.directory.path().join("apt.conf"));
        apt
    }
}

fn only_entry(directory: &Path, wanted: impl Fn(&Path) -> bool) -> Result<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if wanted(&path) {
            found.push(path);
        }
    }
    match <[PathBuf; 1]>::try_from(found) {
        Ok([path]) => Ok(path),
        Err(found) => bail!("expected one result in {}, found {}", directory.display(), found.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::find_mirror;

    #[test]
    fn the_mirror_is_the_one_of_the_machines_own_release() {
        let targets = "nodistro http://other.test/x\nbookworm-backports http://b.test\nbookworm http://a.test/debian\n";
        assert_eq!(find_mirror(targets, "bookworm").as_deref(), Some("http://a.test/debian"));
        assert_eq!(find_mirror(targets, "trixie"), None);
    }
}
