//! What a query keeps, in words that can be compared when the query has changed: which of its state goes on, and which cannot.
//!
//! The shape of each form of a query lies in its checkpoint, by the digest of the plan. A start with another plan compares both: a pure
//! decision, whose outcome says for each state where its columns come from.

use serde::{Deserialize, Serialize};

use crate::layout::{AggregateLayout, Content, OperatorLayout};
use crate::state::{ColumnOrigin, StateOrigin, StateSpec};

/// What a query keeps.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanShape {
    /// Its stateful operators, from the sink towards the sources.
    pub operators: Vec<OperatorShape>,
}

/// What a stateful operator keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperatorShape {
    /// Its name (`stateStoreSave`, `dedupe`, …).
    pub name: String,
    /// What the meaning of its rows depends on beyond their columns, a line each: two operators with other lines have nothing in common.
    pub meaning: Vec<String>,
    /// Its states, in the order of [`QueryPlan::state`](crate::plan::QueryPlan::state).
    pub states: Vec<StateShape>,
}

/// What is in a state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateShape {
    /// The columns of the key.
    pub keys: Vec<Column>,
    /// The columns behind them, aggregate by aggregate; what is no aggregate's is one by one.
    pub values: Vec<Value>,
}

/// A column.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Its Arrow type.
    #[serde(rename = "type")]
    pub data_type: String,
}

/// Columns that belong together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Value {
    /// What tells it from the others: the call of an aggregate, or the name of the column.
    pub name: String,
    /// The function, where it is an aggregate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub function: Option<String>,
    /// The types of the function's arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub arguments: Vec<String>,
    /// The types of its columns.
    pub columns: Vec<String>,
}

impl OperatorShape {
    /// The shape of an operator with these states, which `layout` explains.
    pub fn new(layout: &OperatorLayout, meaning: Vec<String>, states: &[StateSpec]) -> Self {
        let aggregates: &[AggregateLayout] = match &layout.content {
            Content::Aggregation { aggregates, .. } | Content::Sessions { aggregates, .. } => aggregates,
            _ => &[],
        };
        let shape = |(number, spec): (usize, &StateSpec)| {
            let column = |index: usize| {
                let field = spec.schema.field(index);
                Column { name: field.name().clone(), data_type: field.data_type().to_string() }
            };
            let mut values = Vec::new();
            let mut next = spec.keys;
            while next < spec.schema.fields().len() {
                // Only the first state of an operator has aggregates.
                let aggregate =
                    aggregates.iter().find(|a| number == 0 && a.columns.start == next && !a.columns.is_empty());
                let columns = aggregate.map_or(next..next + 1, |aggregate| aggregate.columns.clone());
                values.push(Value {
                    name: aggregate.map_or_else(|| column(next).name, |aggregate| aggregate.call.clone()),
                    function: aggregate.map(|aggregate| aggregate.function.clone()),
                    arguments: aggregate.into_iter().flat_map(|a| &a.arguments).map(ToString::to_string).collect(),
                    columns: columns.clone().map(|index| column(index).data_type).collect(),
                });
                next = columns.end;
            }
            StateShape { keys: (0..spec.keys).map(column).collect(), values }
        };
        Self { name: layout.name.clone(), meaning, states: states.iter().enumerate().map(shape).collect() }
    }

    /// The operator for people: what it is and by what.
    fn title(&self) -> String {
        let keys = self.states.first().map(|state| list(&state.keys)).unwrap_or_default();
        if keys.is_empty() { self.name.clone() } else { format!("{} by {keys}", self.name) }
    }
}

fn list(columns: &[Column]) -> String {
    columns.iter().map(|column| format!("{} {}", column.name, column.data_type)).collect::<Vec<_>>().join(", ")
}

/// What becomes of the state of a query that changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Per state of the query as it is now where its rows come from; `None`: it begins empty.
    pub origins: Vec<Option<StateOrigin>>,
    /// What is kept in another form, for people.
    pub kept: Vec<String>,
    /// What cannot be kept, and why: the query starts only when somebody has agreed to that.
    pub lost: Vec<String>,
}

