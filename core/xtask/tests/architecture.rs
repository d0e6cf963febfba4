//! Holds the code to ARCHITECTURE.md: the tables there are the rules here.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

#[test]
fn our_packages_import_what_the_document_says() {
    let (documented, _) = tables();
    let actual: BTreeMap<_, _> = packages().into_iter().map(|package| (package.name, package.ours)).collect();
    assert_eq!(actual, documented, "left: Cargo.toml files; right: the table in ARCHITECTURE.md");
}

#[test]
fn packages_are_where_the_code_map_says() {
    let document = read(Path::new("ARCHITECTURE.md"));
    let mapped: BTreeSet<_> = rows(&document, "| folder | package | what it is |")
        .filter_map(|cells| {
            Some((quoted(cells.get(1)?).pop()?, PathBuf::from(quoted(cells.first()?).pop()?)))
        })
        .collect();
    let actual: BTreeSet<_> = packages().into_iter().map(|package| (package.name, package.folder)).collect();
    assert_eq!(actual, mapped, "left: the workspace; right: the code map in ARCHITECTURE.md");
}

#[test]
fn what_has_a_corner_stays_there() {
    let (_, corners) = tables();
    let mut strays = Vec::new();
    for file in rust_files().into_iter().filter(|file| !is_test(file)) {
        let code = code_of(&read(&file));
        for corner in corners.iter().filter(|corner| !corner.holds(&file)) {
            let found = corner.what.iter().filter(|what| uses(&code, what));
            strays.extend(found.map(|what| format!("`{what}` in {}", file.display())));
        }
    }
    assert_eq!(strays, [""; 0]);
}

#[test]
fn external_crates_are_dependencies_of_their_corners_only() {
    let (_, corners) = tables();
    let mut strays = Vec::new();
    for package in packages() {
        for corner in &corners {
            let reaches =
                |path: &PathBuf| path.starts_with(&package.folder) || package.folder.starts_with(path);
            if corner.only_in.iter().any(reaches) {
                continue;
            }
            let found = package.others.iter().filter(|name| corner.what.contains(&name.replace('-', "_")));
            strays.extend(found.map(|name| format!("`{name}` in {}/Cargo.toml", package.folder.display())));
        }
    }
    assert_eq!(strays, [""; 0]);
}

#[test]
fn corners_of_the_document_exist() {
    let (_, corners) = tables();
    for path in corners.iter().flat_map(|corner| &corner.only_in) {
        let file = root().join(path);
        assert!(file.exists() || file.with_extension("rs").exists(), "{} is no more", path.display());
    }
}

#[test]
fn crates_without_unsafe_forbid_it() {
    let (_, corners) = tables();
    let unsafe_corner =
        corners.iter().find(|corner| corner.what.contains("unsafe")).expect("a row about unsafe");
    for package in packages() {
        if unsafe_corner
            .only_in
            .iter()
            .any(|path| path.starts_with(&package.folder) || package.folder.starts_with(path))
        {
            continue;
        }
        for target in &package.targets {
            let text = read(target);
            assert!(
                text.contains("#![forbid(unsafe_code)]"),
                "{} doesn't forbid unsafe code",
                target.display()
            );
        }
    }
}

#[test]
fn modules_are_called_after_what_they_know() {
    const NAMES: [&str; 8] = ["utils", "util", "common", "helpers", "helper", "manager", "misc", "core"];
    for file in rust_files() {
        let stem = file.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let parent =
            file.parent().and_then(Path::file_name).and_then(|name| name.to_str()).unwrap_or_default();
        let name = if stem == "mod" { parent } else { stem };
        assert!(!NAMES.contains(&name), "{} has a name that says nothing", file.display());
    }
}

#[test]
fn nothing_is_left_to_do_in_the_code() {
    let markers = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X"), concat!("HA", "CK")];
    for file in rust_files() {
        let text = read(&file);
        for marker in markers {
            assert!(!contains_word(&text, marker), "{} says {marker}", file.display());
        }
    }
}

#[test]
fn links_of_the_documents_lead_somewhere() {
    let mut broken = Vec::new();
    for file in files("md") {
        let text = read(&file);
        for link in links(&text).filter(|link| !is_external(link)) {
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() { file.clone() } else { beside(&file).join(path) };
            let leads = root().join(&target).exists()
                && (anchor.is_empty() || headings(&read(&target)).contains(anchor));
            if !leads {
                broken.push(format!("{}: {link}", file.display()));
            }
        }
    }
    assert_eq!(broken, [""; 0]);
}

