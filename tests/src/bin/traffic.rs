//! A server for TCP clients of three kinds, on port 7000 of every address, one thread a connection. The first byte
//! of a connection says which: `e` everything is sent back; `u` the client uploads the numbers from 0 on and is told
//! how many came when it ends; `d` the client downloads the numbers from 0 on, for ever.
#![forbid(unsafe_code)]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use anyhow::{Context, Result};
use nix::sys::socket::{setsockopt, sockopt};
use pclive_tests::answers::PORT;
use pclive_tests::workload::traffic::{BLOCK_BYTES, Numbers, WRONG};

/// Most that waits for a client that downloads.
const SEND_BYTES: usize = 256 << 10;

fn main() -> Result<()> {
    let listener = TcpListener::bind(("::", PORT)).context("cannot listen")?;
    for stream in listener.incoming().flatten() {
        std::thread::Builder::new().name("connection".into()).spawn(move || {
            // A broken connection is the client's to notice.
            let _ = serve(stream);
        })?;
    }
    Ok(())
}

fn serve(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut kind = [0];
    stream.read_exact(&mut kind)?;
    match kind {
        [b'e'] => echo(stream),
        [b'u'] => take(stream),
        [b'd'] => give(stream),
        _ => Ok(()),
    }
}

fn echo(mut stream: TcpStream) -> std::io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            length => stream.write_all(&buffer[..length])?,
        }
    }
}

fn take(mut stream: TcpStream) -> std::io::Result<()> {
    let (mut buffer, mut numbers) = (vec![0; BLOCK_BYTES], Numbers::default());
    let count = loop {
        match stream.read(&mut buffer)? {
            0 => break numbers.bytes(),
            length if numbers.continue_with(&buffer[..length]) => {}
            _ => break WRONG,
        }
    };
    stream.write_all(&count.to_le_bytes())
}

/// With a small buffer: what waits in it moves with the container.
fn give(mut stream: TcpStream) -> std::io::Result<()> {
    setsockopt(&stream, sockopt::SndBuf, &SEND_BYTES)?;
    let mut numbers = Numbers::default();
    loop {
        stream.write_all(&numbers.block())?;
    }
}
