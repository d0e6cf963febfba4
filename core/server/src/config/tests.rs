use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Parser;

use super::*;

const DEFAULT: &str = include_str!("../../../../config/keystead.yaml");
const GOKEYLESS: &str = include_str!("../../../../config/gokeyless.yaml");

#[derive(clap::Parser)]
struct CommandLine {
    #[command(flatten)]
    flags: Flags,
}

fn flags(line: &str) -> Flags {
    CommandLine::parse_from(format!("keystead {line}").split_whitespace()).flags
}

fn no_env(_: &str) -> Option<OsString> {
    None
}

fn env(pairs: &[(&str, &str)]) -> impl Fn(&str) -> Option<OsString> {
    let pairs: HashMap<String, OsString> =
        pairs.iter().map(|(name, value)| (name.to_string(), value.into())).collect();
    move |name| pairs.get(name).cloned()
}

fn accept(yaml: &str) -> Config {
    settings::resolve(yaml, &Flags::default(), &no_env).unwrap_or_else(|error| panic!("{error}\n{yaml}"))
}

fn refusal(yaml: &str) -> String {
    match settings::resolve(yaml, &Flags::default(), &no_env) {
        Ok(_) => panic!("accepted:\n{yaml}"),
        Err(notice) => Notice { file: Some("k.yaml".into()), ..notice }.to_string(),
    }
}

fn warnings(config: &Config) -> Vec<String> {
    config.warnings.iter().map(|warning| warning.to_string().lines().next().unwrap().to_owned()).collect()
}

fn claim_refusals(claims: &[(&str, &str)]) {
    for (yaml, message) in claims {
        assert_eq!(&refusal(yaml), message, "of:\n{yaml}");
    }
}

mod text {
    use super::*;

    #[test]
    fn an_unknown_key_is_refused_with_its_place_and_the_nearest_name() {
        claim_refusals(&[
            ("port: 1\nlistne: x", "k.yaml:2:1: unknown key `listne`\nhint: did you mean `listen`?"),
            (
                "private_key_store: []",
                "k.yaml:1:1: unknown key `private_key_store`\nhint: did you mean `private_key_stores`?",
            ),
            ("auth-cert: x", "k.yaml:1:1: unknown key `auth-cert`\nhint: did you mean `auth_cert`?"),
            (
                "limits:\n  idel_timeout: 3s",
                "k.yaml:2:3: unknown key `limits.idel_timeout`\nhint: did you mean `idle_timeout`?",
            ),
            (
                "tls: {certificates: 1}",
                "k.yaml:1:7: unknown key `tls.certificates`\nhint: the keys here are `versions`, `resumption` and `crl`",
            ),
            (
                "private_key_stores:\n- plugin: file\n  nmae: x",
                "k.yaml:3:3: unknown key `private_key_stores[0].nmae`\nhint: did you mean `name`?",
            ),
        ]);
    }

    #[test]
    fn a_duplicate_key_is_refused_with_both_places() {
        claim_refusals(&[
            (
                "port: 1\n\nport: 2",
                "k.yaml:3:1: duplicate key `port`, first at 1:1\nhint: remove one of them",
            ),
            ("port: 1\nPort: 2", "k.yaml:2:1: duplicate key `Port`, first at 1:1\nhint: remove one of them"),
            (
                "private_key_stores:\n- plugin: x\n  config: {a: {b: 1, c: 2, b: 3}}",
                "k.yaml:3:28: duplicate key `b`, first at 3:16\nhint: remove one of them",
            ),
        ]);
    }

    #[test]
    fn keys_must_be_strings() {
        let hint = "hint: put the key in quotes";
        for (yaml, place) in [
            ("1: x", "1:1"),
            ("true: x", "1:1"),
            ("tls: {? [a] : b}", "1:9"),
            ("tls: {~: b}", "1:7"),
            ("private_key_stores:\n- plugin: x\n  config: {5: b}", "3:12"),
        ] {
            assert_eq!(
                refusal(yaml),
                format!("k.yaml:{place}: expected a key that is a string\n{hint}"),
                "{yaml}"
            );
        }
    }

