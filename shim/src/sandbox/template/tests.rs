use super::*;

struct Node {
    _root: tempfile::TempDir,
    host: Host,
    kernel: File,
    root_image: File,
}

const SIZE: Size = Size { memory_mib: 128, growth_mib: 384, vcpus: 1 };

impl Node {
    /// A node with a template of [`SIZE`].
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let host = Host::below(root.path());
        for path in [host.vmm(), host.kernel(), host.root_image()] {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "content").unwrap();
        }
        let node = Self {
            kernel: File::open(host.kernel()).unwrap(),
            root_image: File::open(host.root_image()).unwrap(),
            host,
            _root: root,
        };
        let place = node.host.templates().join("7");
        std::fs::create_dir_all(&place).unwrap();
        for name in [MEMORY, STATE] {
            std::fs::write(place.join(name), name).unwrap();
        }
        let stamp = |name: &str| Stamp::of(&File::open(place.join(name)).unwrap()).unwrap();
        let made = Made::now(&node.host, node.inputs(), SIZE.memory_mib).unwrap();
        let memory_digest = digest(&File::open(place.join(MEMORY)).unwrap()).unwrap();
        let record = Record { number: 7, made, memory: stamp(MEMORY), memory_digest, state: stamp(STATE) };
        std::fs::write(node.host.templates().join(RECORD), serde_json::to_vec(&record).unwrap()).unwrap();
        node
    }

    fn inputs(&self) -> Inputs<'_> {
        Inputs { kernel: &self.kernel, root_image: &self.root_image }
    }

    fn open(&self, size: Size, config: &Config) -> Result<Option<Template>, Unusable> {
        open(&self.host, self.inputs(), size, config)
    }

    fn opens(&self) -> Result<bool, String> {
        let template = self.open(SIZE, &Config::default());
        template.map(|template| template.is_some()).map_err(|error| error.to_string())
    }
}

#[test]
fn a_template_is_for_one_size_of_memory_and_can_be_switched_off() {
    let node = Node::new();
    assert_eq!(node.opens(), Ok(true));
    assert!(node.open(Size { vcpus: PROCESSORS, ..SIZE }, &Config::default()).unwrap().is_some());
    for size in [Size { vcpus: PROCESSORS + 1, ..SIZE }, Size { memory_mib: 129, ..SIZE }] {
        assert!(node.open(size, &Config::default()).unwrap().is_none());
    }
    for config in [Config { templates: false, ..Config::default() }, Config { debug: true, ..Config::default() }] {
        assert!(node.open(SIZE, &config).unwrap().is_none());
    }
}

#[test]
fn no_template_is_no_error() {
    let node = Node::new();
    std::fs::remove_file(node.host.templates().join(RECORD)).unwrap();
    assert_eq!(node.opens(), Ok(false));
}

#[test]
fn another_file_in_the_place_of_one_that_counts_is_noticed() {
    type Change = fn(&mut Node);
    let replace = |path: &Path| {
        let scratch = path.with_extension("scratch");
        std::fs::write(&scratch, "content").unwrap();
        std::fs::rename(&scratch, path).unwrap();
    };
    let node = Node::new();
    replace(&node.host.vmm());
    assert!(node.opens().unwrap_err().contains("made with another Bulkhead"));
    let changes: [Change; 2] = [
        |node| node.kernel = File::open(node.host.vmm()).unwrap(),
        |node| node.root_image = File::open(node.host.kernel()).unwrap(),
    ];
    for change in changes {
        let mut node = Node::new();
        change(&mut node);
        assert!(node.opens().unwrap_err().contains("made with another Bulkhead"));
    }
    for name in [MEMORY, STATE] {
        let node = Node::new();
        let path = node.host.templates().join("7").join(name);
        replace(&path);
        assert!(node.opens().unwrap_err().contains("is not what was recorded"), "{name}");
        std::fs::remove_file(&path).unwrap();
        assert!(node.opens().unwrap_err().contains("cannot read"), "{name}");
    }
}

#[test]
fn a_damaged_record_is_a_reason_not_to_use_it() {
    let node = Node::new();
    for text in ["", "{", "[]", r#"{"number": -1}"#] {
        std::fs::write(node.host.templates().join(RECORD), text).unwrap();
        assert!(node.opens().unwrap_err().contains("cannot read"), "{text}");
    }
}

#[test]
fn what_builders_left_goes_and_what_is_recorded_stays() {
    let node = Node::new();
    let place = |number: &str| node.host.templates().join(number);
    for number in ["3", "8"] {
        std::fs::create_dir(place(number)).unwrap();
        std::fs::write(place(number).join(MEMORY), "unfinished").unwrap();
    }
    build::remove_unrecorded(&node.host);
    assert!(!place("3").exists() && !place("8").exists());
    assert_eq!(node.opens(), Ok(true));
    std::fs::remove_file(place(RECORD)).unwrap();
    build::remove_unrecorded(&node.host);
    assert!(!place("7").exists(), "nobody can use it");
}

#[test]
fn a_check_reads_the_memory() {
    let node = Node::new();
    let template = node.open(SIZE, &Config::default()).unwrap().unwrap();
    let said = verify(&node.host, &template).unwrap();
    assert_eq!(said, "pods with 128 MiB of memory or more and up to 4 vCPUs start from it");
    let path = node.host.templates().join("7").join(MEMORY);
    std::fs::write(&path, "another").unwrap();
    let error = verify(&node.host, &template).unwrap_err().to_string();
    assert!(error.contains(path.to_str().unwrap()), "{error}");
}
