//! Transactions: items put together from regions, which are spread over operations and records.
//!
//! A transaction is what was written between its start and its commit; one without a commit did not happen. Its first
//! region is a header; then each item says how many regions it has.

use super::head::Span;
use super::{Log, STRUCTURE};
use firn_disk::{Error, Record, Result};
use std::collections::HashMap;

const OPERATION: usize = 12;
const START: u8 = 0x01;
const COMMIT: u8 = 0x02;
const CONTINUES: u8 = 0x04;
const WAS_CONTINUED: u8 = 0x08;
const END: u8 = 0x10;
const UNMOUNT: u8 = 0x20;
const HEADER: usize = 16;
/// "TRAN", as the machine has it.
const HEADER_MAGIC: u32 = 0x5452_414E;
/// No item of the kernel has more.
const MAX_REGIONS: u16 = 1024;

/// One item of a transaction.
#[derive(Debug, Default)]
pub(super) struct Item {
    /// Regions that it has when it is whole.
    total: u16,
    pub regions: Vec<Vec<u8>>,
}

impl Item {
    /// An item with all its regions.
    #[cfg(test)]
    pub fn whole(regions: Vec<Vec<u8>>) -> Self {
        Self { total: u16::try_from(regions.len()).unwrap_or(u16::MAX), regions }
    }

    /// A region, to be read with checked bounds.
    pub fn region(&self, index: usize) -> Result<Record<'_>> {
        match self.regions.get(index) {
            Some(bytes) => Ok(Record::new(bytes, STRUCTURE, 0)),
            None => Err(Error::corrupt(format!("an item without its region {index}")).in_structure(STRUCTURE)),
        }
    }

    /// What kind of item it is.
    pub fn kind(&self) -> Result<u16> {
        self.region(0)?.le_u16(0)
    }
}

/// A transaction; complete when it is given to a visitor.
#[derive(Debug, Default)]
pub(super) struct Transaction {
    /// The sequence number of the record that it began in.
    pub lsn: u64,
    header: Vec<u8>,
    pub items: Vec<Item>,
}

impl Transaction {
    /// Adds a region, or the first part of one.
    fn add(&mut self, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        if self.header.is_empty() {
            if bytes.len() > HEADER || Record::new(bytes, STRUCTURE, 0).le_u32(0)? != HEADER_MAGIC {
                return Err(damaged("a transaction without its header"));
            }
            self.header = bytes.to_vec();
            return Ok(());
        }
        if self.header.len() < HEADER {
            return Err(damaged("half the header of a transaction"));
        }
        if self.items.last().is_none_or(|item| item.regions.len() == usize::from(item.total)) {
            let total = Record::new(bytes, STRUCTURE, 0).le_u16(2)?;
            if total == 0 || total > MAX_REGIONS {
                return Err(damaged(format!("an item of {total} regions")));
            }
            self.items.push(Item { total, regions: Vec::new() });
        }
        if let Some(item) = self.items.last_mut() {
            item.regions.push(bytes.to_vec());
        }
        Ok(())
    }

    /// Adds the next part of the last region.
    fn go_on(&mut self, bytes: &[u8]) -> Result<()> {
        match self.items.last_mut().and_then(|item| item.regions.last_mut()) {
            Some(region) => region.extend(bytes),
            None if self.header.len() + bytes.len() <= HEADER => self.header.extend(bytes),
            None => return Err(damaged("a region that goes on and did not begin")),
        }
        Ok(())
    }
}

fn damaged(message: impl Into<String>) -> Error {
    Error::corrupt(message).in_structure(STRUCTURE)
}

/// Calls `visit` with every transaction that was committed in `span`, in the order of their commits.
pub(super) fn visit(log: &Log, span: Span, visit: &mut dyn FnMut(Transaction) -> Result<()>) -> Result<()> {
    let mut open: HashMap<u32, Transaction> = HashMap::new();
    let (mut at, mut left) = (span.tail, log.distance(span.tail, span.head));
    while left > 0 {
        let record = log.record(at, left)?;
        log.check_owner(&record.header, at)?;
        if log.is_v5 && record.header.crc == 0 {
            return Err(log.corrupt(at, "a record without a checksum"));
        }
        let data = Record::new(&record.data, STRUCTURE, at);
        visit_operations(&data, record.header.operations, record.header.lsn, &mut open, visit)
            .map_err(|error| error.context(format!("the record at unit {at}")))?;
        let units = record.header.units();
        at = (at + units) % log.units;
        left -= units;
    }
    Ok(())
}

fn visit_operations(
    data: &Record<'_>,
    count: u32,
    lsn: u64,
    open: &mut HashMap<u32, Transaction>,
    visit: &mut dyn FnMut(Transaction) -> Result<()>,
) -> Result<()> {
    let mut at = 0;
    // Each takes 12 bytes of a record or more.
    for _ in 0..count {
        let (id, length) = (data.be_u32(at)?, usize::try_from(data.be_u32(at + 4)?).unwrap_or(usize::MAX));
        let (client, flags) = (data.u8(at + 8)?, data.u8(at + 9)?);
        if !matches!(client, 0x69 | 0xAA) {
            return Err(damaged(format!("an operation of the client {client:#x}")));
        }
        let bytes = data.slice(at + OPERATION, length)?;
        at += OPERATION + length;
        let Some(transaction) = open.get_mut(&id) else {
            // What began before the tail is on the disk already.
            if flags & START != 0 {
                open.insert(id, Transaction { lsn, ..Transaction::default() });
            }
            continue;
        };
        let mut flags = flags & !END;
        if flags & WAS_CONTINUED != 0 {
            flags &= !CONTINUES;
        }
        match flags {
            0 | CONTINUES => transaction.add(bytes)?,
            WAS_CONTINUED => transaction.go_on(bytes)?,
            COMMIT => {
                if let Some(transaction) = open.remove(&id) {
                    visit(transaction)?;
                }
            }
            UNMOUNT => drop(open.remove(&id)),
            other => return Err(damaged(format!("an operation with the flags {other:#x}"))),
        }
    }
    Ok(())
}
