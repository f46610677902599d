//! The program as its users meet it: the real binary against an agent that plays a script.

#![forbid(unsafe_code)]

mod certs;
mod ctl;
mod ending;
mod fake;
mod interrupt;
mod lost;
mod reading;
mod sample;
mod terminal;
mod usage;