    #[test]
    fn keys_are_case_insensitive_as_in_the_reference_but_not_those_of_plugins() {
        let config = accept("PORT: 1\nPrivate_Key_Stores:\n- Plugin: x\n  Config: {aB: 1, Ab: 2}");
        assert_eq!(config.listen, ["[::]:1".parse().unwrap()]);
        assert_eq!(config.stores[0].config, serde_json::json!({"aB": 1, "Ab": 2}));
    }

    #[test]
    fn json_is_accepted() {
        let config = accept(r#"{"port": 7, "private_key_stores": [{"dir": "/k"}]}"#);
        assert_eq!((config.listen[0].port(), config.stores.len()), (7, 1));
    }

    #[test]
    fn an_empty_file_is_all_defaults() {
        for yaml in ["", "# only a comment\n", "---\n", "{}", "\u{feff}"] {
            assert_eq!(accept(yaml), accept("{}"), "{yaml:?}");
        }
    }

    #[test]
    fn a_key_with_nothing_behind_it_is_unset() {
        assert_eq!(accept("port:\nprivate_key_stores:\nlimits:\n  grace:\ntls: ~"), accept(""));
    }

    #[test]
    fn scalars_may_be_aliases() {
        let config = accept("auth_cert: &both /x\nauth_key: *both");
        assert_eq!(config.auth_key, Path::new("/x"));
    }

    #[test]
    fn what_yaml_can_and_a_configuration_should_not_is_refused() {
        claim_refusals(&[
            (
                "port: 1\n---\nport: 2",
                "k.yaml:2:1: expected one document, got a second\nhint: remove the `---` and what follows",
            ),
            (
                "tls: &t {resumption: true}\nlimits: *t",
                "k.yaml:2:9: expected an alias of a scalar, got one of a list or map\nhint: write the value out",
            ),
            (
                "limits: &l [*l]",
                "k.yaml:1:13: expected an alias of a scalar, got one of a list or map\nhint: write the value out",
            ),
            (
                "log:\n  <<: {level: info}",
                "k.yaml:2:3: merge keys are not supported\nhint: write the keys out",
            ),
            ("port: !secret 1", "k.yaml:1:7: tags are not supported\nhint: remove the word with the `!`"),
            (
                "port: .nan",
                "k.yaml:1:7: expected a finite number\nhint: put it in quotes if it is meant as text",
            ),
            (
                "port: 1 # a\u{2028}[[[[",
                "k.yaml:1:12: the invisible character U+2028 is not allowed\nhint: delete it; in a quoted string it can \
                 be written as an escape",
            ),
            ("port: [1", "k.yaml:2:1: not valid YAML: while parsing a flow sequence, expected ',' or ']'"),
            ("- 1", "k.yaml:1:1: expected a map of keys and values, got a list"),
            ("hello", "k.yaml:1:1: expected a map of keys and values, got a string"),
        ]);
    }

    #[test]
    fn an_alias_bomb_is_refused() {
        let scalars = format!("auth_cert: &a x\ntls: [{}]", "*a,".repeat(65));
        assert_eq!(refusal(&scalars), "k.yaml:2:199: more than 64 aliases\nhint: write the values out");
        let laughs = (1..9).map(|n| format!("l{n}: &l{n} [{}]\n", vec![format!("*l{}", n - 1); 9].join(",")));
        let bomb = format!("l0: &l0 [ha]\n{}", laughs.collect::<String>());
        assert_eq!(
            refusal(&bomb),
            "k.yaml:2:10: expected an alias of a scalar, got one of a list or map\nhint: write the value out"
        );
    }

    #[test]
    fn deep_nesting_is_refused_at_its_33rd_level() {
        let hint = "hint: look for an unclosed bracket or brace before this place";
        let levels = 100_000;
        for (yaml, place) in [
            ("[".repeat(levels), "1:256"),
            ("{a: ".repeat(levels), "1:1021"),
            ("- ".repeat(levels), "1:65"),
            (format!("{}{}", "[".repeat(levels), "]".repeat(levels)), "1:256"),
        ] {
            assert_eq!(refusal(&yaml), format!("k.yaml:{place}: nested deeper than 32 levels\n{hint}"));
        }
        let deep = |levels| {
            format!(
                "private_key_stores: [{{plugin: x, config: {{a: {}1{}}}}}]",
                "[".repeat(levels),
                "]".repeat(levels)
            )
        };
        assert_eq!(accept(&deep(28)).stores.len(), 1);
        assert!(refusal(&deep(29)).contains("nested deeper than 32 levels"));
    }

    #[test]
    fn more_values_than_anyone_writes_are_refused() {
        let list =
            |items| format!("private_key_stores: [{{plugin: x, config: {{a: [{}]}}}}]", "1,".repeat(items));
        assert_eq!(
            refusal(&list(65_536)),
            "k.yaml:1:131107: more than 65536 values\nhint: use a `dir` entry in place of many `file` entries"
        );
        assert_eq!(accept(&list(65_000)).stores.len(), 1);
    }

    #[test]
    fn an_oversized_text_is_refused_and_the_largest_legal_one_is_not() {
        let message = "k.yaml: the configuration is larger than 1 MiB\nhint: use a `dir` entry in place of many `file` entries";
        assert_eq!(refusal(&"#".repeat(1024 * 1024 + 1)), message);
        assert_eq!(accept(&"#".repeat(1024 * 1024)), accept(""));
    }
}

mod types {
    use super::*;

