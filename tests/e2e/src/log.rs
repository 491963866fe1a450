//! What containerd and the shims log.

use crate::eventually;
use std::fs;
use std::time::Duration;

#[derive(Debug)]
pub struct ContainerdLog {
    start: usize,
}

impl ContainerdLog {
    pub fn from_now_on() -> Self {
        Self { start: Self::read().len() }
    }

    fn read() -> String {
        let logs = ["/artifacts/containerd.log", "/var/log/containerd.log"];
        let bytes = logs.iter().find_map(|path| fs::read(path).ok()).expect("containerd logs to a file");
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The lines so far that have this text.
    pub fn lines_with(&self, text: &str) -> Vec<String> {
        let log = Self::read();
        let fresh = log.get(self.start..).unwrap_or_default().lines();
        fresh.filter(|line| line.contains(text)).map(str::to_owned).collect()
    }

    /// The lines that have this text, once there is one and a second for others has passed.
    #[track_caller]
    pub fn wait_for(&self, text: &str) -> Vec<String> {
        eventually(&format!("the log says {text:?}"), || !self.lines_with(text).is_empty());
        std::thread::sleep(Duration::from_secs(1));
        self.lines_with(text)
    }
}
