//! containerd's configuration with our runtime in it.
//!
//! The runtime goes into `/etc/containerd/config.toml` itself: an `imports` file would replace the whole CRI
//! section on containerd 1.7, and 2.0 and 2.1 import nothing by default. Comments and order are kept.

use toml_edit::{Array, DocumentMut, Item, Table, value};

/// The name that a RuntimeClass's handler refers to.
pub const HANDLER: &str = "bulkhead";

const RUNTIME_TYPE: &str = "io.containerd.bulkhead.v2";

/// containerd's default runtime while its configuration names none.
const DEFAULT_RUNTIME: (&str, &str) = ("runc", "io.containerd.runc.v2");

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("is not TOML: {0}")]
    Syntax(#[from] toml_edit::TomlError),
    #[error("has configuration version {0}; versions 2 and 3 are known")]
    Version(i64),
    #[error("has {0} where a table is expected")]
    NotATable(String),
}

/// The text of containerd's configuration with our runtime in it. Equal to `text` if it is there already.
pub fn with_runtime(text: &str) -> Result<String, ConfigError> {
    let mut document: DocumentMut = text.parse()?;
    let fresh = document.as_table().is_empty();
    if fresh {
        document.insert("version", value(2));
    }
    let plugin = plugin(&document)?;
    let runtimes = table(document.as_table_mut(), &["plugins", plugin, "containerd", "runtimes"])?;
    if same(runtimes.get(HANDLER), &runtime()) {
        return Ok(text.to_owned());
    }
    let (default, default_type) = DEFAULT_RUNTIME;
    if runtimes.is_empty() {
        // A table of runtimes replaces containerd's built-in one: without its default the CRI plugin does not load.
        let mut table = Table::new();
        table.insert("runtime_type", value(default_type));
        runtimes.insert(default, Item::Table(table));
    }
    runtimes.insert(HANDLER, Item::Table(runtime()));
    Ok(document.to_string())
}

/// The text without our runtime. The default runtime stays where installing ours had to name it: it says what containerd
/// would do anyway, and others may have come to refer to it.
pub fn without_runtime(text: &str) -> Result<String, ConfigError> {
    let mut document: DocumentMut = text.parse()?;
    let plugin = plugin(&document)?;
    let path = ["plugins", plugin, "containerd", "runtimes"];
    remove(document.as_table_mut(), &path);
    Ok(document.to_string())
}

/// Whether the configuration names our runtime.
pub fn has_runtime(text: &str) -> Result<bool, ConfigError> {
    let document: DocumentMut = text.parse()?;
    let plugin = plugin(&document)?;
    let mut item = document.as_item();
    for key in ["plugins", plugin, "containerd", "runtimes", HANDLER] {
        match item.get(key) {
            Some(next) => item = next,
            None => return Ok(false),
        }
    }
    Ok(item.get("runtime_type").and_then(Item::as_str) == Some(RUNTIME_TYPE))
}

/// Where the CRI plugin keeps its runtimes in this version of the file.
fn plugin(document: &DocumentMut) -> Result<&'static str, ConfigError> {
    match document.get("version").and_then(Item::as_integer) {
        Some(2) => Ok("io.containerd.grpc.v1.cri"),
        Some(3) => Ok("io.containerd.cri.v1.runtime"),
        // A file without a version is version 1, unless it is empty.
        None if document.as_table().is_empty() => Ok("io.containerd.grpc.v1.cri"),
        other => Err(ConfigError::Version(other.unwrap_or(1))),
    }
}

fn runtime() -> Table {
    let mut table = Table::new();
    table.insert("runtime_type", value(RUNTIME_TYPE));
    // A privileged pod gets the guest's devices, never the node's.
    table.insert("privileged_without_host_devices", value(true));
    let ours: Array = ["io.bulkhead.*"].into_iter().collect();
    table.insert("pod_annotations", value(ours));
    table
}

