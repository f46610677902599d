//! Pseudo-terminals: what their masters tell is the same in the copy, and the ends still belong together.

use std::fs::File;
use std::io::{Read, Write};

use pclive_engine::capture::files::{Files, Mode, Table};
use pclive_engine::model::{Blocker, FileKind, Vpid};
use pclive_engine::sys::terminal;

use crate::program::Program;
use crate::round_trip::round_trip_into;
use crate::skeleton::Skeleton;

fn collect(program: &Program, mode: Mode) -> Files {
    Table::open(program.pid()).unwrap().collect(&[(program.pid(), Vpid(1))], mode).unwrap()
}

/// What is passing in a program's terminals.
fn passing(script: &str) -> Vec<String> {
    let files = collect(&Program::start_with_terminals(script), Mode::Dump);
    assert_eq!(files.blockers, []);
    files.transient.into_iter().map(|blocker| blocker.what).collect()
}

fn refused(program: &Program) -> Vec<String> {
    let blockers = collect(program, Mode::Check).blockers;
    let told = |blocker: Blocker| {
        assert!(!blocker.hint.is_empty(), "{blocker:?}");
        blocker.what
    };
    blockers.into_iter().map(told).collect()
}

#[test]
fn settings_size_and_modes_are_those_of_the_source() {
    let program = Program::start_with_terminals(
        "import tty,termios\n\
         x=[os.openpty() for _ in range(3)]; m,s=os.openpty(); n,t=os.openpty()\n\
         u=os.open(os.ttyname(t),os.O_RDONLY|os.O_NONBLOCK|os.O_NOCTTY)\n\
         [os.close(f) for f in x[0]+x[2]]; tty.setraw(s); os.fchmod(s,0o622); os.fchown(s,5,6)\n\
         fcntl.ioctl(m,termios.TIOCSWINSZ,struct.pack('4H',50,132,7,9)); os.set_blocking(m,False)\n\
         fcntl.ioctl(m,termios.TIOCPKT,struct.pack('i',1)); fcntl.ioctl(m,0x40045431,struct.pack('i',1))\n\
         fcntl.ioctl(s,termios.TIOCEXCL); fcntl.ioctl(n,termios.TIOCEXCL)\n\
         ready(m,s,n,t)",
    );
    let skeleton = round_trip_into(Skeleton::start_with_terminals(), &program, 0);
    let [m, s, n, t] = program.numbers[..] else { panic!() };
    let (master, slave) = (skeleton.fetch(1, n), skeleton.fetch(1, t));
    assert_eq!(terminal::number(&master).unwrap(), 4);
    let mut line = [0; 6];
    File::from(master).write_all(b"hello\n").unwrap();
    File::from(slave).read_exact(&mut line).unwrap();
    assert_eq!(&line, b"hello\n");
    let (master, slave) = (skeleton.fetch(1, m), skeleton.fetch(1, s));
    assert_eq!(terminal::number(&master).unwrap(), 3);
    File::from(slave).write_all(b"x").unwrap();
    // poll(2) delivers what is on its way.
    let mut fds = [nix::poll::PollFd::new(std::os::fd::AsFd::as_fd(&master), nix::poll::PollFlags::POLLIN)];
    assert_eq!(nix::poll::poll(&mut fds, 5000_u16), Ok(1));
    let mut packet = [0; 2];
    File::from(master).read_exact(&mut packet).unwrap();
    assert_eq!(&packet, b"\0x", "a packet of data");
}

#[test]
fn last_close_of_a_slave_is_seen_by_the_master() {
    let program = Program::start_with_terminals("m,s=os.openpty(); ready(m,s)");
    let skeleton = round_trip_into(Skeleton::start_with_terminals(), &program, 0);
    let master = skeleton.fetch(1, program.numbers[0]);
    drop(skeleton);
    let error = File::from(master).read(&mut [0]).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO), "nobody but the processes has it open");
}

#[test]
fn what_waits_at_either_end_is_passing() {
    assert_eq!(passing("m,s=os.openpty(); ready()"), Vec::<String>::new());
    let line = "m,s=os.openpty(); import termios; a=termios.tcgetattr(s); a[3]&=~termios.ECHO\n\
                termios.tcsetattr(s,0,a); os.write(m,b'line\\n'); ready()";
    assert_eq!(passing(line), ["terminal 0 with 5 bytes of input that no program has read"]);
    let output = "m,s=os.openpty(); os.write(s,b'abc'); ready()";
    assert_eq!(passing(output), ["terminal 0 with 3 bytes of output that no program has read"]);
    let echo = "m,s=os.openpty(); os.write(m,b'abc'); ready()";
    assert_eq!(passing(echo), ["terminal 0 with 3 bytes of output that no program has read"]);
    let stopped = "m,s=os.openpty(); os.write(m,b'\\x13'); ready()";
    assert_eq!(passing(stopped), ["terminal 0 whose output is stopped"]);
    let unused = "m,s=os.openpty(); os.close(s); ready()";
    assert_eq!(passing(unused), ["terminal 0, which no program has open at its far end"]);
}

#[test]
fn terminals_that_reach_out_of_the_container_are_refused_by_the_check() {
    // Standard input's writer keeps the master.
    let outside = Program::start_with_terminals(
        "m,s=os.openpty(); p=os.fork()\n\
         if p==0: os.close(s); stay()\n\
         os.close(m); ready(p)",
    );
    assert_eq!(refused(&outside), ["terminal /dev/pts/0, whose master is outside of the container"]);
    let closed = Program::start_with_terminals("m,s=os.openpty(); os.close(m); ready()");
    assert_eq!(refused(&closed), ["terminal /dev/pts/0, whose master is closed"]);
    let other = Program::start_with_terminals(
        "m,s=os.openpty(); libc.mount(b'devpts',b'/dev/pts',b'devpts',0,b'newinstance,ptmxmode=666'); ready()",
    );
    let found = refused(&other);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found.iter().all(|what| what.contains("another devpts instance")), "{found:?}");
}

#[test]
fn number_that_is_taken_is_named() {
    let program = Program::start_with_terminals("m,s=os.openpty(); ready(m)");
    let files = program.dump(0);
    assert!(files.files.iter().any(|file| matches!(file.kind, FileKind::Master(_))));
    let mut skeleton = Skeleton::start_with_terminals();
    let taken = File::open(format!("/proc/{}/root/dev/pts/ptmx", skeleton.pid_of(1))).unwrap();
    let error = skeleton.restore(&files).unwrap_err();
    assert!(error.to_string().contains("already has one of this number"), "{error}");
    drop(taken);
}
