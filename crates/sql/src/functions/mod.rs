//! Functions that DataFusion and its Spark package lack or have otherwise.

pub(crate) mod arithmetic;
#[allow(dead_code, reason = "the tables of functions are growing into them")]
pub(crate) mod cast;
pub(crate) mod clock;
mod decimal;
#[allow(dead_code, reason = "the tables of functions are growing into them")]
mod function;
pub(crate) mod higher_order;
pub(crate) mod keys;
pub(crate) mod negate;
mod nested;
pub(crate) mod operators;
pub(crate) mod session;
pub(crate) mod sum;
#[allow(dead_code, reason = "the tables of functions are growing into them")]
pub(crate) mod types;
pub(crate) mod window;

use std::sync::Arc;

use datafusion::logical_expr::ScalarUDF;

use self::arithmetic::Arithmetic;
use self::function::Function;

/// The scalar functions of a session in this time zone.
pub(crate) fn scalar(zone: &Arc<str>) -> Vec<ScalarUDF> {
    let tables = [negate::ALL, nested::ALL];
    let own = tables.into_iter().flatten().map(|spec| Function::udf(spec, zone));
    own.chain(Arithmetic::all()).collect()
}
