//! Lines of sshd_config(5), taken apart as sshd does it (servconf.c and misc.c).

use std::borrow::Cow;

use super::release::Release;

/// What separates words.
const BLANK: [char; 4] = [' ', '\t', '\r', '\n'];

/// A directive: keyword and arguments, as they stand on one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directive {
    /// The keyword as written; sshd compares keywords without regard to case.
    pub keyword: String,
    /// Arguments, quotes removed.
    pub args: Vec<String>,
    /// Everything behind the keyword as it stands: some keywords take that whole.
    pub rest: String,
}

impl Directive {
    /// Whether this is the keyword `name`, in any case.
    pub fn is(&self, name: &str) -> bool {
        self.keyword.eq_ignore_ascii_case(name)
    }
}

/// Reads one line as the present sshd does; `None` for an empty line, a comment, and a line at which
/// sshd gives up.
pub fn parse_line(line: &str) -> Option<Directive> {
    read_line(line, &Release::LATEST).ok().flatten()
}

/// Reads one line as a release of sshd does; `None` where sshd passes over it.
///
/// # Errors
/// What sshd says of the line before it gives up.
pub fn read_line(line: &str, release: &Release) -> Result<Option<Directive>, &'static str> {
    let line = line.trim_start_matches([' ', '\t', '\r']);
    let line = line.trim_end_matches([' ', '\t', '\r', '\n', '\u{c}']);
    let mut rest = Some(line);
    let Some(mut keyword) = delimited(&mut rest, true) else { return Ok(None) };
    if keyword.is_empty() {
        let Some(next) = delimited(&mut rest, true) else { return Ok(None) };
        keyword = next;
    }
    if keyword.is_empty() || keyword.starts_with('#') {
        return Ok(None);
    }
    let keyword = keyword.into_owned();
    let rest = rest.unwrap_or_default();
    let args = if release.splits_like_a_shell() {
        if rest.is_empty() {
            return Err("no argument after the keyword");
        }
        words(rest)?
    } else {
        // SetEnv alone keeps `=` in its arguments.
        all_delimited(rest, !keyword.eq_ignore_ascii_case("SetEnv"))
    };
    Ok(Some(Directive { keyword, args, rest: rest.to_owned() }))
}

/// The lines of a file as sshd takes them in, each with the number of the line on which it begins
/// (from 1).
///
/// A NUL byte hides the rest of its line, the line's end too, so that the next one is joined to it.
/// Releases before 8.7 take everything from a `#` on for a comment, inside quotes too.
pub fn lines<'t>(
    text: &'t str,
    release: &Release,
) -> impl Iterator<Item = (usize, Cow<'t, str>)> + use<'t> {
    let comments_first = !release.splits_like_a_shell();
    let mut physical = text.split('\n').enumerate();
    std::iter::from_fn(move || {
        let (index, first) = physical.next()?;
        let mut line = Cow::Borrowed(first);
        let mut piece = first;
        while let Some((seen, _)) = piece.split_once('\0') {
            let kept = line.len() - piece.len() + seen.len();
            line.to_mut().truncate(kept);
            let Some((_, next)) = physical.next() else { break };
            let next = next.trim_start_matches([' ', '\t', '\r']);
            line.to_mut().push_str(next);
            piece = next;
        }
        if comments_first && let Some(at) = line.find('#') {
            line.to_mut().truncate(at);
        }
        Some((index + 1, line))
    })
}

/// The next word up to a blank, or one `=`, and what follows it; a double quote groups (misc.c,
/// `strdelim`). `None` at the end, and where a quote is not closed.
pub(super) fn delimited<'t>(rest: &mut Option<&'t str>, at_equals: bool) -> Option<Cow<'t, str>> {
    let text = rest.take()?;
    let ends = |c: char| BLANK.contains(&c) || c == '"' || (at_equals && c == '=');
    let Some((at, end)) = text.char_indices().find(|(_, c)| ends(*c)) else {
        return Some(Cow::Borrowed(text));
    };
    let (word, behind) = (text.get(..at)?, text.get(at + 1..)?);
    if end == '"' {
        let (quoted, behind) = behind.split_once('"')?;
        *rest = Some(behind.trim_start_matches(BLANK));
        return Some(Cow::Owned(format!("{word}{quoted}")));
    }
    let mut behind = behind.trim_start_matches(BLANK);
    if at_equals && end != '=' {
        behind = behind.strip_prefix('=').map_or(behind, |rest| rest.trim_start_matches(BLANK));
    }
    *rest = Some(behind);
    Some(Cow::Borrowed(word))
}

fn all_delimited(text: &str, at_equals: bool) -> Vec<String> {
    let mut rest = Some(text);
    let mut all = Vec::new();
    while let Some(word) = delimited(&mut rest, at_equals).filter(|word| !word.is_empty()) {
        all.push(word.into_owned());
    }
    all
}

