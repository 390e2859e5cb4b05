//! YAML text to [`Spec`]: the only place that knows which YAML library is used.

use std::net::IpAddr;
use std::time::Duration;

use annotate_snippets::renderer::DecorStyle;
use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};
use serde_yaml::{Location, Spanned};

use super::schema::{
    AutoOff, Document, MatchSection, OneOrMany, ProfileName, SafetySection, Scalar, Settings,
    Socket, SshSection,
};
use super::{
    Choice, Criterion, MAX_SIZE, MatchBlock, Profile, Safety, Setting, SocketMode, Span, Spec, Ssh,
};
use crate::error::SpecError;
use crate::sshd::release::Release;
use crate::sshd::syntax::quote_arg;
use crate::sshd::{criteria, keywords};

/// How wide a terminal is.
const WIDTH: usize = 80;

type Result<T> = std::result::Result<T, SpecError>;

/// A spec's text and the name it is known by in messages.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Source {
    /// File name.
    pub name: String,
    /// Content.
    pub text: String,
}

/// Reads a spec.
///
/// # Errors
/// Anything that is not a valid spec, with line, column, the text, and what was expected.
pub fn parse(name: &str, bytes: &[u8]) -> Result<Spec> {
    let source = text_of(name, bytes)?;
    if source.text.lines().all(|line| line.trim().is_empty() || line.trim().starts_with('#')) {
        return Err(source.error(
            Span::default(),
            "the spec is empty",
            "expected `version: 1` and an `ssh` section",
            None,
        ));
    }
    let document: Document = serde_yaml::from_str_with_options(
        &source.text,
        serde_yaml::options! {
            with_snippet: false,
            strict_booleans: true,
        },
    )
    .map_err(|error| source.yaml_error(&error))?;
    source.spec(document)
}

fn text_of(name: &str, bytes: &[u8]) -> Result<Source> {
    let source = |text: String| Source { name: name.to_owned(), text };
    if bytes.len() as u64 > MAX_SIZE {
        let limit = MAX_SIZE / 1024;
        let message = format!("the spec is larger than {limit} KiB");
        return Err(source(String::new()).error(Span::default(), &message, "too large", None));
    }
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(source(text.to_owned())),
        Err(error) => {
            let shown = source(String::from_utf8_lossy(bytes).into_owned());
            let start = error.valid_up_to();
            let span = Span { start, end: start + '\u{fffd}'.len_utf8() };
            Err(shown.error(span, "the spec is not UTF-8", "expected UTF-8 text", None))
        }
    }
}

impl Source {
    /// Builds an error that points at a part of the text.
    pub fn error(&self, at: Span, message: &str, label: &str, hint: Option<&str>) -> SpecError {
        let start = at.start.min(self.text.len());
        let end = at.end.clamp(start, self.text.len());
        let before = self.text.get(..start).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        let name = &self.name;
        let length = |text: &str| text.chars().count();
        let marked = length(self.text.get(start..end).unwrap_or_default());
        let beside = line.to_string().len() + " | ".len() + column + marked + 1 + length(label);
        let mark = AnnotationKind::Primary.span(start..end);
        let fits = beside <= WIDTH;
        let mark = if fits { mark.label(label) } else { mark };
        let snippet = Snippet::source(&self.text).path(name.as_str()).annotation(mark);
        let mut group = Level::ERROR.primary_title(message).element(snippet);
        if !fits {
            let gutter = line.to_string().len() + " = note: ".len();
            group = group.element(Level::NOTE.message(textwrap::fill(label, WIDTH - gutter)));
        }
        if let Some(hint) = hint {
            group = group.element(Level::HELP.message(hint));
        }
        let rendered = if self.text.is_empty() {
            format!("error: {name}: {message}: {label}")
        } else {
            Renderer::plain().decor_style(DecorStyle::Ascii).term_width(WIDTH).render(&[group])
        };
        SpecError {
            message: format!("{name}:{line}:{column}: {message}: {label}"),
            rendered,
            hint: hint.map(str::to_owned),
        }
    }

    fn yaml_error(&self, error: &serde_yaml::Error) -> SpecError {
        let (message, label) = explain(&error.without_snippet().to_string());
        let span = error.location().map_or_else(Span::default, |at| self.span(&at));
        self.error(span, &message, &label, None)
    }

