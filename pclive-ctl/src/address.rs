//! Where the agent listens.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use thiserror::Error;

/// The agent's control listener, as `--agent` or `PCLIVE_AGENT` names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Address {
    /// A unix socket: `unix:///path` or a path.
    Unix(PathBuf),
    /// `http://host:port`: plain text.
    Http(String),
    /// Mutual TLS, `https://host:port`.
    Https(String),
}

/// Why a text is not the address of an agent.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum InvalidAddress {
    /// Nothing to connect to.
    #[error("it is empty; write unix:///path, a path or https://host:port")]
    Empty,
    /// The control listener has no usual port.
    #[error("it has no port; write https://host:port")]
    Port,
    /// Another scheme.
    #[error("{0:?} is not known; write unix:///path, a path or https://host:port")]
    Scheme(String),
    /// Probably meant as TCP.
    #[error("it looks like host:port; write https://{0} (or ./{0} for a socket of that name)")]
    NoScheme(String),
}

impl FromStr for Address {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        if let Some(path) = text.strip_prefix("unix://").or_else(|| text.strip_prefix("unix:")) {
            return path_address(path);
        }
        match text.split_once("://") {
            Some(("http", rest)) if !rest.is_empty() => Ok(Self::Http(text.to_owned())),
            Some(("http", _)) => Err(InvalidAddress::Empty),
            Some(("https", rest)) if is_host_and_port(rest) => Ok(Self::Https(text.to_owned())),
            Some(("https", "")) => Err(InvalidAddress::Empty),
            Some(("https", _)) => Err(InvalidAddress::Port),
            Some((scheme, _)) => Err(InvalidAddress::Scheme(scheme.to_owned())),
            None if is_host_and_port(text) => Err(InvalidAddress::NoScheme(text.to_owned())),
            None => path_address(text),
        }
    }
}

fn path_address(path: &str) -> Result<Address, InvalidAddress> {
    if path.is_empty() { Err(InvalidAddress::Empty) } else { Ok(Address::Unix(path.into())) }
}

fn is_host_and_port(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| !host.contains('/') && port.parse::<u16>().is_ok())
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "{}", path.display()),
            Self::Http(uri) | Self::Https(uri) => f.write_str(uri),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unix(path: &str) -> Result<Address, InvalidAddress> {
        Ok(Address::Unix(path.into()))
    }

    #[test]
    fn a_socket_is_a_path_with_or_without_a_scheme() {
        assert_eq!("unix:///run/pclive/agent.sock".parse(), unix("/run/pclive/agent.sock"));
        assert_eq!("unix:/run/agent.sock".parse(), unix("/run/agent.sock"));
        assert_eq!("/run/agent.sock".parse(), unix("/run/agent.sock"));
        assert_eq!("./agent.sock:1".parse(), unix("./agent.sock:1"));
        assert_eq!("agent.sock".parse(), unix("agent.sock"));
    }

    #[test]
    fn tcp_needs_its_scheme() {
        assert_eq!("http://host-b:7000".parse(), Ok(Address::Http("http://host-b:7000".into())));
        assert_eq!("https://[::1]:7000".parse(), Ok(Address::Https("https://[::1]:7000".into())));
        assert_eq!("host-b:7000".parse::<Address>(), Err(InvalidAddress::NoScheme("host-b:7000".into())));
        assert_eq!("[::1]:7000".parse::<Address>(), Err(InvalidAddress::NoScheme("[::1]:7000".into())));
    }

    #[test]
    fn what_leads_nowhere_is_refused() {
        assert_eq!("".parse::<Address>(), Err(InvalidAddress::Empty));
        assert_eq!("unix://".parse::<Address>(), Err(InvalidAddress::Empty));
        assert_eq!("http://".parse::<Address>(), Err(InvalidAddress::Empty));
        assert_eq!("https://host".parse::<Address>(), Err(InvalidAddress::Port));
        assert_eq!("https://".parse::<Address>(), Err(InvalidAddress::Empty));
        assert_eq!("ssh://host".parse::<Address>(), Err(InvalidAddress::Scheme("ssh".into())));
    }
}
