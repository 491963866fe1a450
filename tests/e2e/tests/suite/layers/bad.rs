//! Layers that are not what they should be, and a node that has no room left: each is refused in one sentence that names it.

use super::image::LayeredImage;
use super::{EROFS, SNAPSHOTS, container, files, mount_on};
use crate::with_erofs;
use e2e::container::ctr;
use e2e::leaks::{Traces, assert_nothing_left_since};
use e2e::{Container, run};
use std::fs;
use std::path::{Path, PathBuf};

#[test]
fn a_layer_that_is_cut_missing_or_a_directory_is_named() {
    with_erofs(|| {
        container().shell("true").run().success();
        let before = Traces::now();
        // Of the image's one layer; other images have other ones.
        let layers = files("layer.erofs");
        let changed: Vec<_> = layers.iter().map(|layer| Changed::cut(layer)).collect();
        let error = container().shell("true").run();
        assert_ne!(error.code, 0);
        let cut = changed.iter().find(|layer| error.stderr().contains(layer.text())).expect("the layer is named");
        let expected = format!("it is cut: {} of {} bytes are there", cut.length / 2, cut.length);
        assert!(error.stderr().contains(&expected), "{}", error.stderr());
        drop(changed);

        let changed: Vec<_> = layers.iter().map(|layer| Changed::hide(layer)).collect();
        let error = container().shell("true").run();
        assert_ne!(error.code, 0);
        let named = changed.iter().any(|layer| error.stderr().contains(layer.text()));
        assert!(named && error.stderr().to_lowercase().contains("no such file"), "{}", error.stderr());
        drop(changed);

        let changed: Vec<_> = layers.iter().map(|layer| Changed::directory(layer)).collect();
        let error = container().shell("true").run();
        assert_ne!(error.code, 0);
        let named = changed.iter().any(|layer| error.stderr().contains(layer.text()));
        assert!(named && error.stderr().contains("it is not a regular file"), "{}", error.stderr());
        drop(changed);
        container().shell("true").run().success();
        assert_nothing_left_since(&before);
    });
}

/// Its container has nothing but what is written to it.
#[test]
fn an_image_without_layers_has_no_command_to_run() {
    with_erofs(|| {
        let before = Traces::now();
        let image = LayeredImage::empty();
        let error = Container::new(&image.name, EROFS).command(&["/bin/true"]).run();
        assert_ne!(error.code, 0);
        assert!(error.stderr().contains("/bin/true"), "{}", error.stderr());
        drop(image);
        assert_nothing_left_since(&before);
    });
}

#[test]
fn a_node_without_room_for_a_writable_layer_is_named() {
    with_erofs(|| {
        container().shell("true").run().success();
        let known = snapshots();
        let created = container().command(&["/bin/true"]).create();
        let fresh: Vec<_> = snapshots().into_iter().filter(|snapshot| !known.contains(snapshot)).collect();
        let [snapshot] = &fresh[..] else { panic!("not one new snapshot: {fresh:?}") };
        let before = Traces::now();
        let full = mount_on(&snapshot.join("fs"), &["-t", "tmpfs", "-o", "size=8k", "tmpfs"]);
        let error = ctr(&["task", "start", "--null-io", created.id()]);
        assert_ne!(error.code, 0);
        let text = error.stderr();
        let named = text.contains(snapshot.to_str().expect("a plain path")) && text.contains("writable layer");
        assert!(named && text.contains("No space left on device"), "{text}");
        drop(full);
        ctr(&["task", "start", "--null-io", created.id()]).success();
        drop(created);
        assert_nothing_left_since(&before);
    });
}

fn snapshots() -> Vec<PathBuf> {
    let entries = fs::read_dir(SNAPSHOTS).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.join("fs").is_dir()).collect()
}

/// A layer's file that is cut, elsewhere, or a directory until this is dropped.
pub struct Changed {
    path: PathBuf,
    length: u64,
    /// What was cut off.
    rest: Option<Vec<u8>>,
}

impl Changed {
    fn new(path: &Path) -> Self {
        // The snapshotter protects it.
        run(&["chattr", "-i", path.to_str().expect("a plain path")]);
        Self { path: path.to_owned(), length: fs::metadata(path).expect("the layer").len(), rest: None }
    }

    fn cut(path: &Path) -> Self {
        Self::cut_to(path, fs::metadata(path).expect("the layer").len() / 2)
    }

    pub fn cut_to(path: &Path, length: u64) -> Self {
        let mut layer = Self::new(path);
        layer.rest = Some(fs::read(path).expect("the layer"));
        let file = fs::File::options().write(true).open(path).expect("the layer can be cut");
        file.set_len(length).expect("the layer is cut");
        layer
    }

    fn hide(path: &Path) -> Self {
        let layer = Self::new(path);
        fs::rename(path, path.with_extension("hidden")).expect("the layer can be renamed");
        layer
    }

    fn directory(path: &Path) -> Self {
        let layer = Self::hide(path);
        fs::create_dir(path).expect("a directory takes the layer's name");
        layer
    }

    fn text(&self) -> &str {
        self.path.to_str().expect("a plain path")
    }
}

impl Drop for Changed {
    fn drop(&mut self) {
        match &self.rest {
            // The same file: the node has it mounted.
            Some(content) => fs::write(&self.path, content),
            None => {
                fs::remove_dir(&self.path).ok();
                fs::rename(self.path.with_extension("hidden"), &self.path)
            }
        }
        .expect("the layer is whole again");
    }
}
