//! The layers of the crate: imports go one way, between modules and between files.
//!
//! The test reads the source text. Every `crate::`, `super::` and child-module path is resolved to
//! the file that defines what it names (re-exports are followed), so the result does not depend on
//! where a name is re-exported. Comments and string literals do not count. Code under
//! `#[cfg(test)]` may import more than the rest, as [`TEST_EDGES`] lists.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// The modules in layer order, each with the modules that it may import. An entry may name only
/// modules above it. Every module may also import `error`, `time` and `failpoint`.
const EDGES: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("time", &[]),
    ("failpoint", &[]),
    ("storage", &[]),
    ("types", &[]),
    ("telemetry", &["types"]),
    ("catalog", &["types"]),
    ("source", &["types"]),
    ("decode", &["types", "source"]),
    ("watermark", &["types"]),
    ("state", &["storage", "types", "watermark"]),
    ("planner", &["types", "catalog", "decode", "state"]),
    ("window", &["types", "catalog", "state", "planner"]),
    ("sink", &["types", "source", "window"]),
    ("commit", &["types", "source", "watermark", "sink"]),
    ("history", &["storage", "types", "telemetry", "catalog", "planner"]),
    (
        "pipeline",
        &[
            "storage",
            "types",
            "telemetry",
            "catalog",
            "source",
            "decode",
            "watermark",
            "state",
            "planner",
            "window",
            "sink",
            "commit",
            "history",
        ],
    ),
    ("backfill", &["types", "catalog", "planner", "window", "history", "pipeline"]),
    ("sensors", &[]),
    ("serve", &["telemetry"]),
    (
        "cli",
        &[
            "types",
            "telemetry",
            "catalog",
            "source",
            "planner",
            "window",
            "sink",
            "commit",
            "history",
            "pipeline",
            "backfill",
            "sensors",
            "serve",
        ],
    ),
];

/// What every module may import.
const BASE: &[&str] = &["error", "time", "failpoint"];

/// Imports that only tests may have.
const TEST_EDGES: &[(&str, &str)] =
    &[("history", "types"), ("planner", "window"), ("window", "watermark"), ("window", "source")];

/// One import, from a file of `src` to the file that defines what it names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Import {
    from: String,
    to: String,
    name: String,
    in_test: bool,
}

#[test]
fn modules_import_earlier_layers_only() {
    let crate_files = CrateFiles::read();
    let unexpected = unexpected_edges(&crate_files.imports());
    assert!(unexpected.is_empty(), "imports that tests/it/layers.rs does not allow:\n{unexpected}");
}

#[test]
fn the_table_of_layers_is_in_order() {
    let mut above: BTreeSet<&str> = BASE.iter().copied().collect();
    for (module, imports) in EDGES {
        for import in *imports {
            assert!(above.contains(import), "{module} may import {import}, which is not above it");
        }
        above.insert(module);
    }
    let tops: BTreeSet<String> = CrateFiles::read().top_modules();
    let listed = EDGES.iter().map(|(module, _)| (*module).to_owned()).collect();
    assert_eq!(tops, listed, "src/lib.rs and the table name different modules");
}

#[test]
fn no_two_files_import_each_other() {
    let crate_files = CrateFiles::read();
    let cycles = cycles(&crate_files.imports());
    assert!(cycles.is_empty(), "files that import each other in a circle:\n{}", cycles.join("\n"));
}

