//! A cgroup's accounting files as numbers. A controller that is off leaves zeros.

use super::Cgroup;
use agent_protocol::agent::{IoStat, StatsResponse};
use std::collections::HashMap;

/// Devices whose traffic is told. A container sees a handful.
const MAX_DEVICES: usize = 256;

impl Cgroup {
    /// None if the cgroup does not exist (any more).
    pub fn stats(&self) -> Option<StatsResponse> {
        if !self.path.is_dir() {
            return None;
        }
        let flat = |file: &str| self.read(file).map(|text| parse_flat(&text)).unwrap_or_default();
        let number = |file: &str| self.read(file).and_then(|text| parse_limit(&text)).unwrap_or_default();
        Some(StatsResponse {
            cpu: flat("cpu.stat"),
            memory_current: number("memory.current"),
            memory_max: number("memory.max"),
            memory: flat("memory.stat"),
            memory_events: flat("memory.events"),
            swap_current: number("memory.swap.current"),
            swap_max: number("memory.swap.max"),
            pids_current: number("pids.current"),
            pids_max: number("pids.max"),
            io: self.read("io.stat").map(|text| parse_io(&text)).unwrap_or_default(),
            ..Default::default()
        })
    }
}

/// Lines of `key value`.
pub fn parse_flat(text: &str) -> HashMap<String, u64> {
    let pair = |line: &str| {
        let (key, value) = line.split_once(' ')?;
        Some((key.to_owned(), value.trim().parse().ok()?))
    };
    text.lines().filter_map(pair).collect()
}

/// A number or `max`.
fn parse_limit(text: &str) -> Option<u64> {
    match text.trim() {
        "max" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

/// Lines of `major:minor rbytes=1 wbytes=2 rios=3 wios=4 …`.
fn parse_io(text: &str) -> Vec<IoStat> {
    let line = |line: &str| {
        let (device, counters) = line.split_once(' ')?;
        let (major, minor) = device.split_once(':')?;
        let mut stat = IoStat { major: major.parse().ok()?, minor: minor.parse().ok()?, ..Default::default() };
        for (key, value) in counters.split(' ').filter_map(|counter| counter.split_once('=')) {
            let value = value.parse().ok()?;
            match key {
                "rbytes" => stat.read_bytes = value,
                "wbytes" => stat.write_bytes = value,
                "rios" => stat.read_operations = value,
                "wios" => stat.write_operations = value,
                _ => {}
            }
        }
        Some(stat)
    };
    text.lines().filter_map(line).take(MAX_DEVICES).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_become_numbers_and_missing_controllers_become_zero() {
        let root = tempfile::tempdir().unwrap();
        for (file, text) in [
            ("cpu.stat", "usage_usec 12\nuser_usec 7\n"),
            ("memory.current", "4096\n"),
            ("memory.max", "max\n"),
            ("pids.current", "3\n"),
        ] {
            std::fs::write(root.path().join(file), text).unwrap();
        }
        let stats = Cgroup::new(root.path().to_owned()).stats().unwrap();
        assert_eq!(stats.cpu["usage_usec"], 12);
        assert_eq!((stats.memory_current, stats.memory_max), (4096, u64::MAX));
        assert_eq!((stats.pids_current, stats.pids_max), (3, 0));
    }

    #[test]
    fn a_cgroup_that_is_gone_has_no_stats() {
        assert!(Cgroup::new("/nonexistent".into()).stats().is_none());
    }

    #[test]
    fn io_lines_that_make_no_sense_are_left_out() {
        let text = "254:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\nnonsense\n8:x rbytes=1\n";
        let stats = parse_io(text);
        assert_eq!(stats.len(), 1);
        assert_eq!((stats[0].major, stats[0].read_bytes, stats[0].write_operations), (254, 1, 4));
    }
}
