//! Processors that the guest's kernel knows of and has not started: a machine that comes from a template has one that runs.

use crate::error::Error;
use std::fs;
use std::path::Path;

pub const DIRECTORY: &str = "/sys/devices/system/cpu";

/// Starts processors until `count` run. The first cannot be stopped and has no switch.
pub fn start(directory: &Path, count: u32) -> Result<(), Error> {
    for number in 1..count {
        let switch = directory.join(format!("cpu{number}/online"));
        let state = fs::read_to_string(&switch).map_err(Error::system("read", switch.display()))?;
        if state.trim() == "0" {
            fs::write(&switch, "1").map_err(Error::system("start a processor by", switch.display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn switches(states: &[&str]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (number, state) in (1..).zip(states) {
            let processor = directory.path().join(format!("cpu{number}"));
            fs::create_dir(&processor).unwrap();
            fs::write(processor.join("online"), state).unwrap();
        }
        directory
    }

    #[test]
    fn only_as_many_as_are_wanted_start() {
        let directory = switches(&["1\n", "0\n", "0\n"]);
        start(directory.path(), 3).unwrap();
        let states = [1, 2, 3].map(|number| fs::read(directory.path().join(format!("cpu{number}/online"))).unwrap());
        assert_eq!(states, [b"1\n".to_vec(), b"1".to_vec(), b"0\n".to_vec()]);
        start(directory.path(), 0).unwrap();
    }

    #[test]
    fn a_processor_that_is_not_there_is_named() {
        let directory = switches(&["1"]);
        let error = start(directory.path(), 3).unwrap_err().to_string();
        assert!(error.contains("cpu2/online"), "{error}");
    }
}
