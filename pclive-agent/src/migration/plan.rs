//! How a migration would go: the container is watched, the link measured, the rounds run on paper.
//!
//! Watching is round 0 of the engine with a sink that keeps nothing, then counts of the written pages at growing
//! times. One thread of each process stops for an instant, as in a migration; nothing is left in the container
//! afterwards. Measuring the link costs some megabytes on it.

use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use bytes::Bytes;
use pclive_engine::capture::{FilesAhead, RoundStats, Sink, SinkError, Source, SourceOptions};
use pclive_engine::model::{Batch, Layout, Pid};
use pclive_proto::control::{Plan, PlanMigrationRequest, PlanMigrationResponse, WrittenPages};
use pclive_proto::peer::peer_client::PeerClient;
use pclive_proto::peer::{ProbeChunk, ProbeResponse};
use tokio::sync::oneshot;
use tokio_stream::StreamExt;
use tonic::Streaming;
use tonic::transport::Channel;

use super::check::{hello, source_options};
use super::convergence::{Course, Experience, Limits, Scenario, Staged, Tasks, interpolate, simulate};
use super::report::ns;
use super::{Wishes, wire};
use crate::agent::Agent;
use crate::config::Strategy;
use crate::error::{ErrorCode, MigrationError};
use crate::link;

/// How long the container is watched when nothing else is asked for, and at most.
const WATCH: Duration = Duration::from_secs(3);
const LONGEST_WATCH_MS: u64 = 60_000;
/// The first count; the later ones are each this factor later.
const FIRST_LOOK: Duration = Duration::from_millis(50);
const LOOKS_FACTOR: u32 = 2;
/// The link's measurement: long enough to fill its buffers, and no more of it than this.
const PROBE: Duration = Duration::from_millis(400);
const PROBE_CHUNK: usize = 1 << 20;
const PROBE_BYTES: u64 = 256 << 20;
/// Longest time that a probe is taken.
const PROBE_LIMIT: Duration = Duration::from_secs(5);
/// What both ends do to pages costs this, whatever the link: bytes a second.
const ENDS: u64 = 1 << 30;
/// Memory of the destination's agent beside the container's own, bytes.
const IN_FLIGHT: u64 = 64 << 20;

/// Plans a migration. Nothing is stopped.
pub async fn plan(
    agent: &Agent,
    request: PlanMigrationRequest,
) -> Result<PlanMigrationResponse, MigrationError> {
    let wishes = Wishes {
        max_downtime_ms: request.max_downtime_ms,
        max_rounds: request.max_rounds,
        max_time_ms: request.max_time_ms,
        policy: request.policy(),
        bandwidth: request.bandwidth_bytes_per_second,
        restore_after: request.restore_after,
    };
    let (limits, bandwidth) = wishes.or_configured(agent, Strategy::Global)?;
    let watch = match request.watch_ms {
        0 => WATCH,
        asked if asked <= LONGEST_WATCH_MS => Duration::from_millis(asked),
        asked => {
            let message = format!("cannot watch a container for {asked} ms: at most {LONGEST_WATCH_MS}");
            return Err(MigrationError::new(ErrorCode::InvalidRequest, message));
        }
    };
    let located = agent.locate_running(&request.container, &request.runtime).await?;
    let way = measure(agent, &request, bandwidth).await?;
    // Dropped with this call: a user who leaves ends the watching.
    let (alive, gone) = channel::<()>();
    let options = SourceOptions { ahead: FilesAhead::NOTHING, ..source_options(agent) };
    let pid = located.container.pid;
    let (tell, watched) = oneshot::channel();
    // A thread of its own: what it holds of the container is let go with it.
    let thread = std::thread::Builder::new().name("plan".into());
    let started = thread.spawn(move || drop(tell.send(look(pid, options, watch, &gone))));
    let cannot = |why: String| {
        let message = format!("cannot watch container {}: {why}", request.container);
        MigrationError::new(ErrorCode::Internal, message)
    };
    started.map_err(|error| cannot(format!("no thread for it: {error}")))?;
    let watched = watched.await;
    drop(alive);
    let watched = watched.map_err(|_| cannot("its thread has ended".into()))??;
    Ok(answer(&watched, &way, &limits))
}

/// The way to the destination.
struct Way {
    bytes_per_second: u64,
    /// Most bytes a second of the rounds.
    bandwidth: Option<u64>,
    round_trip: Duration,
    experience: Experience,
}

