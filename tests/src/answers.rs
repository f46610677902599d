//! The line protocol by which a test talks to a program in a container: one word a line, one line as its answer.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};

use anyhow::{Context, Result};

/// Where such a program listens.
pub const PORT: u16 = 7000;

/// Serves one connection after the other, for ever, on every address of the container, v4 and v6.
///
/// # Errors
/// When the port cannot be had. A broken connection is not an error: the next one is served.
pub fn serve(mut answer: impl FnMut(&str) -> String) -> Result<()> {
    let listener =
        TcpListener::bind(("::", PORT)).with_context(|| format!("cannot listen on port {PORT}"))?;
    for stream in listener.incoming().flatten() {
        // The other end may go whenever it likes.
        let _ = converse(stream, &mut answer);
    }
    Ok(())
}

fn converse(mut stream: TcpStream, answer: &mut impl FnMut(&str) -> String) -> std::io::Result<()> {
    for line in BufReader::new(stream.try_clone()?).lines() {
        let text = answer(line?.trim()).replace('\n', " | ");
        stream.write_all(format!("{text}\n").as_bytes())?;
    }
    Ok(())
}
