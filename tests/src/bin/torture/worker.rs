//! One thread's work, and the board on which threads say what they found.

use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use clap::ValueEnum;

use super::Options;
use super::child::Child;
use super::descriptor::Descriptor;
use super::helper::Helper;
use super::memory::Protection;
use super::object::SORTS;
use super::program::Program;
use super::region::{Kind, Mismatch, Region};
use pclive_tests::random::Random;

/// Pages of a new region, at most.
const LARGEST: usize = 600;
/// Children that a thread has at once.
const MOST_CHILDREN: usize = 2;
/// Turns of a child that lives on.
const LONG_LIFE: usize = 400;
/// Helpers that a thread has at once, and their turns.
const MOST_HELPERS: usize = 2;
const HELP: usize = 100;
/// Programs that a thread has started and that have not ended.
const MOST_PROGRAMS: usize = 1;
/// Of so many steps that could make an object one does. A stop waits for one that it has not seen before; if there were a
/// new one every time, it would never come.
const SELDOM: usize = 8;
/// Things that a thread has open.
const MOST_OPEN: usize = 24;
/// How long the threads may take to check everything.
const LIMIT: Duration = Duration::from_secs(50);

/// A kind of step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Step {
    Rewrite,
    Patch,
    Check,
    Map,
    Cut,
    Resize,
    Relocate,
    Discard,
    Punch,
    Protect,
    Huge,
    Fork,
    CheckRegion,
    Object,
    Thread,
    Exec,
    Open,
    Use,
}

/// How often each step comes, of a sum that does not matter.
const WEIGHTS: [(Step, usize); 18] = [
    (Step::Rewrite, 300),
    (Step::Patch, 300),
    (Step::Check, 250),
    (Step::Map, 40),
    (Step::Cut, 25),
    (Step::Resize, 20),
    (Step::Relocate, 15),
    (Step::Discard, 30),
    (Step::Punch, 20),
    (Step::Protect, 40),
    (Step::Huge, 5),
    (Step::Fork, 2),
    (Step::CheckRegion, 10),
    (Step::Object, 1),
    (Step::Thread, 3),
    (Step::Exec, 1),
    (Step::Open, 5),
    (Step::Use, 100),
];

/// What the threads tell, and what they are asked.
#[derive(Debug)]
pub(crate) struct Board {
    failure: Mutex<Option<String>>,
    failed: AtomicBool,
    steps: AtomicU64,
    forks: AtomicU64,
    threads: AtomicU64,
    programs: AtomicU64,
    opened: AtomicU64,
    objects: AtomicU64,
    pages_checked: AtomicU64,
    /// Raised by one to ask every thread for a complete check.
    wanted: AtomicU64,
    /// The last complete check of each thread.
    checked: Vec<AtomicU64>,
    /// Asks the first thread to change a byte behind its model's back.
    corrupt: AtomicBool,
}

impl Board {
    pub(crate) fn new(threads: usize) -> Self {
        Self {
            failure: Mutex::default(),
            failed: AtomicBool::default(),
            steps: AtomicU64::default(),
            forks: AtomicU64::default(),
            threads: AtomicU64::default(),
            programs: AtomicU64::default(),
            opened: AtomicU64::default(),
            objects: AtomicU64::default(),
            pages_checked: AtomicU64::default(),
            wanted: AtomicU64::default(),
            checked: (0..threads).map(|_| AtomicU64::default()).collect(),
            corrupt: AtomicBool::default(),
        }
    }

    fn fail(&self, what: String) {
        eprintln!("torture: {what}");
        self.failure.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).get_or_insert(what);
        self.failed.store(true, Ordering::SeqCst);
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::SeqCst)
    }

    pub(crate) fn stats(&self) -> String {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (steps, forks, pages) = (load(&self.steps), load(&self.forks), load(&self.pages_checked));
        let (threads, programs) = (load(&self.threads), load(&self.programs));
        let (opened, objects) = (load(&self.opened), load(&self.objects));
        format!(
            "steps={steps} forks={forks} threads={threads} programs={programs} opened={opened} objects={objects} \
             pages_checked={pages} failed={}",
            self.failed.load(Ordering::Relaxed)
        )
    }

    /// Has a byte changed that no step changes, to show that it is noticed.
    pub(crate) fn corrupt(&self) -> String {
        self.corrupt.store(true, Ordering::SeqCst);
        "a byte will be changed".into()
    }

    /// Asks every thread for a complete check and waits for them.
    pub(crate) fn check_everything(&self) -> String {
        let wanted = self.wanted.fetch_add(1, Ordering::SeqCst) + 1;
        let start = Instant::now();
        let behind = || self.checked.iter().any(|checked| checked.load(Ordering::SeqCst) < wanted);
        while behind() && !self.failed.load(Ordering::SeqCst) && start.elapsed() < LIMIT {
            std::thread::sleep(Duration::from_millis(1));
        }
        let failure = self.failure.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone();
        match failure {
            Some(what) => format!("FAIL {what}"),
            None if behind() => format!("FAIL threads did not check everything within {LIMIT:?}"),
            None => format!("PASS {}", self.stats()),
        }
    }
}