/// Words separated by blanks; single and double quotes keep blanks, a backslash escapes a quote, a
/// backslash or a blank, and `#` at the start of a word begins a comment (misc.c, `argv_split`).
fn words(text: &str) -> Result<Vec<String>, &'static str> {
    let mut words = Vec::new();
    let mut chars = text.chars().peekable();
    loop {
        while chars.next_if(|c| is_between(*c)).is_some() {}
        match chars.peek() {
            None | Some('#') => return Ok(words),
            Some(_) => words.push(one_word(&mut chars)?),
        }
    }
}

fn is_between(c: char) -> bool {
    matches!(c, ' ' | '\t')
}

fn one_word(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<String, &'static str> {
    let mut word = String::new();
    let mut quote = None;
    while let Some(c) = chars.next_if(|c| quote.is_some() || !is_between(*c)) {
        match c {
            '\\' => {
                let escaped =
                    |c: &char| matches!(c, '\\' | '"' | '\'') || (quote.is_none() && *c == ' ');
                word.push(chars.next_if(escaped).unwrap_or('\\'));
            }
            '"' | '\'' if quote == Some(c) => quote = None,
            '"' | '\'' if quote.is_none() => quote = Some(c),
            _ => word.push(c),
        }
    }
    if quote.is_some() { Err("a quote is not closed") } else { Ok(word) }
}

/// Splits arguments at blanks as the present sshd does; where a quote is not closed, there are none.
pub fn split_args(text: &str) -> Vec<String> {
    words(text).unwrap_or_default()
}

/// Writes an argument so that sshd reads it back unchanged.
pub fn quote_arg(arg: &str) -> String {
    let special = |c: char| BLANK.contains(&c) || matches!(c, '\u{c}' | '"' | '\'' | '\\');
    let plain = !arg.is_empty() && !arg.starts_with(['#', '=']) && !arg.contains(special);
    if plain {
        return arg.to_owned();
    }
    format!("\"{}\"", arg.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: Release = Release { major: 8, minor: 4, name: String::new() };

    fn read(line: &str, release: &Release) -> Option<(String, Vec<String>)> {
        let directive = read_line(line, release).unwrap()?;
        Some((directive.keyword, directive.args))
    }

    fn expect(release: &Release, line: &str, keyword: &str, args: &[&str]) {
        let args = args.iter().map(|&arg| arg.to_owned()).collect();
        assert_eq!(read(line, release), Some((keyword.to_owned(), args)), "{line}");
    }

    #[test]
    fn lines_that_sshd_accepts() {
        let new = &Release::LATEST;
        for release in [&OLD, new] {
            expect(release, "Port 2222", "Port", &["2222"]);
            expect(release, "\tport=2222\r", "port", &["2222"]);
            expect(release, "Po\"rt\"  2222", "Port", &["2222"]);
            expect(release, "=Port 2222", "Port", &["2222"]);
            assert_eq!(read("  # Port 22", release), None);
            assert_eq!(read("\"Port 22", release), None);
            assert_eq!(read("", release), None);
        }
        expect(new, "Port = 2222 # comment", "Port", &["2222"]);
        expect(new, "AllowGroups a  \"b c\" d#e", "AllowGroups", &["a", "b c", "d#e"]);
        expect(new, r#"Banner "/etc/my \"x\"""#, "Banner", &["/etc/my \"x\""]);
        expect(new, "SetEnv A=1 'B=2 3'", "SetEnv", &["A=1", "B=2 3"]);
        expect(&OLD, "SetEnv A=1 B=2", "SetEnv", &["A=1", "B=2"]);
        expect(&OLD, "AllowUsers a=b 'c d'", "AllowUsers", &["a", "b", "'c", "d'"]);
        assert!(read_line("Port", new).is_err());
        assert!(read_line("Banner 'x", new).is_err());
    }

    #[test]
    fn lines_are_taken_in_as_sshd_does() {
        let all = |text: &str, release: &Release| -> Vec<(usize, String)> {
            lines(text, release).map(|(number, line)| (number, line.into_owned())).collect()
        };
        let expected = |lines: &[(usize, &str)]| -> Vec<(usize, String)> {
            lines.iter().map(|(number, line)| (*number, (*line).to_owned())).collect()
        };
        assert_eq!(all("a\0b\n Port 1\nc", &OLD), expected(&[(1, "aPort 1"), (3, "c")]));
        assert_eq!(all("a\0\0\0", &OLD), expected(&[(1, "a")]));
        assert_eq!(all("a \"#\" b\n", &OLD), expected(&[(1, "a \""), (2, "")]));
        assert_eq!(all("a \"#\" b", &Release::LATEST), expected(&[(1, "a \"#\" b")]));
    }

    proptest::proptest! {
        #[test]
        fn a_quoted_argument_is_read_back(arg in "[ -~]{0,20}") {
            let line = format!("Banner {}", quote_arg(&arg));
            proptest::prop_assert_eq!(parse_line(&line).unwrap().args, vec![arg]);
        }

        #[test]
        fn any_text_is_read_without_panic(text in "(?s).{0,80}|[\0-~]{0,80}", old: bool) {
            let release = if old { &OLD } else { &Release::LATEST };
            for (_, line) in lines(&text, release) {
                let _ = read_line(&line, release);
            }
        }
    }
}
