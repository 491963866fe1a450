//! OCI hooks: programs of the node, which have nothing to work on there. Pure.

use super::{SpecError, is_set, shown, unsupported};
use serde_json::{Map, Value};

pub(super) fn check(hooks: &Map<String, Value>) -> Result<(), SpecError> {
    let Some((kind, hooks)) = hooks.iter().find(|(_, hooks)| is_set(hooks)) else { return Ok(()) };
    let path = hooks.get(0).and_then(|hook| hook.get("path")?.as_str()).unwrap_or("without a path");
    let (kind, path) = (shown(kind), shown(path));
    unsupported(format!("{kind} hook {path} is a program of the node and cannot run for a microVM"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn checked(hooks: &Value) -> Result<(), String> {
        check(hooks.as_object().unwrap()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_hook_is_refused_by_kind_and_path() {
        let hooks = json!({"createRuntime": [{"path": "/usr/bin/cdi", "args": ["x"]}], "prestart": []});
        assert_eq!(
            checked(&hooks).unwrap_err(),
            "createRuntime hook /usr/bin/cdi is a program of the node and cannot run for a microVM"
        );
        for malformed in [json!({"poststop": "x"}), json!({"poststop": [7]}), json!({"poststop": [{"path": null}]})] {
            assert!(checked(&malformed).unwrap_err().starts_with("poststop hook without a path is"));
        }
        let sentence = checked(&json!({"prestart": [{"path": "\n".repeat(5000)}]})).unwrap_err();
        assert!(sentence.len() < 500 && !sentence.contains('\n'), "{sentence}");
    }

    #[test]
    fn no_hooks_are_spelled_in_several_ways() {
        assert_eq!(checked(&json!({"prestart": [], "poststart": null})), Ok(()));
    }
}
