//! What of the node a pod may mount: what the operator names in `host_paths`, and its own volumes.

use e2e::cri::messages::{ImageSpec, Mount};
use e2e::cri::{Container as Member, Pod, Sandboxer};
use e2e::leaks::{Traces, assert_nothing_left_since};
use e2e::node_config::NodeConfig;
use e2e::{BUSYBOX, Container, run, try_run};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

crate::for_each_sandboxer!(long: a_pod_mounts_what_is_listed_and_its_own);

/// How often a link is swapped in while a container is made.
const ROUNDS: u32 = 16;

#[test]
fn a_container_alone_mounts_nothing_of_the_node_unless_it_is_listed() {
    let before = Traces::now();
    let node = Node::new();
    let config = node.path("config.toml");
    fs::write(&config, format!("host_paths = [{:?}]\n", node.path("listed"))).expect("a new file");
    symlink(node.path("secret"), node.path("listed/link")).expect("a new link");
    let container = |source: &str, config: Option<&str>| {
        let mount = format!("type=bind,src={source},dst=/data,options=rbind:ro");
        let container = Container::new(BUSYBOX, "blockfile").argument("--mount").argument(&mount);
        let container = config
            .iter()
            .fold(container, |container, config| container.argument("--runtime-config-path").argument(config));
        container.shell("cat /data/name").run()
    };
    for (source, config) in [
        (node.path("listed"), None),
        (node.path("secret"), Some(config.as_str())),
        (node.path("listed/link"), Some(&config)),
        (node.path("listed/../secret"), Some(&config)),
        ("/".to_owned(), Some(&config)),
    ] {
        let refused = container(&source, config);
        let sentence = format!("mount /data: {source} of the node is not allowed: see host_paths in config.toml");
        assert!(refused.code != 0 && refused.stderr().contains(&sentence), "{sentence}: {}", refused.stderr());
    }
    assert_eq!(container(&node.path("listed"), Some(&config)).success().stdout(), "listed\n");
    drop(node);
    assert_nothing_left_since(&before);
}

/// One pod: a boot takes seconds under emulation.
fn a_pod_mounts_what_is_listed_and_its_own(sandboxer: Sandboxer) {
    let before = Traces::now();
    let node = Node::new();
    let _config = NodeConfig::with(&format!("host_paths = [{:?}]\n", node.path("listed")));
    let pod = Pod::new("policy", sandboxer);
    let other = Pod::new("other", sandboxer);
    let own = OwnDirectory::new(&pod.directory());
    let others = OwnDirectory::new(&other.directory());
    let pod = pod.run();

    assert_eq!(read(&pod, &node.path("listed")), Ok("listed\n".to_owned()));
    assert_eq!(read(&pod, &own.volume), Ok("volume\n".to_owned()));
    assert_refused(&pod, &node.path("secret"));
    assert_refused(&pod, &others.volume);
    symlink(node.path("secret"), node.path("listed/link")).expect("a new link");
    assert_refused(&pod, &node.path("listed/link"));

    // kubelet binds the subPath of any volume into the pod's directory.
    for (source, expected) in
        [(node.path("listed"), Some("listed\n")), (own.volume.clone(), Some("volume\n")), (node.path("secret"), None)]
    {
        run(&["mount", "--bind", &source, &own.part]);
        match expected {
            Some(content) => assert_eq!(read(&pod, &own.part).as_deref(), Ok(content)),
            None => assert_refused(&pod, &own.part),
        }
        run(&["umount", &own.part]);
    }
    if Sandboxer::Shim.available() {
        an_image_is_a_volume(&pod);
    }
    a_link_that_is_swapped_in_shares_nothing(&pod, &node);
    drop(pod);
    drop((node, own, others));
    assert_nothing_left_since(&before);
}

/// containerd 2.x mounts it below its own directory.
fn an_image_is_a_volume(pod: &Pod) {
    let image = ImageSpec { image: BUSYBOX.into(), ..Default::default() };
    let volume =
        Mount { container_path: "/image".into(), readonly: true, image: Some(image).into(), ..Default::default() };
    let container = pod.container("image", BUSYBOX).config(|config| config.mounts.push(volume));
    let container = container.shell("/image/bin/busybox echo from the image; touch /image/x").start();
    assert_ne!(container.wait(), 0);
    assert_eq!(container.log().stdout(), "from the image\n");
    assert!(container.log().stderr().contains("Read-only file system"), "{}", container.log().stderr());
}

