//! Records that nobody should send, from a seed: JSON of every kind for the columns of
//! [`differential::fields`](crate::decode::tests::differential::fields), most of it good, much of it broken.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

/// Makes records from a seed.
#[derive(Debug)]
pub struct Hostile {
    random: StdRng,
    /// Whether columns get values that they may refuse.
    wild: bool,
}

/// The columns, and a kind of value that each one takes.
const COLUMNS: [(&str, Kind); 20] = [
    ("id", Kind::Integer),
    ("name", Kind::Text),
    ("double", Kind::Number),
    ("flag", Kind::Flag),
    ("tiny", Kind::Integer),
    ("small", Kind::Integer),
    ("int", Kind::Integer),
    ("real", Kind::Cents),
    ("price", Kind::Cents),
    ("large", Kind::Cents),
    ("raw", Kind::Hex),
    ("born", Kind::Date),
    ("at", Kind::Rfc3339),
    ("local", Kind::Local),
    ("ms", Kind::Instant),
    ("s", Kind::Instant),
    ("n\u{e4}me", Kind::Text),
    ("numbers", Kind::Numbers),
    ("point", Kind::Point),
    ("points", Kind::Points),
];

#[derive(Debug, Clone, Copy)]
enum Kind {
    Integer,
    Number,
    Cents,
    Instant,
    Text,
    Flag,
    Hex,
    Date,
    Rfc3339,
    Local,
    Numbers,
    Point,
    Points,
}

/// Numbers at the ends of types, and just beyond.
const EDGES: [&str; 44] = [
    "0",
    "-0",
    "0.0",
    "-0.0e-0",
    "127",
    "128",
    "-128",
    "-129",
    "32767",
    "32768",
    "-32768",
    "-32769",
    "2147483647",
    "2147483648",
    "-2147483648",
    "-2147483649",
    "9007199254740993",
    "999999999999999999",
    "1000000000000000000",
    "9223372036854775807",
    "9223372036854775808",
    "-9223372036854775808",
    "-9223372036854775809",
    "18446744073709551615",
    "18446744073709551616",
    "9999999.99",
    "10000000.00",
    "9999999999999999999999999999.9999999999",
    "10000000000000000000000000000",
    "170141183460469231731687303715884105727",
    "170141183460469231731687303715884105728.5",
    "3.4028235e38",
    "3.4028236e38",
    "1.7976931348623157e308",
    "1.7976931348623159e308",
    "5e-324",
    "2e-324",
    "2.2250738585072011e-308",
    "1e400",
    "-1E-400",
    "0e99999999999999999999",
    "253402300799999",
    "253402300800000",
    "-62167219200.0000001",
];

impl Hostile {
    /// The same records for the same seed.
    pub fn new(seed: u64) -> Self {
        Self { random: StdRng::seed_from_u64(seed), wild: false }
    }

    /// Records of one chunk; `None` is a tombstone. Some are cut in two: what is missing stands
    /// right behind the first part, and is no part of it.
    pub fn records(&mut self) -> Vec<Option<Vec<u8>>> {
        let mut all = Vec::new();
        for _ in 0..self.random.random_range(1..12) {
            if self.chance(0.02) {
                all.push(None);
                continue;
            }
            let mut record = self.record();
            if self.chance(0.05) {
                let from = *self.pick(&[0, record.len().saturating_sub(3)]);
                let rest = record.split_off(self.random.random_range(from..=record.len()));
                all.extend([Some(record), Some(rest)]);
            } else {
                all.push(Some(record));
            }
        }
        all
    }

    /// One record: mostly one object, sometimes several, often with something wrong.
    pub fn record(&mut self) -> Vec<u8> {
        if self.chance(0.01) {
            return self.rare();
        }
        let mut out = Vec::new();
        let several = if self.chance(0.15) { self.random.random_range(2..5) } else { 1 };
        for number in 0..several {
            if number > 0 {
                let between = ["\n", "\n", "\r\n", " ", "", "\t \n", "\n\n", ",", "\u{1e}"];
                out.extend_from_slice(self.pick(&between).as_bytes());
            }
            self.space(&mut out);
            self.message(&mut out);
            self.space(&mut out);
        }
        if self.chance(0.35) {
            for _ in 0..self.random.random_range(1..4) {
                self.break_something(&mut out);
            }
        }
        out
    }

