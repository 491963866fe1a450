//! From what was read to the agent's calls, none of which is too long.

use super::read::{Entry, Tree, What};
use crate::sandbox::agent::{Agent, AgentError};
use agent_protocol::agent::{Empty, FileEntry, PutFilesRequest, file_entry};
use agent_protocol::files::CHUNK;
use std::os::unix::ffi::OsStringExt;
use zeroize::Zeroize;

/// What an entry takes in a message beside its content: path and numbers.
const ENTRY: usize = 64;

/// Gives a volume its next content. The guest's containers see all of it at once. Each call's copy is wiped after it.
pub(super) async fn push(agent: &Agent, volume: &str, generation: u64, tree: Tree) -> Result<(), AgentError> {
    for request in requests(volume, generation, tree) {
        agent.put_files(&request.0).await?;
    }
    Ok(())
}

/// A call, whose content goes with it.
struct Call(PutFilesRequest);

impl Drop for Call {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

fn wipe(request: &mut PutFilesRequest) {
    for entry in &mut request.entries {
        if let Some(file_entry::What::Content(content)) = &mut entry.what {
            content.zeroize();
        }
    }
}

fn requests(volume: &str, generation: u64, tree: Tree) -> Vec<Call> {
    let mut requests = Vec::new();
    let mut entries = Vec::new();
    let mut size = 0;
    let request = |entries: Vec<FileEntry>, last| {
        let volume = volume.to_owned();
        Call(PutFilesRequest { volume, generation, entries, last, ..PutFilesRequest::default() })
    };
    for part in tree.entries.into_iter().flat_map(parts) {
        let length = part.path.len() + ENTRY + content_length(&part);
        if size + length > CHUNK && !entries.is_empty() {
            requests.push(request(std::mem::take(&mut entries), false));
            size = 0;
        }
        size += length;
        entries.push(part);
    }
    requests.push(request(entries, true));
    requests
}

fn content_length(entry: &FileEntry) -> usize {
    match &entry.what {
        Some(file_entry::What::Content(content)) => content.len(),
        Some(file_entry::What::Link(target)) => target.len(),
        _ => 0,
    }
}

/// A long file in parts that fit.
fn parts(entry: Entry) -> Vec<FileEntry> {
    let Entry { path, mode, uid, gid, what } = entry;
    let path = path.into_os_string().into_vec();
    let part = |what| FileEntry { path: path.clone(), mode, uid, gid, what: Some(what), ..FileEntry::default() };
    match what {
        What::Directory => vec![part(file_entry::What::Directory(Empty::new()))],
        What::Link(target) => vec![part(file_entry::What::Link(target.into_os_string().into_vec()))],
        What::File(content) if content.is_empty() => vec![part(file_entry::What::Content(Vec::new()))],
        What::File(content) => {
            content.chunks(CHUNK).map(|chunk| part(file_entry::What::Content(chunk.to_vec()))).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, length: usize) -> Entry {
        Entry { path: path.into(), mode: 0o644, uid: 1, gid: 2, what: What::File(vec![7; length].into()) }
    }

    #[test]
    fn a_long_volume_takes_several_calls_and_the_last_one_says_so() {
        let entries = vec![file("small", 3), file("long", 2 * CHUNK + 1), file("empty", 0)];
        let requests = requests("v1", 5, Tree { entries, bytes: 0 });
        let lasts: Vec<_> = requests.iter().map(|request| request.0.last).collect();
        assert_eq!(lasts, [false, false, false, true]);
        assert!(requests.iter().all(|request| request.0.generation == 5 && request.0.volume == "v1"));
        let sizes = requests.iter().map(|request| request.0.entries.iter().map(content_length).sum::<usize>());
        assert_eq!(sizes.collect::<Vec<_>>(), [3, CHUNK, CHUNK, 1]);
        let last: Vec<_> = requests[3].0.entries.iter().map(|entry| entry.path.as_slice()).collect();
        assert_eq!(last, [&b"long"[..], b"empty"]);
    }

    #[test]
    fn what_was_sent_is_wiped() {
        let mut requests = requests("v1", 1, Tree { entries: vec![file("a", 3), file("b", CHUNK + 1)], bytes: 0 });
        for request in &mut requests {
            wipe(&mut request.0);
            assert!(request.0.entries.iter().all(|entry| content_length(entry) == 0));
        }
    }

    #[test]
    fn an_empty_volume_is_swapped_in_too() {
        let requests = requests("v1", 1, Tree::default());
        assert!(requests.len() == 1 && requests[0].0.last && requests[0].0.entries.is_empty());
    }
}
