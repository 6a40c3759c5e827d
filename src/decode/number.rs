//! JSON numbers: the grammar, and the conversion to the declared type of a column.

use crate::decode::reason::Reason;

/// A number in the grammar of RFC 8259. `text` defines the value; the other fields are derived from
/// it while it is parsed.
#[derive(Debug, Clone, Default)]
pub(super) struct Number<'a> {
    /// The number's text.
    pub text: &'a [u8],
    negative: bool,
    /// All digits before the exponent as one integer. Exact if there are at most 19.
    mantissa: u64,
    /// The number of digits before the exponent.
    digits: usize,
    /// The number of digits before the decimal point.
    whole_digits: usize,
    /// The exponent as written, limited to a magnitude far outside the range of every type.
    exponent: i64,
}

/// An exponent bound far beyond the range of every type and the length of every text.
const EXPONENT_LIMIT: i64 = 1 << 60;

/// The powers of ten that a DOUBLE represents exactly.
const POWERS: [f64; 23] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16,
    1e17, 1e18, 1e19, 1e20, 1e21, 1e22,
];

impl<'a> Number<'a> {
    /// Parses the number at the beginning of `text` into `self`, or fails with the byte position of
    /// the error. The caller checks the bytes after the number.
    ///
    /// Parses in place, because returning a number by value costs as much as parsing it.
    #[inline]
    pub fn read(&mut self, text: &'a [u8]) -> Result<(), usize> {
        self.negative = text.first() == Some(&b'-');
        let start = usize::from(self.negative);
        let mut mantissa = 0;
        let mut at = read_digits(text, start, &mut mantissa);
        let whole_digits = at - start;
        if whole_digits == 0 || (whole_digits > 1 && text[start] == b'0') {
            return Err(at.min(start + 1));
        }
        self.mantissa = mantissa;
        self.digits = whole_digits;
        self.whole_digits = whole_digits;
        self.exponent = 0;
        if let Some(b'.' | b'e' | b'E') = text.get(at) {
            at = self.read_fraction_and_exponent(text, at)?;
        }
        self.text = &text[..at];
        Ok(())
    }

    /// Reads the fraction and exponent that begin at `text[at]` and returns the end of the number.
    #[inline]
    fn read_fraction_and_exponent(&mut self, text: &[u8], mut at: usize) -> Result<usize, usize> {
        if text[at] == b'.' {
            let start = at + 1;
            at = read_digits(text, start, &mut self.mantissa);
            if at == start {
                return Err(at);
            }
            self.digits += at - start;
        }
        match text.get(at) {
            Some(b'e' | b'E') => self.read_exponent(text, at + 1),
            _ => Ok(at),
        }
    }

    /// Reads the exponent after its letter and returns its end.
    fn read_exponent(&mut self, text: &[u8], mut at: usize) -> Result<usize, usize> {
        let negative = text.get(at) == Some(&b'-');
        if let Some(b'-' | b'+') = text.get(at) {
            at += 1;
        }
        let start = at;
        while let Some(digit @ b'0'..=b'9') = text.get(at) {
            self.exponent = (self.exponent * 10 + i64::from(digit - b'0')).min(EXPONENT_LIMIT / 10);
            at += 1;
        }
        if at == start {
            return Err(at);
        }
        if negative {
            self.exponent = -self.exponent;
        }
        Ok(at)
    }

    /// Parses all of `text` as one number; `None` if it is not a number.
    pub fn parse(text: &'a [u8]) -> Option<Self> {
        let mut number = Self::default();
        number.read(text).ok()?;
        (number.text.len() == text.len()).then_some(number)
    }

    /// The value as an integer. 12.0 and 1e2 are integers, 12.5 is not.
    #[inline]
    pub fn integer(&self) -> Result<i64, Reason> {
        if self.digits <= 18 && self.text.len() == self.digits + usize::from(self.negative) {
            // At most 18 digits always fit into an i64.
            let magnitude = self.mantissa as i64;
            return Ok(if self.negative { -magnitude } else { magnitude });
        }
        i64::try_from(self.scaled(0)?).map_err(|_| Reason::OutOfRange)
    }

    /// Returns value × 10^scale; fails if that is not an integer.
    pub fn scaled(&self, scale: i32) -> Result<i128, Reason> {
        let (value, exact) = self.scaled_floor(scale)?;
        if exact { Ok(value) } else { Err(Reason::WrongType) }
    }

    /// Returns the largest integer that is at most value × 10^scale, and whether the two are equal.
    pub fn scaled_floor(&self, scale: i32) -> Result<(i128, bool), Reason> {
        let integer_digits = self.whole_digits as i64 + self.exponent + i64::from(scale);
        let unsigned = &self.text[usize::from(self.negative)..];
        let all = unsigned.iter().filter(|&&byte| byte != b'.').take(self.digits);
        let (mut value, mut exact) = (0i128, true);
        for (index, byte) in all.enumerate() {
            let digit = i128::from(byte - b'0');
            if (index as i64) < integer_digits {
                value = (value.checked_mul(10))
                    .and_then(|value| value.checked_add(digit))
                    .ok_or(Reason::OutOfRange)?;
            } else {
                exact &= digit == 0;
            }
        }
        let missing = integer_digits - self.digits as i64;
        if missing > 0 && value != 0 {
            let power = u32::try_from(missing).ok().and_then(|power| 10i128.checked_pow(power));
            let product = power.and_then(|power| value.checked_mul(power));
            value = product.ok_or(Reason::OutOfRange)?;
        }
        if self.negative {
            value = if exact { -value } else { -value - 1 };
        }
        Ok((value, exact))
    }