/// One thread's memory.
#[derive(Debug)]
pub(crate) struct Worker {
    index: usize,
    random: Random,
    steps: Vec<(Step, usize)>,
    most_pages: usize,
    kinds: Vec<Kind>,
    regions: Vec<Region>,
    children: Vec<Child>,
    helpers: Vec<Helper>,
    programs: Vec<Program>,
    open: Vec<Descriptor>,
    file: File,
    board: Arc<Board>,
}

impl Worker {
    pub(crate) fn new(index: usize, options: &Options, board: Arc<Board>, file: File) -> Self {
        let random = Random::new(options.seed.wrapping_mul(0x1_0001).wrapping_add(index as u64));
        let is_chosen =
            |step: Step| !options.without.contains(&step) && (step != Step::Exec || options.programs);
        let steps = WEIGHTS.into_iter().filter(|(step, _)| is_chosen(*step)).collect();
        let most_pages = options.pages;
        let mut kinds = vec![Kind::Private, Kind::Private, Kind::Shared, Kind::File];
        kinds.extend(options.huge.then_some(Kind::Huge));
        Self {
            index,
            random,
            steps,
            most_pages,
            kinds,
            regions: Vec::new(),
            children: Vec::new(),
            helpers: Vec::new(),
            programs: Vec::new(),
            open: Vec::new(),
            file,
            board,
        }
    }

    /// So many steps, or until something is wrong.
    pub(crate) fn run(&mut self, steps: u64, pause: Duration) {
        for _ in 0..steps {
            if self.board.failed.load(Ordering::Relaxed) {
                return;
            }
            if let Err(what) = self.step() {
                return self.board.fail(format!("thread {}: {what}", self.index));
            }
            self.board.steps.fetch_add(1, Ordering::Relaxed);
            if !pause.is_zero() {
                std::thread::sleep(pause);
            }
        }
    }

    /// Everything, once more; what helpers have too, if they are to end and not to be overtaken by another program.
    pub(crate) fn last_check(&mut self, helpers_end: bool) {
        let gathered = if helpers_end { self.gather_helpers() } else { Ok(()) };
        if let Err(what) = gathered.and_then(|()| self.check_all()) {
            self.board.fail(format!("at the end: {what}"));
        }
    }

    fn step(&mut self) -> Result<(), String> {
        if self.index == 0 && self.board.corrupt.load(Ordering::SeqCst) {
            let done = self.regions.iter_mut().any(Region::corrupt);
            self.board.corrupt.store(!done, Ordering::SeqCst);
            // At once, before another step writes over the byte or a child finds it first.
            if done {
                self.check_all()?;
            }
        }
        let wanted = self.board.wanted.load(Ordering::SeqCst);
        if self.board.checked[self.index].load(Ordering::SeqCst) < wanted {
            self.gather_helpers()?;
            self.check_all()?;
            self.board.checked[self.index].store(wanted, Ordering::SeqCst);
        }
        if self.regions.is_empty() {
            return self.map();
        }
        let step = self.choose();
        self.act(step).map_err(|error| format!("{step:?}: {error}"))
    }

    fn choose(&mut self) -> Step {
        let mut number = self.random.below(self.steps.iter().map(|(_, weight)| weight).sum());
        for &(step, weight) in &self.steps {
            if number < weight {
                return step;
            }
            number -= weight;
        }
        Step::Check
    }

    fn act(&mut self, step: Step) -> Result<(), String> {
        let Self { random, regions, .. } = self;
        let which = random.below(regions.len());
        let region = &mut regions[which];
        let (page, range) = (random.below(region.len()), random.range(region.len()));
        match step {
            Step::Rewrite => region.rewrite(page, random.next()),
            Step::Patch => region.patch(page, random),
            Step::Check => told(region.check(page))?,
            Step::Map => self.map()?,
            Step::Cut => {
                let rest = regions.swap_remove(which).cut(range).map_err(|error| error.to_string())?;
                regions.extend(rest);
            }
            Step::Resize => region.resize(1 + random.below(LARGEST)),
            Step::Relocate => call(region.relocate())?,
            Step::Discard => call(region.discard(range))?,
            Step::Punch => call(region.punch(range))?,
            Step::Protect => {
                let choices = [Protection::Nothing, Protection::Read, Protection::Write, Protection::Write];
                let wide = if random.below(2) == 0 { 0..region.len() } else { range };
                call(region.protect(wide, choices[random.below(choices.len())]))?;
            }
            Step::Huge => call(region.prefer_huge(random.below(2) == 0))?,
            Step::Fork => self.fork()?,
            Step::CheckRegion => told(region.check_all())?,
            Step::Object if random.below(SELDOM) > 0 => {}
            Step::Object => self.share()?,
            Step::Thread => self.help(which)?,
            Step::Exec => self.exec()?,
            Step::Open => self.open()?,
            Step::Use => self.use_one()?,
        }
        self.shrink()
    }

