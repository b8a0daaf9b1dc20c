//! Retention: which snapshots stay.
//!
//! Each rule goes from the newest snapshot to the oldest and keeps the newest of each period until it has kept its
//! number. A snapshot stays when any rule keeps it. A torn snapshot counts for no period, so that it never pushes
//! out a good one; only `last` counts it. Where the rules keep none, as they count nothing or find torn ones only,
//! the newest stays: forgetting by rules never takes the last.

use crate::manifest::Consistency;
use jiff::Timestamp;
use jiff::tz::TimeZone;

/// How many of each to keep; `None` where there is no such rule.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KeepRules {
    /// The newest so many.
    pub last: Option<u32>,
    /// The newest of each of the newest so many hours that have one.
    pub hourly: Option<u32>,
    /// Of each day.
    pub daily: Option<u32>,
    /// Of each ISO week, Monday to Sunday.
    pub weekly: Option<u32>,
    /// Of each month.
    pub monthly: Option<u32>,
    /// Of each year.
    pub yearly: Option<u32>,
}

impl KeepRules {
    /// Whether no rule is given: then nothing may be forgotten.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What becomes of one snapshot, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Whether it stays.
    pub keep: bool,
    /// For people: `last 2; daily 2026-11-21`, or why it goes.
    pub reason: String,
}

type Period = fn(&jiff::Zoned) -> String;

