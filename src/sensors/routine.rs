//! The rooms that a person visits during a day: residents of a home, employees of an office.
//!
//! A day is a pure function of seed, person and local date. It is a list of stays with strictly
//! increasing start times that begins at local midnight, so every second of the day has a room. In
//! the home, the hall lies between any two other rooms.

use chrono::{Datelike, NaiveDate, Weekday};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// A person enters `room` at `from_s`, the second of the local day, and stays until the next stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stay {
    /// Seconds after local midnight, in local clock time.
    pub from_s: u32,
    /// The room.
    pub room: &'static str,
}

/// The daily routine of the persons of a profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Routine {
    /// A rest home: residents sleep at night and eat in the kitchen; a hall connects the rooms.
    Home,
    /// An office: employees arrive, work, meet, have lunch and leave; badges are in a rack at night.
    Office,
}

/// The rooms of the home, with the names of `data/rooms.csv`.
pub const HOME_ROOMS: [&str; 4] = ["living room", "kitchen", "hall", "bathroom"];
/// The rooms of the office, with the names of `data/office_rooms.csv`, and the badge rack.
pub const OFFICE_ROOMS: [&str; 7] =
    ["lobby", "open space", "meeting room", "kitchen", "restroom", "server room", BADGE_RACK];
/// The location of a badge that is not worn.
pub const BADGE_RACK: &str = "badge rack";

const MINUTE: u32 = 60;
const HOUR: u32 = 3600;
/// The rank of the office's administrator, who visits the server room often.
const ADMINISTRATOR: u32 = 2;

impl Routine {
    /// The stays on `date` of the person with rank `person` (from 0).
    pub fn day(self, seed: u64, person: u32, date: NaiveDate) -> Vec<Stay> {
        let own = &mut random_for(seed, u64::from(person) + 1, date);
        match self {
            Self::Home => resident_day(own),
            Self::Office => employee_day(own, &mut random_for(seed, 0, date), person, date),
        }
    }

    /// The rooms that the persons visit.
    pub fn rooms(self) -> &'static [&'static str] {
        match self {
            Self::Home => &HOME_ROOMS,
            Self::Office => &OFFICE_ROOMS,
        }
    }
}

/// A random generator per person and date; the constants decorrelate adjacent numbers.
fn random_for(seed: u64, who: u64, date: NaiveDate) -> StdRng {
    let day = date.num_days_from_ce().unsigned_abs();
    let mixed = seed
        ^ who.wrapping_mul(0x9e37_79b9_7f4a_7c15)
        ^ u64::from(day).wrapping_mul(0xd1b5_4a32_d192_ed03);
    StdRng::seed_from_u64(mixed)
}

/// Builds a day. `clock_s` is the earliest second at which the person moves next.
struct DayBuilder {
    stays: Vec<Stay>,
    clock_s: u32,
    /// The room that lies between any two others, if there is one.
    between: Option<&'static str>,
}

impl DayBuilder {
    fn new(room: &'static str, between: Option<&'static str>) -> Self {
        Self { stays: vec![Stay { from_s: 0, room }], clock_s: 0, between }
    }

    fn room(&self) -> &'static str {
        self.stays.last().map_or("", |stay| stay.room)
    }

    /// Moves to `room`, through the connecting room, and stays for at least `stay_s`.
    fn visit(&mut self, rng: &mut StdRng, room: &'static str, stay_s: u32) {
        if let Some(between) =
            self.between.filter(|b| *b != room && *b != self.room() && room != self.room())
        {
            self.enter(between);
            self.clock_s += rng.random_range(20..60);
        }
        self.enter(room);
        self.clock_s += stay_s;
    }

    fn enter(&mut self, room: &'static str) {
        if self.room() != room {
            self.stays.push(Stay { from_s: self.clock_s, room });
        }
    }

    /// Stays in the current room until `at_s`, if that is later than `clock_s`.
    fn wait_until(&mut self, at_s: u32) {
        self.clock_s = self.clock_s.max(at_s);
    }

    fn finish(mut self) -> Vec<Stay> {
        self.stays.retain(|stay| stay.from_s < 24 * HOUR);
        self.stays
    }
}

/// A random second of the day within `spread` minutes of `hour`:`minute`.
fn around(rng: &mut StdRng, hour: u32, minute: u32, spread: u32) -> u32 {
    let middle = hour * HOUR + minute * MINUTE;
    rng.random_range(middle - spread * MINUTE..=middle + spread * MINUTE)
}

