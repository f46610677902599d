//! Medians over the repetitions of a setting, and the ratios that matter.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::outcome::{Measures, Run};
use crate::setting::{CLIENTS, Channel, Link, Setting, Strategy, Workload, Ycsb};

/// Every setting that was measured, with its measurements.
#[derive(Debug)]
pub(crate) struct Summary<'a>(BTreeMap<&'a Setting, Vec<&'a Measures>>);

/// A figure over the repetitions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Figure {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

impl Figure {
    /// `None` of nothing.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (&least, &most) = (values.first()?, values.last()?);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            values[middle]
        } else {
            f64::midpoint(values[middle - 1], values[middle])
        };
        Some(Self { median, least, most })
    }
}

impl fmt::Display for Figure {
    /// The median, and the least and the most when they differ: `12.3 (11.0-14.5)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = f.precision().unwrap_or(1);
        let Self { median, least, most } = self;
        write!(f, "{median:.digits$}")?;
        if least < most { write!(f, " ({least:.digits$}-{most:.digits$})") } else { Ok(()) }
    }
}

impl<'a> Summary<'a> {
    /// Of all runs that were measured.
    pub(crate) fn new(runs: &'a [Run]) -> Self {
        let mut settings: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for run in runs {
            if let Some(measures) = run.measures() {
                settings.entry(&run.setting).or_default().push(measures);
            }
        }
        Self(settings)
    }

    /// Every setting, in order.
    pub(crate) fn settings(&self) -> impl Iterator<Item = (&'a Setting, &[&'a Measures])> {
        self.0.iter().map(|(&setting, measures)| (setting, measures.as_slice()))
    }

    /// A figure of a setting.
    pub(crate) fn figure(&self, setting: &Setting, of: impl Fn(&Measures) -> Option<f64>) -> Option<Figure> {
        Figure::of(self.0.get(setting)?.iter().filter_map(|measures| of(measures)))
    }

    /// By how much a figure of one-shot is larger than that of `global`, for every setting that has both; those with
    /// most records last.
    fn against_one_shot(&self, of: impl Fn(&Measures) -> Option<f64>) -> Vec<(&'a Setting, f64)> {
        let ratio = |setting| Some((setting, self.ratio(setting, Strategy::OneShot, &of)?));
        self.globals().filter_map(ratio).collect()
    }

    /// Every setting of `global`, in order.
    pub(crate) fn globals(&self) -> impl Iterator<Item = &'a Setting> {
        self.0.keys().copied().filter(|setting| setting.strategy == Strategy::Global)
    }

    /// By how much a figure of the same setting by another strategy is larger.
    pub(crate) fn ratio(
        &self,
        setting: &Setting,
        other: Strategy,
        of: impl Fn(&Measures) -> Option<f64>,
    ) -> Option<f64> {
        // CRIU has no limit.
        let bandwidth = setting.bandwidth.filter(|_| other != Strategy::Criu);
        let other = Setting { strategy: other, bandwidth, ..setting.clone() };
        let (this, other) = (self.figure(setting, &of)?.median, self.figure(&other, &of)?.median);
        (this > 0.0).then_some(other / this)
    }
}

/// A figure that PCLive aims at.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Headline {
    /// What it is.
    pub(crate) what: String,
    /// It, in words.
    pub(crate) value: String,
    /// What it should be.
    pub(crate) aim: String,
    /// Whether it is.
    pub(crate) met: bool,
}

/// Milliseconds that clients may wait beyond the downtime.
const GAP_MS: f64 = 10.0;
/// Memory that the agents may take together, MiB.
const MEMORY_MIB: f64 = 100.0;
/// Part of the throughput that must remain while rounds run, percent.
const KEPT_PERCENT: f64 = 90.0;

/// Every headline that the runs can tell.
pub(crate) fn headlines(runs: &[Run]) -> Vec<Headline> {
    let summary = Summary::new(runs);
    [
        downtime(&summary),
        restore(&summary).into_iter().collect(),
        clients(&summary),
        agents(&summary),
        stops(&summary),
    ]
    .concat()
}

/// Redis whose clients ask as fast as they can, over TLS and all of the link: what the aims and the plots are about.
pub(crate) fn usual(setting: &Setting) -> Option<&Ycsb> {
    busy(setting).filter(|_| setting.bandwidth.is_none())
}

