//! Notes: what is said of a machine or snapshot after it was written, in numbered objects that are only created.
//!
//! The highest number that can be read wins. Fields: `1` name of the machine.

use crate::entropy::Entropy;
use crate::fields::{FieldWriter, Fields};
use crate::key::Keys;
use crate::manifest::{open_structure, seal_structure};
use crate::names;
use crate::object::ObjectKind;
use crate::store::Store;
use firn_disk::{Error, Result};
use std::collections::BTreeMap;
use uuid::Uuid;

const NAME: u16 = 1;

/// What a note says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Note {
    pub(crate) name: String,
}

/// Writes note `number` of `subject`.
///
/// # Errors
/// `Exists` when somebody else wrote that number first.
pub(crate) fn write(
    store: &Store,
    keys: &Keys,
    subject: Uuid,
    number: u64,
    note: &Note,
    entropy: &dyn Entropy,
) -> Result<()> {
    let mut fields = FieldWriter::default();
    fields.text(NAME, &note.name);
    let bytes = seal_structure(keys, ObjectKind::Note, &context(subject, number), &fields.finish(), entropy)?;
    store.create_object(&names::note(subject, number), bytes.into())
}

fn context(subject: Uuid, number: u64) -> Vec<u8> {
    [subject.as_bytes().as_slice(), &number.to_le_bytes()].concat()
}

fn read(store: &Store, keys: &Keys, subject: Uuid, number: u64) -> Result<Note> {
    let bytes = store.get(&names::note(subject, number))?;
    let payload = open_structure(keys, ObjectKind::Note, &context(subject, number), &bytes)?;
    Ok(Note { name: Fields::parse(&payload, "note", &[])?.text(NAME)? })
}

/// The valid note with the highest number of every subject. Subjects all of whose notes are damaged are left out.
///
/// # Errors
/// What the store says to the listing.
pub(crate) fn read_all(store: &Store, keys: &Keys) -> Result<BTreeMap<Uuid, Note>> {
    let mut numbers: BTreeMap<Uuid, Vec<u64>> = BTreeMap::new();
    for object in store.list("note")? {
        if let Some((subject, number)) = names::parse_note(&object.name) {
            numbers.entry(subject).or_default().push(number);
        }
    }
    let latest = |subject, numbers: Vec<u64>| {
        let note = numbers.into_iter().rev().find_map(|number| read(store, keys, subject, number).ok());
        note.map(|note| (subject, note))
    };
    Ok(numbers.into_iter().filter_map(|(subject, numbers)| latest(subject, numbers)).collect())
}

/// Whether the object called `name` is a sound note.
pub(crate) fn check(store: &Store, keys: &Keys, name: &str) -> Result<()> {
    let (subject, number) = names::parse_note(name).ok_or_else(|| Error::corrupt("no note has such a name"))?;
    read(store, keys, subject, number).map(|_| ())
}
