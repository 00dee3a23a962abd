//! Functions that take lambdas: `transform`, `filter`, `aggregate`, `exists`, … A lambda is evaluated over all elements of a batch at once.

use std::sync::Arc;

use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, BooleanBuilder, Int32Array, ListArray, UInt32Array, new_null_array,
};
use datafusion::arrow::buffer::{NullBuffer, OffsetBuffer};
use datafusion::arrow::compute::{self, interleave, take};
use datafusion::arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::arrow::row::{RowConverter, SortField};
use datafusion::common::{Result, exec_err, plan_err};
use datafusion::logical_expr::{
    ColumnarValue, HigherOrderFunctionArgs, HigherOrderReturnFieldArgs, HigherOrderSignature, HigherOrderUDF,
    HigherOrderUDFImpl, LambdaArgument, LambdaParametersProgress, ValueOrLambda, Volatility,
};

use super::nested::{build_map, element_type};
use super::types::{common, list_of, map_of, map_types, mismatch, sql_name};

/// Which function it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Transform,
    Filter,
    Exists,
    ForAll,
    Aggregate,
    ZipWith,
    MapFilter,
    TransformKeys,
    TransformValues,
    MapZipWith,
    SortBy,
}

/// Name, further names, kind.
const ALL: &[(&str, &[&str], Kind)] = &[
    ("transform", &[], Kind::Transform),
    ("filter", &[], Kind::Filter),
    ("exists", &[], Kind::Exists),
    ("forall", &[], Kind::ForAll),
    ("aggregate", &["reduce"], Kind::Aggregate),
    ("zip_with", &[], Kind::ZipWith),
    ("map_filter", &[], Kind::MapFilter),
    ("transform_keys", &[], Kind::TransformKeys),
    ("transform_values", &[], Kind::TransformValues),
    ("map_zip_with", &[], Kind::MapZipWith),
    // `array_sort` with a comparator.
    ("array_sort_by", &[], Kind::SortBy),
];

