//! Which paths of a tree are replicated: include and exclude rules as rsync(1) has them.
//!
//! A rule is `+ PATTERN` or `- PATTERN`. A path is held against the rules in their order and the first that matches decides;
//! one that none matches is included. What is below an excluded directory is excluded whatever the rules say of it, for
//! rsync does not look there. Patterns are rsync's ("PATTERN MATCHING RULES" in its manual, `exclude.c`, `wildmatch.c`):
//!
//! - `/` at the front ties the pattern to the root of the volume, `/` at the end to directories.
//! - Without a `/` inside and without `**` it is held against the last component, with one against as many of the last
//!   components as it has, with `**` against every tail of the path.
//! - `*` is any number of bytes but `/`, `**` any number of bytes, `?` one byte but `/`, `[...]` one of a set. `\` takes
//!   away the meaning of the next byte, in a pattern that has a wildcard. `dir/***` is the directory and all in it.
//!
//! Not here: merge files, per-directory rules, modifiers and every other kind of rsync's rules.

/// Rules in their order; none includes everything.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Rules {
    rules: Vec<Rule>,
}

/// A rule that cannot be understood.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("\"{rule}\" is not a rule: {why}")]
pub struct RuleProblem {
    rule: String,
    why: &'static str,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Sign {
    Include,
    Exclude,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Rule {
    text: String,
    sign: Sign,
    pattern: Pattern,
}

impl Rules {
    /// Reads one rule a line.
    ///
    /// # Errors
    /// The first that is none.
    pub fn parse<'a>(lines: impl IntoIterator<Item = &'a str>) -> Result<Rules, RuleProblem> {
        Ok(Rules { rules: lines.into_iter().map(Rule::parse).collect::<Result<_, _>>()? })
    }

    /// Whether everything is included.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Each as it was written, in order.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        self.rules.iter().map(|rule| &rule.text[..])
    }

    /// As they were read, one a line.
    pub fn to_text(&self) -> String {
        self.texts().map(|text| format!("{text}\n")).collect()
    }

    /// Whether `path`, from the volume's root on without a `/` in front, is excluded, when no directory above it is.
    pub fn excludes(&self, path: &[u8], is_dir: bool) -> bool {
        let first = self.rules.iter().find(|rule| rule.pattern.matches(path, is_dir));
        first.is_some_and(|rule| rule.sign == Sign::Exclude)
    }

    /// Whether `path` or any directory above it is excluded.
    pub fn excludes_at_any_level(&self, path: &[u8], is_dir: bool) -> bool {
        let above = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| &path[..at]);
        !self.is_empty()
            && !path.is_empty()
            && (above.into_iter().any(|dir| self.excludes(dir, true)) || self.excludes(path, is_dir))
    }

    /// Whether the rules may say different things of what is below a directory when its path is `a` and when it is `b`. May be
    /// true although they do not.
    pub fn may_differ_below(&self, a: &[u8], b: &[u8]) -> bool {
        self.rules.iter().any(|rule| rule.pattern.depends_on(a) || rule.pattern.depends_on(b))
    }
}

impl Rule {
    fn parse(text: &str) -> Result<Rule, RuleProblem> {
        let problem = |why| RuleProblem { rule: text.escape_debug().to_string(), why };
        let sign = match text.get(..2) {
            Some("+ ") => Sign::Include,
            Some("- ") => Sign::Exclude,
            _ => return Err(problem("it begins with \"+ \" or \"- \", and a pattern follows")),
        };
        let pattern = Pattern::parse(&text.as_bytes()[2..]).map_err(problem)?;
        Ok(Rule { text: text.to_owned(), sign, pattern })
    }
}

