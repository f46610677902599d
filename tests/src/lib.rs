//! The two-host harness.
