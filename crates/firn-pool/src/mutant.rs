//! Known wrong orderings. The simulation runs each of them and fails unless it notices what it loses; nothing else
//! knows of them, and outside of tests no pool can have one.

/// One wrong thing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mutant {
    /// A snapshot is confirmed before its last packs are stored.
    ManifestBeforePacks,
    /// A segment names packs that are not stored yet.
    IndexBeforePack,
    /// The writer looks for tombstones first and takes its lease then.
    LookBeforeLease,
    /// The writer does not say in its lease what it builds on.
    BaseNotInLease,
    /// The writer gives its lease back before the snapshot is confirmed.
    ReleaseBeforeConfirm,
    /// The writer confirms although it was decided that its snapshot is lost.
    ConfirmLostLease,
    /// Prune takes an expired lease for ended without deciding the fate of its snapshot.
    ExpiredWithoutFate,
    /// Prune looks at leases and snapshots before it puts tombstones, and not again.
    CheckBeforeTombstone,
    /// Prune looks at leases again after it put tombstones, but not at snapshots.
    NoSecondMark,
    /// Prune lists snapshots before leases, and not again after them.
    RootsBeforeLeases,
    /// Prune deletes what a running writer may have found before there was a tombstone.
    IgnoreLeases,
    /// Prune deletes at once.
    NoGrace,
    /// A snapshot is forgotten by removing its manifest alone, which may come back with a store that does not sync.
    ForgetWithoutNote,
    /// Prune relies on a copy of a blob that another prune wants to delete.
    TrustTombstonedCopy,
}

impl Mutant {
    /// Those that a few hundred scenarios show.
    #[cfg(test)]
    pub(crate) const ALL: [Self; 12] = [
        Self::ManifestBeforePacks,
        Self::IndexBeforePack,
        Self::LookBeforeLease,
        Self::BaseNotInLease,
        Self::ReleaseBeforeConfirm,
        Self::ConfirmLostLease,
        Self::ExpiredWithoutFate,
        Self::CheckBeforeTombstone,
        Self::NoSecondMark,
        Self::IgnoreLeases,
        Self::ForgetWithoutNote,
        Self::TrustTombstonedCopy,
    ];

    /// Those that take a rare coincidence, and so thousands of scenarios.
    #[cfg(test)]
    pub(crate) const RARE: [Self; 2] = [Self::RootsBeforeLeases, Self::NoGrace];
}