    #[test]
    fn a_wrong_type_or_range_is_refused_with_what_is_expected() {
        claim_refusals(&[
            ("port: abc", "k.yaml:1:7: `port`: expected a whole number from 0 to 65535, got a string"),
            ("port: 65536", "k.yaml:1:7: `port`: expected a whole number from 0 to 65535, got 65536"),
            ("port: -1", "k.yaml:1:7: `port`: expected a whole number from 0 to 65535, got -1"),
            ("port: 1.5", "k.yaml:1:7: `port`: expected a whole number from 0 to 65535, got 1.5"),
            ("port:\n- 1", "k.yaml:2:3: `port`: expected a whole number from 0 to 65535, got a list"),
            ("auth_cert: {}", "k.yaml:1:12: `auth_cert`: expected a path, got a map"),
            ("pid_file: ''", "k.yaml:1:11: `pid_file`: expected a path, got an empty string"),
            (
                "loglevel: 6",
                "k.yaml:1:11: `loglevel`: expected 0 to 5, `trace`, `debug`, `info`, `warn` or `error`, got a number",
            ),
            (
                "log: {format: xml}",
                "k.yaml:1:15: `log.format`: expected `text` or `json`, got another string",
            ),
            (
                "tls: {versions: [1.1]}",
                "k.yaml:1:17: `tls.versions`: expected `\"1.2\"` or `\"1.3\"`, got a number",
            ),
            (
                "tls: {versions: []}",
                "k.yaml:1:17: `tls.versions`: expected at least one item, got an empty list",
            ),
            (
                "tls: {resumption: yes}",
                "k.yaml:1:19: `tls.resumption`: expected `true` or `false`, got a string",
            ),
            (
                "listen: '[::]'",
                "k.yaml:1:9: `listen`: expected an IP address with a port, such as `192.0.2.7:2407` or `[::]:2407`, got \
                 another string",
            ),
            (
                "listen: '::1'",
                "k.yaml:1:9: `listen`: expected an IP address with a port, such as `192.0.2.7:2407` or `[::]:2407`, got \
                 an address without a port",
            ),
            ("limits: {deadline: 1ms}", "k.yaml:1:20: `limits.deadline`: expected 10ms to 600s, got 1ms"),
            (
                "limits: {connections: 0}",
                "k.yaml:1:23: `limits.connections`: expected a whole number from 1 to 1000000, got 0",
            ),
            (
                "limits: {grace: 30}",
                "k.yaml:1:17: `limits.grace`: expected a duration with its unit, such as `500ms` or `1m30s`, got a number",
            ),
            (
                "sign_timeout: 5 seconds",
                "k.yaml:1:15: `sign_timeout`: expected a duration with its unit, such as `500ms` or `1m30s`, got another \
                 string",
            ),
            (
                "tracing_sample_rate: 1.1",
                "k.yaml:1:22: `tracing_sample_rate`: expected a number from 0 to 1, got a number",
            ),
            (
                "plugins: {sha256: {file: abc}}",
                "k.yaml:1:19: `plugins.sha256`: expected 64 hexadecimal digits for each plugin, got a string",
            ),
        ]);
    }

