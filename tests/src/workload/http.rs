//! nginx, a master and two workers, under keep-alive requests whose answers are checked.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::Result;

use super::clients::{Clients, Failure, Session, connect};
use crate::bundle::Bundle;
use crate::node::Node;

/// Where nginx listens; its user may not bind a port below 1024.
const PORT: u16 = 8080;

/// The container: nginx with two workers as an unprivileged user.
pub fn bundle(name: &str) -> Bundle {
    let config = "daemon off;\nworker_processes 2;\npid /tmp/nginx.pid;\nerror_log stderr;\n\
        events { worker_connections 256; }\n\
        http {\n  access_log off;\n  keepalive_requests 1000000000;\n  keepalive_timeout 1h;\n\
        client_body_temp_path /tmp/body;\n  proxy_temp_path /tmp/proxy;\n  fastcgi_temp_path /tmp/fastcgi;\n\
        uwsgi_temp_path /tmp/uwsgi;\n  scgi_temp_path /tmp/scgi;\n\
        server {\n    listen 8080;\n    listen [::]:8080;\n    root /srv;\n\
        location = /echo { return 200 \"$arg_n\"; }\n  }\n}\n";
    Bundle::new(name, &["/usr/sbin/nginx", "-c", "/etc/nginx.conf", "-e", "stderr"])
        .program("nginx")
        .file("/etc/nginx.conf", config)
        .file("/srv/page", &page())
        .file("/var/log/nginx/.keep", "")
        .file("/var/lib/nginx/.keep", "")
        .user(1000)
}

/// A file of 100 kB: longer than one segment.
fn page() -> String {
    (0..10_000).map(|number| format!("{number:09}\n")).collect()
}

/// Clients of the server at `ip`: an echoed number and the page in turn, on one connection each.
pub fn clients(client: &Node, ip: impl Into<IpAddr>, count: usize) -> Result<Clients> {
    let address: SocketAddr = (ip.into(), PORT).into();
    Clients::start(client, count, Duration::ZERO, move |_| {
        Ok(Requests { stream: BufReader::new(connect(address)?), number: 0, page: page() })
    })
}

#[derive(Debug)]
struct Requests {
    stream: BufReader<TcpStream>,
    number: u64,
    page: String,
}

impl Requests {
    fn get(&mut self, path: &str) -> std::io::Result<String> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: lab\r\n\r\n");
        self.stream.get_mut().write_all(request.as_bytes())?;
        let mut length = None;
        loop {
            let mut line = String::new();
            if self.stream.read_line(&mut line)? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            let line = line.trim_end().to_ascii_lowercase();
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse::<u64>().ok();
            }
            if line.is_empty() {
                break;
            }
        }
        let mut body = String::new();
        let length = length.ok_or(ErrorKind::InvalidData)?;
        (&mut self.stream).take(length).read_to_string(&mut body)?;
        Ok(body)
    }
}

impl Session for Requests {
    fn ask(&mut self) -> Result<(), Failure> {
        self.number += 1;
        let number = self.number.to_string();
        let echoed = self.get(&format!("/echo?n={number}"))?;
        if echoed != number {
            return Err(Failure::Wrong(format!("{echoed:?} was answered to {number}")));
        }
        if self.get("/page")? != self.page {
            return Err(Failure::Wrong("the page differs".into()));
        }
        Ok(())
    }

    /// A server of files has no acknowledged writes.
    fn audit(&mut self) -> Result<u64> {
        Ok(0)
    }
}
