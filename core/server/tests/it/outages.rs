//! A store that fails for a while: what the log, the status and the clients are told.

use std::{
    collections::BTreeMap,
    fs,
    time::{Duration, Instant},
};

use keystead_protocol::{ErrorCode, Opcode, Request, Ski};
use serde_json::json;

use crate::{
    token::Token,
    world::{Client, Files, PATIENCE, Server, hostile, skis},
};

/// How often the server counts what goes on failing.
const EVERY: Duration = Duration::from_secs(10);

/// A server whose store has a device that is broken while the file `broken` exists; it says of itself that it is well.
fn breakable(files: &Files) -> Server {
    let deed = format!("sign: {{broken_while: {}}}", files.path("broken").display());
    let limits = "prove: never, limits: {health_interval: 1s}";
    Server::start(files, &hostile(files, &deed).replace("prove: never", limits))
}

/// A request for a signature that has an id of its own.
fn named(id: u32, name: &str) -> Vec<u8> {
    let context = format!("{{\"request_id\":\"{name}\"}}");
    let request = Request {
        opcode: Opcode::ECDSA_SIGN_SHA256,
        payload: &[1; 32],
        ski: Some(skis()["p256"]),
        context: Some(context.as_bytes()),
        ..Request::default()
    };
    let mut bytes = Vec::new();
    request.encode(id, &mut bytes).unwrap();
    bytes
}

/// The lines of the log that have all of these texts.
fn lines(server: &Server, texts: &[&str]) -> Vec<String> {
    let log = server.log();
    let lines = log.lines().filter(|line| texts.iter().all(|text| line.contains(text)));
    lines.map(ToOwned::to_owned).collect()
}

/// The value of a field of a line of the log.
fn field<'a>(line: &'a str, name: &str) -> &'a str {
    let (_, rest) = line.split_once(&format!(" {name}=")).unwrap_or_else(|| panic!("no {name} in {line}"));
    rest.split(' ').next().unwrap().trim_matches('"')
}

#[test]
fn an_outage_is_one_warning_then_counts_then_one_line_with_its_length() {
    const REQUESTS: u32 = 300;
    let files = Files::new();
    let server = breakable(&files);
    let mut client = Client::connect(&files, &server);
    files.write("broken", b"");
    let began = Instant::now();
    client.send(&(0..REQUESTS).flat_map(|id| named(id, &format!("request-{id}"))).collect::<Vec<_>>());
    for _ in 0..REQUESTS {
        assert_eq!(client.answer().1, Err(ErrorCode::CRYPTOGRAPHY));
    }
    let (broken, failed) = (began.elapsed(), Instant::now());

    let first = server.wait_for("a request failed");
    assert!(first.contains(" WARN ") && first.contains("(CKR_DEVICE_ERROR 0x30)"), "{first}");
    let ski = skis()["p256"].to_string();
    for (name, value) in
        [("store", "hostile"), ("class", "unavailable"), ("ski", &ski), ("peer", "localhost")]
    {
        assert_eq!(field(&first, name), value, "{first}");
    }
    assert!(field(&first, "request").starts_with("request-"), "{first}");

    let status = server.status();
    let store = &status["stores"][0];
    let vendor = json!({"name": "CKR_DEVICE_ERROR", "code": 48});
    assert_eq!((&store["state"], &store["requests"]["ok"]), (&json!("failing"), &json!(0)));
    assert_eq!(store["last_error"]["class"], "unavailable");
    assert_eq!(store["last_error"]["vendor"], vendor);
    let failures = status["failures"].as_array().unwrap();
    assert_eq!(failures.len(), 1, "{failures:?}");
    let failure = &failures[0];
    assert_eq!((&failure["store"], &failure["class"]), (&json!("hostile"), &json!("unavailable")));
    assert_eq!((&failure["vendor"], &failure["count"]), (&vendor, &json!(REQUESTS)));
    assert_eq!((&failure["ski"], &failure["peer"]), (&json!(ski), &json!("localhost")));
    assert!(failure["request"].as_str().unwrap().starts_with("request-"), "{failure}");

    server.wait_for("more failed within 10s");
    let counted = |line: &String| field(line, "count").parse::<u32>().unwrap();
    let end = Instant::now() + PATIENCE;
    let counts = loop {
        let counts = lines(&server, &["WARN", "more failed within"]);
        if counts.iter().map(counted).sum::<u32>() == REQUESTS - 1 {
            break counts;
        }
        assert!(Instant::now() < end, "not all were counted:\n{}", server.log());
    };
    let most = broken.as_secs() / EVERY.as_secs() + 2; // the first seconds and the last
    assert!(counts.len() as u64 <= most, "{counts:?}");
    assert_eq!(lines(&server, &["WARN", "a request failed"]).len(), 1, "{}", server.log());
    let said = lines(&server, &["hostile", "is back"]);
    assert!(said.is_empty(), "its health alone doesn't mean that it signs: {said:?}");

    fs::remove_file(files.path("broken")).unwrap();
    let at_least = failed.elapsed();
    client.send(&named(REQUESTS, "after"));
    assert!(client.answer().1.is_ok());
    let at_most = began.elapsed();
    assert_eq!(server.status()["stores"][0]["state"], "up");
    let back = server.wait_for("the store is back");
    assert!(back.contains(" INFO ") && back.contains("store=\"hostile\""), "{back}");
    let told: f64 = field(&back, "outage").strip_suffix('s').unwrap().parse().unwrap();
    let rounding = 0.1;
    assert!(told >= at_least.as_secs_f64() - rounding, "{back}, but it was {at_least:?} at least");
    assert!(told <= at_most.as_secs_f64() + rounding, "{back}, but it was {at_most:?} at most");
    assert_eq!(field(&back, "failed"), REQUESTS.to_string());
    assert_eq!(lines(&server, &["is back"]).len(), 1, "{}", server.log());
}

