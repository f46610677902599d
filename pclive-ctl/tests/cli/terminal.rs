//! The live view, on a terminal of its own.

use std::fs::File;
use std::io::Read;
use std::process::Stdio;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use nix::pty::{Winsize, openpty};
use pclive_proto::control::Phase;

use crate::ctl::start_with;
use crate::fake::{Fake, Script, Step};
use crate::sample::*;

const SIZE: Winsize = Winsize { ws_row: 24, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 };

/// Nothing takes this long to be drawn.
const DEADLINE: Duration = Duration::from_secs(20);

/// The side of the terminal that the user sees.
struct Terminal {
    drawn: Receiver<String>,
    seen: String,
}

impl Terminal {
    /// A terminal, and what a program writes to.
    fn open() -> (Self, Stdio) {
        let pair = openpty(Some(&SIZE), None).unwrap();
        let mut master = File::from(pair.master);
        let (tell, drawn) = channel();
        std::thread::spawn(move || {
            let mut piece = [0; 4096];
            // Reading fails once the program has closed its side.
            while let Ok(length @ 1..) = master.read(&mut piece) {
                let _ = tell.send(String::from_utf8_lossy(&piece[..length]).into_owned());
            }
        });
        (Self { drawn, seen: String::new() }, pair.slave.into())
    }

    /// Waits until this was drawn.
    fn wait_for(&mut self, text: &str) {
        while !self.seen.contains(text) {
            match self.drawn.recv_timeout(DEADLINE) {
                Ok(piece) => self.seen.push_str(&piece),
                Err(error) => panic!("{text:?} was not drawn ({error}):\n{}", self.seen),
            }
        }
    }
}

#[test]
fn a_terminal_shows_the_round_under_way_and_standard_output_the_report() {
    let mut watch = success();
    watch.insert(4, Step::AwaitCancel);
    let agent = Fake::new(Script { watches: vec![watch], ..Script::default() });
    let (mut terminal, stderr) = Terminal::open();
    let ctl = start_with(&agent.socket(), &["migrate", "redis-1", "--to", "host-b"], stderr);
    terminal.wait_for("redis-1 to host-b, migration m-1");
    terminal.wait_for("pre-copy, round 0  [############............]  50 %");
    terminal.wait_for("512 KiB of about 1.00 MiB, 1.00 GiB/s");
    ctl.interrupt();
    terminal.wait_for("note: asking the agent to cancel");
    terminal.wait_for("[    0.50 s] round 0: 256 pages, 1.00 MiB");
    terminal.wait_for("done: it runs at the destination");
    let ended = ctl.end();
    assert_eq!(ended.code, 0);
    assert!(
        ended.out.starts_with("redis-1 now runs at host-b\n  downtime        7.50 ms  (predicted 5.00 ms)\n"),
        "{}",
        ended.out
    );
}

#[test]
fn leaving_gives_the_terminal_back() {
    let watch = vec![phase(0, Phase::PreCopy), Step::Stay];
    let script =
        Script { watches: vec![watch], states: vec![migration(Phase::PreCopy)], ..Script::default() };
    let agent = Fake::new(script);
    let (mut terminal, stderr) = Terminal::open();
    let ctl = start_with(&agent.socket(), &["watch", "m-1"], stderr);
    terminal.wait_for("pre-copy: the container runs on");
    ctl.interrupt();
    terminal.wait_for("the migration goes on; to follow it: pclivectl watch m-1");
    assert_eq!(ctl.end().code, 130);
}
