use super::*;

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(text, Path::new("/c.toml")).map_err(|error| error.to_string())
}

#[test]
fn an_empty_file_means_the_defaults() {
    assert_eq!(parse("# nothing\n").unwrap(), Config::default());
}

#[test]
fn every_key_can_be_set() {
    let text = r#"
        memory_mib = 128
        vcpus = 2
        debug = true
        trace = true
        templates = false
        disk_mib_per_second = 50
        disk_operations_per_second = 1000
        map_layers = false
        first_uid = 300000
        scratch_mib = 100
        host_paths = ["/srv/data", "/var/log/app.log"]
        host_sockets = ["/run/agent.sock"]
        kubelet_directory = "/data/kubelet"
        containerd_directories = ["/run/k3s/containerd"]
    "#;
    let config = Config {
        memory_mib: 128,
        vcpus: 2,
        debug: true,
        trace: true,
        templates: false,
        disk_mib_per_second: Some(50),
        disk_operations_per_second: Some(1000),
        map_layers: false,
        first_uid: 300_000,
        scratch_mib: 100,
        host_paths: vec!["/srv/data".into(), "/var/log/app.log".into()],
        host_sockets: vec!["/run/agent.sock".into()],
        kubelet_directory: "/data/kubelet".into(),
        containerd_directories: vec!["/run/k3s/containerd".into()],
    };
    assert_eq!(parse(text).unwrap(), config);
}

#[test]
fn errors_name_file_and_key() {
    let cases = [
        ("memory = 1", "/c.toml has the unknown key \"memory\""),
        ("memory_mib = 8", "/c.toml: memory_mib must be a number from 64 to 1048576, not 8"),
        ("memory_mib = -1", "/c.toml: memory_mib must be a number from 64 to 1048576, not -1"),
        ("vcpus = \"2\"", "/c.toml: vcpus must be a number from 1 to 32, not \"2\""),
        ("vcpus = 0", "/c.toml: vcpus must be a number from 1 to 32, not 0"),
        ("debug = 1", "/c.toml: debug must be true or false, not 1"),
        ("first_uid = 0", "/c.toml: first_uid must be a number from 100000 to 4294901759, not 0"),
    ];
    for (text, sentence) in cases {
        assert_eq!(parse(text).unwrap_err(), sentence);
    }
}

#[test]
fn paths_are_plain() {
    for path in ["/", "", "data", "/data/", "/data//x", "/data/./x", "/data/../etc", "//data"] {
        let error = parse(&format!("host_paths = [{path:?}]")).unwrap_err();
        assert!(error.starts_with("/c.toml: host_paths must be a list, each an absolute path without "), "{error}");
        let error = parse(&format!("kubelet_directory = {path:?}")).unwrap_err();
        assert!(error.starts_with("/c.toml: kubelet_directory must be an absolute path without "), "{error}");
    }
    assert!(parse("host_paths = \"/data\"").is_err());
    assert!(parse("host_paths = [1]").is_err());
}

#[test]
fn syntax_errors_name_the_line() {
    let error = parse("vcpus = 1\n\nmemory_mib == 2\n").unwrap_err();
    assert!(error.starts_with("/c.toml line 3 is not TOML: "), "{error}");
    assert!(!error.contains('\n'), "{error}");
}

#[test]
fn a_named_file_must_exist() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("none.toml");
    let error = Config::load(Some(&path)).unwrap_err().to_string();
    assert!(error.starts_with(&format!("cannot read {}: ", path.display())), "{error}");
}