    /// What has a shape of its own.
    fn rare(&mut self) -> Vec<u8> {
        let nested = |open: &str, inner: &str, close: &str, depth: usize| {
            format!("{}{inner}{}", open.repeat(depth), close.repeat(depth))
        };
        match self.random.random_range(0..8) {
            0 => Vec::new(),
            1 => b" \t\r\n ".to_vec(),
            2 => {
                let depth = self.random.random_range(124..132);
                format!("{{\"other\":{}}}", nested("[", "1", "]", depth)).into_bytes()
            }
            3 => {
                let depth = self.random.random_range(124..132);
                nested("{\"point\":", "1", "}", depth).into_bytes()
            }
            4 => b"[{\"a\":".repeat(self.random.random_range(1..4_000)),
            5 => [b"\xef\xbb\xbf{\"id\":1,\"int\":2}".to_vec(), b"\n{}".to_vec()].concat(),
            6 => {
                let length = self.random.random_range(0..64);
                (0..length).map(|_| self.random.random()).collect()
            }
            _ => {
                let text = "\u{20ac}\\u0000x".repeat(self.random.random_range(1..2_000));
                format!("{{\"id\":1,\"int\":2,\"name\":\"{text}\"}}").into_bytes()
            }
        }
    }

    /// An object for the columns, keys mostly in order.
    fn message(&mut self, out: &mut Vec<u8>) {
        if self.chance(0.02) {
            return self.anything(out, 3);
        }
        self.wild = self.chance(0.4);
        let mut keys: Vec<_> = COLUMNS.to_vec();
        let keep = *[1.0, 0.9, 0.3].choose(&mut self.random).unwrap_or(&1.0);
        keys.retain(|(name, _)| {
            self.chance(if matches!(*name, "id" | "int") { 0.99 } else { keep })
        });
        for _ in 0..if self.chance(0.3) { self.random.random_range(1..4) } else { 0 } {
            let at = self.random.random_range(0..=keys.len());
            let again = *self.pick(&COLUMNS);
            keys.insert(at, if self.chance(0.5) { ("other", Kind::Text) } else { again });
        }
        self.object(out, &keys);
    }