#[test]
fn a_forbidden_import_and_a_cycle_are_found() {
    let crate_files = CrateFiles::of([
        (
            "lib.rs",
            "pub mod catalog; pub mod cli; pub mod error; pub mod planner; pub mod window;\npub use error::Error;",
        ),
        ("error.rs", "pub struct Error;"),
        ("window.rs", "pub struct W;"),
        ("cli.rs", "pub fn print() {}"),
        ("catalog/mod.rs", "mod a;\nmod b;\npub use b::B;"),
        ("catalog/a.rs", "use crate::catalog::B; // crate::cli::print\npub struct A;"),
        (
            "catalog/b.rs",
            "use super::a::A; pub struct B(A, &'static str);\nconst S: &str = \"crate::cli\";",
        ),
        (
            "planner/mod.rs",
            "pub fn plan() { crate::cli::print() }\n#[cfg(test)]\nmod tests { use crate::window::W; use crate::cli; }",
        ),
    ]);
    let imports = crate_files.imports();
    let unexpected = unexpected_edges(&imports);
    let expected =
        ["cli", "cli::print"].map(|name| format!("planner/mod.rs imports cli ({name})\n"));
    assert_eq!(unexpected, expected.concat());
    assert_eq!(cycles(&imports), ["catalog/a.rs -> catalog/b.rs -> catalog/a.rs"]);
}

/// The imports that the tables do not allow, a line each.
fn unexpected_edges(imports: &[Import]) -> String {
    let allowed: BTreeMap<&str, &[&str]> = EDGES.iter().copied().collect();
    let mut lines = BTreeSet::new();
    for import in imports {
        let (from, to) = (top_of(&import.from), top_of(&import.to));
        let is_allowed = from == to
            || from == "lib"
            || from == "main"
            || BASE.contains(&to)
            || allowed.get(from).is_some_and(|allowed| allowed.contains(&to))
            || (import.in_test && TEST_EDGES.contains(&(from, to)));
        if !is_allowed {
            lines.insert(format!("{} imports {to} ({})\n", import.from, import.name));
        }
    }
    lines.into_iter().collect()
}

/// The module directly below the crate's root that a file belongs to.
fn top_of(file: &str) -> &str {
    file.split('/').next().unwrap_or(file).trim_end_matches(".rs")
}

/// One circle of each set of files that import each other, tests left out.
fn cycles(imports: &[Import]) -> Vec<String> {
    let mut graph: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for import in imports.iter().filter(|import| !import.in_test && import.from != import.to) {
        graph.entry(&import.from).or_default().insert(&import.to);
    }
    let mut found = Vec::new();
    let mut in_a_circle: BTreeSet<&str> = BTreeSet::new();
    for start in graph.keys().copied() {
        if in_a_circle.contains(start) {
            continue;
        }
        if let Some(circle) = shortest_circle(&graph, start) {
            in_a_circle.extend(circle.iter().copied());
            found.push([circle.as_slice(), &[start]].concat().join(" -> "));
        }
    }
    found
}

/// The shortest way from a file back to itself, if there is one.
fn shortest_circle<'a>(
    graph: &BTreeMap<&'a str, BTreeSet<&'a str>>,
    start: &'a str,
) -> Option<Vec<&'a str>> {
    let mut paths = vec![vec![start]];
    let mut seen = BTreeSet::new();
    while !paths.is_empty() {
        let mut longer = Vec::new();
        for path in paths {
            let last = *path.last()?;
            for next in graph.get(last).into_iter().flatten().copied() {
                if next == start {
                    return Some(path);
                }
                if seen.insert(next) {
                    longer.push([path.as_slice(), &[next]].concat());
                }
            }
        }
        paths = longer;
    }
    None
}

/// The source files of the crate, by path below `src`.
struct CrateFiles {
    files: BTreeMap<String, SourceFile>,
}

/// One file, as tokens.
struct SourceFile {
    /// Its module path; empty for `lib.rs`.
    module: Vec<String>,
    tokens: Vec<Token>,
    /// Whether all of it is test code.
    is_test: bool,
}

/// A word or a sign, and whether it stands in code for tests.
struct Token {
    text: String,
    in_test: bool,
}