/// Decides over snapshots given as instant and consistency, in any order; the answer is in the same order.
///
/// Periods are those of `zone`. Without rules everything stays.
pub fn retain(snapshots: &[(Timestamp, Consistency)], rules: &KeepRules, zone: &TimeZone) -> Vec<Decision> {
    let mut newest_first: Vec<usize> = (0..snapshots.len()).collect();
    newest_first.sort_by_key(|&number| std::cmp::Reverse((snapshots[number].0, number)));
    let mut reasons: Vec<Vec<String>> = vec![Vec::new(); snapshots.len()];
    for (&number, place) in newest_first.iter().zip(1..=rules.last.unwrap_or(0)) {
        reasons[number].push(format!("last {place}"));
    }
    let periods: [(&str, Option<u32>, Period); 5] = [
        ("hourly", rules.hourly, |time| time.strftime("%Y-%m-%d %H:00 %z").to_string()),
        ("daily", rules.daily, |time| time.strftime("%Y-%m-%d").to_string()),
        ("weekly", rules.weekly, |time| time.strftime("%G-W%V").to_string()),
        ("monthly", rules.monthly, |time| time.strftime("%Y-%m").to_string()),
        ("yearly", rules.yearly, |time| time.strftime("%Y").to_string()),
    ];
    for (name, most, period) in periods {
        let mut left = most.unwrap_or(0);
        let mut last_period = None;
        for &number in &newest_first {
            let (time, consistency) = snapshots[number];
            if left == 0 {
                break;
            }
            let this = Some(period(&time.to_zoned(zone.clone())));
            if consistency == Consistency::Torn || this == last_period {
                continue;
            }
            reasons[number].push(format!("{name} {}", this.as_deref().unwrap_or_default()));
            last_period = this;
            left -= 1;
        }
    }
    if let (Some(&newest), true) = (newest_first.first(), reasons.iter().all(Vec::is_empty)) {
        reasons[newest].push("the last that there is".to_owned());
    }
    let decide = |reasons: Vec<String>| match (rules.is_empty(), reasons.is_empty()) {
        (true, _) => Decision { keep: true, reason: "no rule was given".to_owned() },
        (false, true) => Decision { keep: false, reason: "no rule keeps it".to_owned() },
        (false, false) => Decision { keep: true, reason: reasons.join("; ") },
    };
    reasons.into_iter().map(decide).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn kept(times: &[&str], rules: KeepRules) -> Vec<bool> {
        let snapshots: Vec<_> = times.iter().map(|time| (time.parse().unwrap(), Consistency::Crash)).collect();
        retain(&snapshots, &rules, &TimeZone::UTC).into_iter().map(|decision| decision.keep).collect()
    }

    #[test]
    fn the_newest_of_each_period_stays() {
        let times = ["2026-01-01T01:00:00Z", "2026-01-01T23:00:00Z", "2026-01-02T01:00:00Z", "2026-01-05T00:00:00Z"];
        let daily = |count| KeepRules { daily: Some(count), ..KeepRules::default() };
        assert_eq!(kept(&times, daily(2)), [false, false, true, true]);
        assert_eq!(kept(&times, daily(3)), [false, true, true, true]);
        let weekly = KeepRules { weekly: Some(2), ..KeepRules::default() };
        // 5 January 2026 is a Monday.
        assert_eq!(kept(&times, weekly), [false, false, true, true]);
        let last = KeepRules { last: Some(1), yearly: Some(9), ..KeepRules::default() };
        assert_eq!(kept(&times, last), [false, false, false, true]);
        assert_eq!(kept(&times, KeepRules::default()), [true; 4]);
        assert_eq!(kept(&times, KeepRules { last: Some(0), ..KeepRules::default() }), [false, false, false, true]);
    }

    #[test]
    fn periods_are_those_of_the_zone_and_an_hour_that_comes_twice_is_two() {
        let zone = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
        let snapshots: Vec<(Timestamp, _)> =
            ["2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z", "2026-10-25T22:59:00Z", "2026-10-25T23:00:00Z"]
                .map(|time| (time.parse().unwrap(), Consistency::Crash))
                .to_vec();
        let keep = |rules| retain(&snapshots, &rules, &zone).into_iter().map(|d| d.keep).collect::<Vec<_>>();
        assert_eq!(keep(KeepRules { hourly: Some(9), ..KeepRules::default() }), [true; 4]);
        assert_eq!(keep(KeepRules { daily: Some(9), ..KeepRules::default() }), [false, false, true, true]);
    }

    #[test]
    fn a_torn_snapshot_pushes_out_no_good_one() {
        let snapshots = [
            ("2026-01-01T01:00:00Z".parse().unwrap(), Consistency::Filesystem),
            ("2026-01-01T02:00:00Z".parse().unwrap(), Consistency::Torn),
        ];
        let rules = KeepRules { daily: Some(1), ..KeepRules::default() };
        let decisions = retain(&snapshots, &rules, &TimeZone::UTC);
        assert_eq!(decisions.iter().map(|d| d.keep).collect::<Vec<_>>(), [true, false]);
        assert_eq!(decisions[0].reason, "daily 2026-01-01");
        let decisions = retain(&snapshots[1..], &rules, &TimeZone::UTC);
        assert!(decisions[0].keep, "{}", decisions[0].reason);
    }

    proptest! {
        #[test]
        fn forgetting_again_forgets_nothing_more(minutes in prop::collection::vec(0_i64..2_000_000, 1..60), counts in any::<[Option<u8>; 6]>()) {
            let [last, hourly, daily, weekly, monthly, yearly] = counts.map(|count| count.map(|c| u32::from(c % 9)));
            let rules = KeepRules { last, hourly, daily, weekly, monthly, yearly };
            let snapshots: Vec<_> = minutes.iter().map(|minute| (Timestamp::from_second(minute * 60).unwrap(), Consistency::Crash)).collect();
            let kept: Vec<_> = snapshots.iter().zip(retain(&snapshots, &rules, &TimeZone::UTC)).filter(|(_, d)| d.keep).map(|(s, _)| *s).collect();
            prop_assert!(retain(&kept, &rules, &TimeZone::UTC).iter().all(|decision| decision.keep));
            let most: usize = [last, hourly, daily, weekly, monthly, yearly].iter().flatten().map(|c| *c as usize).sum();
            prop_assert!(rules.is_empty() || (1..=most.max(1)).contains(&kept.len()));
        }
    }
}