/// A random number of seconds from `least` to `most` minutes.
fn minutes(rng: &mut StdRng, least: u32, most: u32) -> u32 {
    rng.random_range(least * MINUTE..=most * MINUTE)
}

/// The day of a resident, who sleeps in the living room.
fn resident_day(rng: &mut StdRng) -> Vec<Stay> {
    let mut day = DayBuilder::new("living room", Some("hall"));
    let wake_s = around(rng, 7, 15, 45);
    for _ in 0..rng.random_range(0..=2) {
        day.clock_s += minutes(rng, 50, 150);
        if day.clock_s + 20 * MINUTE > wake_s {
            break;
        }
        let stay_s = minutes(rng, 4, 10);
        day.visit(rng, "bathroom", stay_s);
        day.visit(rng, "living room", 0);
    }
    day.wait_until(wake_s);
    let stay_s = minutes(rng, 10, 25);
    day.visit(rng, "bathroom", stay_s);
    for (hour, minute, spread) in [(8, 15, 15), (12, 0, 15), (17, 30, 20)] {
        let meal_s = around(rng, hour, minute, spread);
        add_resident_errands(&mut day, rng, meal_s);
        let stay_s = minutes(rng, 25, 45);
        day.visit(rng, "kitchen", stay_s);
        day.visit(rng, "living room", 0);
    }
    let bed_s = around(rng, 21, 45, 45);
    add_resident_errands(&mut day, rng, bed_s);
    let stay_s = minutes(rng, 8, 20);
    day.visit(rng, "bathroom", stay_s);
    day.visit(rng, "living room", 0);
    day.finish()
}

/// Adds visits until `until_s`: the bathroom, a walk in the hall, coffee.
fn add_resident_errands(day: &mut DayBuilder, rng: &mut StdRng, until_s: u32) {
    loop {
        let begin_s = day.clock_s + minutes(rng, 30, 110);
        if begin_s + 25 * MINUTE > until_s {
            break;
        }
        day.wait_until(begin_s);
        let (room, stay_s) = match rng.random_range(0..10) {
            0..5 => ("bathroom", minutes(rng, 3, 10)),
            5..8 => ("hall", minutes(rng, 5, 20)),
            _ => ("kitchen", minutes(rng, 10, 20)),
        };
        day.visit(rng, room, stay_s);
        day.visit(rng, "living room", 0);
    }
    day.wait_until(until_s);
}

/// The day of an employee. `shared` yields the same numbers for all employees on a date, so that
/// they meet at the same times.
fn employee_day(rng: &mut StdRng, shared: &mut StdRng, person: u32, date: NaiveDate) -> Vec<Stay> {
    let mut day = DayBuilder::new(BADGE_RACK, None);
    let weekend = matches!(date.weekday(), Weekday::Sat | Weekday::Sun);
    if weekend || rng.random_bool(0.05) {
        return day.finish();
    }
    let team_s = around(shared, 10, 0, 10);
    let team_stay_s = minutes(shared, 30, 60);
    let second_s = around(shared, 14, 30, 30);
    let second_stay_s = minutes(shared, 30, 75);
    let server_share = if person == ADMINISTRATOR { 0.8 } else { 0.05 };

    day.wait_until(around(rng, 8, 35, 35));
    let stay_s = minutes(rng, 1, 4);
    day.visit(rng, "lobby", stay_s);
    day.visit(rng, "open space", 0);
    add_employee_errands(&mut day, rng, team_s);
    day.visit(rng, "meeting room", team_stay_s);
    day.visit(rng, "open space", 0);
    let lunch_s = around(rng, 11, 55, 25);
    day.wait_until(lunch_s);
    let stay_s = minutes(rng, 30, 45);
    day.visit(rng, "kitchen", stay_s);
    day.visit(rng, "open space", 0);
    if rng.random_bool(server_share) {
        day.wait_until(around(rng, 13, 15, 15));
        let stay_s = minutes(rng, 5, 15);
        day.visit(rng, "server room", stay_s);
        day.visit(rng, "open space", 0);
    }
    if rng.random_bool(0.5) {
        add_employee_errands(&mut day, rng, second_s);
        day.visit(rng, "meeting room", second_stay_s);
        day.visit(rng, "open space", 0);
    }
    let leave_s = around(rng, 17, 15, 60);
    add_employee_errands(&mut day, rng, leave_s);
    let stay_s = minutes(rng, 1, 4);
    day.visit(rng, "lobby", stay_s);
    day.visit(rng, BADGE_RACK, 0);
    day.finish()
}

