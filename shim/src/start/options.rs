//! Runtime options on their way from `start` to the daemon: a pod sandbox that is no container gets them nowhere else.

use containerd_shim_protos::protobuf::{Message, well_known_types::any::Any};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// In the bundle.
const FILE: &str = "runtime-options";

pub(super) fn leave(bundle: &Path, options: &Any) -> io::Result<()> {
    std::fs::write(bundle.join(FILE), options.write_to_bytes().map_err(io::Error::other)?)
}

/// None were left: nothing was set, or they come with a container.
pub fn take(bundle: &Path) -> io::Result<Any> {
    let file = match File::open(bundle.join(FILE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Any::default()),
        file => file?,
    };
    let mut bytes = Vec::new();
    file.take(super::MAX_INPUT).read_to_end(&mut bytes)?;
    Any::parse_from_bytes(&bytes).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_survive_the_way_to_the_daemon() {
        let bundle = tempfile::tempdir().unwrap();
        assert_eq!(take(bundle.path()).unwrap(), Any::default());
        let options = Any { type_url: "t".to_owned(), value: vec![1, 2], ..Default::default() };
        leave(bundle.path(), &options).unwrap();
        assert_eq!(take(bundle.path()).unwrap(), options);
    }
}
