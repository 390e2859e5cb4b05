//! One file for each managed thing: what it should be, and the steps that make it so.
//!
//! Concerns are pure. They see the spec and what was observed, and emit the plan's own kinds of
//! step; none of them touches the host.

pub mod command_line;
pub mod listening;
pub mod profile;
pub mod sshd_config;
pub mod units;

use std::path::Path;

use crate::plan::{Op, Step};
use crate::sys::Image;
use crate::sys::files::Meta;

/// The step that makes a folder for a file that comes next.
pub(crate) fn folder_step(folder: &Path) -> Step {
    Step {
        op: Op::Put {
            path: folder.to_owned(),
            image: Image::Directory { meta: Meta::root(0o755) },
        },
        why: "The folder for the next file does not exist.".to_owned(),
    }
}
