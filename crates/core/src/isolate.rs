//! Finds the rows that break a batch: a search by bisection, apart from what is tried.
//!
//! Rows are told by the stream that they came in and their number in it. A source gives the same streams for the same range, so the
//! numbers mean the same rows in every attempt, also after a crash.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{BooleanArray, BooleanBufferBuilder};

use crate::error::Error;

/// A stream of a batch's input: the number of the source in the query, and of the stream in its reading.
pub type StreamId = (usize, usize);

/// A row of a batch as one number, to be carried in a column of a plan: the place of its stream in a list, and its number in the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowNumber(pub u64);

impl RowNumber {
    /// Bits for the number in the stream.
    const BITS: u32 = 40;

    /// The row with this number of the stream at this place.
    pub fn new(place: usize, row: u64) -> Self {
        Self(((place as u64) << Self::BITS) | row)
    }

    /// The place of its stream, and its number in it.
    pub fn parts(self) -> (usize, u64) {
        ((self.0 >> Self::BITS) as usize, self.0 & ((1 << Self::BITS) - 1))
    }
}

/// The most rows of one batch that are looked for. More are no accident of single rows.
pub const MOST_GUILTY: usize = 1_000;

/// A set of rows of a batch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RowSet(BTreeMap<StreamId, Vec<Range<u64>>>);

impl RowSet {
    /// Adds rows of a stream, which come after those of it that are there already.
    pub fn push(&mut self, stream: StreamId, rows: Range<u64>) {
        if !rows.is_empty() {
            self.0.entry(stream).or_default().push(rows);
        }
    }

    /// How many rows they are.
    pub fn len(&self) -> u64 {
        self.0.values().flatten().map(|rows| rows.end - rows.start).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The one row of a set of one.
    fn single(&self) -> Option<(StreamId, u64)> {
        let (stream, rows) = self.0.first_key_value()?;
        (self.len() == 1).then(|| rows.first().map(|rows| (*stream, rows.start))).flatten()
    }

    /// The first rows, so many.
    fn first(&self, mut count: u64) -> Self {
        let mut first = Self::default();
        for (stream, ranges) in &self.0 {
            for rows in ranges {
                let taken = count.min(rows.end - rows.start);
                first.push(*stream, rows.start..rows.start + taken);
                count -= taken;
            }
        }
        first
    }

    /// The row with this number, counted from 0.
    fn nth(&self, mut number: u64) -> Option<(StreamId, u64)> {
        for (stream, ranges) in &self.0 {
            for rows in ranges {
                if number < rows.end - rows.start {
                    return Some((*stream, rows.start + number));
                }
                number -= rows.end - rows.start;
            }
        }
        None
    }

    /// All rows but these, which are in their order.
    pub fn without(self, guilty: impl IntoIterator<Item = (StreamId, u64)>) -> Self {
        let mut guilty = guilty.into_iter().peekable();
        let mut left = Self::default();
        for (stream, ranges) in self.0 {
            for mut rows in ranges {
                while let Some((_, row)) = guilty.next_if(|(of, row)| (*of, *row) < (stream, rows.end)) {
                    left.push(stream, rows.start..row);
                    rows.start = row + 1;
                }
                left.push(stream, rows);
            }
        }
        left
    }

    /// The first half and the second.
    fn halves(self) -> (Self, Self) {
        let mut left = self.len() / 2;
        let (mut first, mut second) = (Self::default(), Self::default());
        for (stream, ranges) in self.0 {
            for rows in ranges {
                let middle = rows.start + left.min(rows.end - rows.start);
                left -= middle - rows.start;
                first.push(stream, rows.start..middle);
                second.push(stream, middle..rows.end);
            }
        }
        (first, second)
    }

    /// Which of `count` rows of a stream, from number `first` on, are in the set; `None`: none of them.
    pub fn among(&self, stream: StreamId, first: u64, count: usize) -> Option<BooleanArray> {
        let block = first..first + count as u64;
        let ranges = self.0.get(&stream)?;
        let mut mask = BooleanBufferBuilder::new(count);
        for rows in ranges {
            let (start, end) = (rows.start.max(block.start), rows.end.min(block.end));
            if start < end {
                mask.append_n((start - first) as usize - mask.len(), false);
                mask.append_n((end - start) as usize, true);
            }
        }
        if mask.is_empty() {
            return None;
        }
        mask.append_n(count - mask.len(), false);
        Some(BooleanArray::new(mask.finish(), None))
    }
}

/// The most rows that are looked for one after the other with all those before them, at the cost of a logarithm of trials of the batch each.
const MOST_REPEATED: usize = 100;

/// A row that breaks the batch by itself, and the error that it gives.
#[derive(Debug, Clone)]
pub struct Guilty {
    /// Its stream.
    pub stream: StreamId,
    /// Its number in the stream.
    pub row: u64,
    /// What it gives.
    pub error: Arc<Error>,
}

/// What is known of a set of rows.
#[derive(Debug)]
enum Known {
    Nothing,
    /// It fails, because what it is a half of fails and the other half does not.
    Inferred,
    Seen(Error),
}

/// What was asked last.
#[derive(Debug)]
enum Trial {
    Whole(RowSet),
    /// The first half of a set that fails.
    Half(RowSet, RowSet),
}

/// A search for single rows that fail, in O(k log n) trials for k of n.
///
/// Ask [`next`](Self::next) what to try and [`tell`](Self::tell) what came of it, until there is nothing more to try.
#[derive(Debug)]
pub struct Search {
    todo: Vec<(RowSet, Known)>,
    trial: Option<Trial>,
    guilty: Vec<Guilty>,
    hopeless: bool,
}

impl Search {
    /// A search among rows of which it is known that they fail together.
    pub fn new(rows: RowSet, error: Error) -> Self {
        Self { todo: vec![(rows, Known::Seen(error))], trial: None, guilty: Vec::new(), hopeless: false }
    }

