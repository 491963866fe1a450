//! OCI image layouts: the files that make a root file system an image, in one archive.

use crate::run;
use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::io::Read;
use std::path::Path;
use std::process::Command;

/// An image of one layer.
pub struct Image<'a> {
    /// With the tag: `host/repository:tag`.
    pub name: &'a str,
    /// An uncompressed tar archive.
    pub layer: &'a Path,
    /// What runs when nothing else is said.
    pub command: &'a [&'a str],
}

/// Puts `images` into the archive `to`. Equal layers are stored once.
pub fn write(to: &Path, images: &[Image]) -> Result<()> {
    let layout = tempfile::tempdir_in(to.parent().context("an archive lies in a directory")?)?;
    let blobs = layout.path().join("blobs/sha256");
    std::fs::create_dir_all(&blobs)?;
    let mut manifests = Vec::new();
    for image in images {
        manifests.push(add_image(&blobs, image).with_context(|| format!("cannot pack {}", image.name))?);
    }
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": manifests,
    });
    std::fs::write(layout.path().join("index.json"), index.to_string())?;
    std::fs::write(layout.path().join("oci-layout"), json!({"imageLayoutVersion": "1.0.0"}).to_string())?;
    let mut tar = Command::new("tar");
    tar.args(["--create", "--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner", "--file"]);
    run::run(tar.arg(to).arg("-C").arg(layout.path()).args(["oci-layout", "index.json", "blobs"]))
}

/// Adds an image's blobs and returns the descriptor of its manifest.
fn add_image(blobs: &Path, image: &Image) -> Result<Value> {
    let layer_digest = file_digest(image.layer)?;
    let layer_blob = blobs.join(&layer_digest);
    if !layer_blob.exists() {
        std::fs::copy(image.layer, &layer_blob)?;
    }
    let layer_size = std::fs::metadata(&layer_blob)?.len();
    // Of an uncompressed layer, the digest of the blob is also the digest of its content.
    let layer_digest = format!("sha256:{layer_digest}");

    let mut process = json!({"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]});
    if !image.command.is_empty() {
        process["Cmd"] = json!(image.command);
    }
    let configuration = json!({
        "architecture": "amd64",
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": process,
        "rootfs": {"type": "layers", "diff_ids": [layer_digest]},
        "history": [{"created": "1970-01-01T00:00:00Z", "comment": "made from Debian packages"}],
    });
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": add_json(blobs, "application/vnd.oci.image.config.v1+json", &configuration)?,
        "layers": [{
            "mediaType": "application/vnd.oci.image.layer.v1.tar",
            "digest": layer_digest,
            "size": layer_size,
        }],
    });
    let mut descriptor = add_json(blobs, "application/vnd.oci.image.manifest.v1+json", &manifest)?;
    let (_, tag) = image.name.rsplit_once(':').context("an image's name has a tag")?;
    descriptor["platform"] = json!({"architecture": "amd64", "os": "linux"});
    // containerd takes the full name from its own annotation; the standard one holds the tag alone.
    descriptor["annotations"] = json!({
        "io.containerd.image.name": image.name,
        "org.opencontainers.image.ref.name": tag,
    });
    Ok(descriptor)
}

fn add_json(blobs: &Path, media_type: &str, document: &Value) -> Result<Value> {
    let text = document.to_string();
    let digest = hex(&Sha256::digest(&text));
    std::fs::write(blobs.join(&digest), &text)?;
    Ok(json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": text.len()}))
}

fn file_digest(path: &Path) -> Result<String> {
    let mut file = std::fs::File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = file.read(&mut buffer).with_context(|| format!("cannot read {}", path.display()))?;
        if count == 0 {
            return Ok(hex(&hash.finalize()));
        }
        hash.update(&buffer[..count]);
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(layout: &Path, descriptor: &Value) -> Value {
        let digest = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
        let bytes = std::fs::read(layout.join("blobs/sha256").join(digest)).unwrap();
        assert_eq!(hex(&Sha256::digest(&bytes)), digest);
        assert_eq!(descriptor["size"], bytes.len());
        serde_json::from_slice(&bytes).unwrap()
    }

    #[test]
    fn every_descriptor_names_a_blob_by_its_digest_and_size() {
        let directory = tempfile::tempdir().unwrap();
        let layer = directory.path().join("layer.tar");
        std::fs::write(&layer, b"not really a tar").unwrap();
        let archive = directory.path().join("images.tar");
        let image = |name, command| Image { name, layer: &layer, command };
        write(&archive, &[image("x.test/a:latest", &["sh"]), image("x.test/b:1", &[])]).unwrap();

        let layout = directory.path().join("layout");
        std::fs::create_dir(&layout).unwrap();
        run::run(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(&layout)).unwrap();
        let index: Value = serde_json::from_slice(&std::fs::read(layout.join("index.json")).unwrap()).unwrap();
        let commands: Vec<Value> = (0..2)
            .map(|number| {
                let manifest = read(&layout, &index["manifests"][number]);
                let configuration = read(&layout, &manifest["config"]);
                assert_eq!(configuration["rootfs"]["diff_ids"][0], manifest["layers"][0]["digest"]);
                configuration["config"]["Cmd"].clone()
            })
            .collect();
        assert_eq!(commands, [json!(["sh"]), Value::Null]);
        assert_eq!(index["manifests"][1]["annotations"]["org.opencontainers.image.ref.name"], "1");
    }
}
