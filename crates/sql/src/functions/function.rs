//! How a Spark function is written down: a row in a table with its name, its arguments, its type and its code.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use datafusion::arrow::array::timezone::Tz;
use datafusion::arrow::array::{Array, ArrayRef, AsArray, StringArray};
use datafusion::arrow::datatypes::{ArrowPrimitiveType, DataType, Field, FieldRef};
use datafusion::common::{Result, ScalarValue, exec_err};
use datafusion::logical_expr::{
    ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};

use super::types::{self, is_decimal, is_float, is_integral, is_number, is_string, mismatch, sql_name};

/// What an argument must be; other types are brought to it where Spark does that by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arg {
    /// Anything, as it is.
    Any,
    /// STRING.
    Text,
    /// INT.
    Int,
    /// BIGINT.
    Long,
    /// DOUBLE.
    Double,
    /// Any number, as it is.
    Number,
    /// BOOLEAN.
    Bool,
    /// BINARY.
    Bytes,
    /// BINARY, or STRING as it is.
    TextOrBytes,
    /// DATE.
    Date,
    /// TIMESTAMP.
    Timestamp,
    /// TIMESTAMP in the session's zone.
    Moment,
    /// Any array, as it is.
    Array,
    /// Any map, as it is.
    Map,
}

/// The arguments of a function.
#[derive(Clone, Copy)]
pub(crate) enum Args {
    /// These, of which the first so many must be there.
    Fixed(usize, &'static [Arg]),
    /// At least so many of one kind.
    Many(usize, Arg),
    /// At least so many, brought to their common type.
    Common(usize),
    /// The function says it.
    Custom(fn(&[DataType], &Arc<str>) -> Result<Vec<DataType>>),
}

/// The type of a result, out of the types of the arguments and the constants among them.
pub(crate) type Returns = fn(&[DataType], &[Option<&ScalarValue>], &Arc<str>) -> Result<DataType>;

/// One function.
pub(crate) struct Spec {
    pub(crate) name: &'static str,
    pub(crate) aliases: &'static [&'static str],
    pub(crate) args: Args,
    pub(crate) returns: Returns,
    pub(crate) eval: fn(&Call<'_>) -> Result<ArrayRef>,
    pub(crate) volatility: Volatility,
}

impl Spec {
    /// A function of fixed arguments with a fixed type.
    pub(crate) const fn new(
        name: &'static str,
        args: Args,
        returns: Returns,
        eval: fn(&Call<'_>) -> Result<ArrayRef>,
    ) -> Self {
        Self { name, aliases: &[], args, returns, eval, volatility: Volatility::Immutable }
    }

    /// The function under further names.
    pub(crate) const fn or(self, aliases: &'static [&'static str]) -> Self {
        Self { aliases, ..self }
    }

    /// The function, with another value each time.
    pub(crate) const fn volatile(self) -> Self {
        Self { volatility: Volatility::Volatile, ..self }
    }
}

/// One evaluation.
pub(crate) struct Call<'a> {
    pub(crate) args: &'a [ColumnarValue],
    pub(crate) rows: usize,
    pub(crate) returns: &'a DataType,
    pub(crate) zone: &'a Arc<str>,
}