impl CrateFiles {
    fn read() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut texts = Vec::new();
        collect(&root, "", &mut texts);
        Self::of(texts)
    }

    fn of<N: AsRef<str>, T: AsRef<str>>(texts: impl IntoIterator<Item = (N, T)>) -> Self {
        let file = |(name, text): (N, T)| {
            let (name, tokens) = (name.as_ref().to_owned(), tokens(text.as_ref()));
            let is_test = name.contains("/tests/") || name.ends_with("/tests.rs");
            (name.clone(), SourceFile { module: module_of(&name), tokens, is_test })
        };
        Self { files: texts.into_iter().map(file).collect() }
    }

    /// The modules that `lib.rs` declares.
    fn top_modules(&self) -> BTreeSet<String> {
        self.children("lib.rs").into_iter().collect()
    }

    /// The names of the child modules that a file declares.
    fn children(&self, file: &str) -> Vec<String> {
        let tokens = &self.files[file].tokens;
        let declared = tokens.windows(3).filter(|t| t[0].text == "mod" && t[2].text == ";");
        declared.map(|t| t[1].text.clone()).collect()
    }

    fn imports(&self) -> Vec<Import> {
        let mut imports = BTreeSet::new();
        for (name, file) in &self.files {
            for path in self.paths(name) {
                let Some(to) = self.definition(&path.segments, 0) else { continue };
                imports.insert(Import {
                    from: name.clone(),
                    to,
                    name: path.segments.join("::"),
                    in_test: path.in_test || file.is_test,
                });
            }
        }
        imports.into_iter().collect()
    }

    /// All paths into the crate that a file names, but for its re-exports.
    fn paths(&self, name: &str) -> Vec<CratePath> {
        let file = &self.files[name];
        let children = self.children(name);
        let mut paths = Vec::new();
        let mut at = 0;
        let mut is_re_export = false;
        while at < file.tokens.len() {
            let token = &file.tokens[at];
            match token.text.as_str() {
                "use" => is_re_export = is_public_use(&file.tokens, at),
                ";" => is_re_export = false,
                _ => {}
            }
            let starts_a_path = !is_re_export && (at == 0 || file.tokens[at - 1].text != "::");
            match self.root_of(name, &children, at).filter(|_| starts_a_path) {
                Some((root, next)) => {
                    let mut found = Vec::new();
                    at = use_tree(&file.tokens, next, &root, &mut found);
                    let in_test = token.in_test;
                    paths.extend(found.into_iter().map(|segments| CratePath { segments, in_test }));
                }
                None => at += 1,
            }
        }
        paths
    }

    /// If a path into the crate begins at token `at`: the module that it begins in, and the first
    /// token of the rest.
    fn root_of(&self, name: &str, children: &[String], at: usize) -> Option<(Vec<String>, usize)> {
        let file = &self.files[name];
        let text = |at: usize| file.tokens.get(at).map_or("", |token| token.text.as_str());
        if text(at + 1) != "::" {
            return None;
        }
        match text(at) {
            "crate" => Some((Vec::new(), at + 2)),
            "super" => {
                // An inline test module is one level below its file.
                let inline = file.tokens[at].in_test && !file.is_test;
                let mut module = file.module.clone();
                if !inline {
                    module.pop();
                }
                let mut next = at + 2;
                while text(next) == "super" {
                    module.pop();
                    next += 2;
                }
                Some((module, next))
            }
            child if children.iter().any(|name| name == child) => {
                let mut module = file.module.clone();
                module.push(child.to_owned());
                Some((module, at + 2))
            }
            _ => None,
        }
    }

    /// The file that defines what a path names: the deepest module on the path, or where that
    /// module re-exports the name from.
    fn definition(&self, path: &[String], depth: usize) -> Option<String> {
        let (file, rest) = (0..=path.len())
            .rev()
            .find_map(|length| Some((self.file_of(&path[..length])?, &path[length..])))?;
        let Some(item) = rest.first().filter(|_| depth < 8) else { return Some(file) };
        match self.re_exports(&file).remove(item) {
            Some(target) if target != path => self.definition(&target, depth + 1),
            _ => Some(file),
        }
    }

    fn file_of(&self, module: &[String]) -> Option<String> {
        let path = module.join("/");
        let names = match module.is_empty() {
            true => vec!["lib.rs".to_owned()],
            false => vec![format!("{path}.rs"), format!("{path}/mod.rs")],
        };
        names.into_iter().find(|name| self.files.contains_key(name))
    }

    /// What a file re-exports: the name that it gives to a path of the crate.
    fn re_exports(&self, name: &str) -> BTreeMap<String, Vec<String>> {
        let file = &self.files[name];
        let children = self.children(name);
        let mut exports = BTreeMap::new();
        for at in 0..file.tokens.len() {
            if file.tokens[at].text != "use" || !is_public_use(&file.tokens, at) {
                continue;
            }
            let Some((root, next)) = self.root_of(name, &children, at + 1) else { continue };
            let mut found = Vec::new();
            use_tree(&file.tokens, next, &root, &mut found);
            exports.extend(found.into_iter().filter_map(|p| Some((p.last()?.clone(), p))));
        }
        exports
    }
}