/// Without a destination the bandwidth that was asked for is that of the link.
async fn measure(
    agent: &Agent,
    request: &PlanMigrationRequest,
    bandwidth: Option<u64>,
) -> Result<Way, MigrationError> {
    if request.destination.is_empty() {
        let given = request.bandwidth_bytes_per_second;
        let unknown = || {
            MigrationError::new(ErrorCode::InvalidRequest, "cannot plan without a destination or a bandwidth")
        };
        let bytes_per_second = Some(given).filter(|given| *given > 0).ok_or_else(unknown)?;
        let configured = agent.config.migration.bandwidth_bytes_per_second;
        let bandwidth = Some(configured).filter(|limit| *limit > 0);
        let (round_trip, experience) = (Duration::ZERO, Experience::default());
        return Ok(Way { bytes_per_second, bandwidth, round_trip, experience });
    }
    let address = agent.peer_address(&request.destination)?;
    let mut client =
        link::connect(&address, &agent.config.peer, &agent.config.migration, agent.keeper.as_ref()).await?;
    let asked = Instant::now();
    hello(agent, &mut client).await?;
    let round_trip = asked.elapsed();
    let bytes_per_second = probe(&mut client).await?;
    Ok(Way { bytes_per_second, bandwidth, round_trip, experience: agent.experience(&address) })
}