    /// The nearest DOUBLE; fails if it is not finite.
    #[inline]
    pub fn double(&self) -> Result<f64, Reason> {
        let exponent = self.exponent - (self.digits - self.whole_digits) as i64;
        let power = POWERS.get(exponent.unsigned_abs() as usize);
        let value = match power {
            // Both operands are exact, so the single rounding yields the nearest DOUBLE (Clinger).
            Some(power) if self.digits <= 19 && self.mantissa <= 1 << 53 => {
                let magnitude = self.mantissa as f64;
                let magnitude = if exponent < 0 { magnitude / power } else { magnitude * power };
                if self.negative { -magnitude } else { magnitude }
            }
            _ => self.nearest::<f64>()?,
        };
        if value.is_finite() { Ok(value) } else { Err(Reason::OutOfRange) }
    }

    /// The nearest REAL; fails if it is not finite.
    pub fn real(&self) -> Result<f32, Reason> {
        let value: f32 = self.nearest()?;
        if value.is_finite() { Ok(value) } else { Err(Reason::OutOfRange) }
    }

    fn nearest<F: std::str::FromStr>(&self) -> Result<F, Reason> {
        let text = std::str::from_utf8(self.text).map_err(|_| Reason::WrongType)?;
        text.parse().map_err(|_| Reason::WrongType)
    }
}

/// Reads digits from `at` on, appends them to the decimal `sum` (which wraps), and returns their end.
#[inline]
fn read_digits(text: &[u8], mut at: usize, sum: &mut u64) -> usize {
    while let Some(digit @ b'0'..=b'9') = text.get(at) {
        *sum = sum.wrapping_mul(10).wrapping_add(u64::from(digit - b'0'));
        at += 1;
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(text: &str) -> Number<'_> {
        Number::parse(text.as_bytes()).unwrap_or_else(|| panic!("{text}"))
    }

    #[test]
    fn integers_are_exact_or_rejected() {
        let cases = [
            ("0", Ok(0)),
            ("-0", Ok(0)),
            ("12", Ok(12)),
            ("12.0", Ok(12)),
            ("1e2", Ok(100)),
            ("1.5E+1", Ok(15)),
            ("1200e-2", Ok(12)),
            ("0.000", Ok(0)),
            ("0e999999999999999999999", Ok(0)),
            ("999999999999999999", Ok(999_999_999_999_999_999)),
            ("9223372036854775807", Ok(i64::MAX)),
            ("-9223372036854775808", Ok(i64::MIN)),
            ("9223372036854775808", Err(Reason::OutOfRange)),
            ("-9223372036854775809", Err(Reason::OutOfRange)),
            ("1e30", Err(Reason::OutOfRange)),
            ("1e999999999999999999999", Err(Reason::OutOfRange)),
            ("123456789012345678901234567890123456789012345", Err(Reason::OutOfRange)),
            ("12.5", Err(Reason::WrongType)),
            ("1e-2", Err(Reason::WrongType)),
            ("1e-999999999999999999999", Err(Reason::WrongType)),
        ];
        for (text, expected) in cases {
            assert_eq!(number(text).integer(), expected, "{text}");
        }
    }

    #[test]
    fn scaled_values_round_down_and_report_inexactness() {
        assert_eq!(number("1.999").scaled_floor(2), Ok((199, false)));
        assert_eq!(number("-1.999").scaled_floor(2), Ok((-200, false)));
        assert_eq!(number("-1.990").scaled_floor(2), Ok((-199, true)));
        assert_eq!(number("1e-5").scaled_floor(2), Ok((0, false)));
        assert_eq!(number("12.5").scaled(3), Ok(12_500));
        assert_eq!(number("1250e-2").scaled(-1), Err(Reason::WrongType));
    }

    #[test]
    fn doubles_are_correctly_rounded() {
        let texts = [
            "0",
            "-0.0",
            "0.1",
            "1e22",
            "1e23",
            "9007199254740993",
            "123456789012345678901234567890",
            "2.2250738585072014e-308",
            "1.7976931348623157e308",
            "5e-324",
            "1e-400",
            "0.30000000000000004",
            "-21.348",
        ];
        for text in texts {
            let expected: f64 = text.parse().unwrap();
            let got = number(text).double().unwrap();
            assert_eq!(got.to_bits(), expected.to_bits(), "{text}");
        }
        assert_eq!(number("1e309").double(), Err(Reason::OutOfRange));
        assert_eq!(number("1e39").real(), Err(Reason::OutOfRange));
        assert_eq!(number("0.1").real(), Ok(0.1));
    }

    #[test]
    fn texts_outside_the_rfc_8259_grammar_are_not_numbers() {
        for text in
            ["", "-", "01", "-01", "+1", "1.", ".5", "1e", "1e+", "1.e1", "0x1", "NaN", "1_0", " 1"]
        {
            assert!(Number::parse(text.as_bytes()).is_none(), "{text}");
        }
    }
}
