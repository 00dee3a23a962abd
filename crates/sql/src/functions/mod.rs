//! Functions that DataFusion and its Spark package lack or have otherwise.

pub(crate) mod arithmetic;
mod arrays;
pub(crate) mod cast;
pub(crate) mod clock;
mod csv;
mod dates;
mod decimal;
mod encodings;
mod format;
mod function;
pub(crate) mod higher_order;
pub(crate) mod intervals;
mod json;
pub(crate) mod keys;
pub(crate) mod negate;
mod nested;
pub(crate) mod operators;
mod patterns;
mod regex;
mod rows;
pub(crate) mod session;
pub(crate) mod sum;
mod text;
pub(crate) mod types;
pub(crate) mod window;

use std::sync::Arc;

use datafusion::logical_expr::ScalarUDF;

use self::arithmetic::Arithmetic;
use self::function::Function;

/// The scalar functions of a session in this time zone.
pub(crate) fn scalar(zone: &Arc<str>) -> Vec<ScalarUDF> {
    let tables = [
        negate::ALL,
        nested::ALL,
        text::ALL,
        regex::ALL,
        format::ALL,
        encodings::ALL,
        dates::ALL,
        intervals::ALL,
        json::ALL,
        csv::ALL,
        arrays::ALL,
    ];
    let own = tables.into_iter().flatten().map(|spec| Function::udf(spec, zone));
    own.chain(Arithmetic::all()).collect()
}