    fn map(&mut self) -> Result<(), String> {
        let kind = self.kinds[self.random.below(self.kinds.len())];
        let large = self.random.below(4) == 0;
        let pages = 1 + self.random.below(if large { LARGEST } else { LARGEST / 16 });
        let region = Region::map(kind, pages, &self.file, &mut self.random);
        self.regions.push(region.map_err(|error| error.to_string())?);
        Ok(())
    }

    /// Makes an object of any sort.
    pub(crate) fn share(&mut self) -> Result<(), String> {
        let sort = SORTS[self.random.below(SORTS.len())];
        let pages = 1 + self.random.below(LARGEST / 4);
        let region = Region::map(Kind::Object(sort), pages, &self.file, &mut self.random);
        self.regions.push(region.map_err(|error| format!("{sort:?}: {error}"))?);
        self.board.objects.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Gives a region to a thread for a while.
    fn help(&mut self, which: usize) -> Result<(), String> {
        while let Some(ended) = self.helpers.iter().position(Helper::has_ended) {
            self.regions.push(self.helpers.swap_remove(ended).end()?);
        }
        if self.helpers.len() < MOST_HELPERS && self.regions.len() > 1 {
            let (turns, seed) = (1 + self.random.below(HELP), self.random.next());
            let helper = Helper::start(self.regions.swap_remove(which), turns, seed);
            self.helpers.push(helper.map_err(|error| error.to_string())?);
            self.board.threads.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    fn exec(&mut self) -> Result<(), String> {
        look_after(&mut self.programs, Program::look)?;
        if self.programs.len() < MOST_PROGRAMS {
            let program = Program::start(self.random.next());
            self.programs.push(program.map_err(|error| error.to_string())?);
            self.board.programs.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Opens something; in place of something else when enough is open.
    fn open(&mut self) -> Result<(), String> {
        let opened = Descriptor::open(&mut self.random).map_err(|error| error.to_string())?;
        if self.open.len() < MOST_OPEN {
            self.open.push(opened);
        } else {
            let which = self.random.below(MOST_OPEN);
            self.open[which] = opened;
        }
        self.board.opened.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn use_one(&mut self) -> Result<(), String> {
        if self.open.is_empty() {
            return Ok(());
        }
        let which = self.random.below(self.open.len());
        self.open[which].turn(&mut self.random)
    }

    /// Unmaps whole regions until the rest is within the limit.
    fn shrink(&mut self) -> Result<(), String> {
        while self.regions.len() > 1 && self.regions.iter().map(Region::len).sum::<usize>() > self.most_pages
        {
            let which = self.random.below(self.regions.len());
            told(self.regions[which].check_all())?;
            self.regions.swap_remove(which);
        }
        Ok(())
    }

    fn fork(&mut self) -> Result<(), String> {
        look_after(&mut self.children, Child::look)?;
        if self.children.len() < MOST_CHILDREN {
            let turns = if self.random.below(2) == 0 { 1 } else { self.random.below(LONG_LIFE) };
            let child = Child::fork(&mut self.regions, turns as u64, &mut self.random);
            self.children.push(child.map_err(|error| error.to_string())?);
            self.board.forks.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Waits for all helpers, so that what they have is checked too.
    fn gather_helpers(&mut self) -> Result<(), String> {
        for helper in self.helpers.drain(..) {
            self.regions.push(helper.end()?);
        }
        Ok(())
    }

    fn check_all(&mut self) -> Result<(), String> {
        look_after(&mut self.children, Child::look)?;
        look_after(&mut self.programs, Program::look)?;
        (0..MOST_OPEN * 4).try_for_each(|_| self.use_one())?;
        for region in &mut self.regions {
            told(region.check_all())?;
            self.board.pages_checked.fetch_add(region.len() as u64, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// Keeps those that have not ended.
fn look_after<T>(all: &mut Vec<T>, look: impl Fn(&mut T) -> Result<bool, String>) -> Result<(), String> {
    let mut next = 0;
    while next < all.len() {
        if look(&mut all[next])? {
            all.swap_remove(next);
        } else {
            next += 1;
        }
    }
    Ok(())
}

fn told(checked: Result<(), Mismatch>) -> Result<(), String> {
    checked.map_err(|mismatch| mismatch.to_string())
}

fn call(result: std::io::Result<()>) -> Result<(), String> {
    result.map_err(|error| error.to_string())
}
