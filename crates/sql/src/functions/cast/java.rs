//! The digits of a floating-point number as Java 17's `Double.toString` and `Float.toString` choose them.
//!
//! Later versions of Java give the shortest digits that read back as the number. Java 17, which Spark runs on, mostly does, too, but: whole
//! numbers are written out as far as their bits say something; there are at least two digits where there is an exponent; and between the
//! bounds of a number its neighbours' digits do not count, so that there can be one digit more. The rules are those of Steele and White's
//! printing algorithm, in integers: `b / s` is the rest of the number that still has to be written, `m / s` half the distance to its neighbours.

use std::cmp::Ordering;

use num_bigint::BigUint;

/// Digits and where the point is: the number is `0.DIGITS × 10^exponent`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Digits {
    digits: Vec<u8>,
    exponent: i32,
}

/// A number other than zero: `fraction × 2^(exponent - 52)`, with bit 52 of the fraction set, of which the `precision` upper bits count.
#[derive(Debug, Clone, Copy)]
struct Parts {
    fraction: u64,
    exponent: i32,
    precision: i32,
}

/// Bits behind the first one of a fraction.
const FRACTION_BITS: i32 = 52;

/// How many bits `5^n` has, as far as Java knows; it guesses those of higher powers.
fn bits_of_power_of_5(n: i32) -> i32 {
    match u32::try_from(n) {
        Ok(n @ 0..=26) if n > 0 => 5u64.pow(n).ilog2() as i32 + 1,
        Ok(0) => 0,
        _ => n * 3,
    }
}

impl Parts {
    fn of_double(value: f64) -> Self {
        let bits = value.to_bits();
        Self::new(bits & ((1 << FRACTION_BITS) - 1), (bits >> FRACTION_BITS & 0x7ff) as i32, 1023, FRACTION_BITS)
    }

    fn of_float(value: f32) -> Self {
        let bits = value.to_bits();
        Self::new(u64::from(bits & ((1 << 23) - 1)), (bits >> 23 & 0xff) as i32, 127, 23)
    }

    /// `stored` and `exponent` as the number has them, with `width` bits of the former.
    fn new(stored: u64, exponent: i32, bias: i32, width: i32) -> Self {
        let shift = FRACTION_BITS - width;
        if exponent > 0 {
            return Self { fraction: (stored | 1 << width) << shift, exponent: exponent - bias, precision: width + 1 };
        }
        // Subnormal: fewer bits.
        let precision = 64 - stored.leading_zeros() as i32;
        let lacking = width + 1 - precision;
        Self { fraction: (stored << lacking) << shift, exponent: 1 - lacking - bias, precision }
    }

    /// Where the first digit is: of the number, or one too far. The numbers are Java's, digit by digit.
    #[expect(clippy::approx_constant, reason = "Java's is not the nearest DOUBLE")]
    fn estimated_exponent(&self) -> i32 {
        let scaled = f64::from_bits(1023 << FRACTION_BITS | self.fraction & ((1 << FRACTION_BITS) - 1));
        let estimate = (scaled - 1.5) * 0.289529654 + 0.176091259 + f64::from(self.exponent) * 0.301029995663981;
        estimate.floor() as i32
    }

