//! Which windows an event belongs to.
//!
//! Promises, for every zone and every instant, also before 1970:
//! - windows are half open and hold the instants that they are given for;
//! - tumbling windows partition time;
//! - days, weeks (from Monday) and months are calendar periods of the zone, 23- and 25-hour days
//!   included; sizes of more than an hour that divide 24 h have their boundaries at the same local
//!   times every day; sizes that divide an hour are counted from each local midnight in elapsed
//!   time; every other size is a fixed length counted from the epoch;
//! - `date_bin` and `date_trunc` mean what DataFusion's functions of these names mean on a
//!   timestamp with a zone.
//!
//! ```text
//!  hop windows   [--------------------)            a pane is cut at every window start
//!                       [--------------------)     and end, so that all of its rows are in
//!  panes         [-----|--------------|-----)      the same windows
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use chrono::{Datelike, LocalResult, Months, NaiveDate, Offset, TimeDelta, TimeZone};
use chrono_tz::Tz;

use crate::error::Result;
use crate::time::{DAY, HOUR, MINUTE, Micros, SECOND, Window};
use crate::types::{Size, TruncUnit, WindowSpec};
use crate::window::zone_calendar::{Zone, naive};

/// So many panes are remembered: rows out of order change to and fro between a few.
const MEMO_PANES: usize = 64;

/// One boundary of a grid: its instant, and the local time that it stands for.
#[derive(Debug, Clone, Copy)]
struct Mark {
    at: Micros,
    label: i64,
}

/// Where windows may start.
#[derive(Debug, Clone, Copy)]
enum Grid {
    /// `origin + k * step`, by elapsed time.
    Fixed { step: i64, origin: i64 },
    /// Every `step` from each local midnight, by elapsed time, all shifted by `offset`.
    Midnight { step: i64, offset: i64 },
    /// Local times `origin + k * step`.
    Local { step: i64, origin: i64 },
    /// Local times `k * months` after `origin`, then shifted by `offset`; in UTC if so said.
    Months { months: i64, origin: i64, offset: i64, utc: bool },
}

impl Grid {
    fn new(size: Size, offset: i64) -> Self {
        match size {
            Size::Fixed(step) if step <= HOUR && HOUR % step == 0 => {
                Self::Midnight { step, offset }
            }
            Size::Fixed(step) if size.is_local_time_aligned() => {
                Self::Local { step, origin: offset }
            }
            Size::Fixed(step) => Self::Fixed { step, origin: offset },
            Size::Days(_) => Self::Local { step: size.nominal_us(), origin: offset },
            // 1970-01-01 was a Thursday.
            Size::Weeks(_) => Self::Local { step: size.nominal_us(), origin: offset - 3 * DAY },
            Size::Months(n) => Self::Months { months: i64::from(n), origin: 0, offset, utc: false },
        }
    }

    /// The last boundary at or before `t`, and the first after it.
    fn around(self, t: Micros, zone: &mut Zone) -> (Mark, Mark) {
        match self {
            Self::Fixed { step, origin } => {
                let (step, origin) = (i128::from(step), i128::from(origin));
                let start = origin + (i128::from(t) - origin).div_euclid(step) * step;
                (elapsed(clamp(start), zone), elapsed(clamp(start + step), zone))
            }
            Self::Midnight { step, offset } => {
                let shifted = t.saturating_sub(offset);
                let day = zone.day(shifted);
                let start = day.start + (shifted - day.start) / step * step;
                let end = start.saturating_add(step).min(day.end);
                (
                    elapsed(start.saturating_add(offset), zone),
                    elapsed(end.saturating_add(offset), zone),
                )
            }
            Self::Local { step, origin } => {
                let guess = zone.local(t).saturating_sub(origin).div_euclid(step);
                search(t, guess, |k| {
                    let label = clamp(i128::from(origin) + i128::from(k) * i128::from(step));
                    Mark { at: zone.first(label), label }
                })
            }
            Self::Months { months, origin, offset, utc } => {
                let local = if utc { t } else { zone.local(t) };
                let (now, then) = (naive(local.saturating_sub(offset)), naive(origin));
                let passed = i64::from(now.year() - then.year()) * 12 + i64::from(now.month0())
                    - i64::from(then.month0());
                search(t, passed.div_euclid(months), |k| {
                    let label = add_months(origin, k.saturating_mul(months));
                    let label = label.saturating_add(offset);
                    Mark { at: if utc { label } else { zone.first(label) }, label }
                })
            }
        }
    }
}

