//! The commands: what they print, and what they exit with.

use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::{
    token::Token,
    world::{Files, Server, hostile, plugins, skis},
};

fn keystead(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_keystead")).args(arguments).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// The path of a configuration with the recorded keys and one file that is none.
fn with_a_bad_file(files: &Files) -> String {
    files.write("keys/bad.key", b"not a key");
    let config = files.config(&format!("private_key_stores: [{{dir: {}}}]\n", files.path("keys").display()));
    config.display().to_string()
}

#[test]
fn check_lists_every_key_and_every_finding_and_fails_where_something_is_wrong() {
    let files = Files::new();
    let config = with_a_bad_file(&files);
    let output = keystead(&["check", "-c", &config]);
    assert_eq!(output.status.code(), Some(1));
    let text = stdout(&output);
    for ski in skis().values() {
        assert!(text.contains(&ski.to_string()), "{ski} is missing in\n{text}");
    }
    assert!(text.contains("bad.key"), "{text}");
    assert!(text.contains("store file-1 (plugin file, inline)"), "{text}");
    assert!(text.contains("1 error,"), "{text}");

    std::fs::remove_file(files.path("keys/bad.key")).unwrap();
    let output = keystead(&["check", "-c", &config, "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", stdout(&output));
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["errors"], 0);
    assert_eq!(json["stores"][0]["isolation"], "inline");
    let keys = json["stores"][0]["keys"].as_array().unwrap();
    assert_eq!(keys.len(), 4);
    assert!(keys.iter().all(|key| key["proven"] == true));
}

/// Configuration lines of a store `noted` whose listing holds a warning and three notes.
fn with_notes(files: &Files) -> String {
    let notes = "[[token web, empty], [token keys, logged in], [token keys, 2 keys passed over]]";
    let key = files.path("keys/p256.key").display().to_string();
    format!(
        "private_key_stores:\n- {{name: noted, plugin: hostile, \
         config: {{keys: [{{name: www, file: {key}}}], finding: true, notes: {notes}}}}}\n"
    )
}

#[test]
fn check_shows_notes_by_what_they_are_about_and_counts_them_as_nothing() {
    let files = Files::new();
    let config = files.config(&with_notes(&files)).display().to_string();
    let output = keystead(&["check", "-c", &config]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let text = stdout(&output);
    let block = "  note     token web: empty\n  note     token keys\n             logged in\n             \
                 2 keys passed over\n\n0 errors, 1 warning\n";
    assert!(text.ends_with(block), "{text}");
    let output = keystead(&["check", "-c", &config, "--json"]);
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    let findings = json["stores"][0]["findings"].as_array().unwrap();
    assert_eq!((&findings[0]["severity"], findings[0]["error"].is_object()), (&"warning".into(), true));
    let note = json!({"severity": "note", "subject": "token web", "message": "empty", "hint": ""});
    assert_eq!((findings.len(), &findings[1]), (4, &note));
}

#[test]
fn a_store_that_may_decrypt_and_cannot_is_warned_of() {
    let files = Files::new();
    let lines = |name: &str| {
        let key = files.path(&format!("keys/{name}.key")).display().to_string();
        format!(
            "private_key_stores:\n- {{name: {name}, plugin: file, config: {{file: {key}}}, operations: [sign, decrypt]}}\n"
        )
    };
    let check =
        |name: &str| stdout(&keystead(&["check", "-c", &files.config(&lines(name)).display().to_string()]));
    let warning = "  warning  ed25519: `operations` has `decrypt`, and no key of the store can\n           hint: write `operations: [sign]`";
    let text = check("ed25519");
    assert!(text.contains(warning), "{text}");
    assert!(!check("rsa").contains("no key of the store can"));
    let server = Server::start(&files, &lines("ed25519"));
    assert!(server.wait_for("no key of the store can").contains(" WARN "));
    let only = files.config(&lines("ed25519").replace("[sign, decrypt]", "[decrypt]"));
    let output = keystead(&["check", "-c", &only.display().to_string()]);
    assert_eq!(
        (output.status.code(), stdout(&output).contains("1 error,")),
        (Some(1), true),
        "nothing is left"
    );
}

#[test]
fn a_store_without_a_key_is_warned_of() {
    let files = Files::new();
    std::fs::create_dir(files.path("empty")).unwrap();
    let dir = files.path("empty").display().to_string();
    let lines = format!("private_key_stores: [{{name: web, plugin: file, config: {{dir: {dir}}}}}]\n");
    let text = stdout(&keystead(&["check", "-c", &files.config(&lines).display().to_string()]));
    assert!(text.contains("warning"), "{text}");
    assert!(text.ends_with("0 errors, 1 warning\n"), "{text}");
}

#[test]
fn a_note_is_logged_for_who_looks_for_it_and_nobody_else() {
    let files = Files::new();
    let server = Server::start(&files, &format!("{}log: {{level: debug}}\n", with_notes(&files)));
    server.wait_for("2 keys passed over");
    let log = server.log();
    let about = |subject: &str| log.lines().filter(|line| line.contains(subject)).collect::<Vec<_>>();
    assert_eq!(about("subject=\"token ").len(), 3, "{log}");
    assert!(about("subject=\"token ").iter().all(|line| line.contains(" DEBUG ")), "{log}");
    assert_eq!(server.status()["stores"][0]["state"], "up");
    assert_eq!(server.status()["stores"][0]["last_error"], Value::Null);
}

/// Checks and measures, with steps of 50 ms; answers the exit status, the text, and the JSON of the first store.
fn measured(files: &Files, lines: &str) -> (Option<i32>, String, Value) {
    let config = files.config(lines).display().to_string();
    let check = ["check", "-c", &config, "--measure=50ms"];
    let output = keystead(&check);
    assert!(stderr(&output).contains("signs with its own keys"), "it says what it does: {}", stderr(&output));
    let json: Value = serde_json::from_slice(&keystead(&[&check[..], &["--json"]].concat()).stdout).unwrap();
    (output.status.code(), stdout(&output), json["stores"][0]["measurement"].clone())
}

/// The calls in flight and the rate of each step of a key.
fn steps(key: &Value) -> Vec<(u64, f64)> {
    let steps = key["steps"].as_array().unwrap().iter();
    steps.map(|step| (step["in_flight"].as_u64().unwrap(), step["per_second"].as_f64().unwrap())).collect()
}

fn in_flight(key: &Value) -> Vec<u64> {
    steps(key).iter().map(|(in_flight, _)| *in_flight).collect()
}

#[test]
fn check_measures_a_token_and_recommends_lanes() {
    let files = Files::new();
    let token = Token::new(&files);
    for (label, kind) in [("rsa", "rsa:2048"), ("ec", "EC:prime256v1"), ("another", "EC:prime256v1")] {
        token.generate(label, kind);
    }
    let store =
        token.store(["rsa", "ec", "another"]).replace("operations:", "limits: {lanes: 3}, operations:");
    let (code, text, json) = measured(&files, &format!("private_key_stores:\n{store}"));
    assert_eq!(code, Some(0), "{text}");
    let rows: Vec<Vec<_>> = text.lines().map(|line| line.split_whitespace().take(4).collect()).collect();
    for row in [["P-256", "ec", "ecdsa-sha256", "3"], ["RSA-2048", "rsa", "rsa-pss-sha256", "1"]] {
        assert!(rows.contains(&row.to_vec()), "{row:?} is missing in\n{text}");
    }
    assert!(text.contains("`limits.lanes: "), "{text}");
    let keys = json["keys"].as_array().unwrap();
    let types: Vec<_> = keys.iter().map(|key| (key["type"].as_str().unwrap(), in_flight(key))).collect();
    assert_eq!(types, [("P-256", vec![1, 2, 3]), ("RSA-2048", vec![1, 2, 3])], "one of each type");
    for key in keys {
        assert!(steps(key).iter().all(|(_, per_second)| *per_second > 0.0), "{key}");
        let milliseconds = &key["steps"][0]["milliseconds"];
        assert!(milliseconds["p50"].as_f64().unwrap() > 0.0 && key["failed"].is_null(), "{key}");
    }
    let recommended = json["recommended_lanes"].as_u64().unwrap();
    assert!((1..=3).contains(&recommended), "{json}");
    assert_eq!((&json["lanes"], &json["still_growing"]), (&3.into(), &(recommended == 3).into()));
}

#[test]
fn a_store_that_wants_more_lanes_than_it_has_is_told_so() {
    let files = Files::new();
    let stores = hostile(&files, "class: blocking, sign: {slow: 20}");
    let limited = stores.replace("prove: never", "limits: {lanes: 2}");
    let (code, text, json) = measured(&files, &limited);
    assert_eq!((code, &json["still_growing"]), (Some(0), &true.into()), "{text}");
    assert!(text.contains("  warning  `limits.lanes: 2` is the best so far"), "{text}");
    assert!(text.ends_with("\n0 errors, 1 warning\n"), "{text}");
    let (_, text, json) = measured(&files, &stores);
    assert_eq!((&json["lanes"], &json["recommended_lanes"]), (&4.into(), &4.into()), "{text}");
    assert!(text.contains("more lanes the plugin doesn't take"), "{text}");
    assert!(text.ends_with("\n0 errors, 0 warnings\n"), "{text}");
}

#[test]
fn a_key_that_fails_while_it_is_measured_is_an_error() {
    let files = Files::new();
    let stores = hostile(&files, "name: www, class: blocking, sign: {slow: 100}");
    let hasty = stores.replace("prove: never", "limits: {lanes: 2, deadline: 20ms}");
    let (code, text, json) = measured(&files, &hasty);
    let failed = "www: 1 of 1 in flight failed: the plugin did not answer within the deadline";
    assert!(text.contains(failed) && text.ends_with("\n1 error, 0 warnings\n"), "{text}");
    assert_eq!((code, &json["recommended_lanes"]), (Some(1), &Value::Null));
    assert_eq!(json["keys"][0]["failed"]["in_flight"], 1);
    assert_eq!(json["keys"][0]["steps"], json!([]));
}

#[test]
fn inline_keys_are_measured_without_lanes_and_what_may_not_sign_is_named() {
    let files = Files::new();
    let dir = files.path("keys").display().to_string();
    let store =
        |operation: &str| format!("- {{plugin: file, config: {{dir: {dir}}}, operations: [{operation}]}}\n");
    let lines = format!("private_key_stores:\n{}{}", store("sign"), store("decrypt"));
    let (code, text, json) = measured(&files, &lines);
    assert_eq!((code, &json["recommended_lanes"]), (Some(0), &Value::Null), "{text}");
    let processors = std::thread::available_parallelism().unwrap().get() as u64;
    let expected = if processors > 1 { vec![1, processors] } else { vec![1] };
    assert_eq!((in_flight(&json["keys"][0]), &json["keys"][0]["calls"]), (expected, &"inline".into()));
    let skipped = text.lines().filter(|line| {
        line.starts_with("  note     not measured: ")
            && line.ends_with("the store's `operations` don't have `sign`")
    });
    assert_eq!(skipped.count(), 4, "{text}");
}

#[test]
fn check_names_a_certificate_that_is_missing() {
    let files = Files::new();
    let config = files.config("");
    std::fs::remove_file(files.path("server.pem")).unwrap();
    let output = keystead(&["check", "-c", &config.display().to_string()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stdout(&output).contains("server.pem"), "{}", stdout(&output));
}

#[test]
fn plugin_list_shows_what_is_found_and_why_some_is_refused() {
    let files = Files::new();
    let directory = files.path("plugins");
    std::fs::create_dir(&directory).unwrap();
    std::fs::copy(plugins().join("libkeystead_plugin_file.so"), directory.join("libkeystead_plugin_file.so"))
        .unwrap();
    std::fs::write(directory.join("libkeystead_plugin_text.so"), "only text").unwrap();
    let config = files.write("c.yaml", format!("plugins: {{path: [{}]}}\n", directory.display()).as_bytes());
    let output = keystead(&["plugin", "list", "-c", &config.display().to_string()]);
    let text = stdout(&output);
    let columns: Vec<Vec<_>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(columns[0], ["NAME", "VERSION", "CONTRACT", "ISOLATION", "VENDOR", "FILE"]);
    assert_eq!((columns[1][0], columns[1][4]), ("file", "inline"), "{text}");
    assert_eq!(columns[2][..5], ["text", "-", "refused", "-", "-"], "{text}");
    let output = keystead(&["plugin", "list", "--json", "-c", &config.display().to_string()]);
    assert_eq!(output.status.code(), Some(0));
    let list: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&list[0]["name"], &list[0]["refused"]), (&"file".into(), &Value::Null));
    assert_eq!(list[0]["contract"], keystead_plugin_api::abi::DRAFT);
    let refused = list[1]["refused"].as_str().unwrap();
    assert!(refused.ends_with("is not an ELF library"), "{refused}");
}

#[test]
fn ping_and_sign_ask_a_running_server() {
    let files = Files::new();
    let server = Server::with_keys(&files, "");
    let address = server.address.to_string();
    let path = |name: &str| files.path(name).display().to_string();
    let remote = |more: &[&str]| {
        let (ca, cert, key) = (path("ca.pem"), path("client.pem"), path("client-key.pem"));
        let mut arguments = more.to_vec();
        arguments.extend(["--server", &address, "--server-name", "localhost"]);
        arguments.extend(["--ca", &ca, "--cert", &cert, "--key", &key]);
        keystead(&arguments)
    };
    let output = remote(&["ping"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stdout(&output).starts_with(&format!("{address} answered in ")));
    for (name, ski) in skis() {
        let key = std::fs::read(files.path(&format!("keys/{name}.key"))).unwrap();
        let key = openssl::pkey::PKey::private_key_from_pkcs8(&key).unwrap();
        files.write("public.pem", &key.public_key_to_pem().unwrap());
        let output = remote(&["sign", "--json", "--for", &path("public.pem")]);
        assert_eq!(output.status.code(), Some(0), "{name}: {}", stderr(&output));
        let json: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&json["ski"], &json["verified"]), (&ski.to_string().into(), &true.into()));
    }
    let output = remote(&["sign", "--for", &path("client.pem")]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("key not found"), "{}", stderr(&output));
}