struct CratePath {
    segments: Vec<String>,
    in_test: bool,
}

/// Whether the `use` at a token re-exports what it names.
fn is_public_use(tokens: &[Token], at: usize) -> bool {
    at > 0 && (tokens[at - 1].text == "pub" || tokens[at - 1].text == ")")
}

/// Adds the paths of the use tree that begins at a token; answers the token after it.
fn use_tree(
    tokens: &[Token],
    mut at: usize,
    prefix: &[String],
    found: &mut Vec<Vec<String>>,
) -> usize {
    let mut path = prefix.to_vec();
    let text = |at: usize| tokens.get(at).map_or("", |token| token.text.as_str());
    loop {
        match text(at) {
            "{" => {
                at += 1;
                while !matches!(text(at), "}" | "") {
                    let next = use_tree(tokens, at, &path, found);
                    at = if next == at { at + 1 } else { next };
                    if text(at) == "as" {
                        at += 2;
                    }
                    if text(at) == "," {
                        at += 1;
                    }
                }
                return at + 1;
            }
            "self" => at += 1,
            word if is_word(word) => {
                path.push(word.to_owned());
                at += 1;
            }
            // A glob names the module itself.
            "*" => at += 1,
            _ => break,
        }
        if text(at) != "::" {
            break;
        }
        at += 1;
    }
    found.push(path);
    at
}

fn is_word(text: &str) -> bool {
    text.starts_with(|first: char| first.is_alphabetic() || first == '_')
}

/// The module path of a file below `src`.
fn module_of(file: &str) -> Vec<String> {
    let path = file.trim_end_matches(".rs");
    let path = path.strip_suffix("/mod").unwrap_or(path);
    let parts = path.split('/').map(str::to_owned);
    if path == "lib" { Vec::new() } else { parts.collect() }
}

fn collect(folder: &Path, prefix: &str, texts: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.path().is_dir() {
            collect(&entry.path(), &format!("{name}/"), texts);
        } else if name.ends_with(".rs") {
            texts.push((name, fs::read_to_string(entry.path()).unwrap()));
        }
    }
}

/// Words and signs of Rust source text, without comments and literals.
fn tokens(source: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = source;
    while let Some(first) = rest.chars().next() {
        let length = if let Some(length) = comment_or_literal(rest) {
            length
        } else if first.is_alphabetic() || first == '_' {
            let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            tokens.push(Token { text: rest[..end].to_owned(), in_test: false });
            end
        } else if rest.starts_with("::") {
            tokens.push(Token { text: "::".to_owned(), in_test: false });
            2
        } else {
            if !first.is_whitespace() {
                tokens.push(Token { text: first.to_string(), in_test: false });
            }
            first.len_utf8()
        };
        rest = &rest[length..];
    }
    mark_test_code(&mut tokens);
    tokens
}