#[test]
fn every_class_of_failure_has_its_code_on_the_wire() {
    let files = Files::new();
    let not_found = ErrorCode::KEY_NOT_FOUND;
    let (cryptography, internal) = (ErrorCode::CRYPTOGRAPHY, ErrorCode::INTERNAL);
    let classes = BTreeMap::from([
        (1, ("not found", not_found)),
        (2, ("unsupported", cryptography)),
        (3, ("invalid input", cryptography)),
        (4, ("denied", cryptography)),
        (5, ("credentials", cryptography)),
        (6, ("throttled", cryptography)),
        (7, ("unavailable", cryptography)),
        (8, ("deadline", cryptography)),
        (9, ("internal", internal)),
        (99, ("internal", internal)), // none of the contract
    ]);
    for (number, (class, code)) in classes {
        let server = Server::start(&files, &hostile(&files, &format!("sign: {{fail: {number}}}")));
        let mut client = Client::connect(&files, &server);
        client.send(&named(1, "table"));
        assert_eq!(client.answer(), (1, Err(code)), "{number} is {class}");
        let failure = server.status()["failures"][0].clone();
        assert_eq!((&failure["class"], &failure["request"]), (&json!(class), &json!("table")), "{failure}");
    }
}

/// What an edge may get wrong of a P-256 key and an RSA key, with the class of failure that it is.
fn mistakes(p256: Ski, rsa: Ski) -> [(Ski, Opcode, Vec<u8>, &'static str); 6] {
    [
        (p256, Opcode::ECDSA_SIGN_SHA256, vec![1; 31], "invalid input"),
        (p256, Opcode::ECDSA_SIGN_SHA384, vec![1; 32], "invalid input"),
        (rsa, Opcode::RSA_DECRYPT, vec![0xff; 256], "invalid input"), // not below the modulus
        (rsa, Opcode::RSA_DECRYPT, vec![1; 257], "invalid input"),
        (p256, Opcode::RSA_SIGN_SHA256, vec![1; 32], "unsupported"),
        (rsa, Opcode::ED25519_SIGN, vec![1; 32], "unsupported"),
    ]
}

fn assert_mistakes_are_cryptography_errors(client: &mut Client, server: &Server, p256: Ski, rsa: Ski) {
    for (ski, opcode, payload, class) in mistakes(p256, rsa) {
        let what = format!("{opcode:?} of {} bytes", payload.len());
        assert_eq!(client.ask(ski, opcode, &payload), Err(ErrorCode::CRYPTOGRAPHY), "{what}");
        let store = server.status()["stores"][0].clone();
        assert_eq!(store["state"], "up", "{what} is no fault of the store's");
        let failures = server.status()["failures"].clone();
        let of_class = failures.as_array().unwrap().iter().find(|failure| failure["class"] == class);
        let failure = of_class.unwrap_or_else(|| panic!("{what} is no {class}: {failures:#}"));
        assert_eq!((&failure["store"], &failure["ski"]), (&store["name"], &json!(ski.to_string())), "{what}");
    }
}

#[test]
fn what_a_key_in_a_file_cannot_do_is_a_cryptography_error() {
    let files = Files::new();
    let keys = files.path("keys");
    let server = Server::start(
        &files,
        &format!(
            "private_key_stores: [{{name: files, plugin: file, config: {{dir: {}}}, operations: [sign, decrypt]}}]\n",
            keys.display()
        ),
    );
    let mut client = Client::connect(&files, &server);
    assert_mistakes_are_cryptography_errors(&mut client, &server, skis()["p256"], skis()["rsa"]);
    let nowhere: Ski = "11".repeat(20).parse().unwrap();
    assert_eq!(client.ask(nowhere, Opcode::RSA_SIGN_SHA256, &[1; 32]), Err(ErrorCode::KEY_NOT_FOUND));
}

#[test]
fn what_a_key_in_a_token_cannot_do_is_a_cryptography_error_and_one_that_went_is_not_found() {
    let files = Files::new();
    let token = Token::new(&files);
    let [p256, rsa] = [("p256", "EC:prime256v1"), ("rsa", "rsa:2048")]
        .map(|(label, kind)| Ski::from_spki(&token.generate(label, kind)).unwrap());
    let server = token.serve(&format!("private_key_stores:\n{}", token.store(["p256", "rsa"])));
    server.wait_for("keys=2");
    let mut client = Client::connect(&files, &server);
    assert_mistakes_are_cryptography_errors(&mut client, &server, p256, rsa);
    assert!(client.ask(p256, Opcode::ECDSA_SIGN_SHA256, &[1; 32]).is_ok());
    let delete = ["--delete-object", "--type", "privkey", "--label", "p256"];
    token.tool(&[&["--token-label", "keys", "--login", "--pin", "env:PIN"], &delete[..]].concat());
    assert_eq!(client.ask(p256, Opcode::ECDSA_SIGN_SHA256, &[1; 32]), Err(ErrorCode::KEY_NOT_FOUND));
    assert!(client.ask(rsa, Opcode::RSA_SIGN_SHA256, &[1; 32]).is_ok());
}

#[test]
fn the_keys_of_a_token_that_refuses_its_pin_are_not_called_unknown() {
    let files = Files::new();
    let token = Token::new(&files);
    let ski = Ski::from_spki(&token.generate("p256", "EC:prime256v1")).unwrap();
    let stores = token.store(["p256"]);
    files.write("pin", b"another-pin");
    let server = token.serve(&format!(
        "private_key_stores:\n{stores}- {{dir: {}}}\nlimits: {{deadline: 3s}}\n",
        files.path("keys").display()
    ));
    server.wait_until_ready();
    let mut client = Client::connect(&files, &server);
    for _ in 0..3 {
        let answer = client.ask(ski, Opcode::ECDSA_SIGN_SHA256, &[1; 32]);
        assert_eq!(answer, Err(ErrorCode::INTERNAL), "it isn't known what the token holds");
    }
    assert!(client.ask(skis()["p256"], Opcode::ECDSA_SIGN_SHA256, &[1; 32]).is_ok(), "the files are served");
    let store = server.status()["stores"][0].clone();
    assert_eq!(store["state"], "down");
    assert_eq!(store["last_error"]["class"], "credentials");
    assert_eq!(store["last_error"]["vendor"], json!({"name": "CKR_PIN_INCORRECT", "code": 0xa0}));
    server.wait_for("the store is down");
    assert_eq!(lines(&server, &["the store is down"]).len(), 1, "{}", server.log());
    assert!(!server.log().contains("another-pin"));
}