    #[test]
    fn two_names_of_one_setting_exclude_each_other() {
        let hint = "hint: remove one of them";
        for (yaml, a, b, place) in [
            ("port: 1\nlisten: '[::]:1'", "port", "listen", "2:1"),
            ("listen: '[::]:1'\nport: 1", "port", "listen", "2:1"),
            ("metrics_port: 1\nmetrics_listen: off", "metrics_port", "metrics_listen", "2:1"),
            ("client_ca: a\ncloudflare_ca_cert: a", "cloudflare_ca_cert", "client_ca", "2:1"),
            ("log:\n  level: info\nloglevel: 1", "loglevel", "log.level", "3:1"),
        ] {
            let message =
                format!("k.yaml:{place}: `{a}` and `{b}` set the same thing, expected one of them\n{hint}");
            assert_eq!(refusal(yaml), message, "{yaml}");
        }
    }

    #[test]
    fn reads_every_option() {
        let config = accept(
            "listen: ['127.0.0.1:1', '[::1]:2']\nmetrics_listen: 'off'\nclient_ca: ca\nauth_cert: c\nauth_key: k\n\
             pid_file: p\nstatus_page: false\nadmin_socket: s\nwatch: 2s\nlog: {level: WARN, format: json}\ntls: {versions: [1.3], resumption: true, crl: r}\n\
             limits: {connections: 1, connections_per_peer: 8, handshakes: 9, in_flight: 2, handshake_timeout: 3s, idle_timeout: 4s, frame_timeout: 5s,\n  \
             write_timeout: 6s, deadline: 7s, grace: 0s}\nsign_timeout: 1m30s\nsign_retry_count: 3\n\
             plugins: {path: [a, b], require_sha256: true,\n  \
             sha256: {x: 00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00Ff}}",
        );
        assert_eq!(config.listen, ["127.0.0.1:1".parse().unwrap(), "[::1]:2".parse().unwrap()]);
        assert_eq!(config.metrics, None);
        assert_eq!(
            [&config.client_ca, &config.auth_cert, &config.auth_key].map(|path| path.to_str().unwrap()),
            ["ca", "c", "k"]
        );
        assert_eq!(config.pid_file, Some("p".into()));
        assert!(!config.status_page);
        assert_eq!(config.admin_socket, Some(AdminSocket { path: "s".into(), named: true }));
        assert_eq!(config.watch, Some(Duration::from_secs(2)));
        assert_eq!(config.log, Log { level: Level::Warn, format: LogFormat::Json });
        assert_eq!(
            config.tls,
            Tls { versions: BTreeSet::from([TlsVersion::Tls13]), resumption: true, crl: Some("r".into()) }
        );
        let seconds = Duration::from_secs;
        let Limits {
            connections,
            connections_per_peer,
            handshakes,
            in_flight,
            handshake_timeout,
            idle_timeout,
            frame_timeout,
            write_timeout,
            deadline,
            grace,
        } = config.limits;
        assert_eq!((connections, connections_per_peer, handshakes, in_flight), (1, 8, 9, 2));
        assert_eq!(
            [handshake_timeout, idle_timeout, frame_timeout, write_timeout, deadline, grace],
            [3, 4, 5, 6, 7, 0].map(seconds)
        );
        assert_eq!((config.sign_timeout, config.sign_retry_count), (Some(seconds(90)), 3));
        assert_eq!(config.plugins.path, [PathBuf::from("a"), "b".into()]);
        assert!(config.plugins.require_sha256);
        assert_eq!(config.plugins.sha256["x"][..2], [0, 255]);
        assert_eq!(config.warnings, []);
    }
}

mod sources {
    use super::*;

    #[test]
    fn the_admin_socket_and_the_watch_are_switched_off_by_a_word() {
        let config = accept("admin_socket: off\nwatch: off");
        assert_eq!((config.admin_socket, config.watch), (None, None));
        let default = accept("").admin_socket.unwrap();
        assert_eq!((default.path.to_str(), default.named), (Some("/run/keystead/admin.sock"), false));
        let more = accept("limits: {connections: 7}").limits;
        assert_eq!(more.connections_per_peer, 7, "as many as of all clients together");
    }

