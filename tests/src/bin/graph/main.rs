//! Breadth-first search over a random graph, after the Graph500 benchmark's public definition: a Kronecker graph, searches
//! from random vertices by several threads, and the definition's checks of a result.
//!
//! `graph --scale S --edge-factor F --threads N`, then on TCP port 7000: `PING` (once the graph is there), `SEARCHES` (how
//! many have ended), and `CHECK`: `PASS ...` when the graph is what was made, and the next search that ends is right.
#![forbid(unsafe_code)]

mod graph;
mod kronecker;
mod search;
mod validate;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use pclive_tests::answers;
use pclive_tests::random::Random;

use graph::Graph;
use search::Search;

/// How long the next search may take.
const LIMIT: Duration = Duration::from_secs(50);

/// Searches for ever.
#[derive(Debug, Clone, Parser)]
struct Options {
    /// The graph has two to the power of this vertices.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(4..=30))]
    scale: u32,
    /// Edges for each vertex.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=64))]
    edge_factor: u32,
    /// Threads of a search.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    threads: u16,
    /// Of the graph, and of the vertices where searches begin.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// What the searching thread and the one that answers have in common.
#[derive(Debug, Default)]
struct Shared {
    searches: AtomicU64,
    /// Who wants the next result.
    asked: Mutex<Option<SyncSender<Search>>>,
}

impl Shared {
    fn asked(&self) -> std::sync::MutexGuard<'_, Option<SyncSender<Search>>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for the result of a search that ends from now on.
    fn ask(&self) -> Receiver<Search> {
        let (sender, receiver) = sync_channel(1);
        *self.asked() = Some(sender);
        receiver
    }
}

fn main() -> Result<()> {
    let options = Options::parse();
    let edges = kronecker::edges(options.scale, options.edge_factor, options.seed);
    let graph = Arc::new(Graph::of(1 << options.scale, &edges));
    drop(edges);
    let made = graph.digest();
    let shared = Arc::new(Shared::default());
    let searching = (Arc::clone(&graph), Arc::clone(&shared));
    std::thread::Builder::new().name("search".into()).spawn(move || {
        let (graph, shared) = searching;
        search_for_ever(&graph, &options, &shared);
    })?;
    answers::serve(|question| match question {
        "PING" => "PONG".into(),
        "SEARCHES" => shared.searches.load(Ordering::Relaxed).to_string(),
        "CHECK" => check(&graph, made, &shared),
        other => format!("FAIL unknown question {other}"),
    })
}

fn search_for_ever(graph: &Graph, options: &Options, shared: &Shared) -> ! {
    let mut random = Random::new(!options.seed);
    loop {
        let root = graph.some_vertex(&mut random);
        let found = search::run(graph, root, options.threads.into());
        shared.searches.fetch_add(1, Ordering::Relaxed);
        if let Some(asked) = shared.asked().take() {
            // Whoever asked may have gone.
            let _ = asked.send(found);
        }
    }
}

fn check(graph: &Graph, made: u64, shared: &Shared) -> String {
    if graph.digest() != made {
        return "FAIL the graph is not what was made".into();
    }
    let Ok(search) = shared.ask().recv_timeout(LIMIT) else {
        return format!("FAIL no search has ended for {LIMIT:?}");
    };
    match validate::search(graph, &search) {
        Ok(reached) => {
            let (root, levels) = (search.root, search.levels);
            format!("PASS a search from {root} has reached {reached} vertices in {levels} steps")
        }
        Err(wrong) => format!("FAIL a search from {}: {wrong}", search.root),
    }
}