#[test]
fn sees_code_but_neither_comments_nor_text() {
    let code = code_of(
        "let a = \"unsafe \\\" x\"; // unsafe\n/* unsafe */ let b = r#\"un\"safe\"#; let c = '\"'; y()",
    );
    assert!(!contains_word(&code, "unsafe"), "{code}");
    assert!(contains_word(&code, "let") && contains_word(&code, "y"), "{code}");
    assert!(!contains_word("unsafe_code", "unsafe"));
    assert!(contains_word("std::println!(\"\")", "println!") && !contains_word("eprintln!()", "println!"));
}

/// A package of the workspace.
struct Package {
    name: String,
    /// Relative to the workspace.
    folder: PathBuf,
    /// The packages of the workspace that it imports, tests aside.
    ours: BTreeSet<String>,
    /// Other crates that it imports, tests aside.
    others: BTreeSet<String>,
    /// The roots of its crates, tests and benchmarks aside; relative to the workspace.
    targets: Vec<PathBuf>,
}

/// What stands only in certain places.
struct Corner {
    what: BTreeSet<String>,
    only_in: Vec<PathBuf>,
}

impl Corner {
    fn holds(&self, file: &Path) -> bool {
        // `cli` stands for the module: cli.rs and what is below cli/.
        self.only_in.iter().any(|path| file.starts_with(path) || file == path.with_extension("rs"))
    }
}

fn packages() -> Vec<Package> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("metadata");
    array(&metadata, "packages").map(package).collect()
}

fn package(value: &Value) -> Package {
    let name = text(value, "name");
    let imported = array(value, "dependencies").filter(|dependency| text(dependency, "kind") != "dev");
    let (ours, others): (Vec<_>, Vec<_>) = imported.partition(|dependency| dependency.get("path").is_some());
    let names = |dependencies: Vec<&Value>| dependencies.into_iter().map(|d| text(d, "name")).collect();
    let is_shipped = |target: &&Value| !array(target, "kind").any(|kind| kind == "test" || kind == "bench");
    Package {
        folder: relative(beside(Path::new(&text(value, "manifest_path")))),
        ours: names(ours),
        others: names(others),
        targets: array(value, "targets")
            .filter(is_shipped)
            .map(|target| relative(Path::new(&text(target, "src_path"))))
            .collect(),
        name,
    }
}

/// The tables of the document: imports between our packages, and corners.
fn tables() -> (BTreeMap<String, BTreeSet<String>>, Vec<Corner>) {
    let document = read(Path::new("ARCHITECTURE.md"));
    let imports = rows(&document, "| package | imports |")
        .map(|cells| match cells.as_slice() {
            [package, imports] => (quoted(package).concat(), quoted(imports).into_iter().collect()),
            _ => panic!("expected two cells, got {cells:?}"),
        })
        .collect();
    let corners = rows(&document, "| what | only in | because |").map(|cells| match cells.as_slice() {
        [what, only_in, _] => Corner {
            what: quoted(what).into_iter().collect(),
            only_in: quoted(only_in).into_iter().map(PathBuf::from).collect(),
        },
        _ => panic!("expected three cells, got {cells:?}"),
    });
    (imports, corners.collect())
}

/// The rows of the table with this heading.
fn rows<'d>(document: &'d str, heading: &str) -> impl Iterator<Item = Vec<&'d str>> {
    let (_, table) = document.split_once(heading).unwrap_or_else(|| panic!("no table `{heading}`"));
    let lines = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    lines.map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
}

/// What stands in back-ticks.
fn quoted(cell: &str) -> Vec<String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// The text without comments, strings and characters: blanks stand for them.
fn code_of(source: &str) -> String {
    let (mut code, mut rest) = (String::new(), source);
    while let Some(first) = rest.chars().next() {
        let length = length_of_no_code(rest);
        rest = match length {
            0 => {
                code.push(first);
                rest.get(first.len_utf8()..).unwrap_or_default()
            }
            _ => {
                code.push(' ');
                rest.get(length..).unwrap_or_default()
            }
        };
    }
    code
}

/// The length of the comment, string or character that the text begins with; 0 where it begins with code.
fn length_of_no_code(text: &str) -> usize {
    let until = |start: usize, end: &str| {
        text.get(start..).and_then(|rest| rest.find(end)).map_or(text.len(), |at| start + at + end.len())
    };
    let hashes = text.strip_prefix('r').map_or(0, |rest| rest.len() - rest.trim_start_matches('#').len());
    if text.starts_with("//") {
        until(2, "\n")
    } else if text.starts_with("/*") {
        until(2, "*/")
    } else if text.starts_with('"') {
        length_of_string(text)
    } else if text.starts_with("r\"")
        || text
            .get(1 + hashes..)
            .is_some_and(|_| hashes > 0 && text.get(1 + hashes..=1 + hashes) == Some("\""))
    {
        until(2 + hashes, &format!("\"{}", "#".repeat(hashes)))
    } else if text.starts_with("'\\") || text.starts_with("'\"'") {
        until(2, "'")
    } else {
        0
    }
}