    /// The rows to try next.
    #[allow(clippy::should_implement_trait, reason = "each answer needs a `tell` before the next question")]
    pub fn next(&mut self) -> Option<RowSet> {
        while let Some((rows, known)) = self.todo.pop() {
            if self.hopeless || self.guilty.len() >= MOST_GUILTY {
                self.hopeless = true;
                return None;
            }
            match (rows.single(), known) {
                _ if rows.is_empty() => {}
                (Some((stream, row)), Known::Seen(error)) => {
                    self.guilty.push(Guilty { stream, row, error: error.into() })
                }
                (_, Known::Nothing) | (Some(_), Known::Inferred) => {
                    self.trial = Some(Trial::Whole(rows.clone()));
                    return Some(rows);
                }
                (None, Known::Inferred | Known::Seen(_)) => {
                    let (first, second) = rows.halves();
                    self.trial = Some(Trial::Half(first.clone(), second));
                    return Some(first);
                }
            }
        }
        None
    }

    /// What came of the last trial.
    pub fn tell(&mut self, result: Result<(), Error>) {
        match (self.trial.take(), result) {
            (Some(Trial::Half(_, second)), Ok(())) => self.todo.push((second, Known::Inferred)),
            (Some(Trial::Half(first, second)), Err(error)) => {
                self.todo.push((second, Known::Nothing));
                self.todo.push((first, Known::Seen(error)));
            }
            (Some(Trial::Whole(rows)), Err(error)) => self.todo.push((rows, Known::Seen(error))),
            // The whole failed and neither half does: the rows only fail together, as a sum overflows.
            (Some(Trial::Whole(rows)), Ok(())) if rows.len() == 1 && self.guilty.is_empty() => self.hopeless = true,
            (Some(Trial::Whole(_)), Ok(())) | (None, _) => {}
        }
    }

    /// The rows found, in their order; `None` where no rows can be blamed, or too many.
    pub fn guilty(mut self) -> Option<Vec<Guilty>> {
        self.guilty.sort_by_key(|guilty| (guilty.stream, guilty.row));
        (!self.hopeless && !self.guilty.is_empty()).then_some(self.guilty)
    }
}

/// A search for rows that fail together with rows before them, such as a key that comes twice: the later one is guilty. Used as [`Search`] is.
#[derive(Debug)]
pub struct PrefixSearch {
    rows: RowSet,
    /// So many of the first rows pass together.
    passes: u64,
    /// So many do not, with this error.
    fails: Option<(u64, Error)>,
    guilty: Vec<Guilty>,
    asked: u64,
    done: bool,
}

impl PrefixSearch {
    /// A search among rows of which it is known that they fail together.
    pub fn new(rows: RowSet, error: Error) -> Self {
        let fails = Some((rows.len(), error));
        Self { rows, passes: 0, fails, guilty: Vec::new(), asked: 0, done: false }
    }

    /// The rows to try next.
    #[allow(clippy::should_implement_trait, reason = "each answer needs a `tell` before the next question")]
    pub fn next(&mut self) -> Option<RowSet> {
        if let Some((count, error)) = self.fails.take() {
            if count > self.passes + 1 {
                self.asked = self.passes.midpoint(count);
                self.fails = Some((count, error));
                return Some(self.rows.first(self.asked));
            }
            let (stream, row) = self.rows.nth(self.passes)?;
            self.rows = std::mem::take(&mut self.rows).without([(stream, row)]);
            self.guilty.push(Guilty { stream, row, error: error.into() });
        }
        if self.done || self.guilty.len() >= MOST_REPEATED {
            return None;
        }
        self.asked = self.rows.len();
        Some(self.rows.clone())
    }