    #[test]
    fn a_flag_wins_over_a_variable_over_the_file_over_the_default() {
        let port = |flags: &Flags, env: Environment<'_>, yaml: &str| {
            settings::resolve(yaml, flags, env).unwrap().listen[0].port()
        };
        let (flag, variable) = (flags("--port 4"), env(&[("KEYLESS_PORT", "3")]));
        assert_eq!(port(&flag, &variable, "port: 2"), 4);
        assert_eq!(port(&Flags::default(), &variable, "port: 2"), 3);
        assert_eq!(port(&Flags::default(), &no_env, "port: 2"), 2);
        assert_eq!(port(&Flags::default(), &no_env, ""), 2407);
        assert_eq!(port(&flag, &no_env, "listen: '127.0.0.1:5'"), 4);
    }

    #[test]
    fn every_option_of_the_reference_has_its_variable() {
        let config = settings::resolve(
            "",
            &Flags::default(),
            &env(&[
                ("KEYLESS_LOGLEVEL", "0"),
                ("KEYLESS_AUTH_CERT", "a"),
                ("KEYLESS_AUTH_KEY", "b"),
                ("KEYLESS_CLOUDFLARE_CA_CERT", "c"),
                ("KEYLESS_METRICS_PORT", "9"),
                ("KEYLESS_PID_FILE", "d"),
                ("KEYLESS_SIGN_TIMEOUT", "1s"),
                ("KEYLESS_SIGN_RETRY_COUNT", "2"),
                ("KEYLESS_TRACING_ENABLED", "true"),
                ("KEYLESS_CURRENT_TIME", "2026-11-01T00:00:00Z"),
                ("KEYLESS_API_TOKEN", "sesame"),
                ("KEYLESS_ZONE_ID", "z"),
            ]),
        )
        .unwrap();
        assert_eq!(config.log.level, Level::Debug);
        assert_eq!(
            [&config.auth_cert, &config.auth_key, &config.client_ca].map(|path| path.to_str().unwrap()),
            ["a", "b", "c"]
        );
        assert_eq!(config.metrics.as_ref().unwrap()[0].port(), 9);
        assert_eq!(config.pid_file, Some("d".into()));
        assert_eq!((config.sign_timeout, config.sign_retry_count), (Some(Duration::from_secs(1)), 2));
        assert_eq!(
            warnings(&config),
            [
                "`zone_id` and `api_token` have no effect yet: this server doesn't enrol",
                "`current_time` has no effect: the system's clock is used",
                "`tracing_enabled` has no effect yet: no spans are sent",
            ]
        );
    }

    #[test]
    fn an_empty_variable_is_unset_and_a_wrong_one_is_named() {
        let config = settings::resolve("", &Flags::default(), &env(&[("KEYLESS_PORT", "")])).unwrap();
        assert_eq!(config.listen[0].port(), 2407);
        let error = |name, value| {
            settings::resolve("", &Flags::default(), &env(&[(name, value)])).unwrap_err().to_string()
        };
        assert_eq!(
            error("KEYLESS_PORT", "many"),
            "variable `KEYLESS_PORT`: expected a whole number from 0 to 65535, got a string"
        );
        assert_eq!(
            error("KEYLESS_PRIVATE_KEY_STORES", "x"),
            "variable `KEYLESS_PRIVATE_KEY_STORES`: a list can't be given by variable; use the file, \
             `KEYLESS_PRIVATE_KEY_DIRS` or `KEYLESS_PRIVATE_KEY_FILES`"
        );
    }

    #[test]
    fn flags_may_be_written_with_dashes_or_underscores() {
        for line in [
            "--auth-cert x --metrics-port 1",
            "--auth_cert x --metrics_port 1",
            "--auth_cert=x --metrics-port=1",
        ] {
            let flags = flags(line);
            assert_eq!((flags.auth_cert, flags.metrics_port), (Some("x".into()), Some(1)), "{line}");
        }
        let flags = flags("-c f -l 3 --tracing_enabled --pid_file=p");
        assert_eq!((flags.loglevel, flags.tracing_enabled), (Some(Level::Error), Some(true)));
        assert_eq!((flags.config_file, flags.pid_file), (Some("f".into()), Some("p".into())));
    }