impl Changes {
    /// So many states that begin empty.
    pub fn nothing(states: usize) -> Self {
        Self { origins: vec![None; states], ..Self::default() }
    }
}

/// Compares what a query kept with what it keeps now. `rows` has the rows of each of the old states: where there are none, nothing is lost.
pub fn compare(old: &PlanShape, new: &PlanShape, rows: &[u64]) -> Changes {
    let mut changes = Changes::default();
    let mut first = 0;
    let numbered = old.operators.iter().map(|operator| {
        let at = first;
        first += operator.states.len();
        (at, operator)
    });
    let mut left: Vec<(usize, &OperatorShape)> = numbered.collect();
    // Those that fit first, so that none is taken away from them by one that only has the same name.
    let pairs: Vec<_> = new
        .operators
        .iter()
        .map(|operator| {
            let found = left.iter().enumerate().find_map(|(index, (at, before))| {
                let fit = fits(before, operator, *at).ok()?;
                Some((index, fit))
            });
            found.map(|(index, fit)| (left.remove(index).1, fit))
        })
        .collect();
    for (operator, pair) in new.operators.iter().zip(pairs) {
        if let Some((before, fit)) = pair {
            changes.origins.extend(fit.origins.into_iter().map(Some));
            changes.kept.extend(fit.notes.into_iter().map(|note| format!("{}: {note}", before.title())));
            continue;
        }
        changes.origins.extend(operator.states.iter().map(|_| None));
        let namesake = left.iter().position(|(_, before)| before.name == operator.name);
        match namesake.map(|index| left.remove(index)) {
            Some((at, before)) if held(rows, at, before) > 0 => {
                let why = fits(before, operator, at).err().unwrap_or_default();
                changes.lost.push(format!(
                    "{}: {why}; its {} rows are dropped",
                    before.title(),
                    held(rows, at, before)
                ));
            }
            Some(_) => {}
            None => changes.lost.push(format!("{} is new, and knows nothing of what was before", operator.title())),
        }
    }
    for (at, operator) in left {
        let rows = held(rows, at, operator);
        if rows > 0 {
            changes.lost.push(format!("{} is gone; its {rows} rows are dropped", operator.title()));
        }
    }
    changes
}

/// What becomes of state of which nothing is known but how many rows it has.
pub fn unknown(new: &PlanShape, rows: &[u64]) -> Changes {
    let mut changes = Changes::nothing(new.operators.iter().map(|operator| operator.states.len()).sum());
    let rows: u64 = rows.iter().sum();
    if rows > 0 || !new.operators.is_empty() {
        changes.lost.push(format!(
            "the checkpoint does not say what was kept before, because an older version wrote it; its {rows} rows of state are dropped"
        ));
    }
    changes
}

fn held(rows: &[u64], at: usize, operator: &OperatorShape) -> u64 {
    rows.iter().skip(at).take(operator.states.len()).sum()
}

/// How an operator goes on with the state of another one.
struct Fit {
    origins: Vec<StateOrigin>,
    notes: Vec<String>,
}

/// Whether an operator can go on with the rows of another one, whose first state has the number `at`; else why not.
fn fits(old: &OperatorShape, new: &OperatorShape, at: usize) -> Result<Fit, String> {
    if old.name != new.name || old.states.len() != new.states.len() {
        return Err(format!("it is {} now", new.name));
    }
    for (before, now) in old.states.iter().zip(&new.states) {
        let same = before.keys.len() == now.keys.len()
            && before.keys.iter().zip(&now.keys).all(|(b, n)| b.name == n.name && widens(&b.data_type, &n.data_type));
        if !same {
            return Err(format!("its rows were kept by ({}) and now are by ({})", list(&before.keys), list(&now.keys)));
        }
    }
    if old.meaning != new.meaning {
        let only = |these: &[String], those: &[String]| {
            let only = these.iter().filter(|line| !those.contains(line)).cloned().collect::<Vec<_>>().join(", ");
            if only.is_empty() { "the same in another order".to_owned() } else { only }
        };
        return Err(format!(
            "its rows mean something else: {} became {}",
            only(&old.meaning, &new.meaning),
            only(&new.meaning, &old.meaning)
        ));
    }
    let mut fit = Fit { origins: Vec::new(), notes: Vec::new() };
    for (number, (before, now)) in old.states.iter().zip(&new.states).enumerate() {
        let columns = columns_of(before, now, &mut fit.notes)?;
        let width = before.keys.len() + before.values.iter().map(|value| value.columns.len()).sum::<usize>();
        fit.origins.push(StateOrigin {
            state: at + number,
            name: old.name.clone(),
            keys: before.keys.len(),
            width,
            columns,
        });
    }
    Ok(fit)
}

