//! Which snapshot an address means: the part after its `@`.
//!
//! | text | snapshot |
//! |---|---|
//! | `latest`, `latest~2` | the newest, the second before it |
//! | `first` | the oldest |
//! | `2026`, `2026-11`, `2026-11-17` | the newest not later than the end of that year, month or day |
//! | `2026-11-17T03:00`, `2026-11-17T03:00:00` | … of that minute or second |
//! | `2026-11-17T03:00:00Z`, `…+01:00` | the same, in that zone rather than the local one |
//! | `03:00`, `03:00:00` | … of the last time that the clock showed it |
//! | `today`, `yesterday` | … of that day |
//!
//! There is no clock in here: what time it is, and where, is passed in.

use firn_disk::{Error, Result};
use jiff::civil::{Date, DateTime, Time};
use jiff::tz::{Offset, TimeZone};
use jiff::{SignedDuration, Span, Timestamp, Zoned};
use std::fmt;

/// A choice of one snapshot of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// The newest, or the one that is `back` before it.
    Latest {
        /// How many newer ones to pass over.
        back: usize,
    },
    /// The oldest.
    First,
    /// The newest that is not later than the end of a span of time.
    UpTo(Period),
}

/// A span of time as people name one: its first and its last second on the clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Period {
    /// A year, month, day, minute or second of the calendar.
    Calendar {
        /// Its first second.
        first: DateTime,
        /// Its last second.
        last: DateTime,
        /// The zone that was given with it.
        offset: Option<Offset>,
    },
    /// A time of the day, each day.
    Clock {
        /// Its first second.
        first: Time,
        /// Its last second.
        last: Time,
    },
    /// The day that is so many days before the current one.
    DaysAgo(i32),
}

impl Moment {
    /// Reads what stands after the `@`.
    ///
    /// # Errors
    /// `Invalid`, with the forms that there are.
    pub fn parse(text: &str) -> Result<Self> {
        if let Some(rest) = text.strip_prefix("latest") {
            let back = match rest.strip_prefix('~') {
                Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits.parse().ok(),
                None if rest.is_empty() => Some(0),
                _ => None,
            };
            return back.map(|back| Self::Latest { back }).ok_or_else(|| not_understood(text));
        }
        match text {
            "first" => Ok(Self::First),
            "today" => Ok(Self::UpTo(Period::DaysAgo(0))),
            "yesterday" => Ok(Self::UpTo(Period::DaysAgo(1))),
            _ => Period::parse(text).map(Self::UpTo).ok_or_else(|| not_understood(text)),
        }
    }

    /// Which of the snapshots taken at `times`, in any order, is meant; `None` when none fits. Of several with
    /// one time the last counts as the newest.
    ///
    /// # Errors
    /// `Invalid` when the named time is outside of the calendar.
    pub fn pick(&self, times: &[Timestamp], now: &Zoned) -> Result<Option<usize>> {
        let mut order: Vec<usize> = (0..times.len()).collect();
        order.sort_by_key(|&at| times.get(at));
        Ok(match self {
            Self::First => order.first().copied(),
            Self::Latest { back } => order.iter().rev().nth(*back).copied(),
            Self::UpTo(period) => {
                let (_, end) = period.bounds(now)?;
                order.retain(|&at| times.get(at).is_some_and(|time| *time < end));
                order.last().copied()
            }
        })
    }

    /// Whether `time` lies in the span that was named; other moments name no span.
    ///
    /// # Errors
    /// `Invalid` when the named time is outside of the calendar.
    pub fn covers(&self, time: Timestamp, now: &Zoned) -> Result<bool> {
        match self {
            Self::First | Self::Latest { .. } => Ok(true),
            Self::UpTo(period) => period.bounds(now).map(|(start, end)| start <= time && time < end),
        }
    }
}

fn not_understood(text: &str) -> Error {
    Error::invalid(format!("@{text} names no snapshot"))
        .hint("write @latest, @latest~2, @first, @today, @yesterday, @03:00, @2026-11-17 or @2026-11-17T03:00:00")
}