/// The same, over a part of the link too.
fn busy(setting: &Setting) -> Option<&Ycsb> {
    match &setting.workload {
        Workload::Ycsb(ycsb) if ycsb.clients == CLIENTS && ycsb.rate.is_none() => {
            (setting.channel == Channel::Tls).then_some(ycsb)
        }
        Workload::Ycsb(_) | Workload::Stress { .. } | Workload::Oltp(_) | Workload::Graph { .. } => None,
    }
}

/// What the downtime of one-shot should be of that of global, at the least.
fn aim(ycsb: &Ycsb, link: Link) -> Option<f64> {
    match (ycsb.reads_percent, link) {
        (90, Link::Gigabit) => Some(5.0),
        (10, Link::Gigabit) => Some(2.0),
        (90, Link::TenGigabit) => Some(8.0),
        _ => None,
    }
}

fn downtime(summary: &Summary<'_>) -> Vec<Headline> {
    let ratios = summary.against_one_shot(|measures| Some(measures.report.downtime_ns as f64));
    let headline = |(setting, ratio): (&Setting, f64)| {
        let aim = aim(usual(setting)?, setting.link)?;
        Some(Headline {
            what: format!("downtime, one-shot / global: {} over {}", setting.workload, setting.link),
            value: format!("{ratio:.1}"),
            aim: format!("{aim:.0} or more"),
            met: ratio >= aim,
        })
    };
    ratios.into_iter().filter_map(headline).collect()
}

/// Of the setting with most records.
fn restore(summary: &Summary<'_>) -> Option<Headline> {
    /// What the restore time of one-shot should be of that of global.
    const AIM: f64 = 50.0;
    let ratios = summary.against_one_shot(|measures| Some(measures.report.restore_ns as f64));
    let readers =
        ratios.into_iter().filter(|(setting, _)| usual(setting).is_some_and(|ycsb| ycsb.reads_percent == 90));
    let (setting, ratio) = readers.max_by_key(|(setting, _)| setting.workload.memory_bytes())?;
    Some(Headline {
        what: format!("restore time, one-shot / global: {} over {}", setting.workload, setting.link),
        value: format!("{ratio:.0}"),
        aim: format!("{AIM:.0} or more"),
        met: ratio >= AIM,
    })
}

fn clients(summary: &Summary<'_>) -> Vec<Headline> {
    let mut headlines = Vec::new();
    let ways: BTreeSet<(Link, Option<u32>, String)> = summary
        .globals()
        .filter(|setting| busy(setting).is_some())
        .map(|setting| (setting.link, setting.bandwidth, setting.way()))
        .collect();
    for (link, bandwidth, way) in ways {
        let of_way = |setting: &Setting| {
            (setting.link, setting.bandwidth) == (link, bandwidth) && busy(setting).is_some()
        };
        let kept =
            Figure::of(globals(summary, of_way).filter_map(|measures| measures.clients.as_ref()?.kept()));
        headlines.extend(kept.map(|kept| Headline {
            what: format!("throughput while rounds of global run over {way}, of what it was before, %"),
            value: percent(kept),
            aim: format!("{KEPT_PERCENT:.0} or more"),
            met: kept.median * 100.0 >= KEPT_PERCENT,
        }));
    }
    let beyond = |measures: &Measures| {
        let longest = measures.clients.as_ref()?.longest_wait_ns as f64;
        Some((longest - measures.report.downtime_ns as f64) / 1e6)
    };
    let gap = Figure::of(globals(summary, |setting| usual(setting).is_some()).filter_map(beyond));
    headlines.extend(gap.map(|gap| Headline {
        what: "clients' longest wait beyond the downtime of global, ms".into(),
        value: format!("{gap:.1}"),
        aim: format!("{GAP_MS:.0} or less"),
        met: gap.most <= GAP_MS,
    }));
    headlines
}

/// Measurements of global, of these settings.
fn globals<'a>(
    summary: &Summary<'a>,
    wanted: impl Fn(&Setting) -> bool,
) -> impl Iterator<Item = &'a Measures> {
    let settings = summary
        .settings()
        .filter(move |(setting, _)| setting.strategy == Strategy::Global && wanted(setting));
    settings.flat_map(|(_, measures)| measures.to_vec())
}

