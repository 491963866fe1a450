//! An image of many layers, made in the node from the one of busybox.

use e2e::BUSYBOX;
use e2e::container::ctr;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// In containerd until it is dropped.
#[derive(Debug)]
pub struct LayeredImage {
    pub name: String,
}

impl LayeredImage {
    /// Each layer has these files, with these contents, on top of the one before.
    pub fn new(layers: &[Vec<(String, String)>]) -> Self {
        Self::build(layers, true)
    }

    /// Not one layer, not even busybox.
    pub fn empty() -> Self {
        Self::build(&[], false)
    }

    fn build(layers: &[Vec<(String, String)>], on_busybox: bool) -> Self {
        let name = format!("bulkhead.test/layers-{}:latest", std::process::id());
        let place = std::env::temp_dir().join(format!("layers-{}", std::process::id()));
        fs::create_dir_all(&place).expect("a directory for the image");
        let archive = place.join("image.tar");
        let layout = place.join("layout");
        fs::create_dir_all(&layout).expect("a directory for the layout");
        // It may end well before the end of the archive is there, of which this file is the last.
        let complete = || {
            ctr(&["image", "export", text(&archive), BUSYBOX]).success();
            run("tar", &["-xf", text(&archive), "-C", text(&layout)]);
            layout.join("oci-layout").exists()
        };
        assert!((0..3).any(|_| complete()), "containerd exports no whole image");

        let blobs = layout.join("blobs/sha256");
        let read = |path: PathBuf| -> Value { serde_json::from_slice(&fs::read(path).expect("a blob")).expect("JSON") };
        let named = |descriptor: &Value| {
            let digest = descriptor["digest"].as_str().expect("a digest");
            read(blobs.join(digest.strip_prefix("sha256:").expect("a digest of SHA-256")))
        };
        let put = |bytes: &[u8], kind: &str| {
            let digest = e2e::sha256(bytes);
            fs::write(blobs.join(&digest), bytes).expect("the layout takes a blob");
            json!({"mediaType": kind, "digest": format!("sha256:{digest}"), "size": bytes.len()})
        };
        let mut index = read(layout.join("index.json"));
        let mut manifest = named(&index["manifests"][0]);
        let mut config = named(&manifest["config"]);
        if !on_busybox {
            list(&mut config["rootfs"]["diff_ids"]).clear();
            list(&mut manifest["layers"]).clear();
        }
        for (number, files) in layers.iter().enumerate() {
            let layer = put(&tar(&place, number, files), "application/vnd.oci.image.layer.v1.tar");
            list(&mut config["rootfs"]["diff_ids"]).push(layer["digest"].clone());
            list(&mut manifest["layers"]).push(layer);
        }
        config.as_object_mut().expect("an object").remove("history");
        manifest["config"] = put(config.to_string().as_bytes(), "application/vnd.oci.image.config.v1+json");
        let mut made = put(manifest.to_string().as_bytes(), "application/vnd.oci.image.manifest.v1+json");
        made["annotations"] = json!({"io.containerd.image.name": name});
        index["manifests"] = json!([made]);
        fs::write(layout.join("index.json"), index.to_string()).expect("the layout takes its index");
        run("tar", &["-cf", text(&archive), "-C", text(&layout), "oci-layout", "index.json", "blobs"]);
        ctr(&["image", "import", "--no-unpack", text(&archive)]).success();
        fs::remove_dir_all(&place).ok();
        Self { name }
    }
}

impl Drop for LayeredImage {
    fn drop(&mut self) {
        ctr(&["image", "rm", "--sync", &self.name]);
    }
}

fn tar(place: &Path, number: usize, files: &[(String, String)]) -> Vec<u8> {
    let (tree, archive) = (place.join(format!("tree-{number}")), place.join("layer.tar"));
    for (path, content) in files {
        let path = tree.join(path);
        fs::create_dir_all(path.parent().expect("a file is in a directory")).expect("a directory");
        fs::write(path, content).expect("a file");
    }
    // In this order: an opaque directory's mark hides what comes before it in its own layer too.
    let mut arguments = vec!["-cf", text(&archive), "-C", text(&tree)];
    arguments.extend(files.iter().map(|(path, _)| path.as_str()));
    run("tar", &arguments);
    fs::remove_dir_all(&tree).ok();
    fs::read(archive).expect("the layer")
}

fn list(value: &mut Value) -> &mut Vec<Value> {
    value.as_array_mut().expect("a list")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

#[track_caller]
fn run(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).status().expect("the program is there");
    assert!(status.success(), "{program} {arguments:?}");
}