impl Period {
    fn parse(text: &str) -> Option<Self> {
        if let Some((first, last)) = clock(text) {
            return Some(Self::Clock { first, last });
        }
        let Some((date, time)) = text.split_once('T') else {
            let (first, last) = days(text)?;
            let last = last.to_datetime(Time::new(23, 59, 59, 0).ok()?);
            return Some(Self::Calendar { first: first.to_datetime(Time::midnight()), last, offset: None });
        };
        let date = full_date(date)?;
        let (time, offset) = match time.find(['Z', '+', '-']) {
            Some(at) => (time.get(..at)?, Some(zone(time.get(at..)?)?)),
            None => (time, None),
        };
        let (first, last) = clock(time)?;
        Some(Self::Calendar { first: date.to_datetime(first), last: date.to_datetime(last), offset })
    }

    /// Its first instant, and the first after it.
    fn bounds(&self, now: &Zoned) -> Result<(Timestamp, Timestamp)> {
        let zone = now.time_zone();
        let bounds = |first: DateTime, last: DateTime, zone: &TimeZone| {
            let first = zone.to_ambiguous_zoned(first).earlier()?.timestamp();
            let last = zone.to_ambiguous_zoned(last).later()?.timestamp();
            Ok((first, last.checked_add(SignedDuration::from_secs(1))?))
        };
        let found = match self {
            Self::Calendar { first, last, offset } => {
                bounds(*first, *last, &offset.map_or_else(|| zone.clone(), TimeZone::fixed))
            }
            Self::DaysAgo(days) => {
                let day = now.date().checked_sub(Span::new().days(*days));
                day.and_then(|day| bounds(day.to_datetime(Time::midnight()), day.at(23, 59, 59, 0), zone))
            }
            Self::Clock { first, last } => {
                let today = now.date();
                // The second time when the clocks are set back over it.
                let begun = zone.to_ambiguous_zoned(today.to_datetime(*first)).later().map(|first| first <= *now);
                let day = begun.and_then(|begun| if begun { Ok(today) } else { today.yesterday() });
                day.and_then(|day| bounds(day.to_datetime(*first), day.to_datetime(*last), zone))
            }
        };
        found.map_err(|error: jiff::Error| Error::invalid("the named time is outside of the calendar").because(error))
    }
}

/// Exactly `count` digits.
fn digits<N: std::str::FromStr>(text: &str, count: usize) -> Option<N> {
    (text.len() == count && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok())?
}

/// The first and the last day of a year or month, or a day twice.
fn days(text: &str) -> Option<(Date, Date)> {
    let parts: Vec<&str> = text.split('-').collect();
    match parts.as_slice() {
        [year] => Some((Date::new(digits(year, 4)?, 1, 1).ok()?, Date::new(digits(year, 4)?, 12, 31).ok()?)),
        [year, month] => {
            let first = Date::new(digits(year, 4)?, digits(month, 2)?, 1).ok()?;
            Some((first, first.last_of_month()))
        }
        [_, _, _] => full_date(text).map(|day| (day, day)),
        _ => None,
    }
}

fn full_date(text: &str) -> Option<Date> {
    let mut parts = text.split('-');
    let (year, month, day) = (parts.next()?, parts.next()?, parts.next()?);
    parts.next().is_none().then(|| Date::new(digits(year, 4)?, digits(month, 2)?, digits(day, 2)?).ok())?
}

/// The first and the last second of a minute, or a second twice.
fn clock(text: &str) -> Option<(Time, Time)> {
    let parts: Vec<&str> = text.split(':').collect();
    let (hour, minute, seconds) = match parts.as_slice() {
        [hour, minute] => (hour, minute, (0, 59)),
        [hour, minute, second] => {
            let second = digits(second, 2)?;
            (hour, minute, (second, second))
        }
        _ => return None,
    };
    let at = |second| Time::new(digits(hour, 2)?, digits(minute, 2)?, second, 0).ok();
    Some((at(seconds.0)?, at(seconds.1)?))
}