/// As a tenant can who may write to the directory above.
fn a_link_that_is_swapped_in_shares_nothing(pod: &Pod, node: &Node) {
    let [place, link] = ["listed/place", "listed/swap"].map(|name| node.path(name));
    fs::create_dir(&place).expect("a new directory");
    fs::write(Path::new(&place).join("name"), "place\n").expect("a new file");
    symlink(node.path("secret"), &link).expect("a new link");
    let over = AtomicBool::new(false);
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                exchange(&place, &link);
            }
        });
        let outcomes = (0..ROUNDS).map(|_| read(pod, &place)).collect();
        over.store(true, Ordering::Relaxed);
        outcomes
    });
    for outcome in &outcomes {
        match outcome {
            Ok(content) => assert_eq!(content, "place\n"),
            // containerd follows links as well, before the shim is asked, and may be the one to meet the exchange.
            Err(message) if message.contains("failed to resolve symlink") => {}
            Err(message) => assert!(message.contains("is not allowed: see host_paths"), "{message}"),
        }
    }
    let shared = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    println!("{shared} of {ROUNDS} containers got the directory, the others were refused");
}

fn exchange(one: &str, other: &str) {
    use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
    renameat2(AT_FDCWD, one, AT_FDCWD, other, RenameFlags::RENAME_EXCHANGE).expect("both are there");
}

/// What a new container of the pod reads from `name` in a directory of the node, or why there is none.
fn read(pod: &Pod, source: &str) -> Result<String, String> {
    let container = pod.container("reader", BUSYBOX).mount(source, "/data").shell("cat /data/name");
    let container = container.try_create().map_err(|status| status.message)?;
    let started = container.start();
    let content = started.map(|()| {
        assert_eq!(container.wait(), 0);
        container.log().stdout()
    });
    remove(&container);
    content.map_err(|status| status.message)
}

/// The next one has the same name.
fn remove(container: &Member) {
    container.remove().expect("it does not run any more");
    fs::remove_file(container.log().path()).ok();
}

#[track_caller]
fn assert_refused(pod: &Pod, source: &str) {
    let refusal = read(pod, source).expect_err("it is not allowed");
    assert!(refusal.contains("of the node is not allowed: see host_paths in config.toml"), "{refusal}");
}

/// Directories of the node, each with its name in a file.
struct Node {
    directory: PathBuf,
}

impl Node {
    fn new() -> Self {
        let directory = PathBuf::from(format!("/srv/e2e-policy-{}", std::process::id()));
        for name in ["listed", "secret"] {
            fs::create_dir_all(directory.join(name)).expect("a new directory");
            fs::write(directory.join(name).join("name"), format!("{name}\n")).expect("a new file");
        }
        Self { directory }
    }

    fn path(&self, name: &str) -> String {
        self.directory.join(name).to_str().expect("a plain path").to_owned()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.directory).ok();
    }
}

/// kubelet's directory of a pod, with a volume and a place for a part of it.
struct OwnDirectory {
    directory: PathBuf,
    volume: String,
    part: String,
}

impl OwnDirectory {
    fn new(directory: &Path) -> Self {
        let make = |name: &str| {
            let path = directory.join(name);
            fs::create_dir_all(&path).expect("a new directory");
            path.to_str().expect("a plain path").to_owned()
        };
        let (volume, part) = (make("volumes/e2e/data"), make("volume-subpaths/data/reader/0"));
        fs::write(Path::new(&volume).join("name"), "volume\n").expect("a new file");
        Self { directory: directory.to_owned(), volume, part }
    }
}

impl Drop for OwnDirectory {
    fn drop(&mut self) {
        // Only after a failed test.
        try_run(&["umount", "--quiet", &self.part]);
        let tree = self.directory.to_str().expect("a plain path");
        try_run(&["rm", "--recursive", "--force", "--one-file-system", tree]);
    }
}
