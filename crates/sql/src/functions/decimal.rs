//! Exact arithmetic of DECIMAL: results have the type that Spark gives them, and are rounded half up to its scale.

use datafusion::arrow::datatypes::i256;

/// 10 to a power of at most 76.
pub(crate) fn power_of_ten(exponent: u32) -> i256 {
    (0..exponent.min(76)).fold(i256::ONE, |power, _| power.wrapping_mul(i256::from_i128(10)))
}

/// `numerator / denominator`, rounded half away from zero.
pub(crate) fn divide_half_up(numerator: i256, denominator: i256) -> Option<i256> {
    let quotient = numerator.checked_div(denominator)?;
    let remainder = numerator.checked_rem(denominator)?;
    let twice = remainder.wrapping_abs().checked_mul(i256::from_i128(2))?;
    if twice < denominator.wrapping_abs() {
        return Some(quotient);
    }
    let away = if (numerator < i256::ZERO) == (denominator < i256::ZERO) { i256::ONE } else { i256::MINUS_ONE };
    quotient.checked_add(away)
}

/// A value at one scale as the value at another one, rounded half up.
pub(crate) fn rescale(value: i256, from: i32, to: i32) -> Option<i256> {
    match to - from {
        0 => Some(value),
        more if more > 0 => value.checked_mul(power_of_ten(more as u32)),
        fewer => divide_half_up(value, power_of_ten(fewer.unsigned_abs())),
    }
}

/// A value if it has no more digits than the precision.
pub(crate) fn fit(value: i256, precision: u8) -> Option<i128> {
    let limit = power_of_ten(u32::from(precision));
    (value.wrapping_abs() < limit).then(|| value.to_i128()).flatten()
}

/// Value, scale and precision of an operation's sides and result.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scales {
    pub(crate) left: i32,
    pub(crate) right: i32,
    pub(crate) result: i32,
    pub(crate) precision: u8,
}

impl Scales {
    /// `left + right`
    pub(crate) fn add(self, left: i128, right: i128) -> Option<i128> {
        if self.left == self.right && self.result == self.left && self.precision < 38 {
            // The type has one more digit than either side: this cannot overflow.
            return Some(left + right);
        }
        let common = self.left.max(self.right);
        let left = rescale(i256::from_i128(left), self.left, common)?;
        let right = rescale(i256::from_i128(right), self.right, common)?;
        fit(rescale(left.checked_add(right)?, common, self.result)?, self.precision)
    }

    /// `left - right`
    pub(crate) fn subtract(self, left: i128, right: i128) -> Option<i128> {
        self.add(left, right.checked_neg()?)
    }

    /// `left * right`
    pub(crate) fn multiply(self, left: i128, right: i128) -> Option<i128> {
        if self.result == self.left + self.right && self.precision < 38 {
            return left.checked_mul(right);
        }
        let product = i256::from_i128(left).checked_mul(i256::from_i128(right))?;
        fit(rescale(product, self.left + self.right, self.result)?, self.precision)
    }

    /// `left / right`; the divisor is not zero.
    pub(crate) fn divide(self, left: i128, right: i128) -> Option<i128> {
        let shift = self.result + self.right - self.left;
        let (left, right) = (i256::from_i128(left), i256::from_i128(right));
        let quotient = if shift >= 0 {
            divide_half_up(left.checked_mul(power_of_ten(shift as u32))?, right)?
        } else {
            divide_half_up(left, right.checked_mul(power_of_ten(shift.unsigned_abs()))?)?
        };
        fit(quotient, self.precision)
    }

    /// `left % right` with the sign of `left`; the divisor is not zero.
    pub(crate) fn remainder(self, left: i128, right: i128) -> Option<i128> {
        let common = self.left.max(self.right);
        let left = rescale(i256::from_i128(left), self.left, common)?;
        let right = rescale(i256::from_i128(right), self.right, common)?;
        fit(rescale(left.checked_rem(right)?, common, self.result)?, self.precision)
    }

    /// The whole part of `left / right`; the divisor is not zero.
    pub(crate) fn whole(self, left: i128, right: i128) -> Option<i64> {
        let common = self.left.max(self.right);
        let left = rescale(i256::from_i128(left), self.left, common)?;
        let right = rescale(i256::from_i128(right), self.right, common)?;
        left.checked_div(right)?.to_i128().and_then(|whole| i64::try_from(whole).ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_rounded_half_up() {
        let scales = |left, right, result| Scales { left, right, result, precision: 38 };
        assert_eq!(scales(2, 0, 6).divide(1250, 3), Some(4_166_667));
        assert_eq!(scales(2, 0, 6).divide(-725, 3), Some(-2_416_667));
        assert_eq!(scales(2, 3, 3).add(1250, -1), Some(12_499));
        assert_eq!(scales(10, 10, 6).multiply(10_000_000_000, 20_000_000_000), Some(2_000_000));
        assert_eq!(scales(2, 3, 3).remainder(-725, 2500), Some(-2250));
        assert_eq!(rescale(i256::from_i128(25), 1, 0), Some(i256::from_i128(3)));
        assert_eq!(rescale(i256::from_i128(-25), 1, 0), Some(i256::from_i128(-3)));
        assert_eq!(fit(i256::from_i128(1000), 3), None);
    }
}
