//! Sockets of real network namespaces, captured and built again. Needs root.

mod connection;
mod life;
mod load;
mod namespace;
mod options;
mod speed;
mod udp;
mod unfinished;
mod unix;
