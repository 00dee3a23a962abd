//! Aggregate functions that DataFusion and its Spark package lack or have otherwise. The state of each is plain columns that merge.

mod average;
mod collected;
mod extremes;
mod moments;
mod percentiles;

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::{DataFusionError, Result, ScalarValue};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::format_state_name;
use datafusion::logical_expr::{Accumulator, AggregateUDF, AggregateUDFImpl, Signature, Volatility};
use datafusion::physical_expr::expressions::Literal;

use super::types::{is_number, is_string, mismatch, sql_name};
use crate::error::refused_analysis;

/// An aggregate function.
pub(super) struct Spec {
    pub(super) name: &'static str,
    pub(super) aliases: &'static [&'static str],
    /// The types that the arguments are brought to.
    pub(super) arguments: fn(&[DataType]) -> Result<Vec<DataType>>,
    pub(super) returns: fn(&[DataType]) -> DataType,
    /// The types of the columns of its state.
    pub(super) state: fn(&[DataType]) -> Vec<DataType>,
    pub(super) make: fn(&Made<'_>) -> Result<Box<dyn Accumulator>>,
}

/// What an accumulator is made of.
pub(super) struct Made<'a> {
    pub(super) types: Vec<DataType>,
    arguments: &'a AccumulatorArgs<'a>,
}

impl Made<'_> {
    /// The constant that an argument must be.
    pub(super) fn constant(&self, at: usize, what: &str) -> Result<Option<&ScalarValue>> {
        let Some(argument) = self.arguments.exprs.get(at) else { return Ok(None) };
        match argument.downcast_ref::<Literal>() {
            Some(literal) => Ok(Some(literal.value())),
            None => {
                Err(mismatch("NON_FOLDABLE_INPUT", format!("{what} of {} must be a constant", self.arguments.name)))
            }
        }
    }
}

/// The aggregate functions of this module.
pub(crate) fn all() -> Vec<AggregateUDF> {
    let tables = [collected::ALL, extremes::ALL, moments::ALL, percentiles::ALL];
    let plain = tables.into_iter().flatten().map(|spec| AggregateUDF::from(Function::new(spec)));
    plain.chain(average::averages()).chain(extremes::least_and_greatest()).collect()
}

/// A [`Spec`] in a session.
struct Function {
    spec: &'static Spec,
    signature: Signature,
    aliases: Vec<String>,
}

impl Function {
    fn new(spec: &'static Spec) -> Self {
        let aliases = spec.aliases.iter().map(|alias| (*alias).to_owned()).collect();
        Self { spec, signature: Signature::user_defined(Volatility::Immutable), aliases }
    }
}

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Function").field("name", &self.spec.name).finish()
    }
}

impl PartialEq for Function {
    fn eq(&self, other: &Self) -> bool {
        self.spec.name == other.spec.name
    }
}

impl Eq for Function {}

impl Hash for Function {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.spec.name.hash(state);
    }
}

impl AggregateUDFImpl for Function {
    fn name(&self) -> &str {
        self.spec.name
    }

    fn aliases(&self) -> &[String] {
        &self.aliases
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        (self.spec.arguments)(types)
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        Ok((self.spec.returns)(types))
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        let types: Vec<DataType> = args.input_fields.iter().map(|field| field.data_type().clone()).collect();
        let fields = (self.spec.state)(&types).into_iter().enumerate().map(|(at, data_type)| {
            Arc::new(Field::new(format_state_name(args.name, &format!("{}_{at}", self.spec.name)), data_type, true))
        });
        Ok(fields.collect())
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        let types = args.expr_fields.iter().map(|field| field.data_type().clone()).collect();
        (self.spec.make)(&Made { types, arguments: &args })
    }
}

/// The refusal of a call with a wrong number of arguments.
fn wrong_count(function: &str, needs: &str) -> DataFusionError {
    refused_analysis("WRONG_NUM_ARGS.WITHOUT_SUGGESTION", format!("{function}() needs {needs}"))
}

/// The refusal of a call because of a type.
fn wrong_type(function: &str, needs: &str, got: &DataType) -> DataFusionError {
    mismatch("UNEXPECTED_INPUT_TYPE", format!("{function}() needs {needs}, not {}", sql_name(got)))
}

/// Numbers, and what Spark reads as numbers by itself.
fn is_numeric(data_type: &DataType) -> bool {
    is_number(data_type) || is_string(data_type) || data_type.is_null()
}
