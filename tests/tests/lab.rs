//! The harness itself: what a lab is made of, and that nothing of it remains.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use anyhow::Result;
use pclive_tests::link::TEN_GIGABIT;
use pclive_tests::{Bundle, Lab, needs};

fn echo_server() -> Bundle {
    let serve = "while :; do busybox nc -l -p 7 -e busybox cat; done";
    Bundle::new("echo", &["/usr/bin/busybox", "sh", "-c", serve]).program("busybox")
}

#[test]
fn container_answers_clients_of_the_lab_and_leaves_nothing_behind() -> Result<()> {
    if !needs::met(&["busybox"]) {
        return Ok(());
    }
    let lab = Lab::without_agents(TEN_GIGABIT)?;
    let container = lab.start(&echo_server())?;
    assert_eq!(container.status(&lab.a)?.as_deref(), Some("running"), "{}", container.log(&lab.a));
    assert_eq!(container.status(&lab.b)?, None, "the hosts have runtimes of their own");
    assert!(container.has_cgroup(&lab.a));

    let address = (container.v4, 7);
    let echo = lab.client.in_network(move || -> Result<Vec<u8>> {
        let mut stream = loop {
            match TcpStream::connect(address) {
                Ok(stream) => break stream,
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                    std::thread::yield_now()
                }
                Err(error) => return Err(error.into()),
            }
        };
        stream.write_all(b"hello")?;
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(answer)
    })?;
    assert_eq!(echo.join().expect("the client ends")?, b"hello");

    let directory = lab.directory().to_owned();
    let host_a = lab.a.node().pid();
    drop(lab);
    assert!(!directory.exists(), "the lab's files are gone");
    assert!(!std::path::Path::new(&format!("/proc/{host_a}")).exists(), "its processes are gone");
    let cgroup = std::path::Path::new("/sys/fs/cgroup/memory").join(directory.file_name().expect("named"));
    assert!(!cgroup.exists(), "its cgroups are gone");
    Ok(())
}

#[test]
fn hosts_reach_each_other_over_the_switch() -> Result<()> {
    if !needs::met(&[]) {
        return Ok(());
    }
    let lab = Lab::without_agents(TEN_GIGABIT)?;
    let (ready, wait) = std::sync::mpsc::channel();
    let address = lab.b.peer_address();
    let server = lab.b.node().in_network(move || -> Result<u8> {
        let listener = TcpListener::bind(address)?;
        ready.send(())?;
        let mut byte = [0];
        listener.accept()?.0.read_exact(&mut byte)?;
        Ok(byte[0])
    })?;
    wait.recv()?;
    let client = lab.a.node().in_network(move || TcpStream::connect(address)?.write_all(&[7]))?;
    client.join().expect("the client ends")?;
    assert_eq!(server.join().expect("the server ends")?, 7);
    Ok(())
}
