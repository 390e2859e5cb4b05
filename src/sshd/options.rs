//! sshd's command line: options there win over every file, and no file shows them.

use super::keywords::same;

/// One option with its words: `-p 2299`, `-4`, `-oPort=2299`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opt {
    /// The words as they stand.
    pub words: Vec<String>,
    /// The keyword it sets, with the value (`-p N` is `Port`, `-4` is `AddressFamily inet`).
    pub sets: Option<(String, String)>,
}

/// Takes a command line apart as getopt(3) does, several flags in one word too (`-De`, `-Dp 22`); options that
/// set no keyword are kept (sshd(8)).
pub fn parse(words: &[String]) -> Vec<Opt> {
    const WITH_VALUE: &str = "ChECcfgkoprub";
    let mut options = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let Some(flags) = word.strip_prefix('-').filter(|flags| !flags.is_empty()) else {
            options.push(Opt { words: vec![word.clone()], sets: None });
            continue;
        };
        for (at, flag) in flags.char_indices() {
            let attached = flags.get(at + flag.len_utf8()..).unwrap_or_default();
            if !WITH_VALUE.contains(flag) {
                options.push(Opt { words: vec![format!("-{flag}")], sets: sets(flag, "") });
                continue;
            }
            let option = if attached.is_empty() {
                let next = words.next().cloned().unwrap_or_default();
                Opt { sets: sets(flag, &next), words: vec![format!("-{flag}"), next] }
            } else {
                Opt { sets: sets(flag, attached), words: vec![format!("-{flag}{attached}")] }
            };
            options.push(option);
            break;
        }
    }
    options
}

/// The keyword that a flag sets, with its value.
fn sets(flag: char, value: &str) -> Option<(String, String)> {
    let (keyword, value) = match flag {
        'p' => ("Port", value),
        '4' => ("AddressFamily", "inet"),
        '6' => ("AddressFamily", "inet6"),
        'h' => ("HostKey", value),
        'c' => ("HostCertificate", value),
        'g' => ("LoginGraceTime", value),
        'o' => {
            let line = super::syntax::parse_line(value)?;
            return Some((line.keyword, line.args.join(" ")));
        }
        _ => return None,
    };
    Some((keyword.to_owned(), value.to_owned()))
}

/// The words without the options that set any of `keywords`.
pub fn without(words: &[String], keywords: &[String]) -> Vec<String> {
    parse(words)
        .into_iter()
        .filter(|option| !option.sets_any(keywords))
        .flat_map(|option| option.words)
        .collect()
}

impl Opt {
    /// The configuration file that it names (`-f`).
    pub fn file(&self) -> Option<String> {
        Some(self.words.concat().strip_prefix("-f")?.to_owned())
    }

    /// Whether it sets any of the keywords.
    pub fn sets_any(&self, keywords: &[String]) -> bool {
        self.sets
            .as_ref()
            .is_some_and(|(keyword, _)| keywords.iter().any(|other| same(keyword, other)))
    }
}

/// A variable of an EnvironmentFile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variable {
    /// Index of the line it stands on.
    pub line: usize,
    /// Its value, outer quotes removed.
    pub value: String,
    /// One line, and no quotes or backslashes inside: it can be taken apart and written again.
    pub plain: bool,
}

impl Variable {
    /// The words of the value.
    pub fn words(&self) -> Vec<String> {
        super::syntax::split_args(&self.value)
    }
}

/// The value of a variable in a systemd EnvironmentFile; the last assignment wins (systemd.exec(5)).
pub fn variable(text: &str, name: &str) -> Option<Variable> {
    let mut found = None;
    let mut lines = text.lines().enumerate();
    while let Some((index, first)) = lines.next() {
        let mut joined = first.to_owned();
        let mut several = false;
        while !first.trim_start().starts_with(['#', ';']) && joined.ends_with('\\') {
            joined.pop();
            let Some((_, next)) = lines.next() else { break };
            joined.push_str(next);
            several = true;
        }
        let Some((variable, value)) = joined.trim().split_once('=') else { continue };
        if variable.trim() != name {
            continue;
        }
        let value = value.trim();
        let inner = ['"', '\'']
            .iter()
            .find_map(|quote| value.strip_prefix(*quote)?.strip_suffix(*quote))
            .unwrap_or(value);
        let plain = !several && !inner.contains(['"', '\'', '\\']);
        found = Some(Variable { line: index, value: unquoted(value), plain });
    }
    found
}