fn percent(part: Figure) -> String {
    let Figure { median, least, most } = part;
    format!("{:.0}", Figure { median: median * 100.0, least: least * 100.0, most: most * 100.0 })
}

fn agents(summary: &Summary<'_>) -> Vec<Headline> {
    let mut headlines = Vec::new();
    for (channel, name, aim) in [(Channel::Tls, "TLS", 0.6), (Channel::Plain, "plain text", 0.45)] {
        let of_channel = |setting: &Setting| setting.channel == channel && setting.bandwidth.is_none();
        for (end, index) in [("source", 0), ("destination", 1)] {
            let each = globals(summary, of_channel);
            let cpu = Figure::of(each.filter_map(|measures| Some(measures.cpu_per_gib()?[index])));
            headlines.extend(cpu.map(|cpu| Headline {
                what: format!("CPU seconds of the {end}'s agent for each GiB, by global over {name}"),
                value: format!("{cpu:.2}"),
                aim: format!("{aim} or less"),
                met: cpu.median <= aim,
            }));
        }
    }
    let memory = Figure::of(
        globals(summary, |setting| setting.bandwidth.is_none())
            .filter_map(|measures| Some(mib(measures.agents_memory()?))),
    );
    headlines.extend(memory.map(|memory| Headline {
        what: "memory of both agents at most, by global, MiB".into(),
        value: format!("{memory:.0}"),
        aim: format!("{MEMORY_MIB:.0} or less"),
        met: memory.most <= MEMORY_MIB,
    }));
    headlines
}

/// What does not depend on clients: how a link is filled, and what every stop takes beside the last pages.
fn stops(summary: &Summary<'_>) -> Vec<Headline> {
    /// Bytes a second of the 10 Gbit/s link.
    const LINK: f64 = 10e9 / 8.0;
    let idle = |setting: &Setting| {
        setting.link == Link::TenGigabit
            && setting.channel == Channel::Tls
            && setting.bandwidth.is_none()
            && matches!(&setting.workload, Workload::Ycsb(ycsb) if ycsb.clients == 0)
    };
    let large = |setting: &Setting| matches!(setting.workload, Workload::Stress { mib, .. } if mib >= 4096);
    let first_round = |measures: &Measures| {
        let first = measures.report.rounds.iter().find(|round| round.number == 0)?;
        Some(first.bytes_per_second as f64 / LINK * 100.0)
    };
    let beside_pages = |measures: &Measures| {
        let ledger = measures.report.ledger.as_ref()?;
        let pages = ledger.transfer_ns.saturating_add(ledger.fill_ns);
        Some(measures.report.downtime_ns.saturating_sub(pages) as f64 / 1e6)
    };
    let find_and_read = |measures: &Measures| {
        let ledger = measures.report.ledger.as_ref()?;
        Some(ledger.final_scan_ns.saturating_add(ledger.capture_ns) as f64 / 1e6)
    };
    let rate = Figure::of(globals(summary, idle).filter_map(first_round)).map(|rate| Headline {
        what: "rate of round 0 of an idle Redis by global, of a 10 Gbit/s link, %".into(),
        value: format!("{rate:.0}"),
        aim: "80 or more".into(),
        met: rate.median >= 80.0,
    });
    let rest = Figure::of(globals(summary, idle).filter_map(beside_pages)).map(|rest| Headline {
        what: "downtime of an idle Redis by global without the last pages, ms".into(),
        value: format!("{rest:.1}"),
        aim: "less than 20".into(),
        met: rest.median < 20.0,
    });
    let read = Figure::of(globals(summary, large).filter_map(find_and_read)).map(|read| Headline {
        what: "to find the last pages of 4 GiB or more and read the kernel's state, by global, ms".into(),
        value: format!("{read:.1}"),
        aim: "less than 10".into(),
        met: read.median < 10.0,
    });
    [rate, rest, read, predicted(summary)].into_iter().flatten().collect()
}