fn length_of_string(text: &str) -> usize {
    let mut escaped = false;
    for (at, character) in text.char_indices().skip(1) {
        match character {
            '"' if !escaped => return at + 1,
            _ => escaped = character == '\\' && !escaped,
        }
    }
    text.len()
}

/// Whether the code has a keyword, calls a macro, or names a crate; the latter two outside of tests.
fn uses(code: &str, what: &str) -> bool {
    let (shipped, _) = code.split_once("#[cfg(test)]\nmod tests {").unwrap_or((code, ""));
    match what {
        "unsafe" => contains_word(code, what),
        name if name.ends_with('!') => contains_word(shipped, name),
        name => {
            contains_word(shipped, &format!("{name}::")) || contains_word(shipped, &format!("use {name}"))
        }
    }
}

/// Whether the word is there, and not just a part of a longer one.
fn contains_word(text: &str, word: &str) -> bool {
    let part = |character: Option<char>| character.is_some_and(|c| c.is_alphanumeric() || c == '_');
    text.match_indices(word).any(|(at, _)| {
        let (before, after) =
            (text.get(..at).unwrap_or_default(), text.get(at + word.len()..).unwrap_or_default());
        let whole = !part(word.chars().next_back()) || !part(after.chars().next());
        whole && !part(before.chars().next_back())
    })
}

fn links(text: &str) -> impl Iterator<Item = &str> {
    text.split("](").skip(1).filter_map(|rest| rest.split_once(')').map(|(link, _)| link))
}

fn is_external(link: &str) -> bool {
    ["http://", "https://", "mailto:"].iter().any(|scheme| link.starts_with(scheme))
}

/// The anchors of a document's headings, as hosting sites make them.
fn headings(text: &str) -> BTreeSet<String> {
    let titles =
        text.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
    titles
        .map(|title| title.to_lowercase().chars().filter(kept).collect::<String>().replace(' ', "-"))
        .collect()
}

fn is_test(file: &Path) -> bool {
    let in_tests = file.components().any(|part| part.as_os_str() == "tests" || part.as_os_str() == "benches");
    (in_tests || file.ends_with("tests.rs")) && !file.starts_with("plugin-api/tests/plugins")
}

fn rust_files() -> Vec<PathBuf> {
    files("rs")
}

/// The files of the workspace with this ending, relative to it.
fn files(ending: &str) -> Vec<PathBuf> {
    const FOLDERS: [&str; 4] = ["core", "plugin-api", "plugins", "examples"];
    let mut found: Vec<_> = FOLDERS.iter().flat_map(|folder| below(&root().join(folder), ending)).collect();
    found.extend(below(&root().join("config"), ending));
    found.extend(entries(&root()).into_iter().filter(|path| path.is_file() && has_ending(path, ending)));
    assert!(!found.is_empty(), "no .{ending} file");
    found.sort();
    found.iter().map(|path| relative(path)).collect()
}

fn below(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let (folders, files): (Vec<_>, Vec<_>) = entries(folder).into_iter().partition(|path| path.is_dir());
    let deeper = folders.iter().filter(|path| !path.ends_with("target")).flat_map(|path| below(path, ending));
    files.into_iter().filter(|path| has_ending(path, ending)).chain(deeper).collect()
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    entries.map(|entry| entry.expect("an entry").path()).collect()
}

fn has_ending(path: &Path, ending: &str) -> bool {
    path.extension().is_some_and(|extension| extension == ending)
}

fn root() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.ancestors().nth(2).expect("the workspace").to_owned()
}

fn relative(path: &Path) -> PathBuf {
    path.strip_prefix(root()).unwrap_or(path).to_owned()
}

fn beside(file: &Path) -> &Path {
    file.parent().expect("a file is in a folder")
}

fn read(file: &Path) -> String {
    fs::read_to_string(root().join(file)).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

fn array<'v>(value: &'v Value, key: &str) -> impl Iterator<Item = &'v Value> {
    value.get(key).and_then(Value::as_array).into_iter().flatten()
}

fn text(value: &Value, key: &str) -> String {
    value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
}
