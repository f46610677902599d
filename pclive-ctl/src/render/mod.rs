//! Text and JSON out of the messages of the control API.
//!
//! Everything here is a pure function of its arguments (the time is one of them), except the screens that
//! [`screen`] chooses from, which draw. Texts that come from elsewhere (container names, messages of a peer) pass
//! through [`text::printable`] on their way to a terminal.

pub(crate) mod ending;
pub(crate) mod host;
pub(crate) mod json;
pub(crate) mod line;
pub(crate) mod live;
pub(crate) mod migration;
pub(crate) mod name;
pub(crate) mod page;
pub(crate) mod plan;
pub(crate) mod problem;
pub(crate) mod progress;
pub(crate) mod report;
pub(crate) mod screen;
pub(crate) mod table;
pub(crate) mod text;
pub(crate) mod unit;
