//! Functions that DataFusion and its Spark package lack or have otherwise.

pub(crate) mod aggregates;
pub(crate) mod arithmetic;
pub(crate) mod cast;
pub(crate) mod clock;
mod decimal;
mod function;
mod hash;
pub(crate) mod higher_order;
pub(crate) mod keys;
mod math;
mod misc;
pub(crate) mod negate;
mod nested;
pub(crate) mod operators;
mod round;
pub(crate) mod session;
pub(crate) mod sum;
pub(crate) mod types;
pub(crate) mod window;

use std::sync::Arc;

use datafusion::logical_expr::ScalarUDF;

use self::arithmetic::Arithmetic;
use self::function::Function;

/// The scalar functions of a session in this time zone.
pub(crate) fn scalar(zone: &Arc<str>) -> Vec<ScalarUDF> {
    let tables = [hash::ALL, math::ALL, misc::ALL, negate::ALL, nested::ALL, round::ALL];
    let own = tables.into_iter().flatten().map(|spec| Function::udf(spec, zone));
    own.chain(Arithmetic::all()).collect()
}
