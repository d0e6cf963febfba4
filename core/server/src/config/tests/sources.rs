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
    for line in
        ["--auth-cert x --metrics-port 1", "--auth_cert x --metrics_port 1", "--auth_cert=x --metrics-port=1"]
    {
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