/// All of them.
pub(crate) fn all() -> Vec<HigherOrderUDF> {
    ALL.iter()
        .map(|(name, aliases, kind)| {
            HigherOrderUDF::new_from_impl(HigherOrder {
                name,
                kind: *kind,
                signature: HigherOrderSignature::user_defined(Volatility::Immutable),
                aliases: aliases.iter().map(|alias| (*alias).to_owned()).collect(),
            })
        })
        .collect()
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct HigherOrder {
    name: &'static str,
    kind: Kind,
    signature: HigherOrderSignature,
    aliases: Vec<String>,
}

fn parameter(data_type: DataType) -> FieldRef {
    Arc::new(Field::new("", data_type, true))
}

impl HigherOrderUDFImpl for HigherOrder {
    fn name(&self) -> &str {
        self.name
    }

    fn aliases(&self) -> &[String] {
        &self.aliases
    }

    fn signature(&self) -> &HigherOrderSignature {
        &self.signature
    }

    fn coerce_value_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        let maps =
            matches!(self.kind, Kind::MapFilter | Kind::TransformKeys | Kind::TransformValues | Kind::MapZipWith);
        let containers = match self.kind {
            Kind::ZipWith | Kind::MapZipWith => 2,
            _ => 1,
        };
        let values = if self.kind == Kind::Aggregate { 2 } else { containers };
        if types.len() != values {
            return plan_err!("WRONG_NUM_ARGS.WITHOUT_SUGGESTION: {}() has the wrong number of arguments", self.name);
        }
        for data_type in &types[..containers] {
            let fits =
                if maps { matches!(data_type, DataType::Map(..)) } else { matches!(data_type, DataType::List(_)) };
            if !fits {
                let needs = if maps { "a MAP" } else { "an ARRAY" };
                return Err(mismatch(
                    "UNEXPECTED_INPUT_TYPE",
                    format!("{}() needs {needs}, not {}", self.name, sql_name(data_type)),
                ));
            }
        }
        let as_container = |data_type: &DataType| match data_type {
            DataType::Null if maps => map_of(DataType::Null, DataType::Null),
            DataType::Null => list_of(DataType::Null),
            other => other.clone(),
        };
        let mut coerced: Vec<DataType> = types[..containers].iter().map(as_container).collect();
        coerced.extend(types[containers..].iter().cloned());
        Ok(coerced)
    }

    fn lambda_parameters(
        &self,
        _: usize,
        fields: &[ValueOrLambda<FieldRef, Option<FieldRef>>],
    ) -> Result<LambdaParametersProgress> {
        let values: Vec<&DataType> = fields
            .iter()
            .filter_map(|field| match field {
                ValueOrLambda::Value(field) => Some(field.data_type()),
                ValueOrLambda::Lambda(_) => None,
            })
            .collect();
        let lambdas = fields.len() - values.len();
        let wanted = if self.kind == Kind::Aggregate { 1..=2 } else { 1..=1 };
        if !wanted.contains(&lambdas) || values.is_empty() {
            return plan_err!(
                "INVALID_LAMBDA_FUNCTION_CALL.NUM_ARGS_MISMATCH: {}() needs a lambda such as x -> x + 1",
                self.name
            );
        }
        let element = |at: usize| values.get(at).map_or(DataType::Null, |data_type| element_type(data_type));
        let entry = |at: usize| {
            values
                .get(at)
                .and_then(|data_type| map_types(data_type))
                .map_or((DataType::Null, DataType::Null), |(k, v)| (k.data_type().clone(), v.data_type().clone()))
        };
        let types = match self.kind {
            Kind::Transform | Kind::Filter => vec![vec![element(0), DataType::Int32]],
            Kind::Exists | Kind::ForAll => vec![vec![element(0)]],
            Kind::SortBy => vec![vec![element(0), element(0)]],
            Kind::ZipWith => vec![vec![element(0), element(1)]],
            Kind::Aggregate => {
                let state = values.get(1).map_or(DataType::Null, |data_type| (*data_type).clone());
                let mut types = vec![vec![state.clone(), element(0)]];
                if lambdas == 2 {
                    types.push(vec![state]);
                }
                types
            }
            Kind::MapFilter | Kind::TransformKeys | Kind::TransformValues => {
                let (key, value) = entry(0);
                vec![vec![key, value]]
            }
            Kind::MapZipWith => {
                let ((key, left), (_, right)) = (entry(0), entry(1));
                vec![vec![key, left, right]]
            }
        };
        Ok(LambdaParametersProgress::Complete(
            types.into_iter().map(|types| types.into_iter().map(parameter).collect()).collect(),
        ))
    }

    fn return_field_from_args(&self, args: HigherOrderReturnFieldArgs) -> Result<FieldRef> {
        let of = |at: usize| match args.arg_fields.get(at) {
            Some(ValueOrLambda::Value(field) | ValueOrLambda::Lambda(field)) => field.data_type().clone(),
            None => DataType::Null,
        };
        let entry = |at: usize| {
            map_types(&of(at))
                .map_or((DataType::Null, DataType::Null), |(k, v)| (k.data_type().clone(), v.data_type().clone()))
        };
        let predicate = |lambda: DataType| match lambda {
            DataType::Boolean | DataType::Null => Ok(()),
            other => Err(mismatch(
                "UNEXPECTED_INPUT_TYPE",
                format!("the lambda of {}() must give BOOLEAN, not {}", self.name, sql_name(&other)),
            )),
        };
        let returns = match self.kind {
            Kind::Transform => list_of(of(1)),
            Kind::ZipWith => list_of(of(2)),
            Kind::SortBy => of(0),
            Kind::Filter | Kind::MapFilter => {
                predicate(of(1))?;
                of(0)
            }
            Kind::Exists | Kind::ForAll => {
                predicate(of(1))?;
                DataType::Boolean
            }
            Kind::Aggregate => {
                let (start, merged) = (of(1), of(2));
                // A first plan still has literals that are wider than Spark's.
                if common(&start, &merged).is_none() {
                    return Err(mismatch(
                        "UNEXPECTED_INPUT_TYPE",
                        format!(
                            "the lambda of {}() must give the type of the start, {}, not {}: cast the start",
                            self.name,
                            sql_name(&start),
                            sql_name(&merged)
                        ),
                    ));
                }
                if args.arg_fields.len() > 3 { of(3) } else { start }
            }
            Kind::TransformKeys => map_of(of(1), entry(0).1),
            Kind::TransformValues => map_of(entry(0).0, of(1)),
            Kind::MapZipWith => map_of(entry(0).0, of(2)),
        };
        Ok(Arc::new(Field::new("", returns, true)))
    }

    fn invoke_with_args(&self, args: HigherOrderFunctionArgs) -> Result<ColumnarValue> {
        let mut values = Vec::new();
        let mut lambdas = Vec::new();
        for arg in &args.args {
            match arg {
                ValueOrLambda::Value(value) => values.push(value.to_array(args.number_rows)?),
                ValueOrLambda::Lambda(lambda) => lambdas.push(lambda),
            }
        }
        let returns = args.return_field.data_type();
        let (Some(first), Some(lambda)) = (values.first(), lambdas.first()) else {
            return exec_err!("{}() needs a value and a lambda", self.name);
        };
        let result: ArrayRef = match self.kind {
            Kind::Transform => {
                let list = Elements::of(first.as_list::<i32>());
                list.rebuild(returns, list.evaluate(lambda)?)?
            }
            Kind::Filter => {
                let list = Elements::of(first.as_list::<i32>());
                let kept = list.evaluate(lambda)?;
                let (positions, lengths) = list.kept(&kept);
                let values = take(&list.values, &positions, None)?;
                list_array(returns, values, &lengths, list.nulls)?
            }
            Kind::Exists | Kind::ForAll => {
                let list = Elements::of(first.as_list::<i32>());
                let found = list.evaluate(lambda)?;
                list.any(&found, self.kind == Kind::Exists)
            }
            Kind::Aggregate => {
                let list = Elements::of(first.as_list::<i32>());
                fold(&list, &values[1], lambda, lambdas.get(1).copied(), returns)?
            }
            Kind::ZipWith => zip_with(first.as_list::<i32>(), values[1].as_list::<i32>(), lambda, returns)?,
            Kind::SortBy => sort_by(first.as_list::<i32>(), lambda)?,
            Kind::MapFilter => {
                let map = Elements::of_map(first);
                let kept = map.evaluate_entries(lambda)?;
                let (positions, lengths) = map.kept(&kept);
                let keys = take(&map.values, &positions, None)?;
                let values = take(map.second()?, &positions, None)?;
                build_map(returns, keys, values, &lengths, map.nulls)?
            }
            Kind::TransformKeys => {
                let map = Elements::of_map(first);
                let keys = map.evaluate_entries(lambda)?;
                build_map(returns, keys, map.second()?.clone(), &map.lengths, map.nulls)?
            }
            Kind::TransformValues => {
                let map = Elements::of_map(first);
                let values = map.evaluate_entries(lambda)?;
                build_map(returns, map.values.clone(), values, &map.lengths, map.nulls)?
            }
            Kind::MapZipWith => map_zip_with(first, &values[1], lambda, returns)?,
        };
        Ok(ColumnarValue::Array(result))
    }
}

