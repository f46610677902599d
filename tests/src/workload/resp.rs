//! As much of the Redis protocol (RESP2) as a test client needs.

use std::io::{BufRead, BufReader, Error, ErrorKind, Read, Result, Write};
use std::net::TcpStream;

/// A server's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// `+OK`
    Simple(String),
    /// `-ERR ...`
    Error(String),
    /// `:1`
    Integer(i64),
    /// `$3 abc`; `None` is a key that does not exist.
    Bulk(Option<Vec<u8>>),
    /// `*2 ...`
    Array(Vec<Reply>),
}

impl Reply {
    /// The text of a bulk string.
    pub fn text(&self) -> Option<String> {
        match self {
            Self::Bulk(Some(bytes)) => Some(String::from_utf8_lossy(bytes).into_owned()),
            Self::Simple(text) => Some(text.clone()),
            Self::Error(_) | Self::Integer(_) | Self::Bulk(None) | Self::Array(_) => None,
        }
    }
}

/// One connection.
#[derive(Debug)]
pub struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    /// Speaks RESP over `stream`.
    pub fn new(stream: TcpStream) -> Self {
        Self { stream: BufReader::new(stream) }
    }

    /// Sends a command and waits for its answer.
    pub fn ask(&mut self, words: &[&str]) -> Result<Reply> {
        let mut request = format!("*{}\r\n", words.len());
        for word in words {
            request.push_str(&format!("${}\r\n{word}\r\n", word.len()));
        }
        self.stream.get_mut().write_all(request.as_bytes())?;
        self.reply()
    }

    fn reply(&mut self) -> Result<Reply> {
        let line = self.line()?;
        let Some((kind, rest)) = line.split_at_checked(1) else { return Err(nonsense(&line)) };
        let number = || rest.parse::<i64>().map_err(|_| nonsense(&line));
        Ok(match kind {
            "+" => Reply::Simple(rest.into()),
            "-" => Reply::Error(rest.into()),
            ":" => Reply::Integer(number()?),
            "$" => Reply::Bulk(self.bulk(number()?)?),
            "*" => Reply::Array((0..number()?).map(|_| self.reply()).collect::<Result<_>>()?),
            _ => return Err(nonsense(&line)),
        })
    }

    fn bulk(&mut self, length: i64) -> Result<Option<Vec<u8>>> {
        let Ok(length) = u64::try_from(length) else { return Ok(None) };
        let mut bytes = Vec::new();
        (&mut self.stream).take(length + 2).read_to_end(&mut bytes)?;
        if bytes.len() as u64 != length + 2 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        bytes.truncate(bytes.len() - 2);
        Ok(Some(bytes))
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        match line.strip_suffix("\r\n") {
            Some(text) => Ok(text.into()),
            None => Err(ErrorKind::UnexpectedEof.into()),
        }
    }
}

fn nonsense(line: &str) -> Error {
    Error::new(ErrorKind::InvalidData, format!("not a RESP answer: {line:?}"))
}
