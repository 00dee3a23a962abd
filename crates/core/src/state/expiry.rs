//! Which rows expire when.
//!
//! An ordered map from expiry to lists of locations. There are few expiries with many rows each (windows), and many with few rows each
//! (deduplication, joins): the first get a list each, the second share lists of up to [`LEAF`] entries, so that neither costs much
//! memory per row. Entries are not looked for when their row goes or moves: they become stale, and fall out when they are met.

use std::collections::BTreeMap;

use super::arena::Location;

/// A mixed list is split when it reaches this many entries.
const LEAF: usize = 256;

/// The index.
#[derive(Debug, Default)]
pub(super) struct ExpiryIndex {
    /// By the smallest expiry that the list may hold; it goes up to the next key.
    leaves: BTreeMap<i64, Leaf>,
    entries: usize,
    bytes: usize,
}

#[derive(Debug)]
enum Leaf {
    /// Rows that all expire at the leaf's key.
    One(Vec<Location>),
    /// Rows with their expiry, unordered.
    Many(Vec<(i64, Location)>),
}

impl Leaf {
    fn bytes(&self) -> usize {
        size_of::<(i64, Self)>()
            + match self {
                Self::One(list) => list.capacity() * size_of::<Location>(),
                Self::Many(list) => list.capacity() * size_of::<(i64, Location)>(),
            }
    }
}

impl ExpiryIndex {
    /// Number of entries, stale ones included.
    pub fn entries(&self) -> usize {
        self.entries
    }

    /// Bytes of memory held.
    pub fn allocated_bytes(&self) -> usize {
        self.bytes
    }

    /// Adds a row.
    pub fn insert(&mut self, expiry: i64, at: Location) {
        self.entries += 1;
        match self.leaves.range_mut(..=expiry).next_back() {
            Some((&key, Leaf::One(list))) if key == expiry => {
                let before = list.capacity();
                list.push(at);
                self.bytes += (list.capacity() - before) * size_of::<Location>();
            }
            Some((&key, Leaf::Many(list))) => {
                let before = list.capacity();
                list.push((expiry, at));
                self.bytes += (list.capacity() - before) * size_of::<(i64, Location)>();
                if list.len() == LEAF {
                    self.split(key);
                }
            }
            // Behind a list for one expiry, or before all lists.
            Some((&key, Leaf::One(_))) => self.add_leaf(key + 1, Leaf::Many(vec![(expiry, at)])),
            None => self.add_leaf(i64::MIN, Leaf::Many(vec![(expiry, at)])),
        }
    }

    fn add_leaf(&mut self, key: i64, leaf: Leaf) {
        self.bytes += leaf.bytes();
        self.leaves.insert(key, leaf);
    }

    /// Divides a mixed list: an expiry that has a good part of it gets a list of its own, otherwise it is halved.
    fn split(&mut self, key: i64) {
        let Some(leaf) = self.leaves.remove(&key) else { return };
        self.bytes -= leaf.bytes();
        let Leaf::Many(mut list) = leaf else { return };
        list.sort_unstable();
        let middle = list[list.len() / 2].0;
        let start = list.partition_point(|(expiry, _)| *expiry < middle);
        let end = list.partition_point(|(expiry, _)| *expiry <= middle);
        let own = end - start >= LEAF / 4;
        if start > 0 {
            self.add_leaf(key, Leaf::Many(list[..start].to_vec()));
        }
        if own {
            self.add_leaf(middle, Leaf::One(list[start..end].iter().map(|(_, at)| *at).collect()));
            if end < list.len() {
                self.add_leaf(middle + 1, Leaf::Many(list[end..].to_vec()));
            }
        } else {
            self.add_leaf(middle, Leaf::Many(list[start..].to_vec()));
        }
    }

    /// The rows that expire at `until` or before, each once, in the order of their locations. `is_current` tells whether a row
    /// is live and expires at the given time; entries for which it does not hold are dropped.
    pub fn due(&mut self, until: i64, is_current: impl Fn(Location, i64) -> bool) -> Vec<Location> {
        let mut due = Vec::new();
        let mut emptied = Vec::new();
        for (&key, leaf) in self.leaves.range_mut(..=until) {
            self.bytes -= leaf.bytes();
            let empty = match leaf {
                Leaf::One(list) => {
                    let before = list.len();
                    list.retain(|at| is_current(*at, key));
                    self.entries -= before - list.len();
                    due.extend_from_slice(list);
                    list.is_empty()
                }
                Leaf::Many(list) => {
                    let before = list.len();
                    list.retain(|(expiry, at)| is_current(*at, *expiry));
                    self.entries -= before - list.len();
                    due.extend(list.iter().filter(|(expiry, _)| *expiry <= until).map(|(_, at)| *at));
                    list.is_empty()
                }
            };
            if empty {
                emptied.push(key);
            } else {
                self.bytes += leaf.bytes();
            }
        }
        for key in emptied {
            self.leaves.remove(&key);
        }
        // A place that was freed and taken again for the same expiry has two entries.
        due.sort_unstable();
        due.dedup();
        due
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::arena::{Arena, Flags};
    use super::*;

    /// Different locations to put into the index.
    fn locations(count: usize) -> Vec<Location> {
        let mut arena = Arena::default();
        (0..count).map(|_| arena.insert((&[], &[]), Flags::default()).unwrap()).collect()
    }

    #[test]
    fn gives_what_is_due_whatever_the_distribution() {
        let locations = locations(5_000);
        type Distribution = fn(i64) -> i64;
        let distributions: [Distribution; 6] = [
            |i| i,
            |i| -i,
            |_| 7,
            |i| i / 1_000,
            |i| (i * 7_919) % 5_003,
            |i| if i % 2 == 0 { i64::MAX - i % 3 } else { i64::MIN + i % 5 },
        ];
        for (number, expiry_of) in distributions.into_iter().enumerate() {
            let mut index = ExpiryIndex::default();
            let mut expected = BTreeSet::new();
            for (i, at) in locations.iter().enumerate() {
                index.insert(expiry_of(i as i64), *at);
                expected.insert((expiry_of(i as i64), *at));
            }
            for until in [i64::MIN, -4_000, -1, 0, 3, 7, 2_500, 4_999, i64::MAX - 2, i64::MAX] {
                let mut due: Vec<_> =
                    expected.iter().filter(|(expiry, _)| *expiry <= until).map(|(_, at)| *at).collect();
                due.sort_unstable();
                assert_eq!(index.due(until, |_, _| true), due, "distribution {number} until {until}");
            }
            assert_eq!(index.entries(), 5_000);
        }
    }

    #[test]
    fn stale_entries_fall_out_and_leave_nothing_behind() {
        let locations = locations(1_000);
        let mut index = ExpiryIndex::default();
        for (i, at) in locations.iter().enumerate() {
            index.insert(i as i64 / 300, *at);
            index.insert(i as i64, *at);
        }
        assert_eq!(index.due(i64::MAX, |_, expiry| expiry >= 500).len(), 500);
        assert_eq!(index.entries(), 500);
        assert!(index.due(i64::MAX, |_, _| false).is_empty());
        assert_eq!((index.entries(), index.allocated_bytes()), (0, 0));
    }

    #[test]
    fn many_rows_of_few_windows_cost_little_memory() {
        let locations = locations(100_000);
        let mut index = ExpiryIndex::default();
        for (i, at) in locations.iter().enumerate() {
            index.insert(i as i64 % 5, *at);
        }
        assert!(index.allocated_bytes() < 9 * 100_000, "{}", index.allocated_bytes());
    }
}
