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
        ("log: {format: xml}", "k.yaml:1:15: `log.format`: expected `text` or `json`, got another string"),
        (
            "tls: {versions: [1.1]}",
            "k.yaml:1:17: `tls.versions`: expected `\"1.2\"` or `\"1.3\"`, got a number",
        ),
        ("tls: {versions: []}", "k.yaml:1:17: `tls.versions`: expected at least one item, got an empty list"),
        ("tls: {resumption: yes}", "k.yaml:1:19: `tls.resumption`: expected `true` or `false`, got a string"),
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