#[test]
fn bench_tells_how_fast_a_server_is_and_fails_where_anything_failed() {
    let files = Files::new();
    let server = Server::with_keys(&files, "");
    let address = server.address.to_string();
    let path = |name: &str| files.path(name).display().to_string();
    let key = std::fs::read(files.path("keys/p256.key")).unwrap();
    let key = openssl::pkey::PKey::private_key_from_pkcs8(&key).unwrap();
    files.write("public.pem", &key.public_key_to_pem().unwrap());
    let (ca, cert, key) = (path("ca.pem"), path("client.pem"), path("client-key.pem"));
    let bench = |subject: &str, more: &[&str]| {
        let mut arguments =
            vec!["bench", "--server", &address, "--server-name", "localhost", "--seconds", "1"];
        arguments.extend(["--ca", &ca, "--cert", &cert, "--key", &key, "--json", "--for", subject]);
        arguments.extend(more);
        let output = keystead(&arguments);
        let json: Value =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", stderr(&output)));
        (output.status.code(), json)
    };
    let (code, closed) = bench(&path("public.pem"), &["--connections", "2", "--in-flight", "3"]);
    assert_eq!((code, &closed["failed"]), (Some(0), &0.into()));
    let milliseconds = |name: &str| closed["milliseconds"][name].as_f64().unwrap();
    assert!(milliseconds("p50") > 0.0 && milliseconds("p50") <= milliseconds("p99"), "{closed}");
    let (code, open) = bench(&path("public.pem"), &["--connections", "2", "--rate", "50"]);
    assert_eq!(code, Some(0));
    let answered = open["answered"].as_u64().unwrap();
    assert!((40..=60).contains(&answered), "{open}");
    let (code, unknown) = bench(&path("client.pem"), &["--connections", "1", "--rate", "20"]);
    assert_eq!((code, &unknown["answered"]), (Some(1), &0.into()));
    assert!(unknown["failures"].to_string().contains("key not found"), "{unknown}");
}