/// How much of a path a pattern is held against.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Against {
    /// The last components, so many.
    Last(usize),
    /// All of it, from the root on.
    Whole,
    /// All of it with a `/` in front.
    WholeFromSlash,
    /// All of it, and what is left of it behind each `/`.
    EveryTail,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Pattern {
    tokens: Vec<Token>,
    against: Against,
    only_dirs: bool,
    /// `***` at the end: a directory counts as if a `/` were behind it.
    with_the_dir: bool,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Token {
    Byte(u8),
    /// `?`, and a set: which bytes it takes. Never `/`.
    Set(Box<[bool; 256]>),
    /// `*`
    Star,
    /// `**`
    DoubleStar,
}

impl Pattern {
    fn parse(text: &[u8]) -> Result<Pattern, &'static str> {
        let (text, only_dirs) = match text {
            [b'/'] | [] => return Err("its pattern is empty"),
            [front @ .., b'/'] => (front, true),
            _ => (text, false),
        };
        if text.contains(&0) {
            return Err("its pattern has a NUL byte");
        }
        let slashes = text.iter().filter(|byte| **byte == b'/').count();
        let wild = text.iter().any(|byte| b"*[?".contains(byte));
        let double = text.windows(2).position(|pair| pair == b"**");
        let (body, anchored) = text.strip_prefix(b"/").map_or((text, false), |body| (body, true));
        let against = match (anchored, double) {
            (false, None) => Against::Last(slashes + 1),
            (false, Some(0)) => Against::WholeFromSlash,
            (false, Some(_)) => Against::EveryTail,
            (true, _) => Against::Whole,
        };
        let tokens = if wild { tokens(body)? } else { body.iter().copied().map(Token::Byte).collect() };
        Ok(Pattern { tokens, against, only_dirs, with_the_dir: text.ends_with(b"***") })
    }

    fn matches(&self, path: &[u8], is_dir: bool) -> bool {
        if self.only_dirs && !is_dir {
            return false;
        }
        let end: &[u8] = if self.with_the_dir && is_dir { b"/" } else { b"" };
        match self.against {
            Against::Last(count) => match last_components(path, count) {
                Some(tail) => self.fits(&[tail]),
                None => false,
            },
            Against::Whole => self.fits(&[path, end]),
            Against::WholeFromSlash => self.fits(&[b"/", path, end]),
            Against::EveryTail => {
                let tails = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| &path[at + 1..]);
                std::iter::once(path).chain(tails).any(|tail| self.fits(&[tail, end]))
            }
        }
    }

    /// Whether the pattern fits all of the text. Every place in the pattern that the text so far can have led to is
    /// followed at once, so that no pattern takes long.
    fn fits(&self, text: &[&[u8]]) -> bool {
        let mut here = vec![false; self.tokens.len() + 1];
        here[0] = true;
        self.pass_stars(&mut here);
        for byte in text.iter().flat_map(|part| part.iter().copied()) {
            let mut next = vec![false; here.len()];
            for (at, token) in self.tokens.iter().enumerate().filter(|(at, _)| here[*at]) {
                match token {
                    Token::Byte(wanted) => next[at + 1] |= *wanted == byte,
                    Token::Set(set) => next[at + 1] |= set[usize::from(byte)],
                    Token::Star => next[at] |= byte != b'/',
                    Token::DoubleStar => next[at] = true,
                }
            }
            here = next;
            self.pass_stars(&mut here);
        }
        here[self.tokens.len()]
    }

    fn pass_stars(&self, here: &mut [bool]) {
        for (at, token) in self.tokens.iter().enumerate() {
            here[at + 1] |= here[at] && matches!(token, Token::Star | Token::DoubleStar);
        }
    }

    /// Whether what it says of a path below the directory `dir` may have to do with `dir`.
    fn depends_on(&self, dir: &[u8]) -> bool {
        match self.against {
            Against::Last(count) => count > 1,
            Against::WholeFromSlash | Against::EveryTail => true,
            Against::Whole => {
                let head: Vec<u8> = self.tokens.iter().map_while(literal).collect();
                let common = head.len().min(dir.len());
                head[..common] == dir[..common]
            }
        }
    }
}

fn literal(token: &Token) -> Option<u8> {
    match token {
        Token::Byte(byte) => Some(*byte),
        _ => None,
    }
}

/// The last `count` components of the path; `None` when it has fewer.
fn last_components(path: &[u8], count: usize) -> Option<&[u8]> {
    let mut slashes = path.iter().enumerate().rev().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
    match slashes.nth(count - 1) {
        Some(at) => Some(&path[at + 1..]),
        None => (path.iter().filter(|byte| **byte == b'/').count() + 1 == count).then_some(path),
    }
}

fn tokens(mut text: &[u8]) -> Result<Vec<Token>, &'static str> {
    let mut tokens = Vec::new();
    while let Some((byte, rest)) = text.split_first() {
        text = rest;
        tokens.push(match byte {
            b'*' => {
                let more = text.iter().take_while(|byte| **byte == b'*').count();
                text = &text[more..];
                if more > 0 { Token::DoubleStar } else { Token::Star }
            }
            b'?' => Token::Set(Box::new(std::array::from_fn(|byte| byte != usize::from(b'/')))),
            b'[' => {
                let (set, rest) = set(text).ok_or("a [ in its pattern has no ]")?;
                text = rest;
                Token::Set(set)
            }
            b'\\' => {
                let (byte, rest) = text.split_first().ok_or("its pattern ends with a \\")?;
                text = rest;
                Token::Byte(*byte)
            }
            byte => Token::Byte(*byte),
        });
    }
    Ok(tokens)
}

