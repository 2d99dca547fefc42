//! The rooms and the arrows between them (src/ARCHITECTURE.md): imports go one way only, and a few things are named in
//! one room only. Tests inside `src/` obey the same rules.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics with the reason")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Who may import whom. Every room may also import `base` and `sys`, and itself.
const ARROWS: &[(&str, &[&str])] = &[
    ("base", &[]),
    ("sys", &[]),
    ("record", &[]),
    ("config", &[]),
    ("backing", &[]),
    ("journal", &["record"]),
    ("wire", &["record"]),
    ("snapshot", &["record", "backing"]),
    ("catchup", &["record", "backing"]),
    ("stack", &["backing", "record", "journal", "snapshot"]),
    ("applier", &["record", "backing", "snapshot"]),
    ("sender", &["journal", "catchup", "record", "wire"]),
    ("receiver", &["wire", "record", "applier", "journal"]),
    ("fuse", &["stack"]),
    ("control", &["config"]),
    (
        "daemon",
        &[
            "record", "config", "backing", "journal", "wire", "snapshot", "catchup", "stack", "applier", "sender",
            "receiver", "fuse", "control",
        ],
    ),
    ("menu", &["control", "config"]),
    ("cli", &["control", "config", "menu"]),
];

/// A word that only some places may use, and why.
struct Reserved {
    word: &'static str,
    /// Rooms, folders of a room or single files, relative to `src/`.
    places: &'static [&'static str],
    why: &'static str,
}

const RESERVED: &[Reserved] = &[
    Reserved { word: "fuser", places: &["fuse"], why: "only the kernel door knows the FUSE library" },
    Reserved { word: "unsafe", places: &["sys"], why: "unsafe code is kept where it can be read in one sitting" },
    // `base/database.rs` opens both databases with the settings that durability rests on, once for the two rooms.
    Reserved {
        word: "rusqlite",
        places: &["journal", "applier", "base/database.rs"],
        why: "no SQL outside the journal and the catalog",
    },
    Reserved {
        word: ".mutate(",
        places: &["stack/mutation.rs", "applier", "backing"],
        why: "a change of a tree without its record would be lost",
    },
];

/// Every breach below `src`, as "file:line: what".
fn breaches(src: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for file in rust_files(src) {
        let relative = file.strip_prefix(src).expect("a file below it").to_owned();
        let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let code = without_comments_and_strings(&text);
        let mut say = |at: usize, what: String| {
            let line = code[..at].matches('\n').count() + 1;
            found.push(format!("{}:{line}: {what}", relative.display()));
        };
        check_arrows(&relative, &code, &mut say);
        check_reserved(&relative, &code, &mut say);
    }
    found
}

fn check_arrows(file: &Path, code: &str, say: &mut dyn FnMut(usize, String)) {
    let room = room_of(file);
    // lib.rs and main.rs compose; they belong to no room.
    if file.components().count() == 1 && matches!(room.as_str(), "lib" | "main") {
        return;
    }
    let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| *name == room) else {
        return say(0, format!("room `{room}` is not in the table of arrows"));
    };
    for (at, target) in imports(code) {
        let common = matches!(target.as_str(), "base" | "sys");
        if !common && target != room && !allowed.contains(&target.as_str()) {
            say(at, format!("`{room}` must not import `{target}`"));
        }
    }
    if room == "base" {
        for (at, _) in imports(code).into_iter().filter(|(_, target)| target != "base") {
            say(at, "`base` imports no other room".to_owned());
        }
    }
}

fn check_reserved(file: &Path, code: &str, say: &mut dyn FnMut(usize, String)) {
    for rule in RESERVED {
        let allowed =
            rule.places.iter().any(|place| file.starts_with(place) || file == Path::new(&format!("{place}.rs")));
        if allowed {
            continue;
        }
        for at in words(code, rule.word) {
            say(at, format!("`{}` is only for {}: {}", rule.word, rule.places.join(", "), rule.why));
        }
    }
}

/// `record/mod.rs` and `record.rs` are both room `record`.
fn room_of(file: &Path) -> String {
    let first = file.components().next().expect("a relative path").as_os_str().to_string_lossy().into_owned();
    first.strip_suffix(".rs").unwrap_or(&first).to_owned()
}

/// The rooms named by `crate::room` and `crate::{room, room::x}`, with the place of each.
fn imports(code: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for prefix in ["crate::", "dtfs::"] {
        for at in words(code, prefix) {
            let rest = &code[at + prefix.len()..];
            match rest.trim_start().strip_prefix('{') {
                Some(group) => found.extend(heads(group).into_iter().map(|name| (at, name))),
                None => found.push((at, identifier(rest.trim_start()))),
            }
        }
    }
    // Macros and items of the crate's root are no rooms.
    found.retain(|(_, name)| !name.is_empty() && name.chars().all(|c| c.is_lowercase() || c == '_'));
    found
}

/// The first identifier of each element of a `use` group, whose opening brace was read.
fn heads(group: &str) -> Vec<String> {
    let mut depth = 1;
    let mut end = group.len();
    let mut starts = vec![0];
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => starts.push(at + 1),
            _ => {}
        }
        if depth == 0 {
            end = at;
            break;
        }
    }
    starts.into_iter().map(|start| identifier(group[start.min(end)..end].trim_start())).collect()
}

