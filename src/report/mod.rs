//! What the user sees: text for people, one JSON object for programs.

pub mod human;
pub mod json;