    /// The bytes of a node; where the library knows no length, the rest of the word.
    fn span(&self, at: &Location) -> Span {
        let line_start = self
            .text
            .split_inclusive('\n')
            .take(usize::try_from(at.line().saturating_sub(1)).unwrap_or_default())
            .map(str::len)
            .sum::<usize>();
        let by_column = || {
            let line = self.text.get(line_start..).unwrap_or_default();
            let column = usize::try_from(at.column().saturating_sub(1)).unwrap_or_default();
            line_start + line.chars().take(column).map(char::len_utf8).sum::<usize>()
        };
        let start = at
            .span()
            .byte_offset()
            .and_then(|offset| usize::try_from(offset).ok())
            .filter(|offset| *offset > 0)
            .unwrap_or_else(by_column);
        let rest = self.text.get(start..).unwrap_or_default();
        let length = at
            .span()
            .byte_len()
            .and_then(|length| usize::try_from(length).ok())
            .filter(|length| *length > 0)
            .unwrap_or_else(|| {
                rest.find(|c: char| c.is_whitespace() || c == ':').unwrap_or(rest.len())
            });
        let shown = rest.get(..length).unwrap_or(rest);
        Span { start, end: start + shown.trim_end().lines().next().unwrap_or_default().len() }
    }

    fn spec(self, document: Document) -> Result<Spec> {
        if document.version.value != 1 {
            return Err(self.at(&document.version, "unknown version", "expected 1"));
        }
        let concerns = [
            ("firewall", &document.firewall),
            ("selinux", &document.selinux),
            ("fail2ban", &document.fail2ban),
        ];
        for (name, value) in concerns {
            if let Some(value) = value.as_ref().filter(|value| value.value == AutoOff::Auto) {
                return Err(self.unsupported(value, name, "`off`"));
            }
        }
        let safety = document.safety.as_ref().map(|safety| self.safety(safety)).transpose()?;
        let ssh = self.ssh(document.ssh.unwrap_or_default())?;
        Ok(Spec { ssh, safety: safety.unwrap_or_default(), source: self })
    }

    fn safety(&self, safety: &SafetySection) -> Result<Safety> {
        let timeout = safety.timeout.as_ref().map(|timeout| {
            parse_duration(&timeout.value).ok_or_else(|| {
                self.at(
                    timeout,
                    "not a length of time",
                    "expected a time of at most a day: 90s, 5m, 1h",
                )
            })
        });
        let confirm = safety.confirm.as_ref().map(|confirm| confirm.value);
        let expected = "expected names of users, or no such key at all";
        let admins = match &safety.admins {
            None => Vec::new(),
            Some(list) if matches!(&list.value, OneOrMany::Many(names) if names.is_empty()) => {
                return Err(self.at(list, "the list is empty", expected));
            }
            Some(names) => self.scalars(names)?.into_iter().map(|(name, _)| name).collect(),
        };
        Ok(Safety { confirm, timeout: timeout.transpose()?, admins })
    }

    fn ssh(&self, section: SshSection) -> Result<Ssh> {
        let ports = section.port.as_ref().map(|value| self.ports(value)).transpose()?;
        let listen = section.listen.as_ref().map(|value| self.addresses(value)).transpose()?;
        let socket = match section.socket.map(|socket| socket.value) {
            Some(Socket::Disabled) => SocketMode::Disabled,
            Some(Socket::Enabled) => SocketMode::Enabled,
            Some(Socket::Keep) | None => SocketMode::Keep,
        };
        let choice = |name: &Spanned<ProfileName>| {
            let profile = match name.value {
                ProfileName::None => return None,
                ProfileName::Recommended => Profile::Recommended,
                ProfileName::Strict => Profile::Strict,
                ProfileName::PostQuantum => Profile::PostQuantum,
            };
            Some(Choice { profile, at: self.span(&name.defined) })
        };
        let profile = section.profile.as_ref().and_then(choice);
        let settings = self.settings(section.settings.unwrap_or_default())?;
        let matches = section.matches.unwrap_or_default();
        let matches =
            matches.into_iter().map(|block| self.match_block(block)).collect::<Result<_>>()?;
        Ok(Ssh { ports, listen, socket, profile, settings, matches })
    }