/// A set, behind its `[`: what it takes, and what follows it.
fn set(text: &[u8]) -> Option<(Box<[bool; 256]>, &[u8])> {
    let (negated, mut text) = match text {
        [b'!' | b'^', rest @ ..] => (true, rest),
        _ => (false, text),
    };
    let mut set = Box::new([false; 256]);
    let mut before: Option<u8> = None;
    let mut first = true;
    loop {
        let (&byte, rest) = text.split_first()?;
        if byte == b']' && !first {
            text = rest;
            break;
        }
        first = false;
        before = match (byte, before, rest) {
            (b'\\', _, [taken, rest @ ..]) => {
                text = rest;
                set[usize::from(*taken)] = true;
                Some(*taken)
            }
            (b'-', Some(from), [to, after @ ..]) if *to != b']' => {
                let (to, after) = if *to == b'\\' { after.split_first()? } else { (to, after) };
                text = after;
                (usize::from(from)..=usize::from(*to)).for_each(|byte| set[byte] = true);
                None
            }
            (b'[', _, [b':', class @ ..]) if let Some((members, rest)) = named_class(class) => {
                text = rest;
                (0..=255u8).filter(members).for_each(|byte| set[usize::from(byte)] = true);
                None
            }
            _ => {
                text = rest;
                set[usize::from(byte)] = true;
                Some(byte)
            }
        };
    }
    if negated {
        set.iter_mut().for_each(|taken| *taken = !*taken);
    }
    set[usize::from(b'/')] = false;
    Some((set, text))
}

/// Whether a byte is in a class.
type Members = fn(&u8) -> bool;

/// `alpha:]` and its like, behind `[:`.
fn named_class(text: &[u8]) -> Option<(Members, &[u8])> {
    let end = text.iter().position(|byte| *byte == b']')?;
    let members: Members = match &text[..end] {
        b"alnum:" => u8::is_ascii_alphanumeric,
        b"alpha:" => u8::is_ascii_alphabetic,
        b"blank:" => |byte| matches!(byte, b' ' | b'\t'),
        b"cntrl:" => u8::is_ascii_control,
        b"digit:" => u8::is_ascii_digit,
        b"graph:" => u8::is_ascii_graphic,
        b"lower:" => u8::is_ascii_lowercase,
        b"print:" => |byte| byte.is_ascii_graphic() || *byte == b' ',
        b"punct:" => u8::is_ascii_punctuation,
        b"space:" => |byte| byte.is_ascii_whitespace() || *byte == 0x0b,
        b"upper:" => u8::is_ascii_uppercase,
        b"xdigit:" => u8::is_ascii_hexdigit,
        _ => return None,
    };
    Some((members, &text[end + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn excluded(rules: &[&str], path: &str, is_dir: bool) -> bool {
        Rules::parse(rules.iter().copied()).unwrap().excludes_at_any_level(path.as_bytes(), is_dir)
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let rules = ["+ keep.tmp", "- *.tmp", "- /cache/", "+ /logs/", "+ /logs/*.log", "- /logs/*"];
        let cases = [
            ("a/b.tmp", false, true),
            ("a/keep.tmp", false, false),
            ("cache", true, true),
            ("cache", false, false),
            ("cache/deep/keep.tmp", false, true),
            ("a/cache", true, false),
            ("logs/x.log", false, false),
            ("logs/x.gz", false, true),
            ("", true, false),
        ];
        for (path, is_dir, expected) in cases {
            assert_eq!(excluded(&rules, path, is_dir), expected, "{path}");
        }
    }

    #[test]
    fn what_is_no_rule_is_refused() {
        for bad in ["", "*.tmp", "-*.tmp", "- ", "- /", "! x", "- [a", "- a*\\", "merge x", "P x"] {
            assert!(Rules::parse([bad]).is_err(), "{bad}");
        }
        assert!(Rules::parse(["- \\", "- a]"]).is_ok());
    }

    #[test]
    fn a_move_matters_below_it_where_a_rule_names_the_way() {
        let differ =
            |rule: &str, a: &str, b: &str| Rules::parse([rule]).unwrap().may_differ_below(a.as_bytes(), b.as_bytes());
        assert!(!differ("- *.tmp", "a", "b"));
        assert!(!differ("- x/", "a", "b"));
        assert!(differ("- /b/*.o", "a", "b"));
        assert!(differ("- /b/c/d", "a", "b/c"));
        assert!(!differ("- /c/*.o", "a", "b"));
        assert!(differ("- x/y", "a", "b"));
        assert!(differ("- **/y", "a", "b"));
    }
}