/// The length of the comment or of the text or character literal that begins here, if one does.
fn comment_or_literal(rest: &str) -> Option<usize> {
    let to = |end: Option<usize>| Some(end.unwrap_or(rest.len()));
    if rest.starts_with("//") {
        return to(rest.find('\n'));
    }
    if rest.starts_with("/*") {
        return to(rest.find("*/").map(|at| at + 2));
    }
    let raw = rest.strip_prefix("br").or_else(|| rest.strip_prefix('r'));
    if let Some(raw) = raw {
        let hashes = raw.len() - raw.trim_start_matches('#').len();
        if raw[hashes..].starts_with('"') {
            let end = format!("\"{}", "#".repeat(hashes));
            let begin = rest.len() - raw.len() + hashes + 1;
            return to(rest[begin..].find(&end).map(|at| begin + at + end.len()));
        }
    }
    let quoted = rest.strip_prefix('b').unwrap_or(rest);
    let begin = rest.len() - quoted.len() + 1;
    if quoted.starts_with('"') {
        return to(end_of_quoted(rest, begin, '"'));
    }
    // A lifetime has no second quote after one character.
    let mut letters = quoted.chars();
    match (letters.next(), letters.next(), letters.next()) {
        (Some('\''), Some('\\'), _) => to(end_of_quoted(rest, begin, '\'')),
        (Some('\''), Some(letter), Some('\'')) => Some(begin + letter.len_utf8() + 1),
        _ => None,
    }
}

fn end_of_quoted(rest: &str, begin: usize, quote: char) -> Option<usize> {
    let mut escaped = false;
    for (at, letter) in rest[begin..].char_indices() {
        match letter {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            letter if letter == quote => return Some(begin + at + 1),
            _ => {}
        }
    }
    None
}

/// Marks what `#[cfg(test)]` stands before: up to the end of its block, or to its semicolon.
fn mark_test_code(tokens: &mut [Token]) {
    let attribute = ["#", "[", "cfg", "(", "test", ")", "]"];
    let mut at = 0;
    while at < tokens.len() {
        let texts = tokens[at..].iter().take(attribute.len()).map(|token| token.text.as_str());
        if !texts.eq(attribute) {
            at += 1;
            continue;
        }
        let mut depth = 0;
        for token in &mut tokens[at + attribute.len()..] {
            token.in_test = true;
            at += 1;
            match token.text.as_str() {
                "{" | "(" | "[" => depth += 1,
                "}" | ")" | "]" => depth -= 1,
                _ => {}
            }
            if depth == 0 && matches!(token.text.as_str(), "}" | ";") {
                break;
            }
        }
        at += attribute.len();
    }
}

/// The documents of the repository, and the files that contain commands.
const DOCUMENTS: &[&str] = &["README.md", "docs", "tests/sql/README.md", ".ci", "benches/run"];

#[test]
fn documents_name_files_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut missing = Vec::new();
    for document in DOCUMENTS {
        for_each_file(&root.join(document), &mut |file, text| {
            let separators = |c: char| !(c.is_alphanumeric() || "_/.-".contains(c));
            let names = text.split(separators).map(|name| name.trim_end_matches(['.', '-']));
            let ours = names.filter(|name| {
                ["src/", "tests/", "benches/"].iter().any(|folder| name.starts_with(folder))
            });
            let gone = ours.filter(|name| !root.join(name).exists() && !name.contains("/corpus"));
            missing.extend(gone.map(|name| format!("{} names {name}", file.display())));
        });
    }
    assert!(missing.is_empty(), "these files do not exist:\n{}", missing.join("\n"));
}

/// Calls `visit` with the path and the text of a file, or of every file below a folder.
fn for_each_file(path: &Path, visit: &mut impl FnMut(&Path, &str)) {
    if !path.is_dir() {
        return visit(path, &fs::read_to_string(path).unwrap());
    }
    for entry in fs::read_dir(path).unwrap() {
        for_each_file(&entry.unwrap().path(), visit);
    }
}
