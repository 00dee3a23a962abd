//! `skewness` and `kurtosis`, from the central moments of the values; `corr`, from those of pairs.

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
    // DataFusion's gives NULL where Spark gives NaN.
    &Spec {
        name: "corr",
        aliases: &[],
        arguments: |types| match types {
            [x, y] if is_numeric(x) && is_numeric(y) => Ok(vec![DataType::Float64; 2]),
            [x, y] => Err(wrong_type("corr", "two numbers", if is_numeric(x) { y } else { x })),
            _ => Err(wrong_count("corr", "2 arguments")),
        },
        returns: |_| DataType::Float64,
        state: |_| vec![DataType::Float64; 6],
        make: |_| Ok(Box::new(Correlation::default())),
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

/// How many pairs there are, their means, and the sums of products of their distances from these.
#[derive(Debug, Clone, Copy, Default)]
struct Correlation {
    count: f64,
    mean: [f64; 2],
    both: f64,
    squares: [f64; 2],
}

impl Correlation {
    fn merge(&mut self, other: &Self) {
        if other.count == 0.0 {
            return;
        }
        let count = self.count + other.count;
        let delta = [0, 1].map(|at| other.mean[at] - self.mean[at]);
        let weight = self.count * other.count / count;
        self.both += other.both + delta[0] * delta[1] * weight;
        for at in [0, 1] {
            self.squares[at] += other.squares[at] + delta[at] * delta[at] * weight;
            self.mean[at] += delta[at] * other.count / count;
        }
        self.count = count;
    }
}

impl Accumulator for Correlation {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let [x, y] = [0, 1].map(|at| values[at].as_primitive::<Float64Type>());
        for (x, y) in x.iter().zip(y) {
            if let (Some(x), Some(y)) = (x, y) {
                self.merge(&Self { count: 1.0, mean: [x, y], ..Self::default() });
            }
        }
        Ok(())
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        let column = |at: usize| states[at].as_primitive::<Float64Type>();
        for row in (0..states[0].len()).filter(|row| states[0].is_valid(*row)) {
            let [count, x, y, both, xx, yy] = [0, 1, 2, 3, 4, 5].map(|at| column(at).value(row));
            self.merge(&Self { count, mean: [x, y], both, squares: [xx, yy] });
        }
        Ok(())
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        let Self { count, mean: [x, y], both, squares: [xx, yy] } = *self;
        Ok([count, x, y, both, xx, yy].map(|value| ScalarValue::Float64(Some(value))).to_vec())
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let spread = (self.squares[0] * self.squares[1]).sqrt();
        let known = self.count > 1.0 && spread != 0.0;
        Ok(ScalarValue::Float64(known.then(|| self.both / spread)))
    }

    fn size(&self) -> usize {
        size_of_val(self)
    }
}