    /// What came of the last trial.
    pub fn tell(&mut self, result: Result<(), Error>) {
        match result {
            Ok(()) => {
                self.passes = self.asked;
                self.done = self.asked == self.rows.len();
            }
            Err(error) => self.fails = Some((self.asked, error)),
        }
    }

    /// The rows found, in their order; `None` where they are too many.
    pub fn guilty(mut self) -> Option<Vec<Guilty>> {
        self.guilty.sort_by_key(|guilty| (guilty.stream, guilty.row));
        self.done.then_some(self.guilty)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::class;

    fn rows(counts: &[u64]) -> RowSet {
        let mut all = RowSet::default();
        counts.iter().enumerate().for_each(|(stream, count)| all.push((0, stream), 0..*count));
        all
    }

    fn broken() -> Error {
        Error::new(class::EXPRESSION_FAILED, "broken")
    }

    /// Searches where a trial fails when `fails` says so of its rows, and counts the trials.
    fn search(
        counts: &[u64],
        fails: impl Fn(&dyn Fn(usize, u64) -> bool) -> bool,
    ) -> (Option<Vec<(usize, u64)>>, usize) {
        let mut search = Search::new(rows(counts), broken());
        let mut trials = 0;
        while let Some(set) = search.next() {
            trials += 1;
            let has = |stream: usize, row: u64| set.among((0, stream), row, 1).is_some();
            search.tell(if fails(&has) { Err(broken()) } else { Ok(()) });
        }
        (search.guilty().map(|guilty| guilty.into_iter().map(|g| (g.stream.1, g.row)).collect()), trials)
    }

    #[test]
    fn one_row_of_many_is_found_in_few_trials() {
        for row in [0, 1, 49_999, 50_000, 99_999] {
            let (guilty, trials) = search(&[100_000], |has| has(0, row));
            assert_eq!(guilty.unwrap(), [(0, row)]);
            assert!(trials <= 36, "{trials} trials");
        }
    }

    #[test]
    fn every_set_of_rows_is_found_exactly() {
        // All subsets of ten rows in three streams, one of which is empty.
        let all: Vec<(usize, u64)> = (0..4).map(|row| (0, row)).chain((0..6).map(|row| (2, row))).collect();
        for subset in 1u32..1 << all.len() {
            let bad: Vec<_> = all.iter().enumerate().filter(|(i, _)| subset & 1 << i != 0).map(|(_, r)| *r).collect();
            let (guilty, _) = search(&[4, 0, 6], |has| bad.iter().any(|(stream, row)| has(*stream, *row)));
            assert_eq!(guilty.unwrap(), bad);
        }
    }

    #[test]
    fn rows_that_only_fail_together_are_not_blamed() {
        let (guilty, _) = search(&[8], |has| has(0, 1) && has(0, 6));
        assert_eq!(guilty, None);
    }

    #[test]
    fn of_rows_that_fail_together_the_later_is_found() {
        // Rows 3 and 7 of one stream and 2 of the other have the key of an earlier row.
        let twice = [((0, 0), 3), ((0, 0), 7), ((0, 1), 2)];
        for found in 0..=twice.len() {
            let mut search = PrefixSearch::new(rows(&[10_000, 10_000]), broken());
            let mut trials = 0;
            while let Some(set) = search.next() {
                trials += 1;
                let fails = twice[..found].iter().any(|(stream, row)| set.among(*stream, *row, 1).is_some());
                search.tell(if fails { Err(broken()) } else { Ok(()) });
            }
            let guilty = search.guilty();
            if found > 0 {
                let guilty: Vec<_> = guilty.unwrap().into_iter().map(|guilty| (guilty.stream, guilty.row)).collect();
                assert_eq!(guilty, twice[..found]);
                assert!(trials <= 16 * found, "{trials} trials");
            }
        }
    }

    #[test]
    fn a_batch_in_which_all_rows_fail_is_given_up() {
        let (guilty, trials) = search(&[100_000], |has| (0..100_000).step_by(7).any(|row| has(0, row)));
        assert_eq!(guilty, None);
        assert!(trials < 40_000);
    }

    #[test]
    fn a_mask_tells_the_rows_of_a_block() {
        let mut set = RowSet::default();
        set.push((0, 1), 2..4);
        set.push((0, 1), 6..7);
        let mask = |first, count| {
            set.among((0, 1), first, count).map(|mask| mask.values().iter().map(u8::from).collect::<Vec<_>>())
        };
        assert_eq!(mask(0, 8).unwrap(), [0, 0, 1, 1, 0, 0, 1, 0]);
        assert_eq!(mask(3, 3).unwrap(), [1, 0, 0]);
        assert_eq!(mask(4, 2), None);
        assert_eq!(set.among((0, 0), 0, 10), None);
        let left = set.clone().without([((0, 1), 2), ((0, 1), 6)]);
        assert_eq!((left.len(), left.nth(0)), (1, Some(((0, 1), 3))));
    }
}
