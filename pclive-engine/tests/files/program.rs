//! Python programs that set descriptors up and say when they are done.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};

use pclive_engine::capture::FilesAhead;
use pclive_engine::capture::files::{Files, Listeners, Mode, Table};
use pclive_engine::memory::Objects;
use pclive_engine::model::{OpenFiles, Pid, Vpid};

/// A program that has printed "ready" and a list of numbers, and waits until it is dropped.
pub(crate) struct Program {
    child: Child,
    _output: BufReader<ChildStdout>,
    pub(crate) numbers: Vec<i32>,
}

impl Program {
    pub(crate) fn start(script: &str) -> Self {
        Self::run(Command::new("python3"), script)
    }

    /// A program with a devpts instance of its own.
    pub(crate) fn start_with_terminals(script: &str) -> Self {
        Self::run(with_terminals("python3"), script)
    }

    fn run(mut command: Command, script: &str) -> Self {
        let script = format!(
            "import os,sys,fcntl,select,signal,socket,struct,ctypes,time\n\
             libc=ctypes.CDLL(None); os.closerange(3,4096); parent=os.getpid()\n\
             def stay(): libc.prctl(1,9); os.getppid()==parent or os._exit(0); signal.pause()\n\
             def ready(*numbers): print('ready',*numbers,flush=True); sys.stdin.read()\n\
             {script}\n"
        );
        let mut child =
            command.args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        let numbers = line.strip_prefix("ready").unwrap_or_else(|| panic!("the program said {line:?}"));
        let numbers = numbers.split_whitespace().map(|number| number.parse().unwrap()).collect();
        Self { child, _output: output, numbers }
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid(self.child.id() as i32)
    }

    /// What the program has, and the children whose ids it printed first: processes 1, 2 ...
    pub(crate) fn dump(&self, children: usize) -> Files {
        let table = Table::open(self.pid()).unwrap();
        let files = table.collect(&self.processes(children), Mode::Dump).unwrap();
        assert!(files.blockers.is_empty(), "{:?}", files.blockers);
        files
    }

    /// What of it can be opened ahead.
    pub(crate) fn ahead(&self, children: usize) -> OpenFiles {
        let (table, mut listeners) = (Table::open(self.pid()).unwrap(), Listeners::default());
        let processes = self.processes(children);
        table.ahead(&processes, &Objects::new(), FilesAhead::ALL, &mut listeners).unwrap()
    }

    fn processes(&self, children: usize) -> Vec<(Pid, Vpid)> {
        let mut processes = vec![(self.pid(), Vpid(1))];
        for (index, pid) in self.numbers[..children].iter().enumerate() {
            processes.push((Pid(*pid), Vpid(2 + index as i32)));
        }
        processes
    }
}

/// A program whose devpts is nobody else's.
pub(crate) fn with_terminals(program: &str) -> Command {
    let mut command = Command::new("unshare");
    let script = "mount -t devpts -o newinstance,ptmxmode=666,mode=620 devpts /dev/pts && exec \"$@\"";
    command.args(["--mount", "sh", "-c", script, "sh", program]);
    command
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