/// The elements of all lists of a column, or the entries of all maps, one after the other without gaps.
struct Elements {
    values: ArrayRef,
    /// The values of maps; `values` are their keys.
    map_values: Option<ArrayRef>,
    lengths: Vec<usize>,
    /// The row of each element.
    rows: UInt32Array,
    nulls: Option<NullBuffer>,
}

impl Elements {
    fn layout(offsets: &[i32], nulls: Option<&NullBuffer>) -> (UInt32Array, Vec<usize>, UInt32Array) {
        let mut positions = Vec::new();
        let mut rows = Vec::new();
        let lengths = offsets
            .windows(2)
            .enumerate()
            .map(|(row, pair)| {
                if nulls.is_some_and(|nulls| nulls.is_null(row)) {
                    return 0;
                }
                positions.extend((pair[0]..pair[1]).map(|at| at as u32));
                rows.extend(std::iter::repeat_n(row as u32, (pair[1] - pair[0]) as usize));
                (pair[1] - pair[0]) as usize
            })
            .collect();
        (positions.into(), lengths, rows.into())
    }

    fn of(list: &ListArray) -> Self {
        let (positions, lengths, rows) = Self::layout(list.value_offsets(), list.nulls());
        let values = gather(list.values(), &positions);
        Self { values, map_values: None, lengths, rows, nulls: list.nulls().cloned() }
    }