/// The neighbouring marks around `t`, among marks that never fall, starting at a good guess.
fn search(t: Micros, mut k: i64, mut mark: impl FnMut(i64) -> Mark) -> (Mark, Mark) {
    /// A guess is off by one or two, except at the ends of representable time.
    const STEPS: usize = 64;
    let (mut low, mut high) = (mark(k), mark(k + 1));
    for _ in 0..STEPS {
        if high.at <= t {
            k += 1;
            (low, high) = (high, mark(k + 1));
        } else if low.at > t {
            k -= 1;
            (low, high) = (mark(k), low);
        } else {
            break;
        }
    }
    (low, high)
}

fn elapsed(at: Micros, zone: &mut Zone) -> Mark {
    Mark { at, label: zone.local(at) }
}

fn clamp(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

/// `months` calendar months after `local`; a day that the month lacks becomes its last one.
fn add_months(local: i64, months: i64) -> i64 {
    let from = naive(local);
    let count = Months::new(u32::try_from(months.unsigned_abs()).unwrap_or(u32::MAX));
    let to =
        if months < 0 { from.checked_sub_months(count) } else { from.checked_add_months(count) };
    match to {
        Some(to) => to.and_utc().timestamp_micros(),
        None if months < 0 => i64::MIN,
        None => i64::MAX,
    }
}

/// Assigns events to windows; remembers its last answers, so that a row in the same windows as
/// the one before costs two comparisons.
#[derive(Debug, Clone)]
pub struct Assigner {
    spec: WindowSpec,
    zone: Zone,
    /// Where `windows` holds: a pane, for hops.
    pane: Window,
    windows: Arc<[Window]>,
    /// Earlier answers by the start of their panes.
    memo: BTreeMap<Micros, (Window, Arc<[Window]>)>,
}

impl Assigner {
    /// Windows of `spec` in the zone of the stream. Fails as [`WindowSpec::validate`] does.
    pub fn new(spec: WindowSpec, zone: Tz) -> Result<Self> {
        spec.validate()?;
        let spec = match spec {
            WindowSpec::Hop { slide, size, offset_us } if slide == size => {
                WindowSpec::Tumble { size, offset_us }
            }
            other => other,
        };
        let nowhere = Window { start: 0, end: 0 };
        let (zone, windows) = (Zone::new(zone), Arc::from([]));
        Ok(Self { spec, zone, pane: nowhere, windows, memo: BTreeMap::new() })
    }

    /// Adds the windows that hold `t` to `out`, the earliest start first.
    pub fn windows(&mut self, t: Micros, out: &mut Vec<Window>) {
        out.extend_from_slice(self.place(t).1);
    }

    /// The stretch around `t` within which every instant belongs to the same windows.
    pub fn pane(&mut self, t: Micros) -> Window {
        self.place(t).0
    }

    /// The windows that a pane is part of, the earliest start first.
    pub fn windows_of_pane(&mut self, pane: Window) -> Vec<Window> {
        self.place(pane.start).1.to_vec()
    }

    /// Both at once: the pane of `t`, and its windows.
    pub fn place(&mut self, t: Micros) -> (Window, &[Window]) {
        if t < self.pane.start || t >= self.pane.end {
            let known = self.memo.range(..=t).next_back().map(|(_, known)| known.clone());
            (self.pane, self.windows) = match known {
                Some((pane, windows)) if t < pane.end => (pane, windows),
                earlier => {
                    let next = earlier.and_then(|(pane, windows)| self.next_pane(pane, &windows));
                    let (pane, windows) = match next {
                        Some((pane, windows)) if t < pane.end => (pane, windows),
                        _ => self.locate(t),
                    };
                    if self.memo.len() >= MEMO_PANES {
                        self.memo.clear();
                    }
                    let windows: Arc<[Window]> = windows.into();
                    self.memo.insert(pane.start, (pane, Arc::clone(&windows)));
                    (pane, windows)
                }
            };
        }
        (self.pane, &self.windows)
    }

    /// The pane after `pane` of a hop: without the windows that end there, with one that starts.
    /// Time mostly goes on, and this spares a walk over all windows.
    fn next_pane(&mut self, pane: Window, windows: &[Window]) -> Option<(Window, Vec<Window>)> {
        let WindowSpec::Hop { slide, size, offset_us } = self.spec else { return None };
        let cut = pane.end;
        let mut windows: Vec<_> = windows.iter().copied().filter(|w| w.end > cut).collect();
        let (latest, next) = Grid::new(slide, offset_us).around(cut, &mut self.zone);
        if latest.at == cut {
            windows.push(Window { start: cut, end: self.end(latest, size, offset_us) });
        }
        let end = windows.iter().map(|w| w.end).fold(next.at, Micros::min);
        Some((Window { start: cut, end }, windows))
    }

    fn locate(&mut self, t: Micros) -> (Window, Vec<Window>) {
        match self.spec {
            WindowSpec::Tumble { size, offset_us } => self.tumble(t, Grid::new(size, offset_us)),
            WindowSpec::Hop { slide, size, offset_us } => self.hop(t, slide, size, offset_us),
            WindowSpec::DateBin { stride: Size::Months(n), origin } => {
                let months = i64::from(n);
                self.tumble(t, Grid::Months { months, origin, offset: 0, utc: true })
            }
            WindowSpec::DateBin { stride, origin } => {
                self.tumble(t, Grid::Fixed { step: stride.nominal_us(), origin })
            }
            WindowSpec::DateTrunc { unit } => self.truncate(t, unit),
        }
    }

    fn tumble(&mut self, t: Micros, grid: Grid) -> (Window, Vec<Window>) {
        let (start, end) = grid.around(t, &mut self.zone);
        let window = Window { start: start.at, end: end.at };
        (window, vec![window])
    }

    /// Walks the starts backwards as long as a window from there could reach the pane.
    fn hop(&mut self, t: Micros, slide: Size, size: Size, offset: i64) -> (Window, Vec<Window>) {
        let grid = Grid::new(slide, offset);
        let (latest, next) = grid.around(t, &mut self.zone);
        let mut pane = Window { start: latest.at, end: next.at };
        let mut windows = Vec::new();
        let mut start = latest;
        loop {
            let window = Window { start: start.at, end: self.end(start, size, offset) };
            if window.end > t {
                pane.end = pane.end.min(window.end);
                windows.push(window);
            } else {
                pane.start = pane.start.max(window.end);
            }
            let (before, _) = grid.around(start.at.saturating_sub(1), &mut self.zone);
            let reaches = before.at.saturating_add(size.max_length_us()) > latest.at;
            if before.at >= start.at || !reaches {
                break;
            }
            start = before;
        }
        windows.reverse();
        (pane, windows)
    }

    /// The end of the window of `size` that starts at `start`.
    fn end(&mut self, start: Mark, size: Size, offset: i64) -> Micros {
        let by_clock = match size {
            _ if !size.is_local_time_aligned() => {
                return start.at.saturating_add(size.nominal_us());
            }
            Size::Months(n) => {
                let label = add_months(start.label.saturating_sub(offset), i64::from(n));
                self.zone.first(label.saturating_add(offset))
            }
            _ => self.zone.first(start.label.saturating_add(size.nominal_us())),
        };
        // A clock put back by more than the window's size would end it before its start.
        if by_clock > start.at { by_clock } else { start.at.saturating_add(size.nominal_us()) }
    }

    /// DataFusion's `date_trunc` (datafusion-functions, datetime/date_trunc.rs), and where the
    /// period ends that it names.
    fn truncate(&mut self, t: Micros, unit: TruncUnit) -> (Window, Vec<Window>) {
        let step = match unit {
            TruncUnit::Microsecond => 1,
            TruncUnit::Millisecond => SECOND / 1000,
            TruncUnit::Second => SECOND,
            TruncUnit::Minute => MINUTE,
            _ => {
                let segment = self.zone.segment(t);
                let (from, until) = period(t.saturating_add(segment.offset), unit);
                let start = self.resolve(from, segment.offset);
                let end = self.period_end(start, unit);
                let pane = Window {
                    start: segment.from.max(from.saturating_sub(segment.offset)),
                    end: segment.until.min(until.saturating_sub(segment.offset)),
                };
                return (pane, vec![Window { start, end }]);
            }
        };
        self.tumble(t, Grid::Fixed { step, origin: 0 })
    }

    /// The instant of a truncated local time: of two, the one with the offset of the instant
    /// that was truncated; of none, three hours after the local time three hours before.
    fn resolve(&mut self, local: i64, offset: Micros) -> Micros {
        let tz = self.zone.tz();
        match tz.from_local_datetime(&naive(local)) {
            LocalResult::Single(at) => at.timestamp_micros(),
            LocalResult::Ambiguous(first, second) => {
                let same = i64::from(first.offset().fix().local_minus_utc()) * SECOND == offset;
                if same { first.timestamp_micros() } else { second.timestamp_micros() }
            }
            LocalResult::None => {
                let earlier = naive(local).checked_sub_signed(TimeDelta::hours(3));
                match earlier.and_then(|e| tz.from_local_datetime(&e).single()) {
                    Some(at) => at.timestamp_micros() + 3 * HOUR,
                    None => self.zone.first(local),
                }
            }
        }
    }

    /// After the last instant that `date_trunc` takes to `start`. A period whose start comes
    /// twice is two periods, and the first of them ends where the second starts; only a quarter
    /// or a year can go back to its first offset, so these last until the calendar's end.
    fn period_end(&mut self, start: Micros, unit: TruncUnit) -> Micros {
        let (from, until) = period(self.zone.local(start), unit);
        if !matches!(unit, TruncUnit::Quarter | TruncUnit::Year)
            && let LocalResult::Ambiguous(first, second) =
                self.zone.tz().from_local_datetime(&naive(from))
            && first.timestamp_micros() == start
        {
            return second.timestamp_micros();
        }
        self.zone.after_last(until)
    }
}

/// The calendar period of `unit` around a local time: its first local time, and the next one's.
fn period(local: i64, unit: TruncUnit) -> (i64, i64) {
    let aligned = |step: i64, shift: i64| {
        let start = local.saturating_sub((local.saturating_add(shift)).rem_euclid(step));
        (start, start.saturating_add(step))
    };
    let months = match unit {
        TruncUnit::Month => 1,
        TruncUnit::Quarter => 3,
        TruncUnit::Year => 12,
        TruncUnit::Week => return aligned(7 * DAY, 3 * DAY),
        TruncUnit::Day => return aligned(DAY, 0),
        _ => return aligned(HOUR, 0),
    };
    let date = naive(local).date();
    let first = NaiveDate::from_ymd_opt(date.year(), date.month0() / months * months + 1, 1);
    let start = first.unwrap_or(date).and_time(chrono::NaiveTime::MIN).and_utc().timestamp_micros();
    (start, add_months(start, i64::from(months)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ZONES: [Tz; 6] = [
        chrono_tz::Europe::Helsinki,
        chrono_tz::Asia::Shanghai,
        chrono_tz::Asia::Kathmandu,
        chrono_tz::Australia::Lord_Howe,
        chrono_tz::America::New_York,
        chrono_tz::UTC,
    ];

    fn at(zone: Tz, text: &str) -> Micros {
        let naive = chrono::NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M").unwrap();
        naive.and_local_timezone(zone).earliest().unwrap().timestamp_micros()
    }

    fn shown(zone: Tz, t: Micros) -> String {
        let utc = chrono::DateTime::from_timestamp_micros(t).unwrap();
        utc.with_timezone(&zone).format("%Y-%m-%d %H:%M%z").to_string()
    }

    fn tumble(size: Size) -> WindowSpec {
        WindowSpec::Tumble { size, offset_us: 0 }
    }

    /// The windows from `from` on, as "start (length in minutes)".
    fn windows_from(spec: WindowSpec, zone: Tz, from: Micros, count: usize) -> Vec<String> {
        let mut assigner = Assigner::new(spec, zone).unwrap();
        let mut t = from;
        (0..count)
            .map(|_| {
                let (window, _) = assigner.place(t);
                t = window.end;
                format!("{} ({})", shown(zone, window.start), (window.end - window.start) / MINUTE)
            })
            .collect()
    }

    #[test]
    fn days_follow_the_calendar() {
        let helsinki = chrono_tz::Europe::Helsinki;
        let autumn = at(helsinki, "2019-10-26 12:00");
        assert_eq!(
            windows_from(tumble(Size::Days(1)), helsinki, autumn, 3),
            [
                "2019-10-26 00:00+0300 (1440)",
                "2019-10-27 00:00+0300 (1500)",
                "2019-10-28 00:00+0200 (1440)"
            ]
        );
        assert_eq!(
            windows_from(tumble(Size::Fixed(24 * HOUR)), helsinki, autumn, 2)[1],
            "2019-10-27 00:00+0300 (1500)"
        );
        let spring = at(helsinki, "2020-03-29 12:00");
        assert_eq!(
            windows_from(tumble(Size::Days(1)), helsinki, spring, 1),
            ["2020-03-29 00:00+0200 (1380)"]
        );
        assert_eq!(
            windows_from(tumble(Size::Weeks(1)), helsinki, spring, 2),
            ["2020-03-23 00:00+0200 (10020)", "2020-03-30 00:00+0300 (10080)"]
        );
        assert_eq!(
            windows_from(tumble(Size::Months(1)), helsinki, at(helsinki, "1968-02-03 04:05"), 2),
            ["1968-02-01 00:00+0200 (41760)", "1968-03-01 00:00+0200 (44640)"]
        );
        let shifted = WindowSpec::Tumble { size: Size::Days(1), offset_us: 6 * HOUR };
        assert_eq!(windows_from(shifted, helsinki, autumn, 1), ["2019-10-26 06:00+0300 (1500)"]);
    }

    #[test]
    fn parts_of_a_day_keep_their_local_times() {
        let helsinki = chrono_tz::Europe::Helsinki;
        let autumn = at(helsinki, "2019-10-27 00:00");
        assert_eq!(
            windows_from(tumble(Size::Fixed(12 * HOUR)), helsinki, autumn, 2),
            ["2019-10-27 00:00+0300 (780)", "2019-10-27 12:00+0200 (720)"]
        );
        assert_eq!(
            windows_from(tumble(Size::Fixed(8 * HOUR)), helsinki, autumn, 3),
            [
                "2019-10-27 00:00+0300 (540)",
                "2019-10-27 08:00+0200 (480)",
                "2019-10-27 16:00+0200 (480)"
            ]
        );
        // Three o'clock is skipped on this morning.
        assert_eq!(
            windows_from(
                tumble(Size::Fixed(3 * HOUR)),
                helsinki,
                at(helsinki, "2020-03-29 00:00"),
                3
            ),
            [
                "2020-03-29 00:00+0200 (180)",
                "2020-03-29 04:00+0300 (120)",
                "2020-03-29 06:00+0300 (180)"
            ]
        );
        let night = at(chrono_tz::America::New_York, "2021-11-07 00:30");
        assert_eq!(
            windows_from(tumble(Size::Fixed(HOUR)), chrono_tz::America::New_York, night, 4),
            [
                "2021-11-07 00:00-0400 (60)",
                "2021-11-07 01:00-0400 (60)",
                "2021-11-07 01:00-0500 (60)",
                "2021-11-07 02:00-0500 (60)"
            ]
        );
        let kathmandu = chrono_tz::Asia::Kathmandu;
        assert_eq!(
            windows_from(
                tumble(Size::Fixed(HOUR)),
                kathmandu,
                at(kathmandu, "2021-11-07 00:30"),
                1
            ),
            ["2021-11-07 00:00+0545 (60)"]
        );
        let island = chrono_tz::Australia::Lord_Howe;
        assert_eq!(
            windows_from(tumble(Size::Fixed(12 * HOUR)), island, at(island, "2021-04-04 00:00"), 2),
            ["2021-04-04 00:00+1100 (750)", "2021-04-04 12:00+1030 (720)"]
        );
    }

    #[test]
    fn other_sizes_are_counted_from_the_epoch() {
        let mut assigner =
            Assigner::new(tumble(Size::Fixed(7 * MINUTE)), chrono_tz::Asia::Kathmandu).unwrap();
        assert_eq!(assigner.pane(0), Window { start: 0, end: 7 * MINUTE });
        assert_eq!(assigner.pane(-1), Window { start: -7 * MINUTE, end: 0 });
    }

    #[test]
    fn a_day_that_never_was_is_no_window() {
        let apia = chrono_tz::Pacific::Apia;
        assert_eq!(
            windows_from(tumble(Size::Days(1)), apia, at(apia, "2011-12-29 12:00"), 2),
            ["2011-12-29 00:00-1000 (1440)", "2011-12-31 00:00+1400 (1440)"]
        );
    }

    #[test]
    fn hops_end_by_the_calendar() {
        let helsinki = chrono_tz::Europe::Helsinki;
        let spec =
            WindowSpec::Hop { slide: Size::Fixed(6 * HOUR), size: Size::Days(1), offset_us: 0 };
        let mut assigner = Assigner::new(spec, helsinki).unwrap();
        let t = at(helsinki, "2019-10-27 12:00");
        let found: Vec<_> = (assigner.place(t).1.iter())
            .map(|w| format!("{} {}", shown(helsinki, w.start), (w.end - w.start) / HOUR))
            .collect();
        assert_eq!(
            found,
            [
                "2019-10-26 18:00+0300 25",
                "2019-10-27 00:00+0300 25",
                "2019-10-27 06:00+0200 24",
                "2019-10-27 12:00+0200 24"
            ]
        );
        assert_eq!(assigner.pane(t), Window { start: t, end: t + 6 * HOUR });
        let zero = WindowSpec::Hop { slide: Size::Fixed(0), size: Size::Days(1), offset_us: 0 };
        assert!(Assigner::new(zero, helsinki).is_err());
    }

    fn size() -> impl Strategy<Value = Size> {
        prop_oneof![
            prop::sample::select(vec![1, 7, 60, 90, 120, 360, 480, 720, 1440, 2880])
                .prop_map(|m| Size::Fixed(m * MINUTE)),
            (1u32..4).prop_map(Size::Days),
            (1u32..3).prop_map(Size::Weeks),
            (1u32..13).prop_map(Size::Months),
        ]
    }

    /// Anywhere from 1902 to 2037, often within a day of a change of Helsinki's or Lord Howe's.
    fn instant() -> impl Strategy<Value = Micros> {
        let changes = vec![1_572_138_000, 1_585_443_600, 1_617_462_000, 1_633_188_600, 0];
        prop_oneof![
            -2_145_916_800 * SECOND..2_145_916_800 * SECOND,
            (prop::sample::select(changes), -DAY..DAY).prop_map(|(at, by)| at * SECOND + by),
        ]
    }

    proptest! {
        #[test]
        fn tumbling_windows_partition_time(
            zone in prop::sample::select(ZONES.to_vec()), size in size(),
            offset_us in prop_oneof![Just(0), -DAY..DAY], t in instant(),
        ) {
            let spec = WindowSpec::Tumble { size, offset_us };
            let mut assigner = Assigner::new(spec, zone).unwrap();
            let window = assigner.pane(t);
            prop_assert!(window.start <= t && t < window.end);
            prop_assert_eq!(assigner.pane(window.start), window);
            prop_assert_eq!(assigner.pane(window.end - 1), window);
            prop_assert_eq!(assigner.pane(window.end).start, window.end);
            prop_assert_eq!(assigner.pane(window.start - 1).end, window.start);
        }

        #[test]
        fn hop_windows_are_complete_and_panes_agree(
            zone in prop::sample::select(ZONES.to_vec()), size in size(),
            slide in prop::sample::select(vec![30, 60, 90, 360, 1440]),
            offset_us in prop_oneof![Just(0), -DAY..DAY], t in instant(), within in 0.0..1.0,
        ) {
            let spec = WindowSpec::Hop { slide: Size::Fixed(slide * MINUTE), size, offset_us };
            let mut assigner = Assigner::new(spec, zone).unwrap();
            let (pane, windows) = assigner.place(t);
            let windows = windows.to_vec();
            prop_assert!(pane.start <= t && t < pane.end);
            for window in &windows {
                prop_assert!(window.start <= pane.start && pane.end <= window.end);
            }
            let inside = pane.start + ((pane.end - pane.start - 1) as f64 * within) as i64;
            let mut fresh = Assigner::new(spec, zone).unwrap();
            let (pane_again, windows_again) = fresh.place(inside);
            prop_assert_eq!((pane_again, windows_again), (pane, &windows[..]));
            // The windows of the next pane that began earlier must be ours as well; and walking on
            // from pane to pane is the same as starting there.
            for _ in 0..5 {
                let (next, held) = fresh.place(assigner.pane.end);
                for window in held.iter().filter(|w| w.start < next.start) {
                    prop_assert!(assigner.windows.contains(window));
                }
                assigner = Assigner::new(spec, zone).unwrap();
                prop_assert_eq!(assigner.place(next.start), (next, held));
            }
        }

        #[test]
        fn a_hop_by_its_own_size_tumbles(
            zone in prop::sample::select(ZONES.to_vec()), size in size(), t in instant(),
        ) {
            let hop = WindowSpec::Hop { slide: size, size, offset_us: 0 };
            let mut hop = Assigner::new(hop, zone).unwrap();
            prop_assert_eq!(hop.pane(t), Assigner::new(tumble(size), zone).unwrap().pane(t));
        }

        #[test]
        fn no_instant_is_too_far(
            zone in prop::sample::select(ZONES.to_vec()), size in size(), t in any::<i64>(),
            unit in prop::sample::select(vec![TruncUnit::Hour, TruncUnit::Week, TruncUnit::Year]),
        ) {
            for t in [t, i64::MIN, i64::MAX] {
                let hop = WindowSpec::Hop { slide: Size::Fixed(HOUR), size, offset_us: 0 };
                for spec in [tumble(size), hop, WindowSpec::DateTrunc { unit }] {
                    Assigner::new(spec, zone).unwrap().place(t);
                }
            }
        }
    }
}
