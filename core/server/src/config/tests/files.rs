use super::*;

fn write(directory: &Path, name: &str, text: &str) -> PathBuf {
    let path = directory.join(name);
    fs::write(&path, text).unwrap();
    path
}

fn error(line: &str) -> String {
    load_from(&[""; 0], &flags(line), &no_env).unwrap_err().to_string()
}

#[test]
fn the_first_that_exists_is_read_and_none_is_fine() {
    let directory = tempfile::tempdir().unwrap();
    let locations = ["first", "second"].map(|name| directory.path().join(name));
    let port = || {
        let config = load_from(&locations, &Flags::default(), &no_env).unwrap();
        (config.listen[0].port(), config.file)
    };
    assert_eq!(port(), (2407, None));
    let second = write(directory.path(), "second.yml", "port: 2");
    assert_eq!(port(), (2, Some(second)));
    let json = write(directory.path(), "first.json", "{\"port\": 3}");
    assert_eq!(port(), (3, Some(json)));
    let first = write(directory.path(), "first.yaml", "port: 1");
    assert_eq!(port(), (1, Some(first)));
}

#[test]
fn a_named_file_must_exist_and_be_readable() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().display();
    assert_eq!(
        error(&format!("-c {path}/none.yaml")),
        format!(
            "{path}/none.yaml: no such configuration file\nhint: correct `--config-file`, or start from what \
             `keystead default-config` prints"
        )
    );
    assert_eq!(
        error(&format!("-c {path}/")),
        format!(
            "{path}/: cannot read the configuration: is a directory\nhint: check that it is a file, and that the \
             server's user may read it"
        )
    );
    fs::write(directory.path().join("latin.yaml"), b"auth_cert: caf\xe9").unwrap();
    assert_eq!(
        error(&format!("-c {path}/latin.yaml")),
        format!("{path}/latin.yaml: the configuration is not UTF-8 text\nhint: convert it to UTF-8")
    );
    assert_eq!(
        error("-c /dev/zero"),
        "/dev/zero: the configuration is larger than 1 MiB\nhint: use a `dir` entry in place of many `file` entries"
    );
}

#[test]
fn an_unreadable_file_that_nobody_named_is_an_error_too() {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("first.yaml")).unwrap();
    let error = load_from(&[directory.path().join("first")], &Flags::default(), &no_env).unwrap_err();
    assert!(
        error.to_string().contains("first.yaml: cannot read the configuration: is a directory"),
        "{error}"
    );
}

#[test]
fn other_formats_are_refused_with_a_cure() {
    let directory = tempfile::tempdir().unwrap();
    let path = write(directory.path(), "gokeyless.toml", "port = 1");
    let message = format!(
        "{}: expected a file ending in `.yaml`, `.yml` or `.json`\nhint: convert it to YAML; the keys keep their names",
        path.display()
    );
    assert_eq!(error(&format!("-c {}", path.display())), message);
    let found = load_from(&[directory.path().join("gokeyless")], &Flags::default(), &no_env);
    assert_eq!(found.unwrap_err().to_string(), message);
}

#[test]
fn errors_and_warnings_name_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = write(directory.path(), "k.yaml", "tracing_enabled: true");
    let config = load_from(&[""; 0], &flags(&format!("-c {}", path.display())), &no_env).unwrap();
    let message = format!("{}:1:1: `tracing_enabled` has no effect yet: no spans are sent", path.display());
    assert_eq!(warnings(&config), [message]);
}

#[test]
fn secrets_in_a_file_that_everyone_may_read_are_warned_of() {
    let directory = tempfile::tempdir().unwrap();
    let warned = |yaml: &str, mode| {
        let path = write(directory.path(), "k.yaml", yaml);
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let config = load_from(&[""; 0], &flags(&format!("-c {}", path.display())), &no_env).unwrap();
        warnings(&config).iter().any(|warning| warning.contains("every user of this machine"))
    };
    let pin = "private_key_stores: [{uri: 'pkcs11:object=x?pin-value=1234'}]";
    let value = "private_key_stores: [{plugin: x, secrets: {a: {value: b}}}]";
    let file = "private_key_stores: [{plugin: x, secrets: {a: {file: b}}}]";
    assert_eq!(
        [warned(pin, 0o644), warned(value, 0o604), warned(pin, 0o640), warned(file, 0o644)],
        [true, true, false, false]
    );
}
