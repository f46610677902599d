//! Migrations as a user starts them: `pclivectl migrate --json`, one event a line.
