//! One line of sshd_config(5), taken apart without losing a byte.

/// A directive: keyword and arguments, as they stand on one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directive {
    /// The keyword as written; sshd compares keywords without regard to case.
    pub keyword: String,
    /// Arguments, quotes removed.
    pub args: Vec<String>,
}

impl Directive {
    /// Whether this is the keyword `name`, in any case.
    pub fn is(&self, name: &str) -> bool {
        self.keyword.eq_ignore_ascii_case(name)
    }
}

/// Reads one line; `None` for an empty line or a comment.
///
/// As sshd does: leading blanks are skipped, the keyword ends at a blank or one `=`, arguments
/// are separated by blanks and may be quoted, and `#` at the start of an argument begins a comment.
pub fn parse_line(line: &str) -> Option<Directive> {
    let line = line.trim_matches(is_blank);
    if line.is_empty() || line.starts_with('#') {
        return None;
    }
    let line = line.strip_prefix('"').unwrap_or(line);
    let end = line.find(|c| is_blank(c) || c == '=' || c == '"').unwrap_or(line.len());
    let (keyword, rest) = line.split_at(end);
    let rest = rest.strip_prefix('"').unwrap_or(rest).trim_start_matches(is_blank);
    let rest = rest.strip_prefix('=').unwrap_or(rest);
    Some(Directive { keyword: keyword.to_owned(), args: split_args(rest) })
}

fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\r' | '\n' | '\u{c}')
}

/// Splits arguments at blanks; single and double quotes keep blanks, a backslash escapes a quote,
/// a backslash or a blank.
pub fn split_args(text: &str) -> Vec<String> {
    let mut args = Vec::new();
    let mut chars = text.chars().peekable();
    loop {
        while chars.next_if(|c| is_blank(*c)).is_some() {}
        match chars.peek() {
            None | Some('#') => return args,
            Some(_) => args.push(one_arg(&mut chars)),
        }
    }
}

fn one_arg(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> String {
    let mut arg = String::new();
    let mut quote = None;
    while let Some(&c) = chars.peek() {
        if quote.is_none() && is_blank(c) {
            break;
        }
        chars.next();
        match c {
            '\\' => match chars.peek() {
                Some(&next)
                    if matches!(next, '\\' | '"' | '\'') || (quote.is_none() && next == ' ') =>
                {
                    arg.push(next);
                    chars.next();
                }
                _ => arg.push('\\'),
            },
            '"' | '\'' if quote == Some(c) => quote = None,
            '"' | '\'' if quote.is_none() => quote = Some(c),
            _ => arg.push(c),
        }
    }
    arg
}

/// Writes an argument so that sshd reads it back unchanged.
pub fn quote_arg(arg: &str) -> String {
    let plain = !arg.is_empty()
        && !arg.starts_with(['#', '='])
        && !arg.contains(|c| is_blank(c) || matches!(c, '"' | '\'' | '\\'));
    if plain {
        return arg.to_owned();
    }
    format!("\"{}\"", arg.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(line: &str) -> Option<(String, Vec<String>)> {
        parse_line(line).map(|directive| (directive.keyword, directive.args))
    }

    fn expect(line: &str, keyword: &str, args: &[&str]) {
        let args = args.iter().map(|&arg| arg.to_owned()).collect();
        assert_eq!(parts(line), Some((keyword.to_owned(), args)), "{line}");
    }

    #[test]
    fn lines_that_sshd_accepts() {
        expect("Port 2222", "Port", &["2222"]);
        expect("\tport=2222\r", "port", &["2222"]);
        expect("Port = 2222 # comment", "Port", &["2222"]);
        expect("AllowGroups a  \"b c\" d#e", "AllowGroups", &["a", "b c", "d#e"]);
        expect(r#"Banner "/etc/my \"x\"""#, "Banner", &["/etc/my \"x\""]);
        assert_eq!(parts("  # Port 22"), None);
        assert_eq!(parts(""), None);
    }

    proptest::proptest! {
        #[test]
        fn a_quoted_argument_is_read_back(arg in "[ -~]{0,20}") {
            let line = format!("Banner {}", quote_arg(&arg));
            proptest::prop_assert_eq!(parse_line(&line).unwrap().args, vec![arg]);
        }

        #[test]
        fn any_line_is_read_without_panic(line in ".{0,80}") {
            let _ = parse_line(&line);
        }
    }
}