    #[test]
    fn listed_key_files_replace_the_stores_of_the_file() {
        let yaml = "private_key_stores:\n- uri: pkcs11:object=x?pin-value=1";
        let stores = |flags: &Flags, env: Environment<'_>| {
            let config = settings::resolve(yaml, flags, env).unwrap();
            let stores: Vec<_> =
                config.stores.iter().map(|store| format!("{} {}", store.name, store.config)).collect();
            (stores, warnings(&config)[0].clone())
        };
        let variables = env(&[("KEYLESS_PRIVATE_KEY_DIRS", "/a, /b,"), ("KEYLESS_PRIVATE_KEY_FILES", "/c")]);
        let (listed, warning) = stores(&Flags::default(), &variables);
        assert_eq!(
            listed,
            [
                r#"file-1 {"dir":"/a","permissions":"warn"}"#,
                r#"file-2 {"dir":"/b","permissions":"warn"}"#,
                r#"file-3 {"file":"/c","permissions":"warn"}"#,
            ]
        );
        assert_eq!(
            warning,
            "1:1: all of `private_key_stores` is replaced by what `KEYLESS_PRIVATE_KEY_DIRS` and \
             `KEYLESS_PRIVATE_KEY_FILES` list"
        );
        let (listed, warning) = stores(&flags("--private-key-files /x,/y"), &variables);
        assert_eq!(listed.len(), 2);
        assert_eq!(warning, "1:1: all of `private_key_stores` is replaced by what the command line lists");
    }

    #[test]
    fn the_plugin_path_of_the_environment_wins() {
        let env = env(&[("KEYSTEAD_PLUGIN_PATH", "/a:/b")]);
        let config = settings::resolve("plugins: {path: /c}", &Flags::default(), &env).unwrap();
        assert_eq!(config.plugins.path, [PathBuf::from("/a"), "/b".into()]);
    }
}

mod files {
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
        let message =
            format!("{}:1:1: `tracing_enabled` has no effect yet: no spans are sent", path.display());
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
}

mod stores {
    use super::*;

    #[test]
    fn legacy_entries_become_stores_of_their_plugins() {
        let config = accept(
            "private_key_stores:\n- dir: /keys\n- uri: pkcs11:object=a\n- file: /one.key\n- uri: PKCS11:object=b\n\
             - uri: https://v.example/keys/k/1\n- uri: projects/p/locations/l\n",
        );
        let stores: Vec<_> = config
            .stores
            .iter()
            .map(|store| format!("{} {} {}", store.name, store.plugin, store.config))
            .collect();
        assert_eq!(
            stores,
            [
                r#"file-1 file {"dir":"/keys","permissions":"warn"}"#,
                r#"pkcs11-1 pkcs11 {"legacy":true,"uris":["pkcs11:object=a","PKCS11:object=b"]}"#,
                r#"file-2 file {"file":"/one.key","permissions":"warn"}"#,
                r#"azure-1 azure {"legacy":true,"uris":["https://v.example/keys/k/1"]}"#,
                r#"gcp-1 gcp {"legacy":true,"uris":["projects/p/locations/l"]}"#,
            ]
        );
        let both = BTreeSet::from([Operation::Sign, Operation::Decrypt]);
        assert!(
            config.stores.iter().all(|store| store.legacy && store.operations == both && !store.critical)
        );
        assert_eq!(config.stores[1].position, Some(Position { line: 3, column: 3 }));
        assert_eq!(
            warnings(&config),
            [
                "2:3: clients may also decrypt with the keys of `file-1`, `pkcs11-1`, `file-2`, `azure-1` and `gcp-1`, as in \
              gokeyless"
            ]
        );
    }

    #[test]
    fn a_native_entry_signs_only_and_has_defaults() {
        let config = accept("limits: {deadline: 3s}\nprivate_key_stores:\n- plugin: hsm\n- plugin: hsm");
        let store = &config.stores[0];
        assert_eq!((store.name.as_str(), store.plugin.as_str()), ("hsm-1", "hsm"));
        assert_eq!(config.stores[1].name, "hsm-2");
        assert_eq!(store.config, serde_json::json!({}));
        assert_eq!(store.operations, BTreeSet::from([Operation::Sign]));
        assert_eq!((store.isolation, store.critical, store.legacy), (None, false, false));
        assert_eq!((store.prove, store.verify_signatures), (Prove::Background, VerifySignatures::Auto));
        assert_eq!(
            store.limits,
            StoreLimits { lanes: None, queue: 256, deadline: None, health_interval: Duration::from_secs(30) }
        );
        assert_eq!(config.warnings, []);
    }

