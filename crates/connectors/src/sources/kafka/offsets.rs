//! Offsets of partitions, and how far a batch goes.

use std::collections::BTreeMap;

use perennial_core::error::Result;
use perennial_core::offset::Offset;
use serde::{Deserialize, Serialize};

/// The next offset to read, per topic and partition: Spark's `{"topic":{"0":23,"1":7}}`, keys sorted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Offsets(BTreeMap<String, BTreeMap<i32, i64>>);

impl Offsets {
    pub(super) fn encode(&self) -> Result<Offset> {
        Offset::encode(self)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn get(&self, topic: &str, partition: i32) -> Option<i64> {
        self.0.get(topic)?.get(&partition).copied()
    }

    pub(super) fn set(&mut self, topic: &str, partition: i32, offset: i64) {
        self.0.entry(topic.to_owned()).or_default().insert(partition, offset);
    }

    /// Topic, partition and offset, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, i32, i64)> {
        self.0.iter().flat_map(|(topic, partitions)| {
            partitions.iter().map(move |(partition, offset)| (topic.as_str(), *partition, *offset))
        })
    }
}

/// The end of a batch of at most `most` records that begins at `from`.
///
/// `ready` has per partition the first record that can be read and the end of what is there; partitions that are not in it are gone. A
/// partition that `until` does not know stays where it is.
pub(super) fn plan_end(
    from: &Offsets,
    ready: &BTreeMap<(String, i32), (i64, i64)>,
    until: Option<&Offsets>,
    most: u64,
) -> Offsets {
    let mut starts = Vec::new();
    let mut waiting = Vec::new();
    for ((topic, partition), (start, high)) in ready {
        let end = match until {
            Some(until) => until.get(topic, *partition).unwrap_or(*start).min(*high),
            None => *high,
        };
        starts.push((topic, *partition, *start));
        waiting.push((end - start).max(0) as u64);
    }
    let mut end = Offsets::default();
    for ((topic, partition, start), share) in starts.into_iter().zip(share_limit(&waiting, most)) {
        let known = from.get(topic, partition);
        let is_new_and_empty = known.is_none() && share == 0;
        // A new partition enters the offsets with its first records; an unread one would look read from its start on.
        if !is_new_and_empty {
            // Nothing read: stay, even where the first readable record is further on.
            let at =
                if share == 0 { known.filter(|known| *known >= start).unwrap_or(start) } else { start + share as i64 };
            end.set(topic, partition, at);
        }
    }
    end
}

/// Spreads `limit` records over partitions in which so many wait, in proportion (Spark's `maxOffsetsPerTrigger`): never more than the
/// limit in all, and, where the limit has room for it, at least one for each, so that none starves beside a big one.
pub(super) fn share_limit(waiting: &[u64], limit: u64) -> Vec<u64> {
    let total: u128 = waiting.iter().map(|count| u128::from(*count)).sum();
    if total <= u128::from(limit) {
        return waiting.to_vec();
    }
    let busy = waiting.iter().filter(|count| **count > 0).count() as u64;
    if limit <= busy {
        // Not even one for each: the longest queues first.
        let mut order: Vec<usize> = (0..waiting.len()).filter(|at| waiting[*at] > 0).collect();
        order.sort_by_key(|at| std::cmp::Reverse(waiting[*at]));
        let mut shares = vec![0; waiting.len()];
        order.into_iter().take(limit as usize).for_each(|at| shares[at] = 1);
        return shares;
    }
    // As much as the running sum says: rounding never adds up to more than the limit.
    let (mut so_far, mut given) = (0_u128, 0_u128);
    let mut shares: Vec<u64> = Vec::with_capacity(waiting.len());
    for count in waiting {
        so_far += u128::from(*count);
        let sum = u128::from(limit) * so_far / total;
        shares.push((sum - given) as u64);
        given = sum;
    }
    // Who gets nothing gets one from the largest share.
    for at in 0..shares.len() {
        if waiting[at] > 0
            && shares[at] == 0
            && let Some(largest) = shares.iter_mut().max()
        {
            *largest -= 1;
            shares[at] = 1;
        }
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offsets(json: &str) -> Offsets {
        Offset::from_json(json).decode().unwrap()
    }

    fn ready(partitions: &[(&str, i32, i64, i64)]) -> BTreeMap<(String, i32), (i64, i64)> {
        partitions
            .iter()
            .map(|(topic, partition, low, high)| (((*topic).to_owned(), *partition), (*low, *high)))
            .collect()
    }

    #[test]
    fn json_is_sparks() {
        let mut shown = Offsets::default();
        for (topic, partition, offset) in [("b", 0, 5), ("a", 10, 1), ("a", 9, 2)] {
            shown.set(topic, partition, offset);
        }
        assert_eq!(shown.encode().unwrap().as_str(), r#"{"a":{"9":2,"10":1},"b":{"0":5}}"#);
        assert_eq!(offsets(shown.encode().unwrap().as_str()), shown);
        assert!(Offset::from_json("{\"logOffset\":1}").decode::<Offsets>().is_err());
    }

    #[test]
    fn a_limit_is_spread_in_proportion_and_never_exceeded() {
        for (waiting, limit, expected) in [
            (vec![10, 20], 100, vec![10, 20]),
            (vec![100, 300], 40, vec![10, 30]),
            (vec![0, 1000, 0], 7, vec![0, 7, 0]),
            (vec![1, 1_000_000], 1000, vec![1, 999]),
            (vec![5, 9, 7], 1, vec![0, 1, 0]),
            (vec![5, 9, 7], 2, vec![0, 1, 1]),
            (vec![u64::MAX, u64::MAX], 10, vec![5, 5]),
            (vec![], 10, vec![]),
            (vec![4, 4], 0, vec![0, 0]),
        ] {
            let shares = share_limit(&waiting, limit);
            assert_eq!(shares, expected, "{waiting:?} by {limit}");
        }
        for limit in 0..200 {
            let waiting = [3, 0, 77, 1, 41, 13];
            let shares = share_limit(&waiting, limit);
            assert_eq!(shares.iter().sum::<u64>(), limit.min(135));
            assert!(shares.iter().zip(waiting).all(|(share, waiting)| *share <= waiting), "{limit}: {shares:?}");
        }
    }

    #[test]
    fn the_end_of_a_batch() {
        let from = offsets(r#"{"t":{"0":10,"1":20}}"#);
        let now = ready(&[("t", 0, 10, 110), ("t", 1, 20, 20), ("t", 2, 0, 100), ("t", 3, 0, 0)]);
        let all = plan_end(&from, &now, None, u64::MAX);
        assert_eq!(
            all,
            offsets(r#"{"t":{"0":110,"1":20,"2":100}}"#),
            "an empty new partition waits for its first record"
        );
        assert_eq!(plan_end(&from, &now, None, 20), offsets(r#"{"t":{"0":20,"1":20,"2":10}}"#));
        let until = offsets(r#"{"t":{"0":15,"1":20}}"#);
        assert_eq!(plan_end(&from, &now, Some(&until), 100), until, "what is not in the fixed end is left for later");
        assert_eq!(plan_end(&until, &now_from(&now, 15), Some(&until), 100), until);
        assert_eq!(
            plan_end(&from, &ready(&[("t", 0, 10, 11)]), None, 9),
            offsets(r#"{"t":{"0":11}}"#),
            "a gone one goes"
        );
    }

    fn now_from(now: &BTreeMap<(String, i32), (i64, i64)>, start: i64) -> BTreeMap<(String, i32), (i64, i64)> {
        let mut now = now.clone();
        now.insert(("t".into(), 0), (start, 110));
        now
    }
}
