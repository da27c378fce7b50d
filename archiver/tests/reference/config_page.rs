//! `docs/reference/config.md` from the sources of `archiver/src/config.rs` and `config/component.rs`:
//! their structs are the sections, their doc comments the meanings.

use std::collections::HashMap;
use std::fmt::Write as _;

const HEAD: &str = "\
# Configuration file

<!-- Generated from archiver/src/config.rs and archiver/src/config/component.rs. To write it again:
     PGARK_BLESS=1 cargo test -p pgark-archiver --test reference -->

TOML. The file is `--config`, else `PGARK_CONFIG`, else `/etc/pgark/pgark.toml`. An unknown key or section is an error (code
`config_invalid`). `pgark config check` reads the file and does nothing else. It must name at least one required repository.

Names of clusters, components, groups and repositories consist of letters, digits, `_` and `-`, at most 64. Compression levels lie between -7 and 19.
archive-push, archive-get, init, info, wal, verify and restore need the sections `[repository.<name>]` alone; a cluster that is not
named is called `main`.
";

/// A key of a section.
struct Key {
    name: String,
    type_: String,
    default: String,
    meaning: String,
}

/// The page.
pub(super) fn render(source: &str) -> String {
    let (enums, functions) = (enums(source), functions(source));
    let mut page = HEAD.to_owned();
    let mut count = 0;
    for block in source.split("\npub struct ").skip(1) {
        let name = block.split(' ').next().unwrap();
        // The file as a whole; a section that is put together of its keys and the driver's.
        if matches!(name, "Config" | "Component") {
            continue;
        }
        let body = block.split("\n}\n").next().unwrap();
        let doc = source
            .split(&format!("\npub struct {name} "))
            .next()
            .unwrap();
        let section = doc
            .rsplit("/// `[")
            .next()
            .and_then(|rest| rest.split("]`").next())
            .unwrap();
        let defaults = default_impl(source, name);
        let derived = doc.rsplit("#[derive(").next().unwrap().contains("Default");
        let _ = write!(
            page,
            "\n## [{section}]\n\n| key | type | default | meaning |\n|---|---|---|---|\n"
        );
        for key in keys(body, &enums, &functions, &defaults, derived) {
            count += 1;
            let Key {
                name,
                type_,
                default,
                meaning,
            } = key;
            let _ = writeln!(page, "| `{name}` | {type_} | {default} | {meaning} |");
        }
    }
    assert!(count >= 20, "only {count} keys found in config.rs");
    page
}

fn keys(
    body: &str,
    enums: &HashMap<String, String>,
    functions: &HashMap<String, String>,
    defaults: &HashMap<String, String>,
    derived: bool,
) -> Vec<Key> {
    let (mut keys, mut doc, mut attribute) = (Vec::new(), Vec::new(), None);
    for line in body.lines().map(str::trim) {
        if let Some(text) = line.strip_prefix("/// ") {
            doc.push(text);
        } else if let Some(serde) = line.strip_prefix("#[serde(") {
            attribute = Some(serde.trim_end_matches(")]"));
        } else if let Some((name, type_)) = line
            .strip_prefix("pub ")
            .and_then(|field| field.trim_end_matches(',').split_once(": "))
        {
            let default = match (attribute.take(), defaults.get(name)) {
                (_, Some(value)) => format!("`{value}`"),
                (Some("default"), _) if type_.starts_with("Vec<") => "`[]`".to_owned(),
                (Some("default"), _) => "`\"\"`".to_owned(),
                (Some(serde), _) => {
                    let function = serde.split('"').nth(1).unwrap();
                    format!("`{}`", functions[function])
                }
                (None, None) if derived => "`0`".to_owned(),
                (None, None) if type_.starts_with("Option<") => String::new(),
                (None, None) => "required".to_owned(),
            };
            keys.push(Key {
                name: name.to_owned(),
                type_: type_name(type_, enums),
                default,
                meaning: doc.join(" "),
            });
            doc.clear();
        }
    }
    keys
}

fn type_name(type_: &str, enums: &HashMap<String, String>) -> String {
    let inner = type_.trim_start_matches("Option<").trim_end_matches('>');
    match inner {
        "String" => "string".to_owned(),
        "Vec<String" => "strings".to_owned(),
        "Encryption" | "Reconcile" => "section".to_owned(),
        "PathBuf" => "path".to_owned(),
        "bool" => "boolean".to_owned(),
        "i32" | "u16" | "u32" | "u64" | "usize" => "integer".to_owned(),
        other => enums[other].clone(),
    }
}

/// Enumerations, as the words that the file may hold.
fn enums(source: &str) -> HashMap<String, String> {
    let enums = source.split("\npub enum ").skip(1).map(|block| {
        let name = block.split(' ').next().unwrap().to_owned();
        let variants = block.split("\n}").next().unwrap().lines().skip(1);
        let words: Vec<String> = variants
            .map(str::trim)
            .filter(|line| !line.starts_with("//"))
            .map(|line| format!("`\"{}\"`", kebab(line.trim_end_matches(','))))
            .collect();
        (name, words.join(" or "))
    });
    enums.collect()
}

/// `KeyFile` as `key-file`.
fn kebab(name: &str) -> String {
    let mut word = String::new();
    for letter in name.chars() {
        if letter.is_uppercase() && !word.is_empty() {
            word.push('-');
        }
        word.extend(letter.to_lowercase());
    }
    word
}

/// Functions of one line that give a default.
fn functions(source: &str) -> HashMap<String, String> {
    let functions = source.split("\nfn ").skip(1).filter_map(|block| {
        let name = block.split("()").next()?;
        let body = block.lines().nth(1)?;
        Some((name.to_owned(), literal(body)))
    });
    functions.collect()
}

/// The fields of `impl Default for <name>`.
fn default_impl(source: &str, name: &str) -> HashMap<String, String> {
    let Some((_, rest)) = source.split_once(&format!("impl Default for {name} {{")) else {
        return HashMap::new();
    };
    let body = rest.split("\n}\n").next().unwrap();
    let fields = body.lines().filter_map(|line| {
        let (name, value) = line.trim().strip_suffix(',')?.split_once(": ")?;
        Some((name.to_owned(), literal(value)))
    });
    fields.collect()
}

/// A Rust expression as TOML.
fn literal(expression: &str) -> String {
    match expression.split('"').nth(1) {
        Some(text) => format!("\"{text}\""),
        None if expression.trim() == "Vec::new()" => "[]".to_owned(),
        None => match expression.trim().split_once("::") {
            Some((_, variant)) => format!("\"{}\"", variant.to_lowercase()),
            None => expression.trim().to_owned(),
        },
    }
}