    /// A block of `ssh.match`, as a `Match` line and what stands below it.
    fn match_block(&self, block: MatchSection) -> Result<MatchBlock> {
        let expected = "expected User, Group, Host, Address, LocalPort; or `All: yes`";
        if block.criteria.value.0.is_empty() {
            return Err(self.at(&block.criteria, "there are no criteria", expected));
        }
        if block.settings.value.0.is_empty() {
            return Err(self.at(&block.settings, "there are no settings", "expected a setting"));
        }
        let mut criteria: Vec<Criterion> = Vec::new();
        for (name, value) in &block.criteria.value.0 {
            let values = self.scalars(value)?;
            if let Some((_, span)) = values.iter().find(|(text, _)| text.contains(char::is_control))
            {
                let label = "expected text that fits on one line of sshd_config";
                return Err(self.error(*span, "the value holds a control character", label, None));
            }
            let is_it = |other: &str| other.eq_ignore_ascii_case(&name.value);
            if criteria.iter().any(|one| one.text.split(' ').next().is_some_and(is_it)) {
                let message = format!("`{}` is asked for twice", name.value);
                return Err(self.at(name, &message, "expected each criterion once"));
            }
            let list = values.iter().map(|(text, _)| text.as_str()).collect::<Vec<_>>().join(",");
            let text = if criteria::takes_no_value(&name.value) {
                if !matches!(list.as_str(), "yes" | "true") {
                    let message = format!("`{}` takes no value", name.value);
                    return Err(self.at(name, &message, &format!("write `{}: yes`", name.value)));
                }
                name.value.clone()
            } else {
                format!("{} {}", name.value, quote_arg(&list))
            };
            // `all` stands alone.
            let others = criteria.iter().map(|one| one.text.as_str());
            let line = others.chain([text.as_str()]).collect::<Vec<_>>().join(" ");
            if let Err(why) = criteria::read_text(&line, &Release::LATEST) {
                let expected = match name.value.to_ascii_lowercase().as_str() {
                    "localport" => "expected one port, from 1 to 65535",
                    "address" | "localaddress" => "expected 192.0.2.7, 10.0.0.0/8, \"::1\"",
                    _ => expected,
                };
                return Err(self.at(name, &format!("`{line}`: {why}"), expected));
            }
            criteria.push(Criterion { text, at: self.span(&name.defined) });
        }
        for (key, _) in &block.settings.value.0 {
            if !keywords::may_be_matched(&key.value, &Release::LATEST) {
                let message = format!("`{}` cannot stand in a Match block", key.value);
                return Err(self.at(key, &message, "sshd has one value of it for everybody"));
            }
        }
        let settings = self.settings(block.settings.value)?;
        Ok(MatchBlock { criteria, settings })
    }

    fn ports(&self, value: &Spanned<OneOrMany>) -> Result<Vec<u16>> {
        const EXPECTED: &str = "expected a port from 1 to 65535";
        let mut ports = Vec::new();
        for (text, span) in self.scalars(value)? {
            let port = text.parse::<u16>().ok().filter(|port| *port > 0);
            let Some(port) = port.filter(|_| !text.starts_with('+')) else {
                return Err(self.error(span, &format!("`{text}` is not a port"), EXPECTED, None));
            };
            if ports.contains(&port) {
                return Err(self.error(span, "the port stands twice", "already listed", None));
            }
            ports.push(port);
        }
        Ok(ports)
    }

    fn addresses(&self, value: &Spanned<OneOrMany>) -> Result<Vec<IpAddr>> {
        let mut addresses = Vec::new();
        for (text, span) in self.scalars(value)? {
            let Ok(address) = text.parse::<IpAddr>() else {
                return Err(self.error(
                    span,
                    &format!("`{text}` is not an IP address"),
                    "expected an address: 192.0.2.7, \"::\"",
                    None,
                ));
            };
            if addresses.contains(&address) {
                return Err(self.error(span, "the address stands twice", "already listed", None));
            }
            addresses.push(address);
        }
        Ok(addresses)
    }

    fn settings(&self, settings: Settings) -> Result<Vec<Setting>> {
        let mut parsed: Vec<Setting> = Vec::new();
        for (key, value) in settings.0 {
            let setting = self.setting(&key, &value)?;
            if parsed.iter().any(|other| keywords::same(&other.keyword, &setting.keyword)) {
                let message = format!("`{}` is set twice", setting.keyword);
                let label = "the same keyword as above";
                return Err(self.at(&key, &message, label));
            }
            parsed.push(setting);
        }
        Ok(parsed)
    }

    fn setting(&self, key: &Spanned<String>, value: &Spanned<OneOrMany>) -> Result<Setting> {
        let keyword = key.value.clone();
        if let Some(instead) = elsewhere(&keyword) {
            let message = format!("`{keyword}` cannot stand in `settings`");
            return Err(self.at(key, &message, instead));
        }
        if keyword.is_empty() || !keyword.chars().all(|c| c.is_ascii_alphanumeric()) {
            let message = format!("`{keyword}` is not a keyword");
            return Err(self.at(key, &message, "expected a keyword of sshd_config(5)"));
        }
        let key_span = self.span(&key.defined);
        let values = self.scalars(value)?;
        let end = values.last().map_or(key_span.end, |(_, span)| span.end);
        let mut words = Vec::new();
        for (text, span) in values {
            if let Some(bad) = text.chars().find(|c| c.is_control()) {
                let message = format!("the value holds the control character {bad:?}");
                let label = "expected text that fits on one line of sshd_config";
                return Err(self.error(span, &message, label, None));
            }
            words.push(text);
        }
        let lines = match (&value.value, words.as_slice()) {
            // One value stands as written: it may hold several arguments, or a command line.
            (OneOrMany::One(_), [text]) => vec![text.clone()],
            _ => keywords::lines_of(&keyword, &words),
        };
        Ok(Setting { keyword, lines, at: Span { start: key_span.start, end } })
    }

