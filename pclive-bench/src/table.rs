//! The measurements as tables: Markdown for documents, cells for the page.

use crate::outcome::{Measures, Run};
use crate::setting::{Setting, Strategy};
use crate::summary::{Headline, Summary, headlines, mib};

/// A table.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    pub(crate) title: &'static str,
    pub(crate) heads: Vec<&'static str>,
    pub(crate) rows: Vec<Vec<String>>,
    /// Of them, those on the left are text.
    pub(crate) text_columns: usize,
}

/// A column of figures: its head, how many digits follow the point, and the figure.
type Column = (&'static str, usize, fn(&Measures) -> Option<f64>);

/// What is told of every setting.
const COST: [Column; 10] = [
    ("downtime, ms", 1, |measures| Some(ms(measures.report.downtime_ns))),
    ("predicted, ms", 1, |measures| measures.report.predicted_downtime_ns.map(ms)),
    ("restore, ms", 1, |measures| Some(ms(measures.report.restore_ns))),
    ("of it memory, ms", 1, |measures| {
        // CRIU does not tell; what agents tell is never nothing.
        Some(measures.report.ledger.as_ref()?.fill_ns).filter(|&fill| fill > 0).map(ms)
    }),
    ("total, s", 1, |measures| Some(measures.report.total_ns as f64 / 1e9)),
    ("rounds", 0, |measures| Some(measures.report.rounds.len() as f64)),
    ("sent, MiB", 0, |measures| Some(mib(measures.report.bytes))),
    ("followed the container, MiB", 0, |measures| Some(mib(measures.report.tail.as_ref()?.pages * 4096))),
    ("waits at the destination, MiB", 0, |measures| Some(mib(measures.report.staging_peak_bytes))),
    ("extra memory, MiB", 0, |measures| Some(mib(measures.agents_memory()?))),
];

/// What CRIU and `global` are compared by.
const COMPARED: [Column; 5] = [
    ("downtime", 1, |measures| Some(ms(measures.report.downtime_ns))),
    ("restore", 1, |measures| Some(ms(measures.report.restore_ns))),
    ("clients' longest wait", 1, |measures| Some(ms(measures.clients.as_ref()?.longest_wait_ns))),
    ("total", 1, |measures| Some(ms(measures.report.total_ns))),
    ("memory beside the container", 1, |measures| Some(mib(measures.agents_memory()?))),
];

/// What clients saw of it.
const CLIENTS: [Column; 8] = [
    ("longest wait, ms", 1, |measures| Some(ms(measures.clients.as_ref()?.longest_wait_ns))),
    ("answers/s before", 0, |measures| measures.clients.as_ref()?.before.rate()),
    ("in rounds, %", 0, |measures| Some(measures.clients.as_ref()?.kept()? * 100.0)),
    ("p99 before, ms", 2, |measures| measures.clients.as_ref()?.before.some(|part| ms(part.p99_ns))),
    ("p99 in rounds, ms", 2, |measures| measures.clients.as_ref()?.rounds.some(|part| ms(part.p99_ns))),
    ("p99.9 before, ms", 2, |measures| measures.clients.as_ref()?.before.some(|part| ms(part.p999_ns))),
    ("p99.9 in rounds, ms", 2, |measures| measures.clients.as_ref()?.rounds.some(|part| ms(part.p999_ns))),
    ("p99 after, ms", 2, |measures| measures.clients.as_ref()?.after.some(|part| ms(part.p99_ns))),
];

/// What the agents and the container used.
const USED: [Column; 7] = [
    ("CPU-s, both ends", 2, |measures| {
        let (source, destination) = (measures.report.source.as_ref()?, measures.report.destination.as_ref()?);
        Some((source.cpu_ns + destination.cpu_ns) as f64 / 1e9)
    }),
    ("CPU-s/GiB, source", 2, |measures| Some(measures.cpu_per_gib()?[0])),
    ("CPU-s/GiB, destination", 2, |measures| Some(measures.cpu_per_gib()?[1])),
    ("container's CPUs before", 2, |measures| Some(measures.container?.cpu_at_rest)),
    ("in rounds", 2, |measures| measures.container?.cpu_in_rounds),
    ("container, MiB", 0, |measures| Some(mib(measures.container?.at_rest.proportional))),
    ("its copy, MiB", 0, |measures| Some(mib(measures.container?.afterwards.proportional))),
];

fn ms(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e6
}

/// Every table that has a row.
pub(crate) fn tables(runs: &[Run]) -> Vec<Table> {
    let summary = Summary::new(runs);
    let has_clients = |setting: &Setting| setting.workload.has_clients();
    let tables = [
        against_aims(&headlines(runs)),
        against_criu(&summary),
        of_settings("What migrations took", &summary, &COST, |_| true),
        of_settings("What clients saw", &summary, &CLIENTS, has_clients),
        of_settings("What agents and containers used", &summary, &USED, |_| true),
    ];
    tables.into_iter().filter(|table| !table.rows.is_empty()).collect()
}

fn against_aims(headlines: &[Headline]) -> Table {
    let row = |Headline { what, value, aim, met }: &Headline| {
        vec![what.clone(), value.clone(), aim.clone(), if *met { "yes" } else { "no" }.into()]
    };
    Table {
        title: "What PCLive aims at",
        heads: vec!["figure", "measured", "aim", "met"],
        rows: headlines.iter().map(row).collect(),
        text_columns: 1,
    }
}

fn against_criu(summary: &Summary<'_>) -> Table {
    let row = |setting: &Setting| {
        let ratio = |&(_, digits, of): &Column| {
            summary.ratio(setting, Strategy::Criu, of).map(|ratio| (ratio, digits))
        };
        let ratios: Vec<_> = COMPARED.iter().map(ratio).collect();
        let cell = |ratio: Option<(f64, usize)>| {
            ratio.map_or("-".into(), |(ratio, digits)| format!("{ratio:.digits$}"))
        };
        let is_measured = ratios.iter().any(Option::is_some);
        let named = [setting.workload.to_string(), setting.way()];
        is_measured.then(|| named.into_iter().chain(ratios.into_iter().map(cell)).collect())
    };
    Table {
        title: "What CRIU takes, in multiples of what global takes",
        heads: ["workload", "link"].into_iter().chain(COMPARED.iter().map(|column| column.0)).collect(),
        rows: summary.globals().filter_map(row).collect(),
        text_columns: 2,
    }
}

fn of_settings(
    title: &'static str,
    summary: &Summary<'_>,
    columns: &[Column],
    wanted: impl Fn(&Setting) -> bool,
) -> Table {
    let cells = |setting: &Setting| {
        let named = [setting.workload.to_string(), setting.way(), setting.strategy.to_string()];
        let figures = columns.iter().map(|&(_, digits, of)| {
            summary.figure(setting, of).map_or("-".to_owned(), |figure| format!("{figure:.digits$}"))
        });
        named.into_iter().chain(figures).collect()
    };
    let settings = summary.settings().map(|(setting, _)| setting).filter(|&setting| wanted(setting));
    Table {
        title,
        heads: ["workload", "link", "strategy"]
            .into_iter()
            .chain(columns.iter().map(|column| column.0))
            .collect(),
        rows: settings.map(cells).collect(),
        text_columns: 3,
    }
}

impl Table {
    /// As Markdown.
    pub(crate) fn markdown(&self) -> String {
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        let heads: Vec<String> = self.heads.iter().map(|&head| head.to_owned()).collect();
        let rule = |column: usize| if column < self.text_columns { "---" } else { "--:" }.to_owned();
        let rules: Vec<String> = (0..heads.len()).map(rule).collect();
        let rows: String = self.rows.iter().map(|row| line(row)).collect();
        format!("### {}\n\n{}{}{rows}", self.title, line(&heads), line(&rules))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;
    use crate::setting::Workload;

    #[test]
    fn every_row_has_every_column() {
        let stress = Workload::Stress { mib: 64, pages_per_second: 1000 };
        let runs = [
            sample::measured("one-shot", 100, 90),
            sample::measured("global", 20, 2),
            sample::run_of(stress, "global", 12, 1),
        ];
        let tables = tables(&runs);
        assert_eq!(tables.len(), 4);
        for table in &tables {
            assert!(table.rows.iter().all(|row| row.len() == table.heads.len()), "{table:?}");
        }
        let rows = |title: &str| tables.iter().find(|table| table.title == title).unwrap().rows.len();
        assert_eq!((rows("What migrations took"), rows("What clients saw")), (3, 2));
    }

    #[test]
    fn criu_is_told_in_multiples_of_global() {
        let runs = [sample::measured("CRIU", 100, 90), sample::measured("global", 20, 2)];
        let text: String = tables(&runs).iter().map(Table::markdown).collect();
        assert!(
            text.contains("| Redis of 1000 records, 90 % reads | 1 Gbit/s | 5.0 | 45.0 | 4.8 |"),
            "{text}"
        );
        let text: String = tables(&runs[1..]).iter().map(Table::markdown).collect();
        assert!(!text.contains("CRIU"), "{text}");
    }

    #[test]
    fn markdown_tells_medians_with_the_extremes() {
        let runs = [sample::measured("global", 20, 2), sample::measured("global", 30, 2)];
        let text: String = tables(&runs).iter().map(Table::markdown).collect();
        let row = "| Redis of 1000 records, 90 % reads | 1 Gbit/s | global | 25.0 (20.0-30.0) | 37.5 (30.0-45.0) | 2.0 |";
        assert!(text.contains(row), "{text}");
        assert!(text.contains("| figure | measured | aim | met |\n| --- | --: | --: | --: |\n"), "{text}");
    }

    #[test]
    fn nothing_measured_makes_no_table() {
        assert!(tables(&[]).is_empty());
    }
}