    fn digits(self) -> Digits {
        let zeros = self.fraction.trailing_zeros() as i32;
        let significant = FRACTION_BITS + 1 - zeros;
        let behind_point = (significant - self.exponent - 1).max(0);
        if behind_point == 0 && self.exponent <= 62 && significant < 64 {
            return self.whole();
        }
        let mut exponent = self.estimated_exponent();
        let (b5, s5) = ((-exponent).max(0), exponent.max(0));
        let mut b2 = b5 + behind_point + self.exponent;
        let mut s2 = s5 + behind_point;
        let mut m2 = b2 - self.precision;
        b2 -= significant - 1;
        let common = b2.min(s2);
        b2 -= common;
        s2 -= common;
        m2 -= common;
        if significant == 1 {
            // Below a power of two the next number is only half as far away.
            m2 -= 1;
        }
        if m2 < 0 {
            b2 -= m2;
            s2 -= m2;
            m2 = 0;
        }
        let fraction = self.fraction >> zeros;
        let bits = significant + b2 + bits_of_power_of_5(b5);
        let bits_of_ten = s2 + 1 + bits_of_power_of_5(s5 + 1);
        let scale = Scale { b: (b5, b2), s: (s5, s2), m: (b5, m2) };
        let (digits, end) = if bits < 32 && bits_of_ten < 32 {
            scale.develop::<i32>(fraction as i32, &mut exponent)
        } else if bits < 64 && bits_of_ten < 64 {
            scale.develop::<i64>(fraction as i64, &mut exponent)
        } else {
            scale.develop_big(fraction, &mut exponent)
        };
        let mut digits = Digits { digits, exponent: exponent + 1 };
        let last_is_odd = digits.digits.last().is_some_and(|digit| digit % 2 == 1);
        let up = match end {
            End { high: true, low: false, .. } => true,
            End { high: true, low: true, rest } => rest == Ordering::Greater || rest == Ordering::Equal && last_is_odd,
            End { high: false, .. } => false,
        };
        if up {
            digits.round_up();
        }
        digits
    }

    /// A whole number of at most 63 bits is written out, but for digits that its bits say nothing of.
    fn whole(self) -> Digits {
        let mut number = match self.exponent - FRACTION_BITS {
            shift @ 0.. => self.fraction << shift,
            shift => self.fraction >> -shift,
        };
        let mut dropped = 0;
        if self.exponent > self.precision {
            dropped = (1u64 << (self.exponent - self.precision - 1)).ilog10();
            let unit = 10u64.pow(dropped);
            let rest = number % unit;
            number /= unit;
            if dropped > 0 && rest >= unit / 2 {
                number += 1;
            }
        }
        let text = number.to_string();
        let exponent = dropped as i32 + text.len() as i32;
        Digits { digits: text.trim_end_matches('0').bytes().map(|digit| digit - b'0').collect(), exponent }
    }
}

/// Powers of 5 and of 2 in the three numbers that the algorithm works with.
struct Scale {
    b: (i32, i32),
    s: (i32, i32),
    m: (i32, i32),
}

/// Why there are no more digits: the rest is below half the distance to the next number, or above it; and how it compares with a half.
struct End {
    low: bool,
    high: bool,
    rest: Ordering,
}

/// Java's `int` and `long`: what does not fit wraps.
trait Wrapping: Copy + Ord {
    const ZERO: Self;
    fn scaled(self, power: (i32, i32)) -> Self;
    fn one() -> Self;
    fn times_10(self) -> Self;
    fn plus(self, other: Self) -> Self;
    fn halves(self, other: Self) -> Ordering;
    fn divided(self, by: Self) -> (u8, Self);
}

macro_rules! wrapping {
    ($($number:ty),*) => {$(
        impl Wrapping for $number {
            const ZERO: Self = 0;

            fn scaled(self, (fives, twos): (i32, i32)) -> Self {
                self.wrapping_mul((5 as Self).wrapping_pow(fives as u32)).wrapping_shl(twos as u32)
            }

            fn one() -> Self {
                1
            }

            fn times_10(self) -> Self {
                self.wrapping_mul(10)
            }

            fn plus(self, other: Self) -> Self {
                self.wrapping_add(other)
            }

            fn halves(self, other: Self) -> Ordering {
                self.wrapping_shl(1).wrapping_sub(other).cmp(&0)
            }

            fn divided(self, by: Self) -> (u8, Self) {
                ((self / by) as u8, self % by)
            }
        }
    )*};
}
wrapping!(i32, i64);

/// Whether the first digits are not enough, whatever follows: an exponent goes with two digits.
fn needs_two_digits(exponent: i32) -> bool {
    !(-3..8).contains(&exponent)
}

