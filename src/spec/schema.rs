//! The spec's shape for serde. No `flatten` and no untagged enums: they lose positions.

use std::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_yaml::Spanned;

use super::Confirm;

/// A key with nothing behind it (an empty variable of a template) is a mistake, not silence.
fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Option<T>, D::Error> {
    T::deserialize(from).map(Some)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Document {
    pub(super) version: Spanned<u64>,
    #[serde(default, deserialize_with = "given")]
    pub(super) ssh: Option<SshSection>,
    #[serde(default, deserialize_with = "given")]
    pub(super) firewall: Option<Spanned<AutoOff>>,
    #[serde(default, deserialize_with = "given")]
    pub(super) selinux: Option<Spanned<AutoOff>>,
    #[serde(default, deserialize_with = "given")]
    pub(super) fail2ban: Option<Spanned<AutoOff>>,
    #[serde(default, deserialize_with = "given")]
    pub(super) safety: Option<SafetySection>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SshSection {
    #[serde(default, deserialize_with = "given")]
    pub(super) port: Option<Spanned<OneOrMany>>,
    #[serde(default, deserialize_with = "given")]
    pub(super) listen: Option<Spanned<OneOrMany>>,
    #[serde(default, deserialize_with = "given")]
    pub(super) socket: Option<Spanned<Socket>>,
    #[serde(default, deserialize_with = "given")]
    pub(super) profile: Option<Spanned<ProfileName>>,
    #[serde(default, deserialize_with = "given")]
    pub(super) settings: Option<Settings>,
    #[serde(default, deserialize_with = "given", rename = "match")]
    pub(super) matches: Option<Vec<MatchSection>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SafetySection {
    #[serde(default, deserialize_with = "given")]
    pub(super) confirm: Option<Spanned<Confirm>>,
    #[serde(default, deserialize_with = "given")]
    pub(super) timeout: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "given")]
    pub(super) admins: Option<Spanned<OneOrMany>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MatchSection {
    pub(super) criteria: Spanned<Settings>,
    pub(super) settings: Spanned<Settings>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum AutoOff {
    Auto,
    Off,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Socket {
    Disabled,
    Enabled,
    Keep,
}

/// `none`, or one of harden's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum ProfileName {
    None,
    Recommended,
    Strict,
    PostQuantum,
}

/// A scalar, or a list of scalars, as the file writes them.
#[derive(Debug)]
pub(super) enum OneOrMany {
    One(Scalar),
    Many(Vec<Spanned<Scalar>>),
}

/// A scalar: quoted text, or a plain word whose meaning is left to sshd.
#[derive(Debug)]
pub(super) enum Scalar {
    /// What was between quotes, or a plain word that YAML takes for a string.
    Text(String),
    /// A plain number or truth value: its text stands at the node's position.
    Plain,
    /// Nothing (`key:` and no value).
    Null,
}

/// A mapping with positions, in the order of the file.
#[derive(Debug, Default)]
pub(super) struct Settings(pub(super) Vec<(Spanned<String>, Spanned<OneOrMany>)>);

struct ScalarVisitor;

impl Visitor<'_> for ScalarVisitor {
    type Value = Scalar;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a single value")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Scalar, E> {
        Ok(Scalar::Text(text.to_owned()))
    }

    fn visit_bool<E: de::Error>(self, _: bool) -> Result<Scalar, E> {
        Ok(Scalar::Plain)
    }

    fn visit_i64<E: de::Error>(self, _: i64) -> Result<Scalar, E> {
        Ok(Scalar::Plain)
    }

    fn visit_u64<E: de::Error>(self, _: u64) -> Result<Scalar, E> {
        Ok(Scalar::Plain)
    }

    fn visit_i128<E: de::Error>(self, _: i128) -> Result<Scalar, E> {
        Ok(Scalar::Plain)
    }

    fn visit_u128<E: de::Error>(self, _: u128) -> Result<Scalar, E> {
        Ok(Scalar::Plain)
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<Scalar, E> {
        Ok(Scalar::Plain)
    }

    fn visit_unit<E: de::Error>(self) -> Result<Scalar, E> {
        Ok(Scalar::Null)
    }
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(ScalarVisitor)
    }
}

struct OneOrManyVisitor;

impl<'de> Visitor<'de> for OneOrManyVisitor {
    type Value = OneOrMany;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value or a list of values")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<OneOrMany, E> {
        ScalarVisitor.visit_str(text).map(OneOrMany::One)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<OneOrMany, E> {
        ScalarVisitor.visit_bool(value).map(OneOrMany::One)
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<OneOrMany, E> {
        ScalarVisitor.visit_i64(value).map(OneOrMany::One)
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<OneOrMany, E> {
        ScalarVisitor.visit_u64(value).map(OneOrMany::One)
    }

    fn visit_i128<E: de::Error>(self, value: i128) -> Result<OneOrMany, E> {
        ScalarVisitor.visit_i128(value).map(OneOrMany::One)
    }

    fn visit_u128<E: de::Error>(self, value: u128) -> Result<OneOrMany, E> {
        ScalarVisitor.visit_u128(value).map(OneOrMany::One)
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<OneOrMany, E> {
        ScalarVisitor.visit_f64(value).map(OneOrMany::One)
    }

    fn visit_unit<E: de::Error>(self) -> Result<OneOrMany, E> {
        ScalarVisitor.visit_unit().map(OneOrMany::One)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<OneOrMany, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = items.next_element()? {
            values.push(value);
        }
        Ok(OneOrMany::Many(values))
    }
}

impl<'de> Deserialize<'de> for OneOrMany {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(OneOrManyVisitor)
    }
}

struct SettingsVisitor;

impl<'de> Visitor<'de> for SettingsVisitor {
    type Value = Settings;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a mapping of sshd_config keywords to values")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Settings, A::Error> {
        let mut settings = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            settings.push(entry);
        }
        Ok(Settings(settings))
    }
}

impl<'de> Deserialize<'de> for Settings {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_map(SettingsVisitor)
    }
}