    #[test]
    fn a_native_entry_has_every_option() {
        let config = accept(
            "private_key_stores:\n- name: inhouse\n  plugin: inhouse-kms\n  config: {base: [1, 2.5, null, true, {a: x}]}\n  \
             secrets: {a: {file: f}, b: {env: e}, c: {credential: d}, d: {value: v}}\n  grants: {http: []}\n  \
             operations: [sign, decrypt]\n  isolation: process\n  critical: true\n  prove: start\n  verify_signatures: on\n  \
             limits: {lanes: 2, queue: 3, deadline: 4s, health_interval: 5s, memory: 64MiB, instances: 8}\n  env: {A: b}\n  workdir: /w\n  \
             user: u\n  groups: [g]",
        );
        let store = &config.stores[0];
        assert_eq!(store.config, serde_json::json!({"base": [1, 2.5, null, true, {"a": "x"}]}));
        let sources = [
            ("a", SecretSource::File("f".into())),
            ("b", SecretSource::Env("e".into())),
            ("c", SecretSource::Credential("d".into())),
            ("d", SecretSource::Value("v".to_owned().into())),
        ];
        assert_eq!(store.secrets, BTreeMap::from(sources.map(|(name, source)| (name.to_owned(), source))));
        assert_eq!(store.grants, Some(serde_json::json!({"http": []})));
        assert_eq!(store.operations.len(), 2);
        assert_eq!((store.isolation, store.critical), (Some(Isolation::Process), true));
        assert_eq!((store.prove, store.verify_signatures), (Prove::Start, VerifySignatures::On));
        assert_eq!(
            store.limits,
            StoreLimits {
                lanes: Some(2),
                queue: 3,
                deadline: Some(Duration::from_secs(4)),
                health_interval: Duration::from_secs(5)
            }
        );
        let path = "private_key_stores[0]";
        assert_eq!(
            warnings(&config),
            [
                format!(
                    "13:3: `{path}.env`, `{path}.workdir`, `{path}.user` and `{path}.groups` have no effect yet: plugins \
                     run in the server"
                ),
                format!(
                    "8:3: `{path}.isolation`: `process` has no effect yet: the plugin runs in the server"
                ),
                format!(
                    "12:67: `{path}.limits.memory` and `{path}.limits.instances` have no effect yet: they bound WASM plugins"
                ),
            ]
        );
    }

    #[test]
    fn an_entry_that_makes_no_store_is_refused() {
        let forms = "hint: give each directory, file, URI and plugin an entry of its own";
        let entry = "k.yaml:1:22: `private_key_stores[0]`: expected exactly one of `dir`, `file`, `uri` or `plugin`, got";
        for (yaml, got) in [("{}", "none"), ("{name: x}", "none"), ("{dir: /a, uri: b}", "`dir` and `uri`")] {
            assert_eq!(refusal(&format!("private_key_stores: [{yaml}]")), format!("{entry} {got}\n{forms}"));
        }
        claim_refusals(&[
            ("private_key_stores: /keys", "k.yaml:1:21: `private_key_stores`: expected a list, got a string"),
            (
                "private_key_stores: [/keys]",
                "k.yaml:1:22: `private_key_stores[0]`: expected a map of keys and values, got a string",
            ),
            (
                "private_key_stores: [{dir: ''}]",
                "k.yaml:1:22: `private_key_stores[0].dir`: expected a path or URI, got an empty string",
            ),
            (
                "private_key_stores: [{dir: 7}]",
                "k.yaml:1:28: `private_key_stores[0].dir`: expected a string, got a number; put it in quotes",
            ),
            (
                "private_key_stores: [{dir: /a, operations: [sign]}]",
                "k.yaml:1:32: `private_key_stores[0].operations`: expected nothing beside `dir`\nhint: options need the native \
                 form: `plugin: file` with `config: {dir: PATH}`",
            ),
            (
                "private_key_stores: [{plugin: ../evil}]",
                "k.yaml:1:31: `private_key_stores[0].plugin`: expected 1 to 64 letters, digits, `-`, `_` and `.`, not \
                 beginning with a dot, got another string",
            ),
            (
                "private_key_stores: [{plugin: x, config: [1]}]",
                "k.yaml:1:42: `private_key_stores[0].config`: expected a map, got a list",
            ),
            (
                "private_key_stores: [{plugin: x, operations: [sing]}]",
                "k.yaml:1:46: `private_key_stores[0].operations`: expected `sign` or `decrypt`, got another string",
            ),
        ]);
    }