    fn of_map(map: &ArrayRef) -> Self {
        let map = map.as_map();
        let (positions, lengths, rows) = Self::layout(map.value_offsets(), map.nulls());
        let keys = gather(map.keys(), &positions);
        let values = gather(map.values(), &positions);
        Self { values: keys, map_values: Some(values), lengths, rows, nulls: map.nulls().cloned() }
    }

    fn second(&self) -> Result<&ArrayRef> {
        match &self.map_values {
            Some(values) => Ok(values),
            None => exec_err!("a map has values"),
        }
    }

    fn spread(&self, columns: &[ArrayRef]) -> Result<Vec<ArrayRef>> {
        columns.iter().map(|column| Ok(take(column, &self.rows, None)?)).collect()
    }

    /// The lambda over element and index.
    fn evaluate(&self, lambda: &LambdaArgument) -> Result<ArrayRef> {
        let element = || Ok(self.values.clone());
        let index = || -> Result<ArrayRef> {
            Ok(Arc::new(Int32Array::from_iter_values(self.lengths.iter().flat_map(|length| 0..*length as i32))))
        };
        lambda.evaluate(&[&element, &index], |columns| self.spread(columns))?.into_array(self.values.len())
    }

    /// The lambda over key and value.
    fn evaluate_entries(&self, lambda: &LambdaArgument) -> Result<ArrayRef> {
        let key = || Ok(self.values.clone());
        let value = || self.second().cloned();
        lambda.evaluate(&[&key, &value], |columns| self.spread(columns))?.into_array(self.values.len())
    }

    /// Lists with the same lengths and other values.
    fn rebuild(&self, returns: &DataType, values: ArrayRef) -> Result<ArrayRef> {
        list_array(returns, values, &self.lengths, self.nulls.clone())
    }

    /// The positions of elements for which a predicate is true, and how many there are per row.
    fn kept(&self, predicate: &ArrayRef) -> (UInt32Array, Vec<usize>) {
        let Some(predicate) = predicate.as_boolean_opt() else {
            return (UInt32Array::from(Vec::<u32>::new()), vec![0; self.lengths.len()]);
        };
        let mut positions = Vec::new();
        let mut at = 0;
        let lengths = self
            .lengths
            .iter()
            .map(|length| {
                let before = positions.len();
                positions.extend(
                    (at..at + length).filter(|at| predicate.is_valid(*at) && predicate.value(*at)).map(|at| at as u32),
                );
                at += length;
                positions.len() - before
            })
            .collect();
        (positions.into(), lengths)
    }

    /// Whether a predicate has the value `wanted` for any element; if not, and it is NULL for one, NULL.
    fn any(&self, predicate: &ArrayRef, wanted: bool) -> ArrayRef {
        let predicate: BooleanArray = match predicate.as_boolean_opt() {
            Some(predicate) => predicate.clone(),
            None => BooleanArray::new_null(predicate.len()),
        };
        let mut results = BooleanBuilder::with_capacity(self.lengths.len());
        let mut at = 0;
        for (row, length) in self.lengths.iter().enumerate() {
            let elements = at..at + length;
            at += length;
            if self.nulls.as_ref().is_some_and(|nulls| nulls.is_null(row)) {
                results.append_null();
            } else if elements.clone().any(|at| predicate.is_valid(at) && predicate.value(at) == wanted) {
                results.append_value(wanted);
            } else if elements.clone().any(|at| predicate.is_null(at)) {
                results.append_null();
            } else {
                results.append_value(!wanted);
            }
        }
        Arc::new(results.finish())
    }
}

fn gather(values: &ArrayRef, positions: &UInt32Array) -> ArrayRef {
    // The positions are those of the column's own elements.
    take(values, positions, None).unwrap_or_else(|_| new_null_array(values.data_type(), positions.len()))
}

/// Lists with these lengths.
pub(crate) fn list_array(
    returns: &DataType,
    values: ArrayRef,
    lengths: &[usize],
    nulls: Option<NullBuffer>,
) -> Result<ArrayRef> {
    let DataType::List(item) = returns else { return exec_err!("{returns} is no array") };
    let offsets = OffsetBuffer::from_lengths(lengths.iter().copied());
    let values =
        if values.data_type() == item.data_type() { values } else { compute::cast(&values, item.data_type())? };
    Ok(Arc::new(ListArray::try_new(item.clone(), offsets, values, nulls)?))
}

