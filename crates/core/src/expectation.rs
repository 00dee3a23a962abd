//! Expectations: what must hold for a row of a source before any query sees it.

use std::sync::Arc;

use arrow::array::{Array, BooleanArray, RecordBatch};
use arrow::compute::{and, filter_record_batch, is_not_null, not, prep_null_mask_filter};
use arrow::datatypes::Schema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, class};
use crate::isolate::{Guilty, StreamId};
use crate::plan::Predicate;

/// What happens to a row that breaks an expectation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnViolation {
    /// The record goes to the dead letters, whole, with the rules it broke.
    #[default]
    DeadLetter,
    /// The row is left out and counted.
    Drop,
    /// The query stops.
    Fail,
    /// The row stays, and is counted.
    Warn,
}

/// A rule of a source. NULL breaks it.
#[derive(Debug, Clone)]
pub struct Expectation {
    /// Its name in the job file.
    pub name: String,
    /// The condition.
    pub check: Arc<dyn Predicate>,
    /// What happens to a row that breaks it.
    pub on_violation: OnViolation,
}

/// `NOT NULL` in a source's schema, as a rule.
#[derive(Debug)]
struct NotNull {
    column: [usize; 1],
    name: String,
}

impl Predicate for NotNull {
    fn columns(&self) -> &[usize] {
        &self.column
    }

    fn evaluate(&self, rows: &RecordBatch) -> Result<BooleanArray> {
        let column = rows
            .column_by_name(&self.name)
            .ok_or_else(|| Error::bug(format!("the column {} of an expectation was not decoded", self.name)))?;
        Ok(is_not_null(column)?)
    }
}

/// All rules of a source.
#[derive(Debug, Clone, Default)]
pub struct Expectations {
    rules: Vec<Expectation>,
}

/// A row that has to leave, with the rules it broke.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Index of the row.
    pub row: usize,
    /// Names of the broken rules that send to the dead letters; first come the columns that must not be NULL.
    pub rules: Vec<String>,
}

/// The outcome of checking a batch of rows.
#[derive(Debug, Default)]
pub struct Checked {
    /// Which rows stay; `None` when all do.
    pub keep: Option<BooleanArray>,
    /// Rows for the dead letters, ascending.
    pub violations: Vec<Violation>,
    /// Rows that are dropped.
    pub dropped: u64,
    /// Rows that broke a rule which only warns.
    pub warned: u64,
}

impl Expectations {
    /// The rules of a source: `NOT NULL` of its schema first, then those of the job file.
    pub fn new(schema: &Schema, rules: Vec<Expectation>) -> Self {
        let not_null = schema.fields().iter().enumerate().filter(|(_, field)| !field.is_nullable());
        let mut all: Vec<_> = not_null
            .map(|(index, field)| Expectation {
                name: format!("{} NOT NULL", field.name()),
                check: Arc::new(NotNull { column: [index], name: field.name().clone() }),
                on_violation: OnViolation::DeadLetter,
            })
            .collect();
        all.extend(rules);
        Self { rules: all }
    }

    /// Indexes of the columns of the source's schema that the rules read.
    pub fn columns(&self) -> impl Iterator<Item = usize> {
        self.rules.iter().flat_map(|rule| rule.check.columns().iter().copied())
    }

    /// Names and actions, for people.
    pub fn rules(&self) -> &[Expectation] {
        &self.rules
    }

    /// Checks rows. Fails when a rule with [`OnViolation::Fail`] is broken.
    pub fn check(&self, rows: &RecordBatch) -> Result<Checked> {
        let mut checked = Checked::default();
        let mut letters: Vec<(&Expectation, BooleanArray)> = Vec::new();
        let mut dropped: Option<BooleanArray> = None;
        for rule in &self.rules {
            // NULL counts as broken.
            let holds = match rule.check.evaluate(rows)? {
                holds if holds.null_count() > 0 => prep_null_mask_filter(&holds),
                holds => holds,
            };
            let broken = holds.false_count();
            if broken == 0 {
                continue;
            }
            match rule.on_violation {
                OnViolation::Warn => checked.warned += broken as u64,
                OnViolation::Fail => {
                    let row = (0..holds.len()).find(|row| !holds.value(*row)).unwrap_or_default();
                    return Err(Error::new(
                        class::EXPECTATION_FAILED,
                        format!(
                            "{broken} rows break the expectation {}, which stops the query; the first: {}",
                            rule.name,
                            show_row(rows, row)
                        ),
                    ));
                }
                OnViolation::Drop => {
                    dropped = Some(match dropped {
                        Some(before) => and(&before, &holds)?,
                        None => holds,
                    });
                }
                OnViolation::DeadLetter => letters.push((rule, holds)),
            }
        }
        let mut lettered: Option<BooleanArray> = None;
        for (_, holds) in &letters {
            lettered = Some(match lettered {
                Some(before) => and(&before, holds)?,
                None => holds.clone(),
            });
        }
        if let Some(lettered) = &lettered {
            for row in (0..lettered.len()).filter(|row| !lettered.value(*row)) {
                let rules = letters.iter().filter(|(_, h)| !h.value(row)).map(|(r, _)| r.name.clone()).collect();
                checked.violations.push(Violation { row, rules });
            }
        }
        // A row that both drops and dead-letters is dead-lettered: nothing vanishes that somebody wants to see.
        if let Some(dropped) = &dropped {
            let gone = match &lettered {
                Some(lettered) => and(&not(dropped)?, lettered)?,
                None => not(dropped)?,
            };
            checked.dropped = gone.true_count() as u64;
        }
        checked.keep = match (lettered, dropped) {
            (Some(a), Some(b)) => Some(and(&a, &b)?),
            (a, b) => a.or(b),
        };
        Ok(checked)
    }
}

