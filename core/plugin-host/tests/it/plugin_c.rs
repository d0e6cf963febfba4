//! `examples/plugin-c`: what vendors start from passes what every plugin must, by three compilers, under a sanitizer of
//! memory, and in a process of its own.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use keystead_plugin_api::{
    Code,
    conformance::{self, Subject},
};
use keystead_plugin_host::testing::{self, InProcess, PluginDir};
use openssl::{
    bn::{BigNum, BigNumContext},
    ec::{EcGroup, EcKey, EcPoint},
    nid::Nid,
    pkey::PKey,
};
use serde_json::json;

const EXAMPLE: &str = "examples/plugin-c";

/// The directory with a library for the child process that checks it.
const SANITIZED: &str = "KEYSTEAD_SANITIZED";

/// The example, built, and a seed beside it.
struct Built {
    directory: PluginDir,
    library: PathBuf,
}

impl Built {
    fn with(arguments: &[&str]) -> Self {
        let directory = PluginDir::with(&[]);
        let library =
            testing::make_plugin(EXAMPLE, directory.path(), &[&["all", "seed"], arguments].concat());
        Self { directory, library }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn subject(&self) -> Subject {
        subject(self.directory.path(), &self.library)
    }
}

/// A store of two keys of the seed in a directory.
fn subject(directory: &Path, library: &Path) -> Subject {
    configured(Subject::new(testing::table(library)), directory)
}

fn configured(subject: Subject, directory: &Path) -> Subject {
    subject
        .config(json!({"seed": directory.join("seed.pem"), "keys": ["www.example.net", "api"]}))
        .secret("passphrase", passphrase(directory).as_bytes())
}

fn passphrase(directory: &Path) -> String {
    fs::read_to_string(directory.join("passphrase")).unwrap().trim_end().to_owned()
}

#[test]
fn passes_every_case_by_whichever_compiler() {
    for compiler in [&["CC=gcc"][..], &["CC=clang"], &["CC=g++", "STANDARD=-x c++ -std=c++20"]] {
        conformance::run(&Built::with(compiler).subject());
    }
}

#[test]
fn passes_every_case_in_a_process_of_its_own() {
    let built = Built::with(&[]);
    let door = InProcess::load(&built.library);
    conformance::run(&configured(Subject::behind(door), built.directory.path()));
}

#[test]
fn derives_keys_as_its_readme_says() {
    let built = Built::with(&[]);
    let listing = built.subject().open().unwrap().listing().unwrap();
    let labels: Vec<_> = listing.keys.iter().map(|key| key.label.as_str()).collect();
    assert_eq!(labels, ["www.example.net", "api"]);
    let pem = fs::read(built.path("seed.pem")).unwrap();
    let sealed = PKey::private_key_from_pem_passphrase(&pem, passphrase(built.directory.path()).as_bytes());
    let seed = sealed.unwrap().raw_private_key().unwrap();
    for key in &listing.keys {
        assert_eq!(key.spki, public_key(&seed, &key.id), "{}", key.label);
        let printed = printed_by_the_tool(&built, &key.label);
        assert_eq!(PKey::public_key_from_pem(&printed).unwrap().public_key_to_der().unwrap(), key.spki);
    }
}

/// The same by other libraries' hands.
fn public_key(seed: &[u8], name: &[u8]) -> Vec<u8> {
    struct Wide;
    impl KeyType for Wide {
        fn len(&self) -> usize {
            48
        }
    }
    let mut wide = [0; 48];
    let info = [name];
    let secret = Salt::new(HKDF_SHA256, b"keystead plugin-c P-256 1").extract(seed);
    secret.expand(&info, Wide).unwrap().fill(&mut wide).unwrap();
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
    let (mut order, mut context) = (BigNum::new().unwrap(), BigNumContext::new().unwrap());
    group.order(&mut order, &mut context).unwrap();
    order.sub_word(1).unwrap();
    let mut scalar = BigNum::new().unwrap();
    scalar.nnmod(&BigNum::from_slice(&wide).unwrap(), &order, &mut context).unwrap();
    scalar.add_word(1).unwrap();
    let mut point = EcPoint::new(&group).unwrap();
    point.mul_generator2(&group, &scalar, &mut context).unwrap();
    EcKey::from_public_key(&group, &point).unwrap().public_key_to_der().unwrap()
}

fn printed_by_the_tool(built: &Built, name: &str) -> Vec<u8> {
    let mut tool = Command::new(built.path("public-keys"));
    let output = tool.arg(built.path("seed.pem")).arg(built.path("passphrase")).arg(name).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    output.stdout
}

#[test]
fn says_what_is_wrong_with_a_seed_and_not_the_passphrase() {
    let built = Built::with(&[]);
    let plain = built.path("plain.pem");
    fs::write(&plain, PKey::generate_x25519().unwrap().private_key_to_pem_pkcs8().unwrap()).unwrap();
    let (seed, none) = (built.path("seed.pem"), built.path("none"));
    let table = testing::table(&built.library);
    for (file, passphrase, code, what) in [
        (&seed, "battery staple", Code::Credentials, "doesn't open with this passphrase"),
        (&plain, "battery staple", Code::InvalidInput, "is not an encrypted X25519 key"),
        (&none, "battery staple", Code::Unavailable, "can't be read: No such file or directory"),
    ] {
        let subject = Subject::new(table).config(json!({"seed": file, "keys": ["www"]}));
        let host = subject.secret("passphrase", passphrase.as_bytes()).host();
        let error = host.open(table).unwrap_err();
        assert_eq!(error.code, code, "{error}");
        let said = format!("the seed file {} {what}", file.display());
        assert!(error.message.starts_with(&said), "{error}");
        assert!(host.leaks().is_empty());
    }
    let without = Subject::new(table).config(json!({"seed": seed, "keys": ["www"]})).open().unwrap_err();
    assert_eq!(without.to_string(), "the secret `passphrase` can't be had");
}

/// The library runs in a child process that has the sanitizer from its start, as it demands.
#[test]
fn misuses_no_memory() {
    if let Some(directory) = env::var_os(SANITIZED) {
        return check_sanitized(Path::new(&directory));
    }
    let flags = "CFLAGS=-O1 -g -Wall -Wextra -Werror -fsanitize=address,undefined -fno-sanitize-recover=all";
    // Without -z defs: the sanitizer comes with the process.
    let built = Built::with(&["CC=gcc", flags, "CPPFLAGS=-D_POSIX_C_SOURCE=200809L", "LDFLAGS="]);
    let output = sanitized(built.directory.path());
    assert!(output.status.success(), "{}", said(&output));
    assert!(
        !said(&output).contains("Sanitizer") && !said(&output).contains("runtime error"),
        "{}",
        said(&output)
    );
    assert!(said(&output).contains("1 passed"), "{}", said(&output));
}

#[test]
fn the_sanitizer_would_tell() {
    let directory = PluginDir::with(&[]);
    let flags = ["-g", "-DOVERFLOW", "-fsanitize=address"];
    testing::c_plugin(directory.path(), "odd", &[&testing::source("odd.c")], &flags);
    let output = sanitized(directory.path());
    assert!(!output.status.success() && said(&output).contains("heap-buffer-overflow"), "{}", said(&output));
}

fn check_sanitized(directory: &Path) {
    let files = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let library = files.into_iter().find(|file| file.extension().is_some_and(|end| end == "so")).unwrap();
    conformance::run(&subject(directory, &library));
}

/// This test in a process of its own. What the host and this test leak on purpose isn't looked for.
fn sanitized(directory: &Path) -> Output {
    let sanitizer = Command::new("gcc").arg("-print-file-name=libasan.so").output().unwrap();
    let sanitizer = String::from_utf8(sanitizer.stdout).unwrap();
    assert!(Path::new(sanitizer.trim()).is_absolute(), "gcc has no libasan.so");
    Command::new(env::current_exe().unwrap())
        .args(["plugin_c::misuses_no_memory", "--exact", "--nocapture"])
        .env(SANITIZED, directory)
        .env("LD_PRELOAD", sanitizer.trim())
        .env("ASAN_OPTIONS", "detect_leaks=0:detect_stack_use_after_return=1:strict_string_checks=1")
        .env("UBSAN_OPTIONS", "print_stacktrace=1")
        .output()
        .unwrap()
}

fn said(output: &Output) -> String {
    [output.stdout.as_slice(), &output.stderr].map(String::from_utf8_lossy).concat()
}
