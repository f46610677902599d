//! Tasks under ptrace.
