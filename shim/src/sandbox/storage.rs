//! How much a pod may write to disks of the node: what the node allows, or less if the pod asks for less.
//!
//! kubelet tells a runtime neither a container's `ephemeral-storage` nor an emptyDir's `sizeLimit`: it measures, and evicts
//! the pod. Annotations set a limit that holds at once.

use super::oci::Spec;
use super::spec::{SpecError, annotation};
use bulkhead_config::{Config, SCRATCH_MIB};
use std::collections::BTreeMap;

pub(super) const SCRATCH: &str = "io.bulkhead.scratch_mib";
pub(super) const EMPTY_DIRS: &str = "io.bulkhead.empty_dir_mib";

/// Of a volume's name, in Kubernetes.
const MAX_NAME: usize = 63;

/// What a pod asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Storage {
    scratch_mib: Option<u32>,
    /// By the volume's name.
    empty_dirs: BTreeMap<String, u32>,
}

/// What holds for a pod on this node, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    /// For each disk that its containers write to.
    pub scratch: u64,
    empty_dirs: BTreeMap<String, u64>,
}

impl Storage {
    pub fn from_oci(spec: &Spec) -> Result<Self, SpecError> {
        let empty_dirs = spec
            .annotations
            .get(EMPTY_DIRS)
            .map(|text| by_name(text).ok_or_else(|| SpecError::EmptyDirs { found: text.chars().take(64).collect() }));
        Ok(Self {
            scratch_mib: annotation(spec, SCRATCH, *SCRATCH_MIB.start(), *SCRATCH_MIB.end())?,
            empty_dirs: empty_dirs.transpose()?.unwrap_or_default(),
        })
    }

    pub fn on(&self, config: &Config) -> Limits {
        let bytes = |mib: u32| u64::from(mib) << 20;
        Limits {
            scratch: bytes(self.scratch_mib.map_or(config.scratch_mib, |mib| mib.min(config.scratch_mib))),
            empty_dirs: self.empty_dirs.iter().map(|(name, mib)| (name.clone(), bytes(*mib))).collect(),
        }
    }
}

impl Limits {
    /// What the pod asks for, for one of its emptyDirs.
    pub fn of_empty_dir(&self, name: &str) -> Option<u64> {
        self.empty_dirs.get(name).copied()
    }
}

/// `cache=100,data=2000`
fn by_name(text: &str) -> Option<BTreeMap<String, u32>> {
    let mut limits = BTreeMap::new();
    for entry in text.split(',') {
        let (name, mib) = entry.trim().split_once('=')?;
        let mib = mib.parse().ok().filter(|mib| SCRATCH_MIB.contains(mib))?;
        if !is_name(name) || limits.insert(name.to_owned(), mib).is_some() {
            return None;
        }
    }
    Some(limits)
}

fn is_name(name: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !name.is_empty() && name.len() <= MAX_NAME && name.bytes().all(legal)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn storage(annotations: &serde_json::Value) -> Result<Storage, SpecError> {
        Storage::from_oci(&serde_json::from_value(json!({"annotations": annotations})).unwrap())
    }

    #[test]
    fn a_pod_can_lower_what_the_node_allows_and_not_raise_it() {
        let config = Config { scratch_mib: 1000, ..Config::default() };
        for (asked, mib) in [(json!({}), 1000), (json!({SCRATCH: "64"}), 64), (json!({SCRATCH: "5000"}), 1000)] {
            assert_eq!(storage(&asked).unwrap().on(&config).scratch, mib << 20);
        }
    }

    #[test]
    fn emptydirs_are_limited_one_by_one() {
        let limits = storage(&json!({EMPTY_DIRS: "cache=16, data-2=2000"})).unwrap().on(&Config::default());
        assert_eq!(limits.of_empty_dir("cache"), Some(16 << 20));
        assert_eq!(limits.of_empty_dir("data-2"), Some(2000 << 20));
        assert_eq!(limits.of_empty_dir("other"), None);
    }

    #[test]
    fn nonsense_is_refused_in_a_sentence() {
        for text in ["", "cache", "cache=", "cache=15", "cache=-1", "=16", "cache=16,", "a=16,a=17", "../x=16", "A=16"]
        {
            let error = storage(&json!({EMPTY_DIRS: text})).unwrap_err().to_string();
            let words = "annotation io.bulkhead.empty_dir_mib must be like `cache=100,data=2000`, \
                names of volumes with numbers from 16 to 8388608, not ";
            assert_eq!(error, format!("{words}{text:?}"));
        }
        let error = storage(&json!({SCRATCH: "1"})).unwrap_err().to_string();
        assert_eq!(error, "annotation io.bulkhead.scratch_mib must be a number from 16 to 8388608, not \"1\"");
    }
}