    /// The texts of a value or of each item of a list.
    fn scalars(&self, value: &Spanned<OneOrMany>) -> Result<Vec<(String, Span)>> {
        let expected = "expected a value";
        match &value.value {
            OneOrMany::One(scalar) => Ok(vec![self.scalar(scalar, &value.defined)?]),
            OneOrMany::Many(items) if items.is_empty() => {
                Err(self.at(value, "the list is empty", expected))
            }
            OneOrMany::Many(items) => {
                items.iter().map(|item| self.scalar(&item.value, &item.defined)).collect()
            }
        }
    }

    fn scalar(&self, scalar: &Scalar, at: &Location) -> Result<(String, Span)> {
        let span = self.span(at);
        let text = match scalar {
            Scalar::Text(text) => text.clone(),
            Scalar::Plain => plain(self.text.get(span.start..span.end).unwrap_or_default()),
            Scalar::Null => String::new(),
        };
        if text.trim().is_empty() {
            return Err(self.error(span, "there is no value", "expected a value", None));
        }
        Ok((text, span))
    }

    fn at<T>(&self, node: &Spanned<T>, message: &str, label: &str) -> SpecError {
        self.error(self.span(&node.defined), message, label, None)
    }

    fn unsupported<T>(&self, node: &Spanned<T>, what: &str, accepted: &str) -> SpecError {
        let label = format!("not supported yet; this version accepts {accepted}");
        self.at(node, &format!("`{what}` is not supported yet"), &label)
    }
}

/// `true` and `false` are YAML's words for sshd's `yes` and `no`.
fn plain(text: &str) -> String {
    match text.to_ascii_lowercase().as_str() {
        "true" => "yes".to_owned(),
        "false" => "no".to_owned(),
        _ => text.to_owned(),
    }
}

/// Keywords that have a place of their own in the spec.
fn elsewhere(keyword: &str) -> Option<&'static str> {
    match keyword.to_ascii_lowercase().as_str() {
        "port" => Some("write `ssh.port` instead"),
        "listenaddress" => Some("write `ssh.listen` (addresses) and `ssh.port` instead"),
        "match" => Some("write `ssh.match` instead"),
        "include" => Some("write the settings themselves"),
        _ => None,
    }
}

/// Seconds or minutes, as systemd writes them: `90`, `90s`, `5m`, `5min`, `1h`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim() {
        "" | "s" | "sec" => 1,
        "m" | "min" => 60,
        "h" => 3600,
        _ => return None,
    };
    let seconds = number.parse::<u64>().ok()?.checked_mul(factor)?;
    (1..=86_400).contains(&seconds).then(|| Duration::from_secs(seconds))
}

/// The library's message as (what is wrong, what to do), in words for the author of a spec.
fn explain(text: &str) -> (String, String) {
    // The library ends its messages with the position, which the snippet shows.
    let text = text.split(" at line ").next().unwrap_or(text);
    if let Some(key) = text.strip_prefix("duplicate mapping key: ") {
        let key = key.split(',').next().unwrap_or(key);
        return (format!("`{key}` stands twice"), "already set above; keep one".into());
    }
    if let Some(field) = text.strip_prefix("missing field ") {
        return (format!("{field} is missing"), format!("expected {field} in this mapping"));
    }
    if let Some(rest) = text.strip_prefix("unknown variant `~`") {
        let expected = rest.trim_start_matches(", ");
        return ("there is no value".into(), expected.to_owned());
    }
    if text.starts_with("tabs ") {
        return ("a tab indents this line".into(), "expected spaces".into());
    }
    if text.starts_with("multiple YAML documents") {
        return ("a second YAML document".into(), "expected one document".into());
    }
    if text.starts_with("expected mapping start") {
        return ("not a mapping".into(), "expected `key: value` lines".into());
    }
    if text.starts_with("expected sequence start") {
        return ("not a list".into(), "expected a list: `- ...` lines, or [...]".into());
    }
    if text.starts_with("invalid u64") {
        return ("not a number".into(), "expected a whole number".into());
    }
    match text.split_once(", expected ") {
        Some((message, expected)) => {
            let expected = expected.strip_prefix("one of ").unwrap_or(expected);
            (message.to_owned(), format!("expected {expected}"))
        }
        None => (text.to_owned(), "the YAML cannot be read from here".to_owned()),
    }
}