/// Compares what the two say, not how they are laid out.
fn same(present: Option<&Item>, wanted: &Table) -> bool {
    let Some(present) = present.and_then(Item::as_table_like) else { return false };
    wanted.iter().all(|(key, item)| {
        let text = |item: &Item| item.clone().into_value().ok().map(|value| value.to_string().trim().to_owned());
        present.get(key).is_some_and(|found| text(found) == text(item))
    })
}

fn table<'a>(root: &'a mut Table, path: &[&str]) -> Result<&'a mut Table, ConfigError> {
    let mut table = root;
    for key in path {
        let item = table.entry(key).or_insert_with(|| {
            let mut made = Table::new();
            // Only the innermost header is worth a line.
            made.set_implicit(true);
            Item::Table(made)
        });
        table = item.as_table_mut().ok_or_else(|| ConfigError::NotATable((*key).to_owned()))?;
    }
    Ok(table)
}

fn remove(table: &mut Table, path: &[&str]) {
    match path.split_first() {
        None => {
            table.remove(HANDLER);
        }
        Some((key, rest)) => {
            let Some(inner) = table.get_mut(key).and_then(Item::as_table_mut) else { return };
            remove(inner, rest);
            if inner.is_empty() && inner.is_implicit() {
                table.remove(key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEBIAN: &str = "version = 2\n\n# where Debian keeps them\n[plugins]\n  [plugins.\"io.containerd.grpc.v1.cri\"]\n    \
        [plugins.\"io.containerd.grpc.v1.cri\".cni]\n      bin_dir = \"/usr/lib/cni\"\n";

    #[test]
    fn an_absent_file_becomes_a_version_2_file() {
        let text = with_runtime("").unwrap();
        assert!(text.starts_with("version = 2\n"), "{text}");
        assert!(text.contains("[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.bulkhead]"), "{text}");
        assert!(has_runtime(&text).unwrap());
    }

    #[test]
    fn comments_and_other_settings_are_kept() {
        let text = with_runtime(DEBIAN).unwrap();
        assert!(text.contains("# where Debian keeps them") && text.contains("bin_dir = \"/usr/lib/cni\""), "{text}");
        assert!(has_runtime(&text).unwrap());
    }

    #[test]
    fn a_second_installation_changes_nothing() {
        let once = with_runtime(DEBIAN).unwrap();
        assert_eq!(with_runtime(&once).unwrap(), once);
    }

    #[test]
    fn the_default_runtime_survives_the_first_table_of_runtimes() {
        let text = with_runtime(DEBIAN).unwrap();
        let runc = "containerd.runtimes.runc]\nruntime_type = \"io.containerd.runc.v2\"";
        assert!(text.contains(runc), "{text}");
        let removed = without_runtime(&text).unwrap();
        assert!(removed.contains(runc) && !removed.contains(HANDLER), "{removed}");
    }

    #[test]
    fn removal_leaves_other_runtimes() {
        let other =
            "version = 3\n[plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.runc]\nruntime_type = \"x\"\n";
        let text = with_runtime(other).unwrap();
        assert!(text.contains("[plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.bulkhead]"), "{text}");
        assert_eq!(without_runtime(&text).unwrap(), other);
    }

    #[test]
    fn a_setting_changed_by_hand_is_put_right() {
        let text = with_runtime("").unwrap().replace("bulkhead.v2", "runc.v2");
        assert!(has_runtime(&with_runtime(&text).unwrap()).unwrap());
    }

    #[test]
    fn versions_that_are_not_known_are_refused() {
        assert!(matches!(with_runtime("version = 1\n"), Err(ConfigError::Version(1))));
        assert!(matches!(with_runtime("root = \"/x\"\n"), Err(ConfigError::Version(1))));
        assert!(matches!(with_runtime("version = 9\n"), Err(ConfigError::Version(9))));
    }

    #[test]
    fn a_value_where_a_table_belongs_is_refused() {
        assert!(matches!(with_runtime("version = 2\nplugins = 5\n"), Err(ConfigError::NotATable(_))));
    }
}
