//! The delivery guarantee of a query, computed from its parts.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, class};
use crate::sink::{Delivery, OutputMode};
use crate::source::Replay;

/// What a query promises about each record. Ordered from weakest to strongest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Guarantee {
    /// Records may be lost after a failure.
    AtMostOnce,
    /// Records may be doubled after a failure.
    AtLeastOnce,
    /// Every record counts once, whatever fails.
    ExactlyOnce,
}

impl fmt::Display for Guarantee {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AtMostOnce => "at_most_once",
            Self::AtLeastOnce => "at_least_once",
            Self::ExactlyOnce => "exactly_once",
        })
    }
}

/// The guarantee and the part that keeps it from being better.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Computed {
    /// What the query promises.
    pub guarantee: Guarantee,
    /// Which part is the weakest and why; `None` at exactly once.
    pub weakest: Option<String>,
}

impl Computed {
    /// Refuses what promises less than is wanted.
    pub fn demand(&self, wanted: Option<Guarantee>) -> Result<()> {
        match (wanted, &self.weakest) {
            (Some(wanted), Some(weakest)) if self.guarantee < wanted => Err(Error::new(
                class::GUARANTEE_NOT_MET,
                format!("the job demands {wanted}, but the query gives {}: {weakest}", self.guarantee),
            )),
            _ => Ok(()),
        }
    }
}

/// Computes the guarantee of a query from how its sources replay, whether its plan is deterministic, which of its static tables may have
/// changed when a batch runs again, and how its sink writes.
pub fn compute<'a>(
    sources: impl IntoIterator<Item = (&'a str, Replay)>,
    deterministic: bool,
    changing_tables: impl IntoIterator<Item = &'a str>,
    sink: (&str, Delivery),
    output_mode: OutputMode,
) -> Computed {
    let mut parts: Vec<(Guarantee, String)> = Vec::new();
    for (name, replay) in sources {
        match replay {
            Replay::Exact => {}
            Replay::AtLeastOnce => parts.push((
                Guarantee::AtLeastOnce,
                format!("source {name} may give more or other records when it reads a range again"),
            )),
            Replay::Lost => {
                parts.push((Guarantee::AtMostOnce, format!("source {name} cannot read a range again")));
            }
        }
    }
    let (name, delivery) = sink;
    match delivery {
        Delivery::IdempotentByBatch => {}
        // A keyed sink only overwrites rows that come again with the same key.
        Delivery::IdempotentByKey if deterministic => {
            parts.extend(changing_tables.into_iter().next().map(|table| {
                let weakest = format!(
                    "sink {name} overwrites by key, and table {table} may have changed when a batch runs again, which may then give \
                     other keys; `refresh: never` is for a table that does not change"
                );
                (Guarantee::AtLeastOnce, weakest)
            }));
        }
        Delivery::IdempotentByKey => parts.push((
            Guarantee::AtLeastOnce,
            format!("sink {name} overwrites by key, and the query is not deterministic: a batch that runs again may give other keys"),
        )),
        Delivery::Append if output_mode == OutputMode::Complete => {}
        Delivery::Append => {
            parts.push((Guarantee::AtLeastOnce, format!("sink {name} cannot tell a batch that it has already written")));
        }
    }
    // The first of the weakest parts is named; sources come before the sink.
    match parts.into_iter().min_by_key(|(guarantee, _)| *guarantee) {
        Some((guarantee, weakest)) => Computed { guarantee, weakest: Some(weakest) },
        None => Computed { guarantee: Guarantee::ExactlyOnce, weakest: None },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_part_can_hide_a_weaker_one() {
        let replays = [Replay::Lost, Replay::AtLeastOnce, Replay::Exact];
        let deliveries = [Delivery::Append, Delivery::IdempotentByKey, Delivery::IdempotentByBatch];
        let modes = [OutputMode::Append, OutputMode::Update, OutputMode::Complete];
        let of = |first: usize, second: usize, deterministic, changes: bool, delivery: usize, mode| {
            let sources = [("s0", replays[first]), ("s1", replays[second])];
            compute(sources, deterministic, changes.then_some("t"), ("out", deliveries[delivery]), mode)
        };
        for mode in modes {
            for bits in 0..108 {
                let (first, second, delivery) = (bits % 3, bits / 3 % 3, bits / 9 % 3);
                let (deterministic, changes) = (bits / 27 % 2 == 1, bits / 54 == 1);
                let computed = of(first, second, deterministic, changes, delivery, mode);
                let exact = computed.guarantee == Guarantee::ExactlyOnce;
                assert_eq!(exact, computed.weakest.is_none(), "what is not exact says why");
                assert!(!exact || (first, second) == (2, 2), "exactly once needs sources that replay");
                let writes_twice = delivery == 0 && mode != OutputMode::Complete;
                assert!(!exact || !writes_twice, "exactly once needs a sink that knows what it has");
                assert_eq!(computed.guarantee == Guarantee::AtMostOnce, first == 0 || second == 0);
                // Each part made better, alone.
                let better = [
                    of((first + 1).min(2), second, deterministic, changes, delivery, mode),
                    of(first, (second + 1).min(2), deterministic, changes, delivery, mode),
                    of(first, second, true, changes, delivery, mode),
                    of(first, second, deterministic, false, delivery, mode),
                    of(first, second, deterministic, changes, 2, mode),
                ];
                for better in better {
                    assert!(better.guarantee >= computed.guarantee, "{better:?} is worse than {computed:?}");
                }
            }
        }
    }

    #[test]
    fn the_weakest_part_decides() {
        use Delivery as D;
        use Guarantee::*;
        for (replays, deterministic, tables, delivery, expected, named) in [
            (vec![Replay::Exact, Replay::Exact], true, vec![], D::IdempotentByBatch, ExactlyOnce, None),
            (vec![Replay::Exact], false, vec![], D::IdempotentByBatch, ExactlyOnce, None),
            (vec![Replay::Exact], true, vec![], D::IdempotentByKey, ExactlyOnce, None),
            (vec![Replay::Exact], false, vec![], D::IdempotentByKey, AtLeastOnce, Some("not deterministic")),
            (vec![Replay::Exact], true, vec!["t"], D::IdempotentByKey, AtLeastOnce, Some("table t may have changed")),
            (vec![Replay::Exact], true, vec!["t"], D::IdempotentByBatch, ExactlyOnce, None),
            (vec![Replay::Exact], true, vec![], D::Append, AtLeastOnce, Some("sink out")),
            (
                vec![Replay::Exact, Replay::AtLeastOnce],
                true,
                vec![],
                D::IdempotentByBatch,
                AtLeastOnce,
                Some("source s1"),
            ),
            (vec![Replay::AtLeastOnce, Replay::Lost], true, vec![], D::Append, AtMostOnce, Some("source s1")),
        ] {
            let names = ["s0", "s1"];
            let computed =
                compute(names.into_iter().zip(replays), deterministic, tables, ("out", delivery), OutputMode::Append);
            assert_eq!(computed.guarantee, expected);
            match named {
                None => assert_eq!(computed.weakest, None),
                Some(part) => assert!(computed.weakest.clone().unwrap().contains(part), "{computed:?}"),
            }
        }
    }
}