impl Scale {
    fn develop<N: Wrapping>(&self, fraction: N, exponent: &mut i32) -> (Vec<u8>, End) {
        let (mut b, s, mut m) = (fraction.scaled(self.b), N::one().scaled(self.s), N::one().scaled(self.m));
        let tens = s.times_10();
        let mut digits = Vec::with_capacity(20);
        let mut first = true;
        let (low, high) = loop {
            let (digit, rest) = b.divided(s);
            b = rest.times_10();
            m = m.times_10();
            // An `m` that does not fit is greater than all there is.
            let (low, high) = if first || m > N::ZERO { (b < m, b.plus(m) > tens) } else { (true, true) };
            if first && digit == 0 && !high {
                *exponent -= 1;
            } else {
                digits.push(digit);
            }
            let goes_on = std::mem::take(&mut first) && needs_two_digits(*exponent);
            if (low || high) && !goes_on {
                break (low, high);
            }
        };
        (digits, End { low, high, rest: b.halves(tens) })
    }

    fn develop_big(&self, fraction: u64, exponent: &mut i32) -> (Vec<u8>, End) {
        let power = |(fives, twos): (i32, i32)| BigUint::from(5u8).pow(fives as u32) << twos as usize;
        let (mut b, s, mut m) = (BigUint::from(fraction) * power(self.b), power(self.s), power(self.m));
        let tens = &s * 10u8;
        let mut digits = Vec::with_capacity(20);
        let mut first = true;
        let (low, high) = loop {
            let digit = &b / &s;
            b = (b - &digit * &s) * 10u8;
            m *= 10u8;
            let digit = digit.to_u32_digits().first().map_or(0, |digit| *digit as u8);
            let (low, high) = (b < m, &b + &m >= tens);
            if first && digit == 0 && !high {
                *exponent -= 1;
            } else {
                digits.push(digit);
            }
            let goes_on = std::mem::take(&mut first) && needs_two_digits(*exponent);
            if (low || high) && !goes_on {
                break (low, high);
            }
        };
        (digits, End { low, high, rest: (b << 1usize).cmp(&tens) })
    }
}

impl Digits {
    pub(super) fn of_double(value: f64) -> Self {
        Parts::of_double(value).digits()
    }

    pub(super) fn of_float(value: f32) -> Self {
        Parts::of_float(value).digits()
    }

    fn round_up(&mut self) {
        for digit in self.digits.iter_mut().rev() {
            if *digit < 9 {
                *digit += 1;
                return;
            }
            *digit = 0;
        }
        self.exponent += 1;
        if let Some(first) = self.digits.first_mut() {
            *first = 1;
        }
    }

    /// Writes the number, without a sign.
    pub(super) fn write(&self, out: &mut String) {
        let push = |digits: &[u8], out: &mut String| out.extend(digits.iter().map(|digit| char::from(b'0' + digit)));
        let zeros = |count: i32, out: &mut String| (0..count).for_each(|_| out.push('0'));
        match self.exponent {
            point @ 1..8 => {
                let (whole, behind) = self.digits.split_at(self.digits.len().min(point as usize));
                push(whole, out);
                zeros(point - whole.len() as i32, out);
                out.push('.');
                push(if behind.is_empty() { &[0] } else { behind }, out);
            }
            point @ -2..=0 => {
                out.push_str("0.");
                zeros(-point, out);
                push(&self.digits, out);
            }
            point => {
                let (first, behind) = self.digits.split_at(1);
                push(first, out);
                out.push('.');
                push(if behind.is_empty() { &[0] } else { behind }, out);
                out.push('E');
                out.push_str(&(point - 1).to_string());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::show;

    /// What Spark's CAST to STRING gave on Java 17: lines of a DOUBLE, its text and the text of the FLOAT next to it.
    #[test]
    fn numbers_are_what_java_17_prints() {
        let recorded = include_str!("../../../testdata/java_numbers.txt");
        let mut count = 0;
        for line in recorded.lines() {
            let [bits, double, float] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
            let value = f64::from_bits(u64::from_str_radix(bits, 16).unwrap());
            let (mut shown, mut shown_float) = (String::new(), String::new());
            show::double(value, &mut shown);
            show::float(value as f32, &mut shown_float);
            assert_eq!((shown.as_str(), shown_float.as_str()), (double, float), "{bits}");
            count += 1;
        }
        assert!(count > 3_000, "{count}");
    }
}