fn identifier(text: &str) -> String {
    text.chars().take_while(|c| is_word(*c)).collect()
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Where `word` stands as a word of its own.
fn words(code: &str, word: &str) -> Vec<usize> {
    let edge = |c: Option<char>| c.is_none_or(|c| !is_word(c));
    let open_start = !word.starts_with(is_word);
    let open_end = !word.ends_with(is_word);
    let whole = |at: usize| {
        (open_start || edge(code[..at].chars().next_back()))
            && (open_end || edge(code[at + word.len()..].chars().next()))
    };
    code.match_indices(word).map(|(at, _)| at).filter(|at| whole(*at)).collect()
}

/// The code with every comment, string and character literal blanked; newlines and offsets stay.
fn without_comments_and_strings(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut code = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = match literal_or_comment(&bytes[at..], at > 0 && is_word(bytes[at - 1] as char)) {
            0 => {
                at += 1;
                continue;
            }
            len => at + len,
        };
        code[at..end].iter_mut().filter(|b| **b != b'\n').for_each(|b| *b = b' ');
        at = end;
    }
    String::from_utf8(code).expect("whole characters were blanked")
}

/// Length of the comment or literal that `rest` begins with, or 0.
fn literal_or_comment(rest: &[u8], inside_word: bool) -> usize {
    let until = |from: usize, end: &[u8]| {
        let found = rest[from.min(rest.len())..].windows(end.len()).position(|w| w == end);
        found.map_or(rest.len(), |at| from + at + end.len())
    };
    match rest {
        [b'/', b'/', ..] => until(2, b"\n"),
        [b'/', b'*', ..] => until(2, b"*/"),
        [b'"', ..] => quoted(rest),
        [b'r', b'#' | b'"', ..] if !inside_word => {
            let hashes = rest[1..].iter().take_while(|b| **b == b'#').count();
            match rest.get(1 + hashes) {
                Some(b'"') => until(2 + hashes, &[b"\"".as_slice(), &b"#".repeat(hashes)].concat()),
                _ => 0,
            }
        }
        // A character; anything else after a quote is a lifetime.
        [b'\'', b'\\', ..] => until(3, b"'"),
        [b'\'', _, b'\'', ..] => 3,
        _ => 0,
    }
}

fn quoted(rest: &[u8]) -> usize {
    let mut at = 1;
    while at < rest.len() {
        match rest[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

fn rust_files(dir: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display())) {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.insert(path);
        }
    }
    found
}

fn in_repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

#[test]
fn imports_go_one_way() {
    let src = in_repository("src");
    assert!(rust_files(&src).len() > 10, "the sources were not found");
    let found = breaches(&src);
    assert!(found.is_empty(), "{} breaches:\n{}", found.len(), found.join("\n"));
}

#[test]
fn the_checker_sees_every_kind_of_breach() {
    let found = breaches(&in_repository("tests/fixtures/rooms_bad"));
    let expected = [
        "journal/mod.rs:6: `journal` must not import `sender`",
        "journal/mod.rs:8: `journal` must not import `sender`",
        "record/mod.rs:3: `record` must not import `journal`",
        "record/mod.rs:4: `record` must not import `sender`",
        "stack/write.rs:3: `fuser` is only for fuse",
        "stack/write.rs:8: `unsafe` is only for sys",
        "stack/write.rs:4: `rusqlite` is only for journal, applier, base/database.rs",
        "stack/write.rs:7: `.mutate(` is only for stack/mutation.rs, applier, backing",
    ];
    assert_eq!(found.len(), expected.len(), "{}", found.join("\n"));
    for (breach, start) in found.iter().zip(expected) {
        assert!(breach.starts_with(start), "found:    {breach}\nexpected: {start}");
    }
}

#[test]
fn literals_and_comments_are_no_code() {
    let text =
        "let a = \"crate::x\"; // crate::y\nlet b = r#\"\"crate::z\"\"#; let c = '\"'; let d: &'a str = crate::w::V;";
    let code = without_comments_and_strings(text);
    assert_eq!(code.len(), text.len());
    assert_eq!(imports(&code).into_iter().map(|(_, name)| name).collect::<Vec<_>>(), ["w"]);
}

/// The table of broken builds names tests that are there.
#[test]
fn every_rig_that_the_architecture_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("src/ARCHITECTURE.md")).unwrap();
    let table = text.split("## Which rig sees which broken build").nth(1).unwrap().split("\n## ").next().unwrap();
    let named: Vec<&str> = table.split('`').filter(|word| word.contains("::")).collect();
    assert!(named.len() > 12, "{named:?}");
    for name in named {
        let (program, test) = name.rsplit_once("::").unwrap();
        let program = program.replace("::", "/");
        let source = fs::read_to_string(root.join(format!("tests/{program}.rs"))).unwrap();
        assert!(source.contains(&format!("fn {test}(")), "there is no {name}");
    }
}