impl Checked {
    /// Takes out the rows that break the batch, and gives their indexes. `at` are the stream and the number in it of the first of `rows` rows.
    /// A row that has to leave anyway is not blamed again.
    pub fn blame<'a>(
        &mut self,
        guilty: &'a [Guilty],
        (stream, first): (StreamId, u64),
        rows: usize,
    ) -> Result<Vec<(usize, &'a Error)>> {
        let start = guilty.partition_point(|g| (g.stream, g.row) < (stream, first));
        let here = guilty[start..].iter().take_while(|g| g.stream == stream && g.row < first + rows as u64);
        let blamed: Vec<(usize, &Error)> = here
            .map(|guilty| ((guilty.row - first) as usize, guilty.error.as_ref()))
            .filter(|(row, _)| self.keep.as_ref().is_none_or(|keep| keep.value(*row)))
            .collect();
        if !blamed.is_empty() {
            let mut innocent = vec![true; rows];
            blamed.iter().for_each(|(row, _)| innocent[*row] = false);
            let innocent = BooleanArray::from(innocent);
            self.keep = Some(match &self.keep {
                Some(keep) => and(keep, &innocent)?,
                None => innocent,
            });
        }
        Ok(blamed)
    }

    /// Takes all rows out that would stay, because of an error of the whole batch.
    pub fn blame_all<'a>(&mut self, error: &'a Error, rows: usize) -> Vec<(usize, &'a Error)> {
        let stays = |row: &usize| self.keep.as_ref().is_none_or(|keep| keep.value(*row));
        let blamed = (0..rows).filter(stays).map(|row| (row, error)).collect();
        self.keep = Some(BooleanArray::from(vec![false; rows]));
        blamed
    }

    /// The rows that stay.
    pub fn apply(&self, rows: RecordBatch) -> Result<RecordBatch> {
        match &self.keep {
            Some(keep) => Ok(filter_record_batch(&rows, keep)?),
            None => Ok(rows),
        }
    }
}

/// A row as people read it: `column=value, …`.
pub fn show_row(rows: &RecordBatch, row: usize) -> String {
    let options = arrow::util::display::FormatOptions::default().with_null("NULL");
    let schema = rows.schema();
    let cells = schema.fields().iter().zip(rows.columns()).map(|(field, column)| {
        let value = arrow::util::display::array_value_to_string(column, row).unwrap_or_default();
        let value = if column.is_null(row) { options.null().to_owned() } else { value };
        format!("{}={value}", field.name())
    });
    cells.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{ArrayRef, Int32Array};
    use arrow::datatypes::{DataType, Field};

    #[derive(Debug)]
    struct AtMost(i32);

    impl Predicate for AtMost {
        fn columns(&self) -> &[usize] {
            &[0]
        }

        fn evaluate(&self, rows: &RecordBatch) -> Result<BooleanArray> {
            let values = rows.column(0).as_any().downcast_ref::<Int32Array>().unwrap();
            Ok(values.iter().map(|v| v.map(|v| v <= self.0)).collect())
        }
    }

    fn check(values: Vec<Option<i32>>, rules: &[(&str, i32, OnViolation)]) -> Result<(Vec<i32>, Checked)> {
        let rows = RecordBatch::try_from_iter([("v", Arc::new(Int32Array::from(values)) as ArrayRef)]).unwrap();
        let rules = rules
            .iter()
            .map(|(name, most, action)| Expectation {
                name: (*name).into(),
                check: Arc::new(AtMost(*most)),
                on_violation: *action,
            })
            .collect();
        let schema = Schema::new(vec![Field::new("v", DataType::Int32, false)]);
        let checked = Expectations::new(&schema, rules).check(&rows)?;
        let kept = checked.apply(rows)?;
        let kept = kept.column(0).as_any().downcast_ref::<Int32Array>().unwrap().values().to_vec();
        Ok((kept, checked))
    }

    #[test]
    fn every_row_has_one_fate_and_a_letter_names_all_broken_rules() {
        let (kept, checked) = check(
            vec![Some(1), None, Some(15), Some(25), Some(35)],
            &[
                ("ten", 10, OnViolation::Warn),
                ("twenty", 20, OnViolation::Drop),
                ("thirty", 30, OnViolation::DeadLetter),
            ],
        )
        .unwrap();
        assert_eq!(kept, [1, 15]);
        let named: Vec<_> = checked.violations.iter().map(|v| (v.row, v.rules.join("; "))).collect();
        assert_eq!(named, [(1, "v NOT NULL; thirty".to_owned()), (4, "thirty".to_owned())]);
        assert_eq!((checked.dropped, checked.warned), (1, 4));
    }

    #[test]
    fn a_rule_that_fails_names_itself_and_the_row() {
        let error = check(vec![Some(1), Some(7)], &[("small", 5, OnViolation::Fail)]).unwrap_err();
        assert_eq!(error.class(), class::EXPECTATION_FAILED);
        assert!(error.to_string().contains("small") && error.to_string().contains("v=7"), "{error}");
    }
}
