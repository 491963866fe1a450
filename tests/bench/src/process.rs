//! A process's memory, as `/proc` tells it.

use anyhow::{Context, Result};
use std::fs;
use std::ops::Range;

#[derive(Debug)]
pub struct Process {
    pid: u32,
}

/// A mapping of memory, and what of it only this process has, in bytes.
#[derive(Debug, PartialEq)]
struct Mapping {
    addresses: Range<u64>,
    accessible: bool,
    name: String,
    private: f64,
}

/// An accessible mapping of this many bytes is a guest's memory: the VMM allocates nothing like it, and its stacks are smaller.
const GUEST: u64 = 8 << 20;

/// Files that a guest's memory is made of: kernel, root image, a template's memory.
const GUEST_FILES: [&str; 3] = ["vmlinux", ".erofs", "/memory"];

/// Every process whose name in the kernel is this.
pub fn named(name: &str) -> Result<Vec<Process>> {
    let entries = fs::read_dir("/proc").context("cannot list /proc")?.flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_string_lossy().parse().ok());
    let is = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim_end() == name);
    Ok(pids.filter(is).map(|pid| Process { pid }).collect())
}

impl Process {
    /// Its proportional share of what it maps, in bytes.
    pub fn pss(&self) -> Result<f64> {
        let text = self.read("smaps_rollup")?;
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).context("no Pss")?;
        kilobytes(line).context("Pss is no number of kB")
    }

    /// What only this VMM has besides its guest's memory: all private pages but those of mappings that touch the guest's.
    pub fn private_without_guest(&self) -> Result<f64> {
        Ok(without_guest(&mappings(&self.read("smaps")?)))
    }

    /// Whether it maps a file whose path has this in it.
    pub fn maps(&self, part: &str) -> Result<bool> {
        Ok(self.read("maps")?.contains(part))
    }

    fn read(&self, file: &str) -> Result<String> {
        let path = format!("/proc/{}/{file}", self.pid);
        fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
    }
}

/// `   12 kB`, in bytes.
pub fn kilobytes(text: &str) -> Option<f64> {
    let number: u32 = text.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(f64::from(number) * 1024.0)
}

fn mappings(smaps: &str) -> Vec<Mapping> {
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in smaps.lines() {
        if let Some(mapping) = head(line) {
            mappings.push(mapping);
        } else if let Some(mapping) = mappings.last_mut() {
            let private = line.strip_prefix("Private_Clean:").or_else(|| line.strip_prefix("Private_Dirty:"));
            mapping.private += private.and_then(kilobytes).unwrap_or_default();
        }
    }
    mappings
}

/// `start-end rw-p offset device inode name`.
fn head(line: &str) -> Option<Mapping> {
    let mut words = line.split_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let address = |text| u64::from_str_radix(text, 16).ok();
    let addresses = address(start)?..address(end)?;
    let accessible = !words.next()?.starts_with("---");
    Some(Mapping { addresses, accessible, name: words.nth(3).unwrap_or_default().to_owned(), private: 0.0 })
}

/// The kernel's segments are mapped into the guest's memory: what lies between parts of it without a gap belongs to it. Stacks of
/// threads may lie right beside it.
fn without_guest(mappings: &[Mapping]) -> f64 {
    let guests = |mapping: &Mapping| {
        let length = mapping.addresses.end - mapping.addresses.start;
        mapping.accessible && length >= GUEST || GUEST_FILES.iter().any(|end| mapping.name.ends_with(end))
    };
    let runs = mappings.chunk_by(|one, next| one.addresses.end == next.addresses.start);
    let own = runs.flat_map(|run| {
        let (first, last) = (run.iter().position(guests), run.iter().rposition(guests));
        let guest = first.zip(last).map_or(0..0, |(first, last)| first..last + 1);
        run.iter().enumerate().filter(move |(place, _)| !guest.contains(place)).map(|(_, mapping)| mapping.private)
    });
    own.sum()
}

#[cfg(test)]
mod tests {
    use super::{kilobytes, mappings, without_guest};

    const SMAPS: &str = "\
55e000-55f000 r-xp 00000000 08:01 12 /vmm
Rss:                   8 kB
Private_Clean:         4 kB
Private_Dirty:         0 kB
7effffff0000-7f0000000000 rw-p 00000000 00:00 0
Private_Dirty:        20 kB
7f0000000000-7f0001000000 rw-p 00000000 00:00 0
Private_Dirty:       512 kB
7f0001000000-7f0001100000 rw-p 00000000 08:01 13 /opt/bulkhead/share/vmlinux
Private_Dirty:       600 kB
7f0001100000-7f0001200000 rw-p 00000000 00:00 0
Private_Dirty:       700 kB
7f0001200000-7f0003000000 rw-p 00000000 00:00 0
Private_Dirty:       800 kB
7f0003000000-7f0003001000 rw-p 00000000 00:00 0
Private_Dirty:         4 kB
7f0004300000-7f0004400000 rw-p 00000000 00:00 0
Private_Dirty:         8 kB
7f0004400000-7f0008400000 ---p 00000000 00:00 0
7f1000000000-7f1008000000 rw-p 00000000 00:00 0
Private_Dirty:     20000 kB
";

    #[test]
    fn a_guests_memory_is_not_the_vmms() {
        let mappings = mappings(SMAPS);
        assert_eq!(mappings.len(), 10);
        // The program's own page, a stack on either side of the guest's memory, and a heap beside what it holds in reserve.
        assert_eq!(without_guest(&mappings), (4.0 + 20.0 + 4.0 + 8.0) * 1024.0);
    }

    #[test]
    fn kilobytes_are_1024_bytes() {
        assert_eq!(kilobytes("     3 kB"), Some(3072.0));
        assert_eq!(kilobytes("3 MB"), None);
    }
}
