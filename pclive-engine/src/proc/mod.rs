//! Bytes of `/proc` -> model. Parsers take bytes and never panic: a container chooses its names.

pub mod maps;
mod maps_line;
pub mod smaps;
pub mod fdinfo;
pub mod mountinfo;
