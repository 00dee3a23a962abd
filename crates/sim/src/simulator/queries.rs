//! The queries that are simulated, each with a plain computation of its result over the same records.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use perennial_core::error::Result;
use perennial_core::plan::QueryPlan;
use perennial_core::sink::OutputMode;
use perennial_sql::{Deduplicate, Planner, PlannerOptions, SourceTable, SourceWatermark, TableKind};

use super::records::{self, DELAY_MICROS, Row};

const SECOND: i64 = 1_000_000;

/// A kind of query.
pub struct Kind {
    pub name: &'static str,
    sql: &'static str,
    pub mode: OutputMode,
    /// So many of the first columns tell rows of the result apart.
    pub keys: usize,
    deduplicate: Option<&'static [&'static str]>,
    /// The result over all records of the sources.
    expected: fn(&[&[Row]]) -> Vec<String>,
}

/// All operators, alone and chained.
const KINDS: &[Kind] = &[
    Kind {
        name: "stateless",
        sql: "SELECT id, key, v * 2 AS w FROM a WHERE v % 3 <> 0",
        mode: OutputMode::Append,
        keys: 1,
        deduplicate: None,
        expected: |sources| {
            let rows = sources[0].iter().filter(|row| row.value % 3 != 0);
            rows.map(|row| format!("{}|{}|{}", row.id, row.key, row.value * 2)).collect()
        },
    },
    Kind {
        name: "windows, append",
        sql: "SELECT window.start AS s, key, count(*) AS n, sum(v) AS t FROM a GROUP BY window(at, '5 seconds'), key",
        mode: OutputMode::Append,
        keys: 2,
        deduplicate: None,
        expected: |sources| windows(all_but_last(sources[0])),
    },
    Kind {
        name: "windows, update",
        sql: "SELECT window.start AS s, key, count(*) AS n, sum(v) AS t FROM a GROUP BY window(at, '5 seconds'), key",
        mode: OutputMode::Update,
        keys: 2,
        deduplicate: None,
        expected: |sources| windows(sources[0]),
    },
    Kind {
        name: "duplicates",
        sql: "SELECT key, v FROM a",
        mode: OutputMode::Append,
        keys: 2,
        deduplicate: Some(&["key", "v"]),
        expected: |sources| {
            let different: BTreeSet<_> = sources[0].iter().map(|row| format!("{}|{}", row.key, row.value)).collect();
            different.into_iter().collect()
        },
    },
    Kind {
        name: "sessions",
        sql: "SELECT session_window.start AS s, session_window.end AS e, key, count(*) AS n FROM a \
              GROUP BY session_window(at, '2 seconds'), key",
        mode: OutputMode::Append,
        keys: 3,
        deduplicate: None,
        expected: |sources| sessions(all_but_last(sources[0])),
    },
    Kind {
        name: "join",
        sql: "SELECT a.id AS l, b.id AS r FROM a JOIN b ON a.key = b.key AND b.at BETWEEN a.at AND a.at + INTERVAL 3 SECONDS",
        mode: OutputMode::Append,
        keys: 2,
        deduplicate: None,
        expected: |sources| {
            let pairs = sources[0].iter().flat_map(|left| sources[1].iter().map(move |right| (left, right)));
            let joined = pairs
                .filter(|(left, right)| left.key == right.key && (left.at..=left.at + 3 * SECOND).contains(&right.at));
            joined.map(|(left, right)| format!("{}|{}", left.id, right.id)).collect()
        },
    },
    Kind {
        name: "windows of windows",
        sql: "SELECT window(window, '10 seconds').start AS s, count(*) AS groups, sum(n) AS n FROM \
              (SELECT window, key, count(*) AS n FROM a GROUP BY window(at, '2 seconds'), key) GROUP BY window(window, '10 seconds')",
        mode: OutputMode::Append,
        keys: 1,
        deduplicate: None,
        expected: |sources| {
            let mut inner = BTreeMap::new();
            for row in all_but_last(sources[0]) {
                *inner.entry((floor(row.at, 2), &row.key)).or_insert(0) += 1;
            }
            let mut outer: BTreeMap<i64, (i64, i64)> = BTreeMap::new();
            for ((start, _), count) in inner {
                let group = outer.entry(floor(start, 10)).or_default();
                (group.0, group.1) = (group.0 + 1, group.1 + count);
            }
            outer.into_iter().map(|(start, (groups, count))| format!("{start}|{groups}|{count}")).collect()
        },
    },
];

/// The last record closes the windows of all others; its own never closes.
fn all_but_last(rows: &[Row]) -> &[Row] {
    &rows[..rows.len() - 1]
}

/// The start of the window, of so many seconds, that a time is in.
fn floor(at: i64, seconds: i64) -> i64 {
    at - at.rem_euclid(seconds * SECOND)
}

fn windows(rows: &[Row]) -> Vec<String> {
    let mut groups: BTreeMap<_, (i64, i64)> = BTreeMap::new();
    for row in rows {
        let group = groups.entry((floor(row.at, 5), &row.key)).or_default();
        (group.0, group.1) = (group.0 + 1, group.1 + row.value);
    }
    groups.into_iter().map(|((start, key), (n, total))| format!("{start}|{key}|{n}|{total}")).collect()
}

fn sessions(rows: &[Row]) -> Vec<String> {
    const GAP: i64 = 2 * SECOND;
    let mut times: BTreeMap<&str, Vec<i64>> = BTreeMap::new();
    rows.iter().for_each(|row| times.entry(&row.key).or_default().push(row.at));
    let mut sessions = Vec::new();
    for (key, mut times) in times {
        times.sort_unstable();
        for session in times.chunk_by(|one, next| next - one < GAP) {
            if let (Some(first), Some(last)) = (session.first(), session.last()) {
                sessions.push(format!("{first}|{}|{key}|{}", last + GAP, session.len()));
            }
        }
    }
    sessions
}

/// A query, planned once for all seeds.
pub struct Planned {
    pub kind: &'static Kind,
    pub plan: Arc<dyn QueryPlan>,
    /// Names of its sources, in the order of the plan.
    pub sources: Vec<&'static str>,
}

impl Planned {
    /// Plans all kinds.
    pub async fn all() -> Result<Vec<Self>> {
        let planner = Planner::new(PlannerOptions { parallelism: 2, ..Default::default() });
        let mut planned = Vec::new();
        for kind in KINDS {
            let table = |name: &str| SourceTable {
                name: name.to_owned(),
                schema: records::schema(),
                watermark: Some(SourceWatermark { column: "at".to_owned(), delay_micros: DELAY_MICROS }),
                deduplicate: kind.deduplicate.map(|columns| Deduplicate {
                    columns: columns.iter().map(|name| (*name).to_owned()).collect(),
                    within_watermark: false,
                }),
                kind: TableKind::Stream,
            };
            let plan = planner.plan(kind.sql, &[table("a"), table("b")], kind.mode).await?;
            let sources: Vec<&'static str> =
                ["a", "b"].into_iter().filter(|name| plan.inputs().iter().any(|input| input.source == *name)).collect();
            planned.push(Self { kind, plan, sources });
        }
        Ok(planned)
    }

    /// The result over all records, sorted.
    pub fn expected(&self, sources: &[&[Row]]) -> Vec<String> {
        let mut rows = (self.kind.expected)(sources);
        rows.sort_unstable();
        rows
    }
}
