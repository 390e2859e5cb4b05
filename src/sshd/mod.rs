//! sshd's own rules: how it reads its configuration, and what it says is in effect.
//!
//! Pure: everything here works on text that others have read.

pub mod algorithms;
pub mod authorized_keys;
pub mod criteria;
pub mod effective;
pub mod keywords;
pub mod options;
pub mod reading;
pub mod release;
pub mod syntax;
pub mod tree;

pub use effective::Effective;
pub use tree::{ConfigFile, ConfigTree};
