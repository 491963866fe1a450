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
    let config = parse("memory_mib = 128\nvcpus = 2\ndebug = true\nfirst_uid = 300000\n").unwrap();
    assert_eq!(config, Config { memory_mib: 128, vcpus: 2, debug: true, first_uid: 300_000 });
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