/// Where the columns of a state come from.
fn columns_of(old: &StateShape, new: &StateShape, notes: &mut Vec<String>) -> Result<Vec<ColumnOrigin>, String> {
    for (before, now) in old.keys.iter().zip(&new.keys).filter(|(before, now)| before != now) {
        notes.push(format!("the key {} is {} now instead of {}", now.name, now.data_type, before.data_type));
    }
    let mut origins: Vec<_> = (0..old.keys.len()).map(ColumnOrigin::Column).collect();
    let mut start = old.keys.len();
    let mut left: Vec<(usize, &Value)> = Vec::new();
    for value in &old.values {
        left.push((start, value));
        start += value.columns.len();
    }
    for value in &new.values {
        let Some(index) = left.iter().position(|(_, before)| before.name == value.name) else {
            if value.function.is_none() {
                return Err(format!("it keeps {} now, which its rows do not have", value.name));
            }
            notes.push(format!("{} is new: for what is in state already it begins empty", value.name));
            origins.extend(value.columns.iter().map(|_| ColumnOrigin::Empty));
            continue;
        };
        let (start, before) = left.remove(index);
        if before.function != value.function || !converts(before, value) {
            return Err(format!(
                "{} was kept as ({}) and is ({}) now",
                value.name,
                before.arguments.iter().chain(&before.columns).cloned().collect::<Vec<_>>().join(", "),
                value.arguments.iter().chain(&value.columns).cloned().collect::<Vec<_>>().join(", ")
            ));
        }
        if before != value {
            notes.push(format!("{} is kept in wider types", value.name));
        }
        origins.extend((start..start + value.columns.len()).map(ColumnOrigin::Column));
    }
    notes.extend(
        left.iter().map(|(_, value)| format!("{} is no longer needed: what was kept of it is dropped", value.name)),
    );
    Ok(origins)
}

/// Aggregates whose state is made of values or sums of the argument: with a wider argument it is the same state in wider types. What hashes or
/// serialises its argument is not among them.
const OF_VALUES: &[&str] = &[
    "min",
    "max",
    "sum",
    "avg",
    "count",
    "first_value",
    "last_value",
    "array_agg",
    "stddev",
    "stddev_pop",
    "var",
    "var_pop",
    "bool_and",
    "bool_or",
];

/// Whether the columns of one can be made those of the other without loss.
fn converts(old: &Value, new: &Value) -> bool {
    let wider = |old: &[String], new: &[String]| {
        old.len() == new.len() && old.iter().zip(new).all(|(old, new)| widens(old, new))
    };
    let knows = new.function.as_ref().is_none_or(|function| OF_VALUES.contains(&function.as_str()));
    old.columns == new.columns && old.arguments == new.arguments
        || knows && wider(&old.columns, &new.columns) && wider(&old.arguments, &new.arguments)
}