/// A value without its quotes and escapes (systemd.exec(5), EnvironmentFile=).
fn unquoted(value: &str) -> String {
    let mut text = String::new();
    let mut quote = None;
    let mut chars = value.chars().peekable();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (None, '"' | '\'') => quote = Some(c),
            (Some(open), _) if c == open => quote = None,
            (None, '\\') => text.extend(chars.next()),
            // Between double quotes a backslash takes the meaning of these alone.
            (Some('"'), '\\') => match chars.next_if(|next| "\"\\`$".contains(*next)) {
                Some(next) => text.push(next),
                None => text.push(c),
            },
            _ => text.push(c),
        }
    }
    text
}

/// The words of a command line of which only the text is known, as its process shows it: what belongs to `-o`
/// may have had blanks (`-o KEYWORD VALUE`).
pub fn shown(text: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut open = false;
    for word in text.split_whitespace() {
        match words.last_mut() {
            Some(last) if open && !word.starts_with('-') => {
                last.push(' ');
                last.push_str(word);
            }
            _ => {
                // The value of `-o` is the next word, or the rest of this one.
                let is_value = words.last().is_some_and(|last| last == "-o");
                open = is_value || (word.starts_with("-o") && word.len() > 2);
                words.push(word.to_owned());
            }
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn a_process_shows_its_words_without_quotes() {
        let shown = |text: &str| super::shown(text);
        assert_eq!(shown("-D -o Port 22 -e"), ["-D", "-o", "Port 22", "-e"]);
        assert_eq!(shown("-oPort=22 -D"), ["-oPort=22", "-D"]);
        let set = parse(&shown("-D -o PasswordAuthentication yes"));
        assert!(set.iter().any(|option| option.sets_any(&["passwordauthentication".to_owned()])));
    }

    #[test]
    fn options_that_set_keywords_are_found_and_removed() {
        let line = words("-D -p 2299 -4 -oPermitRootLogin=no -o Banner=/x -E /log");
        let ports = vec!["Port".to_owned(), "AddressFamily".to_owned()];
        assert_eq!(without(&line, &ports), words("-D -oPermitRootLogin=no -o Banner=/x -E /log"));
        let files = parse(&words("-D -f /x -f/y -oPort=1"))
            .iter()
            .filter_map(Opt::file)
            .collect::<Vec<_>>();
        assert_eq!(files, ["/x", "/y"]);
        let bundled = words("-Dep 2299 -eo Banner=/x -46");
        assert_eq!(without(&bundled, &ports), words("-D -e -e -o Banner=/x"));
        let root = vec!["permitrootlogin".to_owned()];
        assert_eq!(without(&words("-oPermitRootLogin=no -p2299"), &root), words("-p2299"));
    }

    #[test]
    fn the_last_assignment_of_a_variable_counts() {
        let text = "# SSHD_OPTS=-4\nSSHD_OPTS=\nSSHD_OPTS=\"-p 2299\"\n";
        let found = variable(text, "SSHD_OPTS").unwrap();
        assert_eq!((found.line, found.value.as_str(), found.plain), (2, "-p 2299", true));
        assert_eq!(variable(text, "OPTIONS"), None);
        let quoted = variable("SSHD_OPTS='-o \"Port 22\"'\n", "SSHD_OPTS").unwrap();
        assert_eq!((quoted.words(), quoted.plain), (vec!["-o".into(), "Port 22".into()], false));
        let escaped = "SSHD_OPTS=\"-o \\\"PasswordAuthentication yes\\\" -e\"\n";
        let escaped = variable(escaped, "SSHD_OPTS").unwrap();
        assert!(!escaped.plain);
        assert_eq!(escaped.words(), ["-o", "PasswordAuthentication yes", "-e"]);
        assert_eq!(variable("A=-oX\\=y'\"'\n", "A").unwrap().value, "-oX=y\"");
        let joined = variable("SSHD_OPTS=\"-u0 \\\n-p 22\"\n", "SSHD_OPTS").unwrap();
        assert_eq!((joined.words(), joined.plain), (words("-u0 -p 22"), false));
    }
}