/// By how much downtimes differed from what they were expected to be, by all strategies of the agents.
fn predicted(summary: &Summary<'_>) -> Option<Headline> {
    /// Percent.
    const AIM: f64 = 25.0;
    let error = |measures: &Measures| {
        let expected = measures.report.predicted_downtime_ns? as f64;
        let measured = measures.report.downtime_ns as f64;
        (measured > 0.0).then(|| (expected - measured).abs() / measured * 100.0)
    };
    let errors = summary.settings().flat_map(|(_, measures)| measures.iter().filter_map(|one| error(one)));
    let error = Figure::of(errors)?;
    Some(Headline {
        what: "error of the predicted downtime, % of the downtime".into(),
        value: format!("{error:.0}"),
        aim: format!("{AIM:.0} or less in the median"),
        met: error.median <= AIM,
    })
}

/// Bytes in MiB.
pub(crate) fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    #[test]
    fn figure_is_the_median_with_the_extremes() {
        let figure = Figure::of([3.0, 1.0, 2.0]).unwrap();
        assert_eq!(figure, Figure { median: 2.0, least: 1.0, most: 3.0 });
        assert_eq!(format!("{figure:.2}"), "2.00 (1.00-3.00)");
        assert!((Figure::of([1.0, 2.0]).unwrap().median - 1.5).abs() < 1e-9);
        assert_eq!(Figure::of([4.0]).unwrap().to_string(), "4.0");
        assert_eq!(Figure::of([]), None);
    }

    #[test]
    fn ratios_compare_medians_of_the_same_setting() {
        let runs = [
            sample::measured("one-shot", 100, 90),
            sample::measured("one-shot", 300, 200),
            sample::measured("one-shot", 200, 100),
            sample::measured("global", 20, 2),
        ];
        let headlines = headlines(&runs);
        let value = |what: &str| {
            let found = headlines.iter().find(|headline| headline.what.starts_with(what));
            found.map(|headline| (headline.value.as_str(), headline.met))
        };
        assert_eq!(value("downtime, one-shot / global"), Some(("10.0", true)));
        assert_eq!(value("restore time, one-shot / global"), Some(("50", true)));
        assert_eq!(value("error of the predicted downtime"), Some(("50", false)));
    }

    #[test]
    fn idle_redis_and_large_memory_tell_what_every_stop_takes() {
        let idle = Workload::Ycsb(Ycsb { records: 1000, reads_percent: 100, clients: 0, rate: None });
        let idle = sample::run_of(idle, "global", 20, 2);
        let idle = Run { setting: Setting { link: Link::TenGigabit, ..idle.setting.clone() }, ..idle };
        let large = Workload::Stress { mib: 4096, pages_per_second: 1000 };
        let headlines = headlines(&[idle, sample::run_of(large, "global", 20, 2)]);
        let value = |what: &str| {
            let found = headlines.iter().find(|headline| headline.what.contains(what));
            found.map(|headline| (headline.value.as_str(), headline.met))
        };
        assert_eq!(value("rate of round 0"), Some(("328", true)));
        assert_eq!(value("without the last pages"), Some(("15.5", true)));
        assert_eq!(value("read the kernel's state"), Some(("5.0", true)));
    }

    #[test]
    fn limited_rounds_are_told_apart_and_are_not_what_is_usual() {
        let run = sample::measured("global", 20, 2);
        let limited = Run { setting: Setting { bandwidth: Some(500), ..run.setting.clone() }, ..run.clone() };
        assert!(usual(&run.setting).is_some() && usual(&limited.setting).is_none());
        let headlines = headlines(&[run, limited]);
        let told = |way: &str| {
            let what = format!("throughput while rounds of global run over {way}, of what it was before, %");
            headlines.iter().filter(|headline| headline.what == what).count()
        };
        assert_eq!((told("1 Gbit/s"), told("1 Gbit/s, at most 500 Mbit/s")), (1, 1), "{headlines:?}");
    }

    #[test]
    fn one_strategy_alone_has_no_ratio() {
        let headlines = headlines(&[sample::measured("global", 20, 2)]);
        assert!(headlines.iter().all(|headline| !headline.what.contains("one-shot")), "{headlines:?}");
    }

    #[test]
    fn runs_that_failed_are_left_out() {
        let mut failed = sample::measured("global", 20, 2);
        failed.outcome = crate::outcome::Outcome::Failed { why: "no".into() };
        assert_eq!(Summary::new(&[failed]).settings().count(), 0);
    }
}