    fn object(&mut self, out: &mut Vec<u8>, keys: &[(&str, Kind)]) {
        let wide = self.chance(0.2);
        out.push(b'{');
        for (index, (name, kind)) in keys.iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            if wide {
                self.space(out);
            }
            self.string(out, name, 0.02);
            out.push(b':');
            if wide {
                self.space(out);
            }
            self.value(out, *kind);
            if wide {
                self.space(out);
            }
        }
        out.push(b'}');
    }

    /// A value that a column of this kind takes, nearly always.
    fn value(&mut self, out: &mut Vec<u8>, kind: Kind) {
        let (year, month, day) =
            (self.random.random_range(1900..2100), 1 + self.below(12), 1 + self.below(28));
        let day = if self.wild { day + self.below(5) } else { day };
        let (hour, minute, second) = (self.below(24), self.below(60), self.below(60));
        match kind {
            _ if self.wild && self.chance(0.02) => self.anything(out, 2),
            Kind::Number | Kind::Cents | Kind::Instant if self.wild && self.chance(0.2) => {
                self.number(out);
            }
            Kind::Number => {
                let mantissa = self.random.random::<i64>() >> self.below(32);
                let most = *self.pick(&[25, 280]);
                let exponent = self.random.random_range(-most..most);
                out.extend_from_slice(format!("{mantissa}e{exponent}").as_bytes());
            }
            Kind::Cents => {
                let text = format!("{}.{:02}", self.below(1_000_000), self.below(100));
                out.extend_from_slice(text.as_bytes());
            }
            Kind::Instant => {
                let instant = self.random.random_range(-60_000_000_000_i64..250_000_000_000);
                out.extend_from_slice(instant.to_string().as_bytes());
            }
            Kind::Integer => out.extend(self.random.random_range(-120..128).to_string().bytes()),
            Kind::Text => self.text(out),
            Kind::Flag => {
                out.extend_from_slice(self.pick(&["true", "false", "null", "\"true\""]).as_bytes())
            }
            Kind::Hex => {
                out.extend(format!("\"{:x}F0\"", self.random.random_range(16..256)).bytes())
            }
            Kind::Date => out.extend(format!("\"{year:04}-{month:02}-{day:02}\"").bytes()),
            Kind::Local => out.extend(
                format!("\"{year:04}{month:02}{day:02} {hour}:{minute:02}:{second:02}\"").bytes(),
            ),
            Kind::Rfc3339 => self.time(out, &format!("{month:02}-{day:02}")),
            Kind::Numbers | Kind::Points => {
                let inner = if matches!(kind, Kind::Points) { Kind::Point } else { Kind::Integer };
                let count = self.random.random_range(0..4);
                out.push(b'[');
                for index in 0..count {
                    out.extend_from_slice(if index > 0 { b"," } else { b"" });
                    self.value(out, inner);
                }
                out.push(b']');
            }
            Kind::Point => {
                let mut keys =
                    vec![("x", Kind::Integer), ("name", Kind::Text), ("all", Kind::Numbers)];
                keys.rotate_left(if self.chance(0.2) { 1 } else { 0 });
                if self.chance(0.1) {
                    keys.push(*self.pick(&[("x", Kind::Integer), ("z", Kind::Text)]));
                }
                if self.wild && self.chance(0.1) {
                    keys.remove(0);
                }
                if self.wild && self.chance(0.1) {
                    keys.insert(0, *self.pick(&[("x", Kind::Flag), ("all", Kind::Flag)]));
                }
                self.object(out, &keys);
            }
        }
    }

    /// A time on this day of some year.
    fn time(&mut self, out: &mut Vec<u8>, day: &str) {
        let year = self.random.random_range(1900..2100);
        let year = if self.chance(0.1) { *self.pick(&[0, 1, 9999]) } else { year };
        let clock = format!("{:02}:{:02}:{:02}", self.below(24), self.below(60), self.below(60));
        let separator = *self.pick(&["T", " ", "t"]);
        // The last of each is wrong.
        let fractions = ["", ".5", ".123456", ".123456789", ".0000009", "."];
        let offsets = ["", "Z", "z", "+02:00", "-0530", "+03", "-23:59", "+24:00"];
        let fraction = *self.pick(&fractions[..5 + usize::from(self.wild)]);
        let offset = *self.pick(&offsets[..7 + usize::from(self.wild)]);
        let text = format!("\"{year:04}-{day}{separator}{clock}{fraction}{offset}\"");
        out.extend_from_slice(text.as_bytes());
    }

    fn number(&mut self, out: &mut Vec<u8>) {
        let text = match self.random.random_range(0..6) {
            0 => (*self.pick(&EDGES)).to_owned(),
            1 => format!("{:e}", f64::from_bits(self.random.random())),
            2 => format!("{}", f32::from_bits(self.random.random())),
            3 => format!("{}.{}", self.below(100_000), self.below(100)),
            4 => {
                let digits = |random: &mut StdRng, most| -> String {
                    let count = random.random_range(1..most);
                    (0..count).map(|_| char::from(random.random_range(b'0'..=b'9'))).collect()
                };
                let (whole, fraction) =
                    (digits(&mut self.random, 30), digits(&mut self.random, 30));
                let exponent = self.random.random_range(-45..45);
                format!("-1{whole}.{fraction}E{exponent:+}")
            }
            _ => self.random.random::<i64>().to_string(),
        };
        // "NaN" and "inf" are no numbers; some of them may stay.
        let text = if text.ends_with(['N', 'f']) && self.chance(0.95) { "1.5" } else { &text };
        if self.chance(0.1) {
            out.extend_from_slice(format!("\"{text}\"").as_bytes());
        } else {
            out.extend_from_slice(text.as_bytes());
        }
    }

    fn text(&mut self, out: &mut Vec<u8>) {
        let words = [
            "",
            "hall",
            "living room",
            "keittiö",
            "厨房",
            "😀",
            "a\u{7f}b",
            "x/y\\z\"",
            "\u{0}\u{1f}",
        ];
        let count = self.random.random_range(0..4);
        let text: String = (0..count).map(|_| *self.pick(&words)).collect();
        let escaped = if self.chance(0.2) { 0.3 } else { 0.0 };
        self.string(out, &text, escaped);
    }

    /// A string literal of `text`, some of whose characters are escaped without need.
    fn string(&mut self, out: &mut Vec<u8>, text: &str, escaped: f64) {
        out.push(b'"');
        for character in text.chars() {
            let must = matches!(character, '"' | '\\' | '\0'..='\u{1f}');
            if !must && !self.chance(escaped) {
                out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
            } else if must && matches!(character, '"' | '\\') && self.chance(0.5) {
                out.extend([b'\\', character as u8]);
            } else {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    let upper = self.chance(0.5);
                    let text =
                        if upper { format!("\\u{unit:04X}") } else { format!("\\u{unit:04x}") };
                    out.extend_from_slice(text.as_bytes());
                }
            }
        }
        out.push(b'"');
    }

    /// Any JSON, or nearly.
    fn anything(&mut self, out: &mut Vec<u8>, depth: u32) {
        match self.random.random_range(0..if depth == 0 { 5 } else { 8 }) {
            0 => out.extend_from_slice(b"null"),
            1 => self.number(out),
            2 => self.text(out),
            3 => {
                let words = [
                    "true",
                    "false",
                    "NaN",
                    "nul",
                    "01",
                    "1.",
                    "'a'",
                    "\"\\x\"",
                    "\"\\ud800\"",
                    "\"\\ud83d\\ud83d\"",
                    "\"\\ude00\"",
                    "\"\\ud83d\\n\"",
                    "\"\\ud83d\\ude00\"",
                ];
                out.extend_from_slice(self.pick(&words).as_bytes());
            }
            4 => {
                let edge = *self.pick(&EDGES);
                out.extend_from_slice(edge.as_bytes());
            }
            5 | 6 => {
                out.push(b'[');
                for index in 0..self.below(4) {
                    if index > 0 {
                        out.push(b',');
                    }
                    self.space(out);
                    self.anything(out, depth - 1);
                }
                out.push(b']');
            }
            _ => {
                out.push(b'{');
                for index in 0..self.below(4) {
                    if index > 0 {
                        out.push(b',');
                    }
                    let key = *self.pick(&["x", "name", "id", "", "z"]);
                    self.string(out, key, 0.1);
                    out.push(b':');
                    self.anything(out, depth - 1);
                }
                out.push(b'}');
            }
        }
    }

    fn space(&mut self, out: &mut Vec<u8>) {
        if self.chance(0.2) {
            for _ in 0..self.below(4) {
                out.push(*self.pick(b" \t\n\r "));
            }
        }
    }

    fn break_something(&mut self, text: &mut Vec<u8>) {
        const BYTES: &[u8] = b"{}[]\",:\\ue+-.019tfn \n\t\r\x00\x1f\x7f\xc3\xa4\xff\xed\xa0/x";
        if text.is_empty() {
            return;
        }
        let (byte, at) = (*self.pick(BYTES), self.random.random_range(0..text.len()));
        match self.random.random_range(0..8) {
            0 => text[at] = byte,
            1 => text[at] = self.random.random(),
            2 => text[at] ^= 1 << self.below(8),
            3 => text.truncate(at),
            4 => drop(text.remove(at)),
            5 => text.insert(at, byte),
            6 => drop(text.drain(at..(at + 9).min(text.len()))),
            _ => {
                let part = text[at..(at + 20).min(text.len())].to_vec();
                let to = self.random.random_range(0..text.len());
                text.splice(to..to, part);
            }
        }
    }

    fn chance(&mut self, chance: f64) -> bool {
        self.random.random_bool(chance)
    }

    fn below(&mut self, end: u32) -> u32 {
        self.random.random_range(0..end)
    }

    fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.random.random_range(0..all.len())]
    }
}