#[test]
fn exit_codes_tell_a_refused_configuration_from_a_wrong_command() {
    let files = Files::new();
    let config = files.write("bad.yaml", b"listen: 127.0.0.1:0\nlimits: {grcae: 3s}\n");
    let output = keystead(&["run", "-c", &config.display().to_string()]);
    assert_eq!(output.status.code(), Some(64));
    assert_eq!(
        stderr(&output),
        format!(
            "keystead: error: {}:2:10: unknown key `limits.grcae`\nhint: did you mean `grace`?\n",
            config.display()
        )
    );
    assert_eq!(keystead(&["no-such-command"]).status.code(), Some(2));
    assert_eq!(keystead(&["--config-only"]).status.code(), Some(1));
    assert_eq!(keystead(&["--version"]).status.code(), Some(0));
}

#[test]
fn the_default_configuration_is_printed_whole() {
    let output = keystead(&["default-config"]);
    assert_eq!(stdout(&output), keystead::config::default_config());
}

#[test]
fn json_logs_are_one_object_a_line() {
    let files = Files::new();
    let config =
        files.config("private_key_stores: [{plugin: no-such-plugin, critical: true}]\nlog: {format: json}\n");
    let output = keystead(&["run", "-c", &config.display().to_string()]);
    assert_eq!(output.status.code(), Some(1));
    let errors = stderr(&output);
    let lines: Vec<&str> = errors.lines().filter(|line| !line.starts_with("keystead: error: ")).collect();
    assert!(lines.len() > 1, "{errors}");
    for line in lines {
        let event: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(event["level"].is_string() && event["message"].is_string(), "{line}");
    }
}

#[test]
fn the_command_of_a_process_for_plugins_is_for_the_server_alone() {
    assert!(!stdout(&keystead(&["--help"])).contains("plugin-process"));
    let output = keystead(&["plugin-process"]);
    assert_ne!(output.status.code(), Some(0));
    assert_ne!(output.status.code(), Some(2), "the command is known: {}", stderr(&output));
}
