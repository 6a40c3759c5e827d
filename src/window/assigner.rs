//! Assigns events to windows.
//!
//! Promises, for every zone and every instant, also before 1970:
//! - windows are half open, and the windows of an instant contain it;
//! - tumbling windows partition time;
//! - days, weeks (from Monday) and months are calendar periods of the zone, 23- and 25-hour days
//!   included; sizes of more than an hour that divide 24 h have their boundaries at the same local
//!   times every day; sizes that divide an hour are counted from each local midnight in elapsed
//!   time; every other size is a fixed length counted from the epoch;
//! - `date_bin` and `date_trunc` give the same windows as DataFusion's functions of these names on a
//!   timestamp with a time zone.
//!
//! ```text
//!  hop windows   [--------------------)            panes are the spans between two neighbouring
//!                       [--------------------)     window boundaries, so that all rows of a pane
//!  panes         [-----|--------------|-----)      are in the same windows
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use chrono::{Datelike, LocalResult, Months, NaiveDate, Offset, TimeDelta, TimeZone};
use chrono_tz::Tz;

use crate::error::Result;
use crate::time::{DAY, HOUR, MINUTE, Micros, SECOND, Window};
use crate::types::{Size, TruncUnit, WindowSpec};
use crate::window::zone_calendar::{ZoneCalendar, naive};

/// The number of cached panes: rows out of order alternate between a few panes.
const CACHED_PANES: usize = 64;

/// A boundary of a grid: its instant and its local time.
#[derive(Debug, Clone, Copy)]
struct Boundary {
    at: Micros,
    local: i64,
}

/// The instants at which windows can start.
#[derive(Debug, Clone, Copy)]
enum Grid {
    /// `origin + k * step`, by elapsed time.
    Fixed { step: i64, origin: i64 },
    /// Every `step` from each local midnight, by elapsed time, all shifted by `offset`.
    Midnight { step: i64, offset: i64 },
    /// Local times `origin + k * step`.
    Local { step: i64, origin: i64 },
    /// Local times `k * months` after `origin`, then shifted by `offset`. With `utc`, UTC is the
    /// local time.
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

    /// Returns the last boundary at or before `t`, and the first one after it.
    fn around(self, t: Micros, zone: &mut ZoneCalendar) -> (Boundary, Boundary) {
        match self {
            Self::Fixed { step, origin } => {
                let (step, origin) = (i128::from(step), i128::from(origin));
                let start = origin + (i128::from(t) - origin).div_euclid(step) * step;
                (boundary_at(clamp(start), zone), boundary_at(clamp(start + step), zone))
            }
            Self::Midnight { step, offset } => {
                let shifted = t.saturating_sub(offset);
                let day = zone.day(shifted);
                let start = day.start + (shifted - day.start) / step * step;
                let end = start.saturating_add(step).min(day.end);
                (
                    boundary_at(start.saturating_add(offset), zone),
                    boundary_at(end.saturating_add(offset), zone),
                )
            }
            Self::Local { step, origin } => {
                let guess = zone.local(t).saturating_sub(origin).div_euclid(step);
                search(t, guess, |k| {
                    let local = clamp(i128::from(origin) + i128::from(k) * i128::from(step));
                    Boundary { at: zone.first(local), local }
                })
            }
            Self::Months { months, origin, offset, utc } => {
                let local = if utc { t } else { zone.local(t) };
                let (date, first) = (naive(local.saturating_sub(offset)), naive(origin));
                let passed = i64::from(date.year() - first.year()) * 12 + i64::from(date.month0())
                    - i64::from(first.month0());
                search(t, passed.div_euclid(months), |k| {
                    let local = add_months(origin, k.saturating_mul(months));
                    let local = local.saturating_add(offset);
                    Boundary { at: if utc { local } else { zone.first(local) }, local }
                })
            }
        }
    }
}

/// Finds the two neighbouring boundaries around `t`. `boundary(k)` must not descend; `k` is a guess
/// of the number of the first of the two.
fn search(
    t: Micros,
    mut k: i64,
    mut boundary: impl FnMut(i64) -> Boundary,
) -> (Boundary, Boundary) {
    /// A guess is wrong by one or two, except at the ends of representable time.
    const STEPS: usize = 64;
    let (mut low, mut high) = (boundary(k), boundary(k + 1));
    for _ in 0..STEPS {
        if high.at <= t {
            k += 1;
            (low, high) = (high, boundary(k + 1));
        } else if low.at > t {
            k -= 1;
            (low, high) = (boundary(k), low);
        } else {
            break;
        }
    }
    (low, high)
}

/// The boundary at an instant.
fn boundary_at(at: Micros, zone: &mut ZoneCalendar) -> Boundary {
    Boundary { at, local: zone.local(at) }
}

