//! The C header: made from the contract in Rust, and as good as it.
//!
//! `include/keystead_plugin.h` is checked in, because vendors need nothing but it. It must say what `src/abi.rs` says.
#![expect(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod layout;

use std::{env, fs, process::Command};

use cbindgen::{Builder, Config, DocumentationStyle, ExportConfig, Language, Style};
use keystead_plugin_api::{Algorithm, Code, Input, algorithm::Operation};

const HEADER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/include/keystead_plugin.h");
const CONTRACT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/abi.rs");
const WRITE: &str = "KEYSTEAD_WRITE_HEADER";

/// How long lines get.
const WIDTH: usize = 120;

/// What the types of the contract are called in C, in the order of the header.
const TYPES: &[(&str, &str)] = &[
    ("Bytes", "keystead_bytes"),
    ("Buffer", "keystead_buffer"),
    ("Context", "keystead_context"),
    ("Report", "keystead_report"),
    ("DescriptionTable", "keystead_description"),
    ("KeyEntry", "keystead_key"),
    ("FindingEntry", "keystead_finding"),
    ("KeyPage", "keystead_page"),
    ("HealthReport", "keystead_health"),
    ("LogRecord", "keystead_log_record"),
    ("HostTable", "keystead_host"),
    ("CredentialsTable", "keystead_credentials"),
    ("HttpPart", "keystead_http_part"),
    ("HttpField", "keystead_http_field"),
    ("HttpRequest", "keystead_http_request"),
    ("HttpHeader", "keystead_http_header"),
    ("HttpResponse", "keystead_http_response"),
    ("HttpTable", "keystead_http"),
    ("CacheTable", "keystead_cache"),
    ("SignerTable", "keystead_signer"),
    ("IsolationTable", "keystead_isolation"),
    ("AdviceReport", "keystead_advice_report"),
    ("AdviceTable", "keystead_advice"),
    ("BackendTable", "keystead_backend"),
    ("EntryPoint", "keystead_entry_point"),
];

/// Its constants, which are called the same with a prefix.
const CONSTANTS: &[&str] = &[
    "ADVICE_EXTENSION",
    "CACHE_EXTENSION",
    "CALL_BLOCKING",
    "CALL_INLINE",
    "CREDENTIALS_EXTENSION",
    "DRAFT",
    "ENTRY_POINT",
    "HTTP_EXTENSION",
    "ISOLATION_EXTENSION",
    "ISOLATION_INLINE",
    "ISOLATION_PROCESS",
    "KEY_ID_MAX",
    "LANE_HOUSEKEEPING",
    "LANE_INLINE",
    "LOG_DEBUG",
    "LOG_ERROR",
    "LOG_INFO",
    "LOG_TRACE",
    "LOG_WARN",
    "NO_DEADLINE",
    "PART_SECRET",
    "PART_TEXT",
    "SEVERITY_ERROR",
    "SEVERITY_NOTE",
    "SEVERITY_WARNING",
    "SIGNER_EXTENSION",
];

#[test]
fn the_header_says_what_the_contract_says() {
    let made = header();
    if env::var_os(WRITE).is_some() {
        fs::write(HEADER, made).unwrap();
        return;
    }
    let found = fs::read_to_string(HEADER).unwrap_or_default();
    let stale = made.lines().zip(found.lines()).find(|(made, found)| made != found);
    assert!(
        made == found,
        "{HEADER} is stale, first at {stale:?}; to make it anew: \
         {WRITE}=1 cargo test -p keystead-plugin-api --test header"
    );
}

#[test]
fn the_header_leaves_nothing_of_the_contract_out() {
    let contract = fs::read_to_string(CONTRACT).unwrap();
    let items = contract.lines().filter_map(|line| {
        ["pub struct ", "pub const ", "pub type "].iter().find_map(|start| line.strip_prefix(start))
    });
    let names = items.filter_map(|item| item.split(|c: char| !c.is_alphanumeric() && c != '_').next());
    let has_name = |name: &str| CONSTANTS.contains(&name) || TYPES.iter().any(|(rust, _)| *rust == name);
    // `Root` is how a plugin in Rust hands its table out; `fn` begins a function of this crate.
    let nameless: Vec<_> = names.filter(|name| !has_name(name) && !["Root", "fn"].contains(name)).collect();
    assert_eq!(nameless, [""; 0], "without a name in C");
}

