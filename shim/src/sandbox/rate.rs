//! How fast a pod may use its disks: what the node allows, or less if the pod asks for less.

use super::oci::Spec;
use super::spec::{SpecError, annotation};
use bulkhead_config::{Config, DISK_MIB, DISK_OPERATIONS};
use std::num::{NonZeroU32, NonZeroU64};
use vmm_protocol::RateLimit;

pub(super) const BYTES: &str = "io.bulkhead.disk_mib_per_second";
pub(super) const OPERATIONS: &str = "io.bulkhead.disk_operations_per_second";

/// What a pod asks for, for each of its disks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Rate {
    mib_per_second: Option<u32>,
    operations_per_second: Option<u32>,
}

impl Rate {
    pub fn from_oci(spec: &Spec) -> Result<Self, SpecError> {
        let number = |key, range: std::ops::RangeInclusive<u32>| annotation(spec, key, *range.start(), *range.end());
        Ok(Self {
            mib_per_second: number(BYTES, DISK_MIB)?,
            operations_per_second: number(OPERATIONS, DISK_OPERATIONS)?,
        })
    }

    pub fn on(self, config: &Config) -> RateLimit {
        let least = |asked: Option<u32>, allowed: Option<u32>| asked.into_iter().chain(allowed).min();
        let mib = least(self.mib_per_second, config.disk_mib_per_second);
        let operations = least(self.operations_per_second, config.disk_operations_per_second);
        RateLimit {
            bytes_per_second: mib.and_then(|mib| NonZeroU64::new(u64::from(mib) << 20)),
            operations_per_second: operations.and_then(NonZeroU32::new),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rate(annotations: &serde_json::Value) -> Result<Rate, SpecError> {
        Rate::from_oci(&serde_json::from_value(json!({"annotations": annotations})).unwrap())
    }

    #[test]
    fn nobody_asked_is_no_limit() {
        assert_eq!(rate(&json!({})).unwrap().on(&Config::default()), RateLimit::default());
    }

    #[test]
    fn a_pod_can_lower_what_the_node_allows_and_not_raise_it() {
        let config =
            Config { disk_mib_per_second: Some(10), disk_operations_per_second: Some(100), ..Config::default() };
        for (asked, mib, operations) in [
            (json!({}), 10, 100),
            (json!({BYTES: "4", OPERATIONS: "50"}), 4, 50),
            (json!({BYTES: "400", OPERATIONS: "5000"}), 10, 100),
        ] {
            let limit = rate(&asked).unwrap().on(&config);
            assert_eq!(limit.bytes_per_second, NonZeroU64::new(mib << 20));
            assert_eq!(limit.operations_per_second, NonZeroU32::new(operations));
        }
    }

    #[test]
    fn a_rate_of_nothing_is_refused() {
        let error = rate(&json!({BYTES: "0"})).unwrap_err().to_string();
        assert_eq!(error, "annotation io.bulkhead.disk_mib_per_second must be a number from 1 to 1048576, not \"0\"");
        assert!(rate(&json!({OPERATIONS: "-1"})).is_err());
    }
}