/// Whether every value of one type is one of the other, and different ones stay different.
fn widens(old: &str, new: &str) -> bool {
    let rank = |name: &str| ["Int8", "Int16", "Int32", "Int64"].iter().position(|known| *known == name);
    let decimal = |name: &str| {
        let (precision, scale) = name.strip_prefix("Decimal128(")?.strip_suffix(')')?.split_once(',')?;
        Some((precision.trim().parse::<i32>().ok()?, scale.trim().parse::<i32>().ok()?))
    };
    if old == new {
        return true;
    }
    match (rank(old), rank(new), decimal(old), decimal(new)) {
        (Some(old), Some(new), ..) => old < new,
        (Some(old), ..) => new == "Float64" && old < 3,
        (_, _, Some((precision, scale)), Some((wider, finer))) => finer >= scale && wider - finer >= precision - scale,
        _ => old == "Float32" && new == "Float64",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(name: &str, function: Option<&str>, argument: &str, columns: &[&str]) -> Value {
        Value {
            name: name.to_owned(),
            function: function.map(str::to_owned),
            arguments: if argument.is_empty() { vec![] } else { vec![argument.to_owned()] },
            columns: columns.iter().map(|column| (*column).to_owned()).collect(),
        }
    }

    fn operator(name: &str, key: &str, meaning: &str, values: Vec<Value>) -> OperatorShape {
        let keys = vec![Column { name: "k".to_owned(), data_type: key.to_owned() }];
        OperatorShape {
            name: name.to_owned(),
            meaning: vec![meaning.to_owned()],
            states: vec![StateShape { keys, values }],
        }
    }

    /// Every aggregate that a query of the enumeration can have.
    fn pool() -> Vec<Value> {
        vec![
            value("count(*)", Some("count"), "", &["Int64"]),
            value("sum(v)", Some("sum"), "Int32", &["Int64"]),
            value("avg(v)", Some("avg"), "Int32", &["Int64", "Float64"]),
            value("max(v)", Some("max"), "Int32", &["Int32"]),
        ]
    }

    fn subset(bits: usize) -> Vec<Value> {
        pool().into_iter().enumerate().filter(|(index, _)| bits >> index & 1 == 1).map(|(_, value)| value).collect()
    }

    #[test]
    fn every_change_of_the_aggregates_keeps_those_that_are_in_both() {
        for (before, now) in (0..16).flat_map(|before| (0..16).map(move |now| (before, now))) {
            let (mut old, mut new) = (subset(before), subset(now));
            // In any order.
            if (before + now) % 2 == 1 {
                old.reverse();
            }
            if now % 3 == 0 {
                new.reverse();
            }
            let shape =
                |values: &[Value]| PlanShape { operators: vec![operator("agg", "Int64", "m", values.to_vec())] };
            let changes = compare(&shape(&old), &shape(&new), &[5]);
            assert_eq!(changes.lost, [""; 0], "{old:?} {new:?}");
            let origin = changes.origins[0].as_ref().unwrap();
            assert_eq!(origin.width, 1 + old.iter().map(|value| value.columns.len()).sum::<usize>());
            // What the columns were called, in the old state and in the new one.
            let names = |values: &[Value]| -> Vec<String> {
                let of =
                    |value: &Value| (0..value.columns.len()).map(|n| format!("{}.{n}", value.name)).collect::<Vec<_>>();
                std::iter::once("k".to_owned()).chain(values.iter().flat_map(of)).collect()
            };
            let (old_names, new_names) = (names(&old), names(&new));
            assert_eq!(origin.columns.len(), new_names.len());
            for (name, from) in new_names.iter().zip(&origin.columns) {
                match from {
                    ColumnOrigin::Column(column) => assert_eq!(&old_names[*column], name),
                    ColumnOrigin::Empty => assert!(!old_names.contains(name), "{name} is there"),
                }
            }
            let (added, removed) = ((now & !before).count_ones(), (before & !now).count_ones());
            assert_eq!(changes.kept.len() as u32, added + removed, "each is told: {:?}", changes.kept);
        }
    }

    #[test]
    fn every_pair_of_operators_is_kept_or_told() {
        let count = || vec![value("count(*)", Some("count"), "", &["Int64"])];
        let all = || {
            [("agg", "Int64", "m"), ("agg", "Int32", "m"), ("agg", "Int64", "n"), ("dedupe", "Int64", "m")]
                .map(|(name, key, meaning)| operator(name, key, meaning, if name == "agg" { count() } else { vec![] }))
        };
        let lists = || {
            let singles = all().into_iter().map(|one| vec![one]);
            let pairs = all().into_iter().flat_map(|one| all().into_iter().map(move |two| vec![one.clone(), two]));
            std::iter::once(vec![]).chain(singles).chain(pairs).collect::<Vec<_>>()
        };
        for (old, new) in lists().into_iter().flat_map(|old| lists().into_iter().map(move |new| (old.clone(), new))) {
            let (old, new) = (PlanShape { operators: old }, PlanShape { operators: new });
            let rows = vec![1; old.operators.len()];
            let changes = compare(&old, &new, &rows);
            assert_eq!(changes.origins.len(), new.operators.len());
            let mut used: Vec<usize> = changes.origins.iter().flatten().map(|origin| origin.state).collect();
            for (operator, origin) in new.operators.iter().zip(&changes.origins) {
                if let Some(origin) = origin {
                    let before = &old.operators[origin.state];
                    assert_eq!((&before.name, &before.meaning), (&operator.name, &operator.meaning));
                    assert!(widens(&before.states[0].keys[0].data_type, &operator.states[0].keys[0].data_type));
                }
            }
            let kept = used.len();
            used.sort_unstable();
            used.dedup();
            assert_eq!(used.len(), kept, "a state goes to one operator");
            let all_go_on = kept == old.operators.len() && kept == new.operators.len();
            assert_eq!(changes.lost.is_empty(), all_go_on, "{old:?} {new:?}: {:?}", changes.lost);
            if old == new {
                assert!(all_go_on && changes.kept.is_empty(), "{:?}", changes.kept);
                assert!((0..kept).eq(changes.origins.iter().flatten().map(|origin| origin.state)), "in their order");
            }
            // Where nothing was kept, only what is new can be missing.
            let empty = compare(&old, &new, &vec![0; old.operators.len()]);
            assert!(empty.lost.iter().all(|lost| lost.contains("is new")), "{:?}", empty.lost);
        }
    }

    #[test]
    fn types_only_get_wider() {
        let types = [
            "Int8",
            "Int16",
            "Int32",
            "Int64",
            "Float32",
            "Float64",
            "Utf8",
            "Decimal128(10, 2)",
            "Decimal128(12, 4)",
            "Decimal128(11, 4)",
        ];
        let wider = [
            ("Int8", &["Int16", "Int32", "Int64", "Float64"][..]),
            ("Int16", &["Int32", "Int64", "Float64"]),
            ("Int32", &["Int64", "Float64"]),
            ("Float32", &["Float64"]),
            ("Decimal128(10, 2)", &["Decimal128(12, 4)"]),
            ("Decimal128(11, 4)", &["Decimal128(12, 4)"]),
        ];
        for (old, new) in types.iter().flat_map(|old| types.iter().map(move |new| (*old, *new))) {
            let expected = old == new || wider.iter().any(|(from, to)| *from == old && to.contains(&new));
            assert_eq!(widens(old, new), expected, "{old} to {new}");
        }
    }

    #[test]
    fn a_sketch_is_not_converted_and_a_column_cannot_be_made_up() {
        let shape = |values: Vec<Value>| PlanShape { operators: vec![operator("op", "Int64", "m", values)] };
        let sketch = |argument| shape(vec![value("approx(v)", Some("approx_distinct"), argument, &["Binary"])]);
        for (old, new, why) in [
            (sketch("Int32"), sketch("Int64"), "approx(v) was kept as (Int32, Binary) and is (Int64, Binary) now"),
            (shape(vec![]), shape(vec![value("more", None, "", &["Utf8"])]), "it keeps more now"),
            (
                shape(vec![value("max(v)", Some("max"), "Int64", &["Int64"])]),
                shape(vec![value("max(v)", Some("max"), "Int32", &["Int32"])]),
                "max(v) was kept as (Int64, Int64)",
            ),
        ] {
            let changes = compare(&old, &new, &[7]);
            assert_eq!(changes.origins, [None]);
            assert!(changes.lost[0].contains(why) && changes.lost[0].contains("7 rows"), "{:?}", changes.lost);
        }
        let max = |kind| shape(vec![value("max(v)", Some("max"), kind, &[kind])]);
        let changes = compare(&max("Int32"), &max("Int64"), &[7]);
        assert_eq!((changes.lost.len(), changes.kept.len()), (0, 1), "{changes:?}");
    }
}