/// Folds all lists at once: their first elements, then their second ones, and so on.
fn fold(
    list: &Elements,
    start: &ArrayRef,
    merge: &LambdaArgument,
    finish: Option<&LambdaArgument>,
    returns: &DataType,
) -> Result<ArrayRef> {
    let mut state = start.clone();
    let mut starts = Vec::with_capacity(list.lengths.len());
    let mut sum = 0;
    for length in &list.lengths {
        starts.push(sum);
        sum += length;
    }
    for step in 0..list.lengths.iter().copied().max().unwrap_or(0) {
        let rows: Vec<u32> =
            (0..list.lengths.len()).filter(|row| list.lengths[*row] > step).map(|row| row as u32).collect();
        let positions: UInt32Array = rows.iter().map(|row| Some((starts[*row as usize] + step) as u32)).collect();
        let rows_array = UInt32Array::from(rows.clone());
        let before = || Ok(take(&state, &rows_array, None)?);
        let element = || Ok(take(&list.values, &positions, None)?);
        let merged = merge
            .evaluate(&[&before, &element], |columns| {
                columns.iter().map(|column| Ok(take(column, &rows_array, None)?)).collect()
            })?
            .into_array(rows.len())?;
        let merged = if merged.data_type() == start.data_type() {
            merged
        } else if merged.data_type().is_null() {
            new_null_array(start.data_type(), merged.len())
        } else {
            return Err(mismatch(
                "UNEXPECTED_INPUT_TYPE",
                format!(
                    "the lambda of aggregate() must give the type of the start, {}, not {}",
                    sql_name(start.data_type()),
                    sql_name(merged.data_type())
                ),
            ));
        };
        let mut order: Vec<(usize, usize)> = (0..state.len()).map(|row| (0, row)).collect();
        for (at, row) in rows.iter().enumerate() {
            order[*row as usize] = (1, at);
        }
        state = interleave(&[state.as_ref(), merged.as_ref()], &order)?;
    }
    let result = match finish {
        Some(finish) => {
            let state = || Ok(state.clone());
            finish.evaluate(&[&state], |columns| Ok(columns.to_vec()))?.into_array(start.len())?
        }
        None => state,
    };
    let result = if result.data_type() == returns { result } else { compute::cast(&result, returns)? };
    match &list.nulls {
        Some(nulls) => {
            let missing = BooleanArray::new(!nulls.inner(), None);
            Ok(compute::nullif(&result, &missing)?)
        }
        None => Ok(result),
    }
}

fn zip_with(left: &ListArray, right: &ListArray, lambda: &LambdaArgument, returns: &DataType) -> Result<ArrayRef> {
    let nulls = NullBuffer::union(left.nulls(), right.nulls());
    let mut rows = Vec::new();
    let (mut of_left, mut of_right) = (Vec::new(), Vec::new());
    let lengths: Vec<usize> = (0..left.len())
        .map(|row| {
            if nulls.as_ref().is_some_and(|nulls| nulls.is_null(row)) {
                return 0;
            }
            let (l, r) = (left.value_offsets(), right.value_offsets());
            let length = (l[row + 1] - l[row]).max(r[row + 1] - r[row]);
            for at in 0..length {
                rows.push(row as u32);
                of_left.push((l[row] + at < l[row + 1]).then_some((l[row] + at) as u32));
                of_right.push((r[row] + at < r[row + 1]).then_some((r[row] + at) as u32));
            }
            length as usize
        })
        .collect();
    let (rows, of_left, of_right) = (UInt32Array::from(rows), UInt32Array::from(of_left), UInt32Array::from(of_right));
    let first = || Ok(take(left.values(), &of_left, None)?);
    let second = || Ok(take(right.values(), &of_right, None)?);
    let values = lambda
        .evaluate(&[&first, &second], |columns| columns.iter().map(|column| Ok(take(column, &rows, None)?)).collect())?
        .into_array(rows.len())?;
    list_array(returns, values, &lengths, nulls)
}