/// Sends for a moment as fast as the link takes it.
async fn probe(client: &mut PeerClient<Channel>) -> Result<u64, MigrationError> {
    // Contents that compress to nothing would say too much of a link that compresses.
    let chunk: Bytes =
        (0..PROBE_CHUNK as u64).map(|at| (at.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect();
    let began = Instant::now();
    let most = usize::try_from(PROBE_BYTES).unwrap_or(usize::MAX) / PROBE_CHUNK;
    let chunks = tokio_stream::iter((0..most).map(move |_| ProbeChunk { payload: chunk.clone() }))
        .take_while(move |_| began.elapsed() < PROBE);
    let answer = tokio::time::timeout(PROBE_LIMIT, client.probe(chunks)).await;
    let late = |_| MigrationError::new(ErrorCode::Timeout, "the other agent does not answer a probe");
    let bytes = answer.map_err(late)?.map_err(|status| wire::status_error(&status))?.into_inner().bytes;
    let rate = u128::from(bytes) * 1_000_000_000 / began.elapsed().as_nanos().max(1);
    Ok(u64::try_from(rate).unwrap_or(u64::MAX))
}

/// Takes another agent's probe: counts it and forgets it.
pub async fn probed(mut chunks: Streaming<ProbeChunk>) -> ProbeResponse {
    let mut bytes = 0u64;
    let take = async {
        while let Ok(Some(chunk)) = chunks.message().await {
            bytes = bytes.saturating_add(chunk.payload.len() as u64);
            if bytes >= PROBE_BYTES {
                break;
            }
        }
    };
    // Whoever sends for longer gets what was counted until then.
    let _ = tokio::time::timeout(PROBE_LIMIT, take).await;
    ProbeResponse { bytes }
}

/// What watching has shown.
struct Watched {
    first: RoundStats,
    /// Milliseconds since the first scan and distinct pages written since then.
    curve: Vec<(u64, u64)>,
}

struct Nowhere;

impl Sink for Nowhere {
    fn layout(&mut self, _: &Layout) -> Result<(), SinkError> {
        Ok(())
    }

    fn batch(&mut self, _: Batch) -> Result<(), SinkError> {
        Ok(())
    }
}

/// Watches a container, as long as somebody wants to know. Blocks; the engine wants one thread for all of it.
fn look(
    pid: i32,
    options: SourceOptions,
    watch: Duration,
    gone: &Receiver<()>,
) -> Result<Watched, MigrationError> {
    let capture = |error| MigrationError::caused(ErrorCode::CaptureFailed, &error);
    let mut source = Source::open(Pid(pid), options).map_err(capture)?;
    let first = source.round(&mut Nowhere).map_err(capture)?;
    // The curve begins with a scan that has little to read: the first one took a while.
    let began = Instant::now();
    source.round(&mut Nowhere).map_err(capture)?;
    let (mut curve, mut at) = (Vec::new(), FIRST_LOOK);
    loop {
        let wait = at.min(watch).saturating_sub(began.elapsed());
        if gone.recv_timeout(wait) == Err(RecvTimeoutError::Disconnected) {
            return Err(MigrationError::new(ErrorCode::Cancelled, "nobody waits for the plan any more"));
        }
        let pages = source.pending_pages().map_err(capture)?;
        let ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        curve.push((ms, pages));
        if at >= watch {
            return Ok(Watched { first, curve });
        }
        at = at.saturating_mul(LOOKS_FACTOR);
    }
}

fn answer(watched: &Watched, way: &Way, limits: &Limits) -> PlanMigrationResponse {
    let courses = Strategy::ALL.map(|strategy| (strategy, course(watched, way, limits, strategy)));
    let (recommended, course) = best(&courses, limits.max_downtime);
    let reason = if course.downtime <= limits.max_downtime {
        "no strategy has a notably shorter downtime; it is within the limit".to_owned()
    } else {
        let limit = limits.max_downtime.as_millis();
        format!("no strategy has a notably shorter downtime; none comes below {limit} ms")
    };
    let written = watched.curve.iter().map(|&(after_ms, pages)| WrittenPages { after_ms, pages });
    PlanMigrationResponse {
        memory_pages: watched.first.data_pages,
        written: written.collect(),
        bandwidth_bytes_per_second: way.bandwidth.unwrap_or(u64::MAX).min(way.bytes_per_second),
        plans: courses.iter().map(|(strategy, course)| message(watched, limits, *strategy, course)).collect(),
        recommended: wire::control_strategy(recommended).into(),
        reason,
    }
}

/// The shortest downtime. One that is longer by less than a prediction errs counts as the same, and then the
/// destination's memory decides.
fn best(courses: &[(Strategy, Course)], limit: Duration) -> (Strategy, Course) {
    let least = courses.iter().map(|(_, course)| course.downtime).min().unwrap_or_default();
    let same = |course: &Course| course.downtime <= least + least / 4;
    let choice = courses
        .iter()
        .filter(|(_, course)| same(course))
        .min_by_key(|(_, course)| (course.downtime > limit, course.staged_bytes, course.downtime));
    choice.copied().unwrap_or(courses[0])
}

fn course(watched: &Watched, way: &Way, limits: &Limits, strategy: Strategy) -> Course {
    let stats = &watched.first;
    let memory = stats.data_pages;
    let (staged, restore_after) = match strategy {
        Strategy::Global => (Staged::Nothing, limits.restore_after),
        Strategy::Pipelined => (Staged::Round, limits.restore_after),
        Strategy::OneShot => (Staged::Everything, 0),
    };
    let written = |_: Duration, span: Duration| interpolate(&watched.curve, span).min(memory);
    let scenario = Scenario {
        memory_pages: memory,
        written: &written,
        throughput: way.bytes_per_second.min(ENDS),
        bandwidth: way.bandwidth,
        round_cost: stats.scan,
        stop_scan: stats.scan.saturating_add(stats.stop_scan),
        round_trip: way.round_trip,
        staged,
        tasks: Tasks {
            processes: stats.processes.into(),
            threads: stats.threads.into(),
            descriptors: stats.descriptors.into(),
        },
        experience: way.experience,
    };
    simulate(&scenario, &Limits { restore_after, ..*limits })
}

fn message(watched: &Watched, limits: &Limits, strategy: Strategy, course: &Course) -> Plan {
    let memory = watched.first.data_pages.saturating_mul(4096);
    let verdict = course.reason.map_or("given up (policy cancel)".into(), |reason| reason.to_string());
    Plan {
        strategy: wire::control_strategy(strategy).into(),
        rounds: course.rounds,
        bytes: course.bytes,
        total_ns: ns(course.time),
        downtime_ns: ns(course.downtime),
        destination_memory_bytes: memory.saturating_add(course.staged_bytes).saturating_add(IN_FLIGHT),
        converges: course.downtime <= limits.max_downtime,
        verdict: match course.tail_bytes {
            0 => verdict,
            bytes => format!("{verdict}; {} pages follow the container", bytes / 4096),
        },
        tail_bytes: course.tail_bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_decides_between_downtimes_that_are_nearly_the_same() {
        let course = |downtime, staged_bytes| Course {
            rounds: 1,
            bytes: 0,
            time: Duration::ZERO,
            tail_bytes: 0,
            downtime: Duration::from_millis(downtime),
            staged_bytes,
            cpu_percent: 100,
            reason: None,
        };
        let recommended = |global, pipelined, limit| {
            let courses = [(Strategy::Pipelined, pipelined), (Strategy::Global, global)];
            best(
                &courses.map(|(strategy, downtime)| {
                    (strategy, course(downtime, u64::from(strategy == Strategy::Pipelined)))
                }),
                Duration::from_millis(limit),
            )
            .0
        };
        assert_eq!(recommended(28, 27, 300), Strategy::Global);
        assert_eq!(recommended(40, 27, 300), Strategy::Pipelined);
        assert_eq!(recommended(28, 27, 27), Strategy::Pipelined, "only this one is within the limit");
        assert_eq!(recommended(28, 27, 20), Strategy::Global, "neither is");
    }
}