    #[test]
    fn two_stores_of_one_name_are_refused_with_both_places() {
        let hint = "hint: give each its own `name`; one without is called after its plugin and a number";
        assert_eq!(
            refusal("private_key_stores:\n- {plugin: x, name: a}\n- {plugin: y, name: a}"),
            format!("k.yaml:3:3: two stores are named `a`, first at 2:3\n{hint}")
        );
        assert_eq!(
            refusal("private_key_stores:\n- {plugin: x, name: file-1}\n- dir: /keys"),
            format!("k.yaml:3:3: two stores are named `file-1`, first at 2:3\n{hint}")
        );
    }
}

mod secrecy {
    use super::*;

    /// Stands for every PIN, passphrase and token below.
    const SESAME: &str = "0xSesame";

    #[test]
    fn debug_output_holds_no_secret() {
        let yaml = format!(
            "origin_ca_api_key: {SESAME}\napi_token: {SESAME}\nprivate_key_stores:\n\
             - uri: pkcs11:object=x?pin-value={SESAME}\n- plugin: x\n  config: {{pin: {SESAME}}}\n  \
             secrets: {{pin: {{value: {SESAME}}}}}\n  grants: {{a: {SESAME}}}"
        );
        let config = accept(&yaml);
        assert_eq!(config.stores.len(), 2);
        let shown = format!("{config:?} {config:#?}");
        assert!(!shown.contains("Sesame"), "{shown}");
        let flags = flags(&format!("--api-token {SESAME} --origin-ca-api-key {SESAME}"));
        assert!(!format!("{flags:?}").contains("Sesame"));
    }

    #[test]
    fn no_refusal_repeats_a_secret() {
        for entry in [
            "{plugin: x, secrets: SESAME}",
            "{plugin: x, secrets: {pin: SESAME}}",
            "{plugin: x, secrets: {pin: [SESAME]}}",
            "{plugin: x, secrets: {pin: {SESAME}}}",
            "{plugin: x, secrets: {pin: {vlaue: SESAME}}}",
            "{plugin: x, secrets: {pin: {value: [SESAME]}}}",
            "{plugin: x, secrets: {pin: {value: SESAME, file: SESAME}}}",
            "{plugin: x, secrets: {pin: {value: 1234}}}",
            "{plugin: x, secrets: {pin: {file: 1234}}}",
            "{plugin: x, secrets: {pin: {env: 'SESAME=1'}}}",
            "{plugin: x, secrets: {pin: {credential: '../SESAME'}}}",
            "{plugin: x, config: SESAME}",
            "{plugin: x, config: [SESAME]}",
            "{plugin: x, config: {1234: SESAME}}",
            "{plugin: x, config: {pin: &a [SESAME], again: *a}}",
            "{plugin: x, config: {pin: !x SESAME}}",
            "{plugin: x, config: {pin: \"SESAME}}",
            "{plugin: x, grants: SESAME}",
            "{plugin: SESAME:1, config: {}}",
            "{uri: 'pkcs12:object=x?pin-value=SESAME'}",
            "{uri: ['pkcs11:object=x?pin-value=SESAME']}",
            "{uri: pkcs11:object=x?pin-value=SESAME, name: x}",
            "{uri: pkcs11:object=x?pin-value=SESAME, file: x}",
            "pkcs11:object=x?pin-value=SESAME",
        ] {
            let message = refusal(&format!("private_key_stores:\n- {}", entry.replace("SESAME", SESAME)));
            assert!(!message.contains("Sesame") && !message.contains("1234"), "{entry}: {message}");
        }
        for yaml in ["api_token: [SESAME]", "origin_ca_api_key: {SESAME: 1}", "loglevel: SESAME", "SESAME"] {
            let message = refusal(&yaml.replace("SESAME", SESAME));
            assert!(!message.contains("Sesame"), "{yaml}: {message}");
        }
    }

    #[test]
    fn a_pin_without_quotes_is_refused_rather_than_mangled() {
        let yaml = "private_key_stores: [{plugin: x, secrets: {pin: {value: 0x12}}}]";
        assert_eq!(
            refusal(yaml),
            "k.yaml:1:57: `private_key_stores[0].secrets.pin`: expected a string, got a number; put it in quotes"
        );
    }
}

mod samples {
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
}
