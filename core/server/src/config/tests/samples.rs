use super::*;

/// Switches on what is switched off: lines that begin with `#` and no space.
fn switched_on(yaml: &str) -> String {
    let line = |line: &str| match line.trim_start().strip_prefix('#') {
        Some(rest) if !rest.starts_with(' ') && !rest.is_empty() => line.replacen('#', "", 1),
        _ => line.to_owned(),
    };
    yaml.lines().map(|text| line(text) + "\n").collect()
}

/// The examples at the margin, each a configuration of its own.
fn examples(yaml: &str) -> Vec<String> {
    let is_example = |line: &&str| line.starts_with('#') && !line.starts_with("# ") && line.len() > 1;
    let paragraphs = yaml.split("\n\n").map(|paragraph| {
        paragraph.lines().filter(is_example).map(|line| format!("{}\n", &line[1..])).collect::<String>()
    });
    paragraphs.filter(|example| !example.is_empty()).collect()
}

#[test]
fn the_default_file_says_the_built_in_defaults() {
    assert_eq!(default_config(), DEFAULT);
    assert_eq!(accept(DEFAULT), accept(""));
}

#[test]
fn what_the_default_file_has_switched_off_loads_as_well() {
    let examples = examples(DEFAULT);
    assert!(examples.len() > 8, "{examples:?}");
    for example in examples {
        accept(&example);
    }
    let indented: String =
        DEFAULT.lines().filter(|line| !line.starts_with('#')).map(|line| format!("{line}\n")).collect();
    let config = accept(&switched_on(&indented));
    assert_eq!(config.tls.crl, Some("/etc/keystead/clients.crl".into()));
    assert_eq!((config.plugins.path.len(), config.plugins.sha256.len()), (1, 1));
}

#[test]
fn the_default_file_names_every_legal_key() {
    let legal = [
        settings::TOP.as_slice(),
        &settings::LOG,
        &settings::TLS,
        &settings::LIMITS,
        &settings::PLUGINS,
        &store::ENTRY,
        &store::LIMITS,
    ];
    for key in legal.concat() {
        let named = DEFAULT.match_indices(&format!("{key}:")).any(|(at, _)| {
            DEFAULT[..at]
                .chars()
                .next_back()
                .is_none_or(|before| !before.is_ascii_alphanumeric() && before != '_')
        });
        assert!(named, "config/keystead.yaml doesn't name `{key}`");
    }
}

#[test]
fn the_file_of_the_reference_loads_with_warnings_alone() {
    let config = accept(GOKEYLESS);
    let names: Vec<_> = config.stores.iter().map(|store| store.name.as_str()).collect();
    assert_eq!(names, ["file-1", "file-2", "pkcs11-1"]);
    assert_eq!(
        warnings(&config),
        [
            "8:1: `hostname` and `zone_id` have no effect yet: this server doesn't enrol",
            "22:3: clients may also decrypt with the keys of `file-1`, `file-2` and `pkcs11-1`, as in gokeyless",
        ]
    );
    assert_eq!(accept(&switched_on(GOKEYLESS)).stores.len(), 5);
}

#[test]
fn every_sample_loads() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../config");
    let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let samples: Vec<_> =
        paths.filter(|path| path.extension().is_some_and(|ending| ending == "yaml")).collect();
    assert!(samples.len() >= 4, "{samples:?}");
    for path in samples {
        accept(&fs::read_to_string(path).unwrap());
    }
}
