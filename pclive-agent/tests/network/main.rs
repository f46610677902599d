//! The network of a container against a real kernel: every test has a network namespace of its own as the host, with
//! a bridge, and namespaces of processes of its own as containers. Needs root and iproute2; nothing outlives a test.

#![forbid(unsafe_code)]

mod announce;
mod apply;
mod arrivals;
mod capture;
mod lock;
mod retire;
mod site;
