//! Days and hours, in a time zone.

use std::collections::BTreeSet;

use chrono::{DateTime, Datelike, Days, NaiveDate, NaiveTime, TimeZone, Utc, Weekday};
use chrono_tz::Tz;
use serde::{Deserialize, Serialize};

use crate::rule::Fault;

/// How far ahead the end of a window that follows another without a gap is looked for, in days.
const HORIZON_DAYS: u64 = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Day {
    Mon,
    Tue,
    Wed,
    Thu,
    Fri,
    Sat,
    Sun,
}

impl From<Weekday> for Day {
    fn from(day: Weekday) -> Self {
        match day {
            Weekday::Mon => Self::Mon,
            Weekday::Tue => Self::Tue,
            Weekday::Wed => Self::Wed,
            Weekday::Thu => Self::Thu,
            Weekday::Fri => Self::Fri,
            Weekday::Sat => Self::Sat,
            Weekday::Sun => Self::Sun,
        }
    }
}

/// A window that opens on each of `days` at `from` and closes at `until`, on the next day where that is not later.
/// Daylight saving follows the time zone: a time that a day does not have counts as the first one after the gap.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// The days on which the window opens.
    pub days: BTreeSet<Day>,
    /// `HH:MM`.
    pub from: String,
    /// `HH:MM`; the same as `from` is 24 hours.
    pub until: String,
    /// IANA name, as `Europe/Berlin` or `UTC`.
    pub timezone: String,
}

struct Hours {
    from: NaiveTime,
    until: NaiveTime,
    zone: Tz,
}

impl Schedule {
    /// # Errors
    /// `Fault` on `schedule`, saying which part is wrong.
    pub fn check(&self) -> Result<(), Fault> {
        if self.days.is_empty() {
            return Err(Fault::new(
                "schedule",
                "must have days: at least one of mon, tue, wed, thu, fri, sat, sun",
            ));
        }
        self.hours().map(|_| ())
    }

    fn hours(&self) -> Result<Hours, Fault> {
        let time = |text: &str, what: &str| {
            let shaped = text.len() == 5;
            NaiveTime::parse_from_str(text, "%H:%M")
                .ok()
                .filter(|_| shaped)
                .ok_or_else(|| Fault::new("schedule", format!("must have {what} as HH:MM, from 00:00 to 23:59")))
        };
        let zone = self.timezone.parse().map_err(|_| {
            Fault::new(
                "schedule",
                "must have timezone as an IANA name, as Europe/Berlin or UTC",
            )
        })?;
        Ok(Hours {
            from: time(&self.from, "from")?,
            until: time(&self.until, "until")?,
            zone,
        })
    }

    /// When the window that holds `now` closes; `None` where it is shut (or the schedule cannot be read: fail closed).
    /// Windows that follow each other without a gap are one.
    #[must_use]
    pub fn open_until(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let hours = self.hours().ok()?;
        let today = now.with_timezone(&hours.zone).date_naive();
        let mut open: Option<DateTime<Utc>> = None;
        // yesterday's window may reach into today
        let mut day = today.checked_sub_days(Days::new(1))?;
        for _ in 0..=HORIZON_DAYS {
            if self.days.contains(&day.weekday().into()) {
                let (from, until) = hours.window(day)?;
                match open {
                    None if from <= now && now < until => open = Some(until),
                    Some(end) if from <= end => open = Some(end.max(until)),
                    _ => {}
                }
            }
            day = day.checked_add_days(Days::new(1))?;
        }
        open
    }
}

impl Hours {
    fn window(&self, day: NaiveDate) -> Option<(DateTime<Utc>, DateTime<Utc>)> {
        let last = if self.until > self.from {
            day
        } else {
            day.checked_add_days(Days::new(1))?
        };
        Some((self.instant(day, self.from)?, self.instant(last, self.until)?))
    }