#[test]
fn compilers_of_c_and_cpp_take_the_header_without_a_warning() {
    for (compiler, language) in [("gcc", "c11"), ("clang", "c11"), ("g++", "c++17"), ("clang++", "c++17")] {
        let kind = if language.starts_with("c++") { "c++" } else { "c" };
        let mut command = Command::new(compiler);
        command.args([
            &format!("-std={language}"),
            "-x",
            kind,
            "-fsyntax-only",
            "-Wall",
            "-Wextra",
            "-Werror",
        ]);
        // As any source takes it: what is declared in it and not used must not be told.
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/header/includes.c");
        let output = command.args(["-pedantic", "-Wshadow", "-Wcast-qual", source]).output();
        let output = output.unwrap_or_else(|error| panic!("{compiler} can't be run: {error}"));
        assert!(output.status.success(), "{compiler}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// The whole header.
fn header() -> String {
    let types = spelled(&generated());
    [
        include_str!("opening.h"),
        include_str!("prelude.h"),
        "\n",
        &section("Rules"),
        &rules(),
        &section("Numbers"),
        &codes(),
        &algorithms(),
        &types,
        "\n",
        &section("The same layout on both sides"),
        &layout::assertions(),
        include_str!("closing.h"),
    ]
    .concat()
}

/// What cbindgen makes of the contract: constants and types.
fn generated() -> String {
    let mut generated = Vec::new();
    let builder = Builder::new().with_config(config()).with_src(CONTRACT);
    builder.generate().unwrap_or_else(|error| panic!("{CONTRACT}: {error}")).write(&mut generated);
    String::from_utf8(generated).unwrap()
}

fn config() -> Config {
    let types = TYPES.iter().map(|(rust, c)| ((*rust).to_owned(), (*c).to_owned()));
    let constants = CONSTANTS.iter().map(|name| ((*name).to_owned(), format!("KEYSTEAD_{name}")));
    let names: Vec<_> = types.chain(constants).collect();
    let include = names.iter().map(|(rust, _)| rust.clone()).collect();
    Config {
        language: Language::C,
        style: Style::Both,
        usize_is_size_t: true,
        no_includes: true,
        tab_width: 4,
        line_length: 116,
        documentation_style: DocumentationStyle::C99,
        export: ExportConfig {
            include,
            rename: names.into_iter().collect(),
            exclude: vec!["Root".to_owned()],
            ..ExportConfig::default()
        },
        ..Config::default()
    }
}

/// The generated part, spelled as a person would.
fn spelled(generated: &str) -> String {
    let entry_point = "typedef const keystead_backend *(*keystead_entry_point)(uint32_t draft);";
    let exported = "KEYSTEAD_EXPORT const keystead_backend *keystead_plugin(uint32_t draft);";
    let plain = generated
        .replace("struct keystead_", "keystead_")
        .replace("typedef keystead_", "typedef struct keystead_");
    let plain =
        plain.replace(" 4294967295\n", " UINT32_MAX\n").replace(" 4294967294\n", " (UINT32_MAX - 1)\n");
    let plain = plain.replace(" 18446744073709551615ull\n", " UINT64_MAX\n");
    assert!(plain.contains(entry_point), "the entry point is of another type: {plain}");
    let types = plain.find("// Borrowed bytes.").unwrap();
    let (numbers, types) = plain.split_at(types);
    in_words_of_c(&[numbers.trim_start(), &section("Types"), types].concat()).replace(entry_point, exported)
}

/// The rules of the contract: the chapters of its module's documentation.
fn rules() -> String {
    let contract = fs::read_to_string(CONTRACT).unwrap();
    let documentation = contract.lines().map_while(|line| line.strip_prefix("//!"));
    let chapters = documentation.skip_while(|line| !line.starts_with(" # "));
    in_words_of_c(&chapters.map(|line| format!("//{line}\n")).collect::<String>()) + "\n"
}

fn codes() -> String {
    let code = |code: &Code| {
        definition(&code.name().replace(' ', "_"), &(*code as u32).to_string(), code.documentation())
    };
    let all: String = Code::ALL.iter().map(code).collect();
    definition("OK", "0", "All went well.") + &all
}

fn algorithms() -> String {
    let algorithm = |algorithm: &Algorithm| {
        let input = match algorithm.input() {
            Input::Digest(len) => format!("a digest of {len} bytes"),
            Input::Message => "the message".to_owned(),
            Input::Block => "a block".to_owned(),
            other => panic!("{other:?} has no words"),
        };
        let function = if algorithm.operation() == Operation::Sign { "sign" } else { "decrypt" };
        let text = format!("`{algorithm}`, for `{function}`; input is {input}.{}", algorithm.documentation());
        definition(&algorithm.name().replace('-', "_"), &format!("{:#04x}", algorithm.number()), &text)
    };
    Algorithm::ALL.iter().map(algorithm).collect()
}

fn definition(name: &str, number: &str, documentation: &str) -> String {
    let name = name.to_uppercase();
    in_words_of_c(&format!("// {}\n#define KEYSTEAD_{name} {number}\n\n", documentation.trim()))
}

fn section(title: &str) -> String {
    format!("// ---- {title} {}\n\n", "-".repeat(WIDTH.saturating_sub(title.len() + 9)))
}

/// The words of rustdoc, put into those of C: links become names, and what is quoted in brackets stands without quotes.
fn in_words_of_c(text: &str) -> String {
    let plain = [("`[", "["), ("]`", "]"), ("// # ", "// == "), ("\u{2016}", " || ")];
    let mut text = plain.iter().fold(text.to_owned(), |text, (rust, c)| text.replace(rust, c));
    while let Some((before, rest)) = text.split_once("[`") {
        let (link, after) = rest.split_once("`]").unwrap();
        text = [before, &name_in_c(link), after].concat();
    }
    wrapped(&text)
}

/// Breaks comments that have become too long: what doesn't fit moves to the next line of the comment, or makes one.
fn wrapped(text: &str) -> String {
    let mut lines: Vec<String> = text.lines().rev().map(str::to_owned).collect();
    let mut done = String::new();
    while let Some(line) = lines.pop() {
        let at =
            if line.len() > WIDTH { line.get(..=WIDTH).unwrap().rfind(' ').unwrap() } else { line.len() };
        let (line, rest) = line.split_at(at);
        done.push_str(&format!("{line}\n"));
        let start = line.get(..line.find("//").unwrap_or(0) + 3).unwrap_or_default();
        let start = if line.starts_with("// - ") || line.starts_with("//   ") { "//   " } else { start };
        if !rest.is_empty() {
            let next = lines.pop_if(|next| next.starts_with(start) && !next.starts_with("// - "));
            let next = next.as_deref().and_then(|next| next.strip_prefix(start)).unwrap_or_default();
            lines.push(format!("{start}{} {next}", rest.trim()).trim_end().to_owned());
        }
    }
    done
}

fn name_in_c(link: &str) -> String {
    let constant = CONSTANTS.contains(&link).then(|| format!("KEYSTEAD_{link}"));
    let code = |link: &str| Code::ALL.iter().find(|code| link == format!("Code::{code:?}")).copied();
    let code = code(link).map(|code| format!("KEYSTEAD_{}", code.name().replace(' ', "_").to_uppercase()));
    let named = TYPES.iter().find(|(rust, _)| *rust == link).map(|(_, c)| (*c).to_owned());
    let other = match link {
        "Algorithm" => Some("algorithm".to_owned()),
        "Code" => Some("code".to_owned()),
        "EntryPoint" => Some("keystead_plugin".to_owned()),
        "Error::retry_after" => Some("`retry_after_ms` of the report".to_owned()),
        _ => None,
    };
    constant.or(code).or(other).or(named).unwrap_or_else(|| panic!("`{link}` has no name in C"))
}