fn clamp(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

/// Returns the local time `months` calendar months after `local`. A day that the month lacks
/// becomes the last day of the month.
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

/// Assigns events to windows. It caches panes, so that a row of the same pane as the previous row
/// costs two comparisons.
#[derive(Debug, Clone)]
pub struct Assigner {
    spec: WindowSpec,
    zone: ZoneCalendar,
    /// The last pane: the span in which every instant belongs to `windows`.
    pane: Window,
    windows: Arc<[Window]>,
    /// Earlier panes and their windows, by the start of the pane.
    cache: BTreeMap<Micros, (Window, Arc<[Window]>)>,
}

impl Assigner {
    /// Creates the assigner of `spec` in the time zone of the stream.
    ///
    /// # Errors
    /// [`WindowSpec::validate`] refuses `spec`.
    pub fn new(spec: WindowSpec, zone: Tz) -> Result<Self> {
        spec.validate()?;
        let spec = match spec {
            WindowSpec::Hop { slide, size, offset_us } if slide == size => {
                WindowSpec::Tumble { size, offset_us }
            }
            other => other,
        };
        let no_pane = Window { start: 0, end: 0 };
        let (zone, windows) = (ZoneCalendar::new(zone), Arc::from([]));
        Ok(Self { spec, zone, pane: no_pane, windows, cache: BTreeMap::new() })
    }

    /// Adds the windows that contain `t` to `out`, the earliest start first.
    pub fn windows(&mut self, t: Micros, out: &mut Vec<Window>) {
        out.extend_from_slice(self.locate(t).1);
    }

    /// Returns the pane of `t`: the span around it in which every instant belongs to the same
    /// windows.
    pub fn pane(&mut self, t: Micros) -> Window {
        self.locate(t).0
    }

    /// Returns the windows that contain a pane, the earliest start first.
    pub fn windows_of_pane(&mut self, pane: Window) -> Vec<Window> {
        self.locate(pane.start).1.to_vec()
    }

    /// Returns the pane of `t` and the windows that contain it, the earliest start first.
    pub fn locate(&mut self, t: Micros) -> (Window, &[Window]) {
        if t < self.pane.start || t >= self.pane.end {
            let cached = self.cache.range(..=t).next_back().map(|(_, cached)| cached.clone());
            (self.pane, self.windows) = match cached {
                Some((pane, windows)) if t < pane.end => (pane, windows),
                earlier => {
                    let next = earlier.and_then(|(pane, windows)| self.next_pane(pane, &windows));
                    let (pane, windows) = match next {
                        Some((pane, windows)) if t < pane.end => (pane, windows),
                        _ => self.compute_pane(t),
                    };
                    if self.cache.len() >= CACHED_PANES {
                        self.cache.clear();
                    }
                    let windows: Arc<[Window]> = windows.into();
                    self.cache.insert(pane.start, (pane, Arc::clone(&windows)));
                    (pane, windows)
                }
            };
        }
        (self.pane, &self.windows)
    }

    /// Derives the pane after `pane` of hopping windows: it lacks the windows that end there, and
    /// has the one that starts there. Event time mostly advances, and this is cheaper than
    /// [`Assigner::hop`]. `None` for other windows.
    fn next_pane(&mut self, pane: Window, windows: &[Window]) -> Option<(Window, Vec<Window>)> {
        let WindowSpec::Hop { slide, size, offset_us } = self.spec else { return None };
        let start = pane.end;
        let mut windows: Vec<_> = windows.iter().copied().filter(|w| w.end > start).collect();
        let (latest, next) = Grid::new(slide, offset_us).around(start, &mut self.zone);
        if latest.at == start {
            windows.push(Window { start, end: self.end(latest, size, offset_us) });
        }
        let end = windows.iter().map(|w| w.end).fold(next.at, Micros::min);
        Some((Window { start, end }, windows))
    }

    /// Computes the pane of `t` and its windows without the cache.
    fn compute_pane(&mut self, t: Micros) -> (Window, Vec<Window>) {
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

    /// Iterates over window starts backwards while a window that starts there can contain `t`.
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
            let can_contain = before.at.saturating_add(size.max_length_us()) > latest.at;
            if before.at >= start.at || !can_contain {
                break;
            }
            start = before;
        }
        windows.reverse();
        (pane, windows)
    }

    /// Returns the end of the window of `size` that starts at `start`.
    fn end(&mut self, start: Boundary, size: Size, offset: i64) -> Micros {
        let end = match size {
            _ if !size.is_local_time_aligned() => {
                return start.at.saturating_add(size.nominal_us());
            }
            Size::Months(n) => {
                let local = add_months(start.local.saturating_sub(offset), i64::from(n));
                self.zone.first(local.saturating_add(offset))
            }
            _ => self.zone.first(start.local.saturating_add(size.nominal_us())),
        };
        // If the clock is set back by more than the size, the local end is before the start.
        if end > start.at { end } else { start.at.saturating_add(size.nominal_us()) }
    }

    /// Returns the period of DataFusion's `date_trunc` (datafusion-functions,
    /// datetime/date_trunc.rs).
    fn truncate(&mut self, t: Micros, unit: TruncUnit) -> (Window, Vec<Window>) {
        let step = match unit {
            TruncUnit::Microsecond => 1,
            TruncUnit::Millisecond => SECOND / 1000,
            TruncUnit::Second => SECOND,
            TruncUnit::Minute => MINUTE,
            _ => {
                let span = self.zone.offset_span(t);
                let (from, until) = period(t.saturating_add(span.offset), unit);
                let start = self.resolve(from, span.offset);
                let end = self.period_end(start, unit);
                let pane = Window {
                    start: span.from.max(from.saturating_sub(span.offset)),
                    end: span.until.min(until.saturating_sub(span.offset)),
                };
                return (pane, vec![Window { start, end }]);
            }
        };
        self.tumble(t, Grid::Fixed { step, origin: 0 })
    }

    /// Returns the instant of a truncated local time. If there are two, it is the one with the
    /// offset of the instant that was truncated. If there is none, it is three hours after the
    /// instant of the local time three hours before.
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

    /// Returns the end of the period that `date_trunc` starts at `start`. If the local start occurs
    /// twice, there are two periods, and the first one ends where the second one starts. A quarter
    /// or a year can return to its first offset, so these last until the end of the calendar
    /// period.
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

/// Returns the calendar period of `unit` around a local time: its first local time, and that of the
/// next period.
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

    fn format_local(zone: Tz, t: Micros) -> String {
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
                let (window, _) = assigner.locate(t);
                t = window.end;
                format!(
                    "{} ({})",
                    format_local(zone, window.start),
                    (window.end - window.start) / MINUTE
                )
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
        // The clock skips 03:00 on this day.
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
    fn a_skipped_day_has_no_window() {
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
        let found: Vec<_> = (assigner.locate(t).1.iter())
            .map(|w| format!("{} {}", format_local(helsinki, w.start), (w.end - w.start) / HOUR))
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

    /// Instants from 1902 to 2037, often within a day of an offset change in Helsinki or on Lord
    /// Howe.
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
        fn hop_windows_are_complete_and_match_their_panes(
            zone in prop::sample::select(ZONES.to_vec()), size in size(),
            slide in prop::sample::select(vec![30, 60, 90, 360, 1440]),
            offset_us in prop_oneof![Just(0), -DAY..DAY], t in instant(), within in 0.0..1.0,
        ) {
            let spec = WindowSpec::Hop { slide: Size::Fixed(slide * MINUTE), size, offset_us };
            let mut assigner = Assigner::new(spec, zone).unwrap();
            let (pane, windows) = assigner.locate(t);
            let windows = windows.to_vec();
            prop_assert!(pane.start <= t && t < pane.end);
            for window in &windows {
                prop_assert!(window.start <= pane.start && pane.end <= window.end);
            }
            let inside = pane.start + ((pane.end - pane.start - 1) as f64 * within) as i64;
            let mut fresh = Assigner::new(spec, zone).unwrap();
            let (pane_again, windows_again) = fresh.locate(inside);
            prop_assert_eq!((pane_again, windows_again), (pane, &windows[..]));
            // The windows of the next pane that start earlier must contain this pane as well.
            // Deriving the next pane gives the same result as computing it.
            for _ in 0..5 {
                let (next, held) = fresh.locate(assigner.pane.end);
                for window in held.iter().filter(|w| w.start < next.start) {
                    prop_assert!(assigner.windows.contains(window));
                }
                assigner = Assigner::new(spec, zone).unwrap();
                prop_assert_eq!(assigner.locate(next.start), (next, held));
            }
        }

        #[test]
        fn a_hop_by_its_own_size_is_a_tumbling_window(
            zone in prop::sample::select(ZONES.to_vec()), size in size(), t in instant(),
        ) {
            let hop = WindowSpec::Hop { slide: size, size, offset_us: 0 };
            let mut hop = Assigner::new(hop, zone).unwrap();
            prop_assert_eq!(hop.pane(t), Assigner::new(tumble(size), zone).unwrap().pane(t));
        }

        #[test]
        fn every_instant_has_windows(
            zone in prop::sample::select(ZONES.to_vec()), size in size(), t in any::<i64>(),
            unit in prop::sample::select(vec![TruncUnit::Hour, TruncUnit::Week, TruncUnit::Year]),
        ) {
            for t in [t, i64::MIN, i64::MAX] {
                let hop = WindowSpec::Hop { slide: Size::Fixed(HOUR), size, offset_us: 0 };
                for spec in [tumble(size), hop, WindowSpec::DateTrunc { unit }] {
                    Assigner::new(spec, zone).unwrap().locate(t);
                }
            }
        }
    }
}
