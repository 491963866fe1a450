//! The node's settings while a test runs.

use std::fs;

const CONFIG: &str = "/etc/bulkhead/config.toml";

/// Whether every pod boots, by the settings that are there. They may name a key once.
pub fn templates_are_off() -> bool {
    fs::read_to_string(CONFIG).unwrap_or_default().lines().any(|line| line == "templates = false")
}

/// What was there before comes back when this goes out of scope.
#[derive(Debug)]
pub struct NodeConfig {
    before: Option<String>,
}

impl NodeConfig {
    /// Adds lines to the settings.
    pub fn with(text: &str) -> Self {
        let before = fs::read_to_string(CONFIG).ok();
        fs::write(CONFIG, before.clone().unwrap_or_default() + text).expect("the settings can be written");
        Self { before }
    }
}

impl Drop for NodeConfig {
    fn drop(&mut self) {
        match &self.before {
            Some(text) => fs::write(CONFIG, text).expect("the settings can be written"),
            None => fs::remove_file(CONFIG).expect("the settings are there"),
        }
    }
}