impl Call<'_> {
    /// How many arguments there are.
    pub(crate) fn len(&self) -> usize {
        self.args.len()
    }

    /// An argument, one value per row.
    pub(crate) fn array(&self, index: usize) -> Result<ArrayRef> {
        match self.args.get(index) {
            Some(value) => value.to_array(self.rows),
            None => exec_err!("argument {index} is missing"),
        }
    }

    /// All arguments, one value per row.
    pub(crate) fn arrays(&self) -> Result<Vec<ArrayRef>> {
        self.args.iter().map(|arg| arg.to_array(self.rows)).collect()
    }

    /// A text argument.
    pub(crate) fn text(&self, index: usize) -> Result<StringArray> {
        let array = self.array(index)?;
        match array.as_string_opt::<i32>() {
            Some(text) => Ok(text.clone()),
            None => exec_err!("argument {index} is {}, not STRING", array.data_type()),
        }
    }

    /// A text argument that may be left out.
    pub(crate) fn text_or(&self, index: usize, default: &str) -> Result<StringArray> {
        if index < self.args.len() {
            return self.text(index);
        }
        Ok(StringArray::from_iter_values(std::iter::repeat_n(default, self.rows)))
    }

    /// A numeric argument.
    pub(crate) fn numbers<T: ArrowPrimitiveType>(
        &self,
        index: usize,
    ) -> Result<datafusion::arrow::array::PrimitiveArray<T>> {
        let array = self.array(index)?;
        match array.as_primitive_opt::<T>() {
            Some(numbers) => Ok(numbers.clone()),
            None => exec_err!("argument {index} is {}, not {}", array.data_type(), T::DATA_TYPE),
        }
    }

    /// The constant text of an argument, if it is one.
    pub(crate) fn constant_text(&self, index: usize) -> Option<&str> {
        match self.args.get(index)? {
            ColumnarValue::Scalar(ScalarValue::Utf8(Some(text))) => Some(text),
            _ => None,
        }
    }

    /// The session's time zone.
    pub(crate) fn tz(&self) -> Result<Tz> {
        Ok(self.zone.parse::<Tz>()?)
    }
}

/// A [`Spec`] in a session.
pub(crate) struct Function {
    spec: &'static Spec,
    zone: Arc<str>,
    signature: Signature,
    aliases: Vec<String>,
}

impl Function {
    pub(crate) fn udf(spec: &'static Spec, zone: &Arc<str>) -> ScalarUDF {
        ScalarUDF::from(Self {
            spec,
            zone: zone.clone(),
            signature: Signature::user_defined(spec.volatility),
            aliases: spec.aliases.iter().map(|alias| (*alias).to_owned()).collect(),
        })
    }
}

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Function").field("name", &self.spec.name).finish()
    }
}

impl PartialEq for Function {
    fn eq(&self, other: &Self) -> bool {
        self.spec.name == other.spec.name && self.zone == other.zone
    }
}

impl Eq for Function {}

impl Hash for Function {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.spec.name.hash(state);
    }
}

impl ScalarUDFImpl for Function {
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
        let count = |fits: bool, expected: String| {
            if fits {
                return Ok(());
            }
            Err(crate::error::refused_analysis(
                "WRONG_NUM_ARGS.WITHOUT_SUGGESTION",
                format!("{}() has {} arguments, and needs {expected}", self.spec.name, types.len()),
            ))
        };
        match self.spec.args {
            Args::Fixed(required, args) => {
                let expected =
                    if required == args.len() { required.to_string() } else { format!("{required} to {}", args.len()) };
                count((required..=args.len()).contains(&types.len()), expected)?;
                types.iter().zip(args).enumerate().map(|(at, (from, arg))| self.brought(at, from, *arg)).collect()
            }
            Args::Many(required, arg) => {
                count(types.len() >= required, format!("at least {required}"))?;
                types.iter().enumerate().map(|(at, from)| self.brought(at, from, arg)).collect()
            }
            Args::Common(required) => {
                count(types.len() >= required, format!("at least {required}"))?;
                match types::common_of(types) {
                    Some(common) => Ok(vec![common; types.len()]),
                    None => Err(mismatch(
                        "DATA_DIFF_TYPES",
                        format!("{}() needs arguments of one type, not {}", self.spec.name, listed(types)),
                    )),
                }
            }
            Args::Custom(coerce) => coerce(types, &self.zone),
        }
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        (self.spec.returns)(types, &vec![None; types.len()], &self.zone)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        let types: Vec<DataType> = args.arg_fields.iter().map(|field| field.data_type().clone()).collect();
        let returns = (self.spec.returns)(&types, args.scalar_arguments, &self.zone)?;
        Ok(Arc::new(Field::new(self.spec.name, returns, true)))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let scalars = args.args.iter().all(|arg| matches!(arg, ColumnarValue::Scalar(_)));
        let constant = scalars && self.spec.volatility != Volatility::Volatile;
        let rows = if constant { 1 } else { args.number_rows };
        let call = Call { args: &args.args, rows, returns: args.return_field.data_type(), zone: &self.zone };
        let result = (self.spec.eval)(&call)?;
        if constant {
            return Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&result, 0)?));
        }
        Ok(ColumnarValue::Array(result))
    }
}