    /// Where the clock shows a time twice, the first; where never, the first time that it shows after it.
    fn instant(&self, day: NaiveDate, time: NaiveTime) -> Option<DateTime<Utc>> {
        let mut local = day.and_time(time);
        for _ in 0..8 {
            if let Some(found) = self.zone.from_local_datetime(&local).earliest() {
                return Some(found.with_timezone(&Utc));
            }
            local = local.checked_add_signed(chrono::TimeDelta::minutes(30))?;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(days: &[Day], from: &str, until: &str, zone: &str) -> Schedule {
        Schedule {
            days: days.iter().copied().collect(),
            from: from.into(),
            until: until.into(),
            timezone: zone.into(),
        }
    }

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().expect("a time")
    }

    const WEEK: [Day; 5] = [Day::Mon, Day::Tue, Day::Wed, Day::Thu, Day::Fri];
    const ALL: [Day; 7] = [Day::Mon, Day::Tue, Day::Wed, Day::Thu, Day::Fri, Day::Sat, Day::Sun];

    #[test]
    fn office_hours_follow_the_zone_and_its_summer() {
        let office = schedule(&WEEK, "08:00", "18:00", "Europe/Berlin");
        // 2026-11-24 is a Tuesday; Berlin is UTC+1 then, UTC+2 in July.
        assert_eq!(
            office.open_until(at("2026-11-24T07:00:00Z")),
            Some(at("2026-11-24T17:00:00Z"))
        );
        assert_eq!(office.open_until(at("2026-11-24T06:59:59Z")), None);
        assert_eq!(office.open_until(at("2026-11-24T17:00:00Z")), None);
        assert_eq!(
            office.open_until(at("2026-07-14T06:00:00Z")),
            Some(at("2026-07-14T16:00:00Z"))
        );
        assert_eq!(office.open_until(at("2026-11-28T10:00:00Z")), None, "a Saturday");
    }

    #[test]
    fn a_night_belongs_to_the_day_on_which_it_begins() {
        let night = schedule(&[Day::Fri], "22:00", "06:00", "UTC");
        assert_eq!(
            night.open_until(at("2026-11-27T23:00:00Z")),
            Some(at("2026-11-28T06:00:00Z"))
        );
        assert_eq!(
            night.open_until(at("2026-11-28T05:59:00Z")),
            Some(at("2026-11-28T06:00:00Z"))
        );
        assert_eq!(night.open_until(at("2026-11-27T05:00:00Z")), None, "Thursday's night");
    }

    #[test]
    fn windows_without_a_gap_are_one() {
        let weekdays = schedule(&WEEK, "00:00", "00:00", "UTC");
        assert_eq!(
            weekdays.open_until(at("2026-11-25T12:00:00Z")),
            Some(at("2026-11-28T00:00:00Z"))
        );
        let always = schedule(&ALL, "09:00", "09:00", "UTC");
        assert!(always.open_until(at("2026-11-25T12:00:00Z")) > Some(at("2026-11-30T00:00:00Z")));
    }

    #[test]
    fn a_time_that_a_day_lacks_is_the_first_after_it() {
        // Berlin, 29 March 2026: 02:00 to 03:00 does not exist.
        let gap = schedule(&ALL, "02:30", "05:00", "Europe/Berlin");
        assert_eq!(
            gap.open_until(at("2026-03-29T01:00:00Z")),
            Some(at("2026-03-29T03:00:00Z"))
        );
        assert_eq!(gap.open_until(at("2026-03-29T00:59:00Z")), None);
    }

    #[test]
    fn what_cannot_be_read_is_refused_and_shut() {
        for (days, from, until, zone) in [
            (&WEEK[..0], "08:00", "18:00", "UTC"),
            (&WEEK[..], "8:00", "18:00", "UTC"),
            (&WEEK[..], "08:00", "24:00", "UTC"),
            (&WEEK[..], "08:00", "18:00", "Mars/Olympus"),
        ] {
            let bad = schedule(days, from, until, zone);
            assert_eq!(bad.check().err().map(|fault| fault.field), Some("schedule"));
            assert_eq!(bad.open_until(at("2026-11-24T10:00:00Z")), None);
        }
    }
}