/// `Z`, `+01:00` or `-0330`.
fn zone(text: &str) -> Option<Offset> {
    if text == "Z" {
        return Some(Offset::UTC);
    }
    let sign = if text.starts_with('-') { -1 } else { 1 };
    let (hours, minutes) = match text.get(1..)?.split_once(':') {
        Some(parts) => parts,
        None => text.get(1..)?.split_at_checked(2)?,
    };
    let (hours, minutes): (i32, i32) = (digits(hours, 2)?, digits(minutes, 2)?);
    (minutes < 60).then(|| Offset::from_seconds(sign * (hours * 3600 + minutes * 60)).ok())?
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latest { back: 0 } => f.write_str("latest"),
            Self::Latest { back } => write!(f, "latest~{back}"),
            Self::First => f.write_str("first"),
            Self::UpTo(Period::DaysAgo(0)) => f.write_str("today"),
            Self::UpTo(Period::DaysAgo(1)) => f.write_str("yesterday"),
            Self::UpTo(Period::DaysAgo(days)) => write!(f, "{days} days ago"),
            Self::UpTo(Period::Clock { last, .. }) => write!(f, "up to {last}"),
            Self::UpTo(Period::Calendar { last, offset: None, .. }) => write!(f, "up to {last}"),
            Self::UpTo(Period::Calendar { last, offset: Some(offset), .. }) => write!(f, "up to {last}{offset}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Central European time, where 2026-10-25T02:00 to 03:00 is shown twice and 2026-03-29T02:30 never.
    fn berlin() -> TimeZone {
        TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap()
    }

    fn now(text: &str) -> Zoned {
        text.parse::<Timestamp>().unwrap().to_zoned(berlin())
    }

    fn end(text: &str, at: &str) -> String {
        match Moment::parse(text).unwrap() {
            Moment::UpTo(period) => period.bounds(&now(at)).unwrap().1.to_string(),
            other => panic!("{text} is {other:?}"),
        }
    }

    #[test]
    fn periods_end_where_people_mean_them_to() {
        let at = "2026-11-17T12:00:00Z";
        for (text, expected) in [
            ("2026", "2026-12-31T23:00:00Z"),
            ("2026-02", "2026-02-28T23:00:00Z"),
            ("2026-11-17", "2026-11-17T23:00:00Z"),
            ("2026-07-01", "2026-07-01T22:00:00Z"),
            ("2026-11-17T03:00", "2026-11-17T02:01:00Z"),
            ("2026-11-17T03:00:00", "2026-11-17T02:00:01Z"),
            ("2026-11-17T03:00:00Z", "2026-11-17T03:00:01Z"),
            ("2026-11-17T03:00-0330", "2026-11-17T06:31:00Z"),
            ("2026-11-17T03:00+05:45", "2026-11-16T21:16:00Z"),
            ("today", "2026-11-17T23:00:00Z"),
            ("yesterday", "2026-11-16T23:00:00Z"),
            ("03:00", "2026-11-17T02:01:00Z"),
            ("13:00", "2026-11-17T12:01:00Z"),
            ("13:01", "2026-11-16T12:02:00Z"),
            ("23:59:59", "2026-11-16T23:00:00Z"),
        ] {
            assert_eq!(end(text, at), expected, "{text}");
        }
    }

    #[test]
    fn clocks_that_are_set_do_not_confuse() {
        let at = "2026-11-17T12:00:00Z";
        // 02:30 was shown at 00:30Z and at 01:30Z; 01:59 once, before.
        assert_eq!(end("2026-10-25T02:30", at), "2026-10-25T01:31:00Z");
        assert_eq!(end("2026-10-25T01:59", at), "2026-10-25T00:00:00Z");
        assert_eq!(end("2026-10-25", at), "2026-10-25T23:00:00Z");
        assert_eq!(end("2026-03-29T02:30", at), "2026-03-29T01:31:00Z");
        assert_eq!(end("yesterday", "2026-10-26T05:00:00Z"), "2026-10-25T23:00:00Z");
    }

    #[test]
    fn a_span_covers_what_lies_in_it() {
        let at = now("2026-11-17T12:00:00Z");
        for (text, first, last) in [
            ("2026", "2025-12-31T23:00:00Z", "2026-12-31T22:59:59.9Z"),
            ("2026-02", "2026-01-31T23:00:00Z", "2026-02-28T22:59:59.9Z"),
            ("2026-11-17", "2026-11-16T23:00:00Z", "2026-11-17T22:59:59.9Z"),
            ("2026-11-17T03:00", "2026-11-17T02:00:00Z", "2026-11-17T02:00:59.9Z"),
            ("2026-11-17T03:00:05Z", "2026-11-17T03:00:05Z", "2026-11-17T03:00:05.9Z"),
            ("yesterday", "2026-11-15T23:00:00Z", "2026-11-16T22:59:59.9Z"),
            ("13:01", "2026-11-16T12:01:00Z", "2026-11-16T12:01:59.9Z"),
            // Shown twice, both are meant.
            ("2026-10-25T02:30", "2026-10-25T00:30:00Z", "2026-10-25T01:30:59.9Z"),
        ] {
            let (moment, first): (_, Timestamp) = (Moment::parse(text).unwrap(), first.parse().unwrap());
            let covers = |time: Timestamp| moment.covers(time, &at).unwrap();
            assert!(covers(first) && covers(last.parse().unwrap()), "{text}");
            assert!(!covers(first - SignedDuration::from_nanos(1)), "{text}");
            assert!(!covers(last.parse::<Timestamp>().unwrap() + SignedDuration::from_millis(100)), "{text}");
        }
        assert!(Moment::First.covers(Timestamp::MIN, &at).unwrap());
    }

    #[test]
    fn the_newest_that_fits_is_picked() {
        let times: Vec<Timestamp> =
            ["2026-11-16T02:00:00Z", "2026-11-17T02:00:00.7Z", "2026-11-15T02:00:00Z", "2026-11-17T09:00:00Z"]
                .iter()
                .map(|text| text.parse().unwrap())
                .collect();
        let at = now("2026-11-17T12:00:00Z");
        for (text, expected) in [
            ("latest", Some(3)),
            ("latest~1", Some(1)),
            ("latest~3", Some(2)),
            ("latest~4", None),
            ("latest~99999999999999999", None),
            ("first", Some(2)),
            ("03:00", Some(1)),
            ("2026-11-17T03:00:00", Some(1)),
            ("2026-11-17T02:59:59", Some(0)),
            ("yesterday", Some(0)),
            ("2026-11-14", None),
            ("2027", Some(3)),
        ] {
            assert_eq!(Moment::parse(text).unwrap().pick(&times, &at).unwrap(), expected, "{text}");
        }
        assert_eq!(Moment::First.pick(&[], &at).unwrap(), None);
        assert_eq!(Moment::parse("9999").unwrap().pick(&times, &at).map_err(|error| error.kind()).ok(), None);
    }

    #[test]
    fn what_is_no_time_is_refused_with_the_forms() {
        for text in [
            "",
            "latest~",
            "latest~-1",
            "latest~+1",
            "later",
            "26-11-17",
            "2026-13",
            "2026-02-30",
            "2026-1-1",
            "24:00",
            "3:00",
            "03:60",
            "2026-11-17T",
            "2026-11-17T3",
            "2026-11-17T03:00:00+1",
            "2026-11-17T03:00X",
            "Tuesday",
            "2026-11-17-01",
            "2026-11-17T03:00+aa:bb",
            "+026-11",
            "2026-11-17T03:00+é0",
        ] {
            let error = Moment::parse(text).expect_err(text);
            assert_eq!(error.kind(), firn_disk::ErrorKind::Invalid, "{text}");
            assert!(error.next_step().unwrap().contains("@latest"));
        }
    }
}
