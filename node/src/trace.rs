//! `bulkhead trace`: the timelines of this node's pods, which their shims write when `trace = true` is configured.

use anyhow::{Context, Result, bail};
use clap::Args;
use std::io::Write;
use std::path::{Path, PathBuf};

/// In the directory of a pod.
const FILE: &str = "trace.json";

#[derive(Args)]
pub struct Trace {
    /// The pod's sandbox id, or the beginning of one. Without it, the pods that have a trace are listed.
    pod: Option<String>,
}

pub fn run(options: &Trace) -> Result<bool> {
    let traces = traces(&Path::new(bulkhead_config::RUN_DIRECTORY).join("pods"));
    let mut output = std::io::stdout();
    let Some(pod) = &options.pod else {
        for (namespace, id, _) in traces {
            writeln!(output, "{namespace} {id}")?;
        }
        return Ok(true);
    };
    let mut found = traces.into_iter().filter(|(_, id, _)| id.starts_with(pod.as_str()));
    match (found.next(), found.next()) {
        (Some((.., path)), None) => {
            let text = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            output.write_all(&text)?;
            Ok(true)
        }
        (Some(_), Some(_)) => bail!("several pods begin with {pod}"),
        (None, _) => bail!("no running pod {pod} has a trace: is `trace = true` in {}?", bulkhead_config::DEFAULT_PATH),
    }
}

/// Namespace, pod and file of each trace, in the order of names.
fn traces(pods: &Path) -> Vec<(String, String, PathBuf)> {
    let names = |path: &Path| -> Vec<String> {
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    };
    let mut traces = Vec::new();
    for namespace in names(pods) {
        for id in names(&pods.join(&namespace)) {
            let path = pods.join(&namespace).join(&id).join(FILE);
            if path.exists() {
                traces.push((namespace.clone(), id, path));
            }
        }
    }
    traces.sort();
    traces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_with_a_trace_are_found() {
        let root = tempfile::tempdir().unwrap();
        for (pod, file) in [("k8s.io/b", "trace.json"), ("k8s.io/a", "trace.json"), ("k8s.io/c", "state.json")] {
            std::fs::create_dir_all(root.path().join(pod)).unwrap();
            std::fs::write(root.path().join(pod).join(file), "{}").unwrap();
        }
        let found: Vec<_> = traces(root.path()).into_iter().map(|(namespace, id, _)| (namespace, id)).collect();
        assert_eq!(found, [("k8s.io".into(), "a".into()), ("k8s.io".into(), "b".to_owned())]);
    }
}
