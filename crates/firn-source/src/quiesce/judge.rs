//! What can be said of what was taken: honestly, and less rather than more.
//!
//! ```text
//!   a source that is not atomic, and no freeze of its own guest over the cut    torn
//!   no guest, or not all of the machine's guests frozen over the cut            crash
//!   all frozen over the cut                                                     filesystem
//!   and at least one pre-freeze hook, all of which succeeded                    application
//! ```
//! Disks that were cut one after the other without a freeze, and machines of a group of which one ran on, are not of one
//! instant: a remark says so, and how far apart they are.

use super::cut::{Consistency, Member, Run, Taken};
use super::freeze::{Subject, Subjects};
use super::hooks::{HookOutcome, Phase};
use crate::source::Source;
use firn_disk::Result;
use jiff::Timestamp;
use std::time::Duration;

impl Run<'_> {
    /// What can be said of each member.
    pub(super) fn judge(&mut self, subjects: &Subjects<'_>, created: Timestamp) -> Result<Vec<Taken>> {
        self.refuse_trouble(subjects)?;
        let held: Vec<bool> = (0..self.members.len())
            .map(|index| {
                let mut own = subjects.all.iter().filter(|subject| subject.member == index).peekable();
                own.peek().is_some() && own.all(Subject::was_held)
            })
            .collect();
        for subject in &subjects.all {
            if let Some(trouble) = &subject.trouble {
                let who = subject.guest.describe();
                let hint = trouble.next_step().map(|hint| format!("; {hint}")).unwrap_or_default();
                self.notes[subject.member].remarks.push(format!("not frozen by {who}: {trouble}{hint}"));
            }
        }
        self.remark_on_instants(&held);
        let taken = (0..self.members.len()).map(|index| {
            let times = subjects.all.iter().filter(|subject| subject.member == index).map(|subject| subject.frozen);
            let times = times.fold(None, widen);
            Taken {
                consistency: self.consistency(index, subjects, held[index]),
                created: instant(&self.members[index], created),
                frozen: times.map(|(began, ended)| ended.saturating_sub(began)),
                remarks: Vec::new(),
                hooks: Vec::new(),
            }
        });
        Ok(taken.collect())
    }

    fn consistency(&self, index: usize, subjects: &Subjects<'_>, is_held: bool) -> Consistency {
        let member = &self.members[index];
        let held: Vec<_> =
            subjects.all.iter().filter(|subject| subject.was_held()).map(|it| it.guest.ticket()).collect();
        // A source that is not atomic is whole only under a freeze of its own guest.
        let is_torn = |source: &dyn Source| {
            !source.is_atomic() && !source.guest().is_some_and(|guest| held.contains(&guest.ticket()))
        };
        if member.sources.iter().any(|source| is_torn(&**source)) {
            return Consistency::Torn;
        }
        let mut before = self.notes[index].hooks.iter().filter(|hook| hook.phase == Phase::PreFreeze).peekable();
        match (is_held, before.peek().is_some() && before.all(HookOutcome::is_good)) {
            (true, true) => Consistency::Application,
            (true, false) => Consistency::Filesystem,
            (false, _) => Consistency::Crash,
        }
    }

    /// Says where disks are not of one instant.
    fn remark_on_instants(&mut self, held: &[bool]) {
        for (index, is_held) in held.iter().enumerate() {
            let sources = &self.members[index].sources;
            let count = sources.iter().filter(|source| is_cut(&***source)).count();
            let mut past: Vec<_> = sources.iter().filter_map(|source| source.taken()).collect();
            past.sort_unstable();
            past.dedup();
            let notes = &mut self.notes[index];
            if let (false, true, Some((began, ended))) = (*is_held, count > 1, notes.cuts) {
                let apart = ended.saturating_sub(began).as_millis();
                notes.remarks.push(format!("not one instant: {count} sources were cut {apart} ms apart"));
            }
            if past.len() > 1 || past.len() == 1 && count > 0 {
                let times = past.iter().map(Timestamp::to_string).collect::<Vec<_>>().join(", ");
                notes.remarks.push(format!("not one instant: some of its disks are of {times}"));
            }
        }
        let loose: Vec<_> =
            (0..self.members.len()).filter(|index| !held[*index] && self.notes[*index].cuts.is_some()).collect();
        let spread = self.notes.iter().map(|notes| notes.cuts).fold(None, widen);
        if let (false, true, Some((began, ended))) = (loose.is_empty(), self.members.len() > 1, spread) {
            let names = loose.iter().map(|index| self.members[*index].machine.as_str()).collect::<Vec<_>>().join(", ");
            let apart = ended.saturating_sub(began).as_millis();
            let remark = format!("the group is not of one instant: {names} ran on; cut {apart} ms apart");
            self.notes.iter_mut().for_each(|notes| notes.remarks.push(remark.clone()));
        }
    }
}

/// Its instant is over already.
fn is_past(source: &dyn Source) -> bool {
    source.taken().is_some()
}

/// There is nothing to freeze and to cut.
pub(super) fn are_past(member: &Member) -> bool {
    member.sources.iter().all(|source| is_past(&**source))
}

/// Its instant is that of the cut. One that leaves nothing behind has nothing to cut: nobody writes to it.
pub(super) fn is_cut(source: &dyn Source) -> bool {
    !is_past(source) && source.leaves_things()
}

fn instant(member: &Member, cut: Timestamp) -> Timestamp {
    let past = member.sources.iter().filter_map(|source| source.taken()).max();
    past.filter(|_| are_past(member)).unwrap_or(cut)
}

/// The span over both.
pub(super) fn widen(
    one: Option<(Duration, Duration)>,
    two: Option<(Duration, Duration)>,
) -> Option<(Duration, Duration)> {
    match (one, two) {
        (Some((began, ended)), Some((other_began, other_ended))) => {
            Some((began.min(other_began), ended.max(other_ended)))
        }
        (one, two) => one.or(two),
    }
}