impl Function {
    /// The type that an argument is brought to.
    fn brought(&self, at: usize, from: &DataType, arg: Arg) -> Result<DataType> {
        let wanted = match arg {
            Arg::Any => return Ok(from.clone()),
            Arg::Text => DataType::Utf8,
            Arg::Int => DataType::Int32,
            Arg::Long => DataType::Int64,
            Arg::Double => DataType::Float64,
            Arg::Number if is_number(from) => return Ok(from.clone()),
            Arg::Number => DataType::Float64,
            Arg::Bool => DataType::Boolean,
            Arg::Bytes => DataType::Binary,
            Arg::TextOrBytes if matches!(from, DataType::Binary) => return Ok(from.clone()),
            Arg::TextOrBytes => DataType::Utf8,
            Arg::Date => DataType::Date32,
            Arg::Timestamp if matches!(from, DataType::Timestamp(_, None)) => return Ok(from.clone()),
            Arg::Timestamp | Arg::Moment => types::timestamp(&self.zone),
            Arg::Array if matches!(from, DataType::List(_) | DataType::Null) => return Ok(from.clone()),
            Arg::Map if matches!(from, DataType::Map(..) | DataType::Null) => return Ok(from.clone()),
            Arg::Array | Arg::Map => DataType::Null,
        };
        let fits = match (from, &wanted) {
            (_, DataType::Null) => false,
            (from, wanted) if from == wanted => true,
            (DataType::Null, _) => true,
            (from, DataType::Utf8) => !from.is_nested(),
            (from, _) if is_string(from) => true,
            (from, wanted) if is_number(from) => {
                is_float(wanted) || is_integral(wanted) && (is_integral(from) || is_decimal(from) || is_float(from))
            }
            (DataType::Date32 | DataType::Timestamp(..), DataType::Date32 | DataType::Timestamp(..)) => true,
            _ => false,
        };
        if fits {
            return Ok(wanted);
        }
        let needs = match arg {
            Arg::Array => "an ARRAY".to_owned(),
            Arg::Map => "a MAP".to_owned(),
            _ => sql_name(&wanted),
        };
        Err(mismatch(
            "UNEXPECTED_INPUT_TYPE",
            format!("argument {} of {}() must be {needs}, not {}", at + 1, self.spec.name, sql_name(from)),
        ))
    }
}

fn listed(types: &[DataType]) -> String {
    types.iter().map(sql_name).collect::<Vec<_>>().join(", ")
}

/// Types of results that do not depend on the arguments.
pub(crate) mod returns {
    use super::*;

    macro_rules! fixed {
        ($($name:ident => $data_type:expr),* $(,)?) => {$(
            pub(crate) fn $name(_: &[DataType], _: &[Option<&ScalarValue>], _: &Arc<str>) -> Result<DataType> {
                Ok($data_type)
            }
        )*};
    }
    fixed! {
        text => DataType::Utf8,
        int => DataType::Int32,
        long => DataType::Int64,
        double => DataType::Float64,
        bool => DataType::Boolean,
        bytes => DataType::Binary,
        date => DataType::Date32,
        texts => types::list_of(DataType::Utf8),
    }

    pub(crate) fn timestamp(_: &[DataType], _: &[Option<&ScalarValue>], zone: &Arc<str>) -> Result<DataType> {
        Ok(types::timestamp(zone))
    }

    pub(crate) fn first(types: &[DataType], _: &[Option<&ScalarValue>], _: &Arc<str>) -> Result<DataType> {
        Ok(types.first().cloned().unwrap_or(DataType::Null))
    }

    /// The element of the array that is the first argument.
    pub(crate) fn element(types: &[DataType], _: &[Option<&ScalarValue>], _: &Arc<str>) -> Result<DataType> {
        Ok(types.first().and_then(types::element_of).cloned().unwrap_or(DataType::Null))
    }
}

/// Whether any of these arrays is NULL in a row.
pub(crate) fn any_null(arrays: &[&dyn Array], row: usize) -> bool {
    arrays.iter().any(|array| array.is_null(row))
}