fn map_zip_with(left: &ArrayRef, right: &ArrayRef, lambda: &LambdaArgument, returns: &DataType) -> Result<ArrayRef> {
    let (left, right) = (left.as_map(), right.as_map());
    let nulls = NullBuffer::union(left.nulls(), right.nulls());
    let converter = RowConverter::new(vec![SortField::new(left.keys().data_type().clone())])?;
    let left_keys = converter.convert_columns(&[left.keys().clone()])?;
    let right_keys = converter.convert_columns(&[right.keys().clone()])?;
    let mut rows = Vec::new();
    let mut keys = Vec::new();
    let (mut of_left, mut of_right) = (Vec::new(), Vec::new());
    let lengths: Vec<usize> = (0..left.len())
        .map(|row| {
            if nulls.as_ref().is_some_and(|nulls| nulls.is_null(row)) {
                return 0;
            }
            let before = rows.len();
            let range = |offsets: &[i32]| offsets[row] as usize..offsets[row + 1] as usize;
            let (l, r) = (range(left.value_offsets()), range(right.value_offsets()));
            for at in l.clone() {
                rows.push(row as u32);
                keys.push((0, at));
                of_left.push(Some(at as u32));
                of_right.push(r.clone().find(|other| left_keys.row(at) == right_keys.row(*other)).map(|at| at as u32));
            }
            for at in r {
                if l.clone().any(|other| left_keys.row(other) == right_keys.row(at)) {
                    continue;
                }
                rows.push(row as u32);
                keys.push((1, at));
                of_left.push(None);
                of_right.push(Some(at as u32));
            }
            rows.len() - before
        })
        .collect();
    let keys = interleave(&[left.keys().as_ref(), right.keys().as_ref()], &keys)?;
    let (rows, of_left, of_right) = (UInt32Array::from(rows), UInt32Array::from(of_left), UInt32Array::from(of_right));
    let key = || Ok(keys.clone());
    let first = || Ok(take(left.values(), &of_left, None)?);
    let second = || Ok(take(right.values(), &of_right, None)?);
    let values = lambda
        .evaluate(&[&key, &first, &second], |columns| {
            columns.iter().map(|column| Ok(take(column, &rows, None)?)).collect()
        })?
        .into_array(rows.len())?;
    build_map(returns, keys.clone(), values, &lengths, nulls)
}

/// Sorts each list by a lambda that compares two elements: all pairs of a list are compared at once.
fn sort_by(list: &ListArray, lambda: &LambdaArgument) -> Result<ArrayRef> {
    let elements = Elements::of(list);
    let mut rows = Vec::new();
    let (mut left, mut right) = (Vec::new(), Vec::new());
    let mut at = 0u32;
    for (row, length) in elements.lengths.iter().enumerate() {
        let length = *length as u32;
        for l in 0..length {
            for r in 0..length {
                rows.push(row as u32);
                left.push(at + l);
                right.push(at + r);
            }
        }
        at += length;
    }
    let (rows, left, right) = (UInt32Array::from(rows), UInt32Array::from(left), UInt32Array::from(right));
    let first = || Ok(take(&elements.values, &left, None)?);
    let second = || Ok(take(&elements.values, &right, None)?);
    let compared = lambda
        .evaluate(&[&first, &second], |columns| columns.iter().map(|column| Ok(take(column, &rows, None)?)).collect())?
        .into_array(rows.len())?;
    let compared = compute::cast(&compared, &DataType::Int32)?;
    let compared = compared.as_primitive::<datafusion::arrow::datatypes::Int32Type>();
    if compared.null_count() > 0 {
        return Err(crate::error::failed(
            "COMPARATOR_RETURNS_NULL",
            "the lambda of array_sort() gave NULL: it must give a negative number, 0 or a positive number",
        ));
    }
    let mut order = Vec::with_capacity(elements.values.len());
    let (mut start, mut pairs) = (0, 0);
    for length in &elements.lengths {
        let mut positions: Vec<usize> = (0..*length).collect();
        positions.sort_by(|l, r| compared.value(pairs + l * length + r).cmp(&0));
        order.extend(positions.into_iter().map(|position| (start + position) as u32));
        start += length;
        pairs += length * length;
    }
    elements.rebuild(list.data_type(), take(&elements.values, &UInt32Array::from(order), None)?)
}