/// Adds visits between work until `until_s`: the restroom and coffee.
fn add_employee_errands(day: &mut DayBuilder, rng: &mut StdRng, until_s: u32) {
    loop {
        let begin_s = day.clock_s + minutes(rng, 35, 100);
        if begin_s + 15 * MINUTE > until_s {
            break;
        }
        day.wait_until(begin_s);
        let (room, stay_s) = match rng.random_bool(0.55) {
            true => ("restroom", minutes(rng, 3, 7)),
            false => ("kitchen", minutes(rng, 5, 12)),
        };
        day.visit(rng, room, stay_s);
        day.visit(rng, "open space", 0);
    }
    day.wait_until(until_s);
}

/// The room at `second` of `day`.
pub fn room_at(day: &[Stay], second: u32) -> &'static str {
    let after = day.partition_point(|stay| stay.from_s <= second);
    after.checked_sub(1).map_or("", |index| day[index].room)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dates() -> impl Iterator<Item = NaiveDate> {
        NaiveDate::from_ymd_opt(2019, 10, 1).unwrap().iter_days().take(60)
    }

    #[test]
    fn days_are_complete_ordered_and_deterministic() {
        for routine in [Routine::Home, Routine::Office] {
            for (date, person) in dates().flat_map(|date| (0..4).map(move |person| (date, person)))
            {
                let day = routine.day(7, person, date);
                assert_eq!(day[0].from_s, 0);
                assert!(
                    day.windows(2).all(|w| w[0].from_s < w[1].from_s && w[0].room != w[1].room),
                    "{day:?}"
                );
                assert!(day.iter().all(|stay| routine.rooms().contains(&stay.room)));
                assert_eq!(day, routine.day(7, person, date));
                assert_eq!(
                    day[0].room,
                    day[day.len() - 1].room,
                    "consecutive days join at midnight"
                );
            }
        }
        assert_ne!(
            Routine::Home.day(7, 0, dates().next().unwrap()),
            Routine::Home.day(8, 0, dates().next().unwrap())
        );
    }

    #[test]
    fn residents_sleep_at_night_eat_in_the_kitchen_and_cross_the_hall() {
        for (date, person) in dates().flat_map(|date| (0..3).map(move |person| (date, person))) {
            let day = Routine::Home.day(1, person, date);
            let seconds = |room: &str, from: u32, to: u32| {
                (from..to).filter(|s| room_at(&day, *s) == room).count()
            };
            assert!(seconds("living room", 0, 6 * HOUR) > 5 * 3600, "asleep: {day:?}");
            for (from, to) in [(8, 9), (11, 13), (17, 19)] {
                assert!(
                    seconds("kitchen", from * HOUR, to * HOUR) >= 15 * 60,
                    "a meal from {from} to {to}: {day:?}"
                );
            }
            assert!(day.iter().any(|stay| stay.room == "bathroom"));
            assert!(day.windows(2).all(|w| w[0].room == "hall" || w[1].room == "hall"), "{day:?}");
        }
    }

    #[test]
    fn employees_come_meet_eat_and_leave() {
        let mut server_room = [0; 4];
        for (date, person) in dates().flat_map(|date| (0..4).map(move |person| (date, person))) {
            let day = Routine::Office.day(1, person, date);
            if day.len() == 1 {
                continue;
            }
            assert!(!matches!(date.weekday(), Weekday::Sat | Weekday::Sun));
            assert!(
                day[1].room == "lobby" && (8 * HOUR..=9 * HOUR + 600).contains(&day[1].from_s),
                "{day:?}"
            );
            assert_eq!(room_at(&day, 10 * HOUR + 15 * MINUTE), "meeting room", "{day:?}");
            assert!((11 * 3600..14 * 3600).any(|s| room_at(&day, s) == "kitchen"));
            assert_eq!(room_at(&day, 20 * HOUR), BADGE_RACK);
            server_room[person as usize] +=
                u32::from(day.iter().any(|stay| stay.room == "server room"));
        }
        assert!(server_room[2] > 20 && server_room[0] < 10, "{server_room:?}");
    }
}
