//! Asks a program in a container whether everything is as it should be; see [`crate::answers`].

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};

use anyhow::{Result, bail, ensure};

use super::clients::connect;
use crate::answers::PORT;
use crate::node::Node;

/// A program that verifies itself, as the lab's client sees it.
#[derive(Debug, Clone, Copy)]
pub struct Verifier<'a> {
    client: &'a Node,
    address: SocketAddr,
}

impl<'a> Verifier<'a> {
    /// The program at `ip`, asked from `client`.
    pub fn new(client: &'a Node, ip: impl Into<IpAddr>) -> Self {
        Self { client, address: (ip.into(), PORT).into() }
    }

    /// One question; its answer.
    pub fn ask(&self, question: &str) -> Result<String> {
        let (address, question) = (self.address, format!("{question}\n"));
        let thread = self.client.in_network(move || -> Result<String> {
            let mut stream = connect(address)?;
            stream.write_all(question.as_bytes())?;
            let mut line = String::new();
            ensure!(
                BufReader::new(stream).read_line(&mut line)? > 0,
                "the connection ended without an answer"
            );
            Ok(line.trim_end().into())
        })?;
        thread.join().map_err(|_| anyhow::anyhow!("the client panicked"))?
    }

    /// A connection that says nothing: while the program serves it, others wait to be accepted.
    pub fn occupy(&self) -> Result<TcpStream> {
        let address = self.address;
        let thread = self.client.in_network(move || connect(address))?;
        thread.join().map_err(|_| anyhow::anyhow!("the client panicked"))?
    }

    /// Everything is as it should be.
    ///
    /// # Errors
    /// With what differs.
    pub fn check(&self) -> Result<String> {
        let answer = self.ask("CHECK")?;
        if !answer.starts_with("PASS") {
            bail!("{answer}");
        }
        Ok(answer)
    }
}
