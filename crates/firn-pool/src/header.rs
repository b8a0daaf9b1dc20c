//! The pool's header: what the pool is, stored twice.
//!
//! Fields of the payload:
//! ```text
//! 1  pool UUID    2  created, nanoseconds    3  cut parameters (fields: 1 mask bits, 2 least, 3 most blocks)
//! 4  authentication: BLAKE3 keyed by a key derived from the structure key, over domain and fields 1 to 3
//! ```
//! The incompat feature 1 in its frame: manifests are published in two phases and writers hold leases. A pool
//! without it is of an earlier firn. It is read, every manifest being a snapshot, but not written to.

use crate::chunker::CutParameters;
use crate::clock;
use crate::fields::{FieldWriter, Fields};
use crate::key::Keys;
use crate::names::{self, Copy};
use crate::object::{self, ObjectKind};
use crate::store::Store;
use firn_disk::{Error, ErrorKind, Result};
use jiff::Timestamp;
use uuid::Uuid;

const POOL: u16 = 1;
const CREATED: u16 = 2;
const CUT: u16 = 3;
const AUTHENTICATION: u16 = 4;

/// What a pool is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) domain: Uuid,
    pub(crate) pool: Uuid,
    pub(crate) created: Timestamp,
    pub(crate) cut: CutParameters,
    /// An unknown feature forbids writing.
    pub(crate) read_only: bool,
    /// Whether a manifest needs a fate to be a snapshot.
    pub(crate) two_phase: bool,
    authentication: [u8; 32],
}

impl Header {
    pub(crate) fn new(keys: &Keys, pool: Uuid, created: Timestamp, cut: CutParameters) -> Result<Self> {
        let domain = keys.domain;
        let mut header =
            Self { domain, pool, created, cut, read_only: false, two_phase: true, authentication: [0; 32] };
        header.authentication = keys.authenticate(&header.authenticated()?)?;
        Ok(header)
    }

    fn fields(&self) -> Result<FieldWriter> {
        let mut fields = FieldWriter::default();
        fields
            .uuid(POOL, self.pool)
            .i64(CREATED, clock::to_nanoseconds(self.created)?)
            .bytes(CUT, &self.cut.to_bytes());
        Ok(fields)
    }

    fn authenticated(&self) -> Result<Vec<u8>> {
        Ok([self.domain.as_bytes().to_vec(), self.fields()?.finish()].concat())
    }

    /// # Errors
    /// `Denied` when the header was not written by a holder of these keys.
    pub(crate) fn check(&self, keys: &Keys) -> Result<()> {
        if keys.authenticate(&self.authenticated()?)? == self.authentication {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Denied, "the pool's header was changed by someone without its key")
            .hint("do not trust this pool; restore its header objects from a copy"))
    }

    pub(crate) fn to_object(&self) -> Result<Vec<u8>> {
        let mut fields = self.fields()?;
        fields.bytes(AUTHENTICATION, &self.authentication);
        let features = if self.two_phase { object::TWO_PHASE } else { 0 };
        Ok(object::seal_with_features(ObjectKind::Header, self.domain, features, &fields.finish()))
    }

    pub(crate) fn from_object(bytes: &[u8]) -> Result<Self> {
        let (frame, payload) = object::open_small(bytes, ObjectKind::Header)?;
        let fields = Fields::parse(payload, "pool header", &[])?;
        Ok(Self {
            domain: frame.domain,
            pool: fields.uuid(POOL)?,
            created: clock::from_nanoseconds(fields.i64(CREATED)?)?,
            cut: CutParameters::from_bytes(fields.bytes(CUT)?)?,
            read_only: frame.read_only,
            two_phase: frame.incompat & object::TWO_PHASE != 0,
            authentication: fields.array(AUTHENTICATION)?,
        })
    }

    /// Reads the first copy that is sound.
    ///
    /// # Errors
    /// `NotFound` when there is no pool; otherwise what is wrong with the first copy.
    pub(crate) fn read(store: &Store) -> Result<Self> {
        let read = |copy| Self::from_object(&store.get(&names::header(copy))?);
        let first = match read(Copy::A) {
            Ok(header) => return Ok(header),
            Err(error) => error,
        };
        read(Copy::B).map_err(|second| {
            let location = store.location();
            if first.kind() == ErrorKind::NotFound && second.kind() == ErrorKind::NotFound {
                return Error::not_found("there is no pool here")
                    .at_path(location)
                    .hint(format!("make one with `firn init {location}`, or name another by --pool or FIRN_POOL"));
            }
            let worse = if first.kind() == ErrorKind::NotFound { second } else { first };
            worse.at_path(location)
        })
    }

    pub(crate) fn write(&self, store: &Store) -> Result<()> {
        store.create_both(Copy::BOTH.map(names::header), &self.to_object()?.into())
    }
}
