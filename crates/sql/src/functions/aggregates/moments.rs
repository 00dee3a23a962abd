//! `skewness` and `kurtosis`, from the central moments of the values.

use std::mem::size_of_val;

use datafusion::arrow::array::{Array, ArrayRef, AsArray};
use datafusion::arrow::datatypes::{DataType, Float64Type};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::Accumulator;

use super::{Spec, is_numeric, wrong_count, wrong_type};

/// The functions of this file.
pub(super) static ALL: &[&Spec] = &[
    &Spec {
        name: "skewness",
        aliases: &[],
        arguments,
        returns: |_| DataType::Float64,
        state: |_| vec![DataType::Float64; 5],
        make: |_| Ok(Box::new(Moments { result: |m| m.count.sqrt() * m.third / (m.second.powi(3)).sqrt(), ..EMPTY })),
    },
    &Spec {
        name: "kurtosis",
        aliases: &[],
        arguments,
        returns: |_| DataType::Float64,
        state: |_| vec![DataType::Float64; 5],
        make: |_| Ok(Box::new(Moments { result: |m| m.count * m.fourth / (m.second * m.second) - 3.0, ..EMPTY })),
    },
];

fn arguments(types: &[DataType]) -> Result<Vec<DataType>> {
    match types {
        [of] if is_numeric(of) => Ok(vec![DataType::Float64]),
        [of] => Err(wrong_type("a moment", "a number", of)),
        _ => Err(wrong_count("a moment", "1 argument")),
    }
}

const EMPTY: Moments = Moments { count: 0.0, mean: 0.0, second: 0.0, third: 0.0, fourth: 0.0, result: |_| 0.0 };

/// How many values there are, their mean, and the sums of powers of their distances from it.
#[derive(Debug, Clone, Copy)]
struct Moments {
    count: f64,
    mean: f64,
    second: f64,
    third: f64,
    fourth: f64,
    result: fn(&Self) -> f64,
}

impl Moments {
    fn merge(&mut self, other: &Self) {
        if other.count == 0.0 {
            return;
        }
        let (n1, n2, n) = (self.count, other.count, self.count + other.count);
        let delta = other.mean - self.mean;
        let step = delta / n;
        self.fourth += other.fourth
            + step.powi(3) * delta * n1 * n2 * (n1 * n1 - n1 * n2 + n2 * n2)
            + 6.0 * step * step * (n1 * n1 * other.second + n2 * n2 * self.second)
            + 4.0 * step * (n1 * other.third - n2 * self.third);
        self.third += other.third
            + step * step * delta * n1 * n2 * (n1 - n2)
            + 3.0 * step * (n1 * other.second - n2 * self.second);
        self.second += other.second + delta * step * n1 * n2;
        self.mean += step * n2;
        self.count = n;
    }
}

impl Accumulator for Moments {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        for mean in values[0].as_primitive::<Float64Type>().iter().flatten() {
            self.merge(&Self { count: 1.0, mean, ..EMPTY });
        }
        Ok(())
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        let column = |at: usize| states[at].as_primitive::<Float64Type>();
        for row in (0..states[0].len()).filter(|row| states[0].is_valid(*row)) {
            let [count, mean, second, third, fourth] = [0, 1, 2, 3, 4].map(|at| column(at).value(row));
            self.merge(&Self { count, mean, second, third, fourth, ..EMPTY });
        }
        Ok(())
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        let Self { count, mean, second, third, fourth, .. } = *self;
        Ok([count, mean, second, third, fourth].map(|value| ScalarValue::Float64(Some(value))).to_vec())
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        // Values that are all the same have neither.
        let known = self.count > 0.0 && self.second != 0.0;
        Ok(ScalarValue::Float64(known.then(|| (self.result)(self))))
    }

    fn size(&self) -> usize {
        size_of_val(self)
    }
}
