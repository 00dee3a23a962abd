//! Functions that DataFusion and its Spark package lack or have otherwise.

pub(crate) mod aggregates;
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
mod hash;
pub(crate) mod higher_order;
pub(crate) mod intervals;
mod json;
pub(crate) mod keys;
mod math;
mod misc;
pub(crate) mod negate;
mod nested;
pub(crate) mod operators;
mod patterns;
mod regex;
mod round;
mod rows;
pub(crate) mod session;
pub(crate) mod sum;
mod text;
pub(crate) mod types;
pub(crate) mod window;

use std::sync::Arc;

use datafusion::arrow::array::{Array, BooleanArray};
use datafusion::arrow::compute::prep_null_mask_filter;
use datafusion::logical_expr::ScalarUDF;

use self::arithmetic::Arithmetic;
use self::function::Function;

/// The scalar functions of a session in this time zone.
pub(crate) fn scalar(zone: &Arc<str>) -> Vec<ScalarUDF> {
    let tables = [
        arrays::ALL,
        csv::ALL,
        dates::ALL,
        encodings::ALL,
        format::ALL,
        hash::ALL,
        intervals::ALL,
        json::ALL,
        math::ALL,
        misc::ALL,
        negate::ALL,
        nested::ALL,
        regex::ALL,
        round::ALL,
        text::ALL,
    ];
    let own = tables.into_iter().flatten().map(|spec| Function::udf(spec, zone));
    own.chain(Arithmetic::all()).chain([misc::Coalesce::udf()]).collect()
}

/// A condition with false in place of NULL.
pub(crate) fn mask(condition: &BooleanArray) -> BooleanArray {
    if condition.nulls().is_some() { prep_null_mask_filter(condition) } else { condition.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_without_nulls_is_its_own_mask() {
        let condition = BooleanArray::from(vec![true, false]);
        assert_eq!(mask(&condition), condition);
        assert_eq!(mask(&BooleanArray::from(vec![Some(true), None])), condition);
    }
}
