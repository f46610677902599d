//! Bytes of `/proc` -> model. Parsers take bytes and never panic: a container chooses its names.
