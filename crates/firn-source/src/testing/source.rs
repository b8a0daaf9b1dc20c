//! A source that keeps a log of what it is asked, leaves a file behind while it is prepared, and fails where it is told
//! to.
//!
//! Its URI is `fake:FOLDER[?agent=SOCKET]`; between `prepare` and `finish` there is `FOLDER/OWNER-RUN`.

use crate::quiesce::{AgentGuest, Guest, Ticket};
use crate::source::{FrozenDisk, Outcome, Plan, Request, Source};
use firn_disk::{Error, ErrorKind, Result};
use jiff::Timestamp;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// What a source is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// `prepare`
    Prepare,
    /// `tickets`
    Tickets,
    /// `cut`
    Cut,
    /// `finish`
    Finish,
    /// `guest`
    Guest,
}

/// How it fails there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// With an error.
    Error,
    /// By a panic.
    Panic,
}

/// The source.
pub struct FakeSource {
    folder: PathBuf,
    agent: Option<PathBuf>,
    left: Option<PathBuf>,
    log: Arc<Mutex<Vec<String>>>,
    /// Where it fails.
    pub failure: Option<(Step, Failure)>,
    /// What it does first while it prepares, cuts and finishes.
    pub at_step: Option<Box<dyn FnMut(Step) + Send>>,
    /// [`Source::is_atomic`].
    pub is_atomic: bool,
    /// [`Source::taken`].
    pub taken: Option<Timestamp>,
    /// [`Source::tickets`].
    pub tickets: Vec<Ticket>,
}

impl std::fmt::Debug for FakeSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.uri())
    }
}

impl FakeSource {
    /// Keeps its things in `folder`; its guest is behind the socket `agent`.
    pub fn new(folder: &Path, agent: Option<&Path>) -> Self {
        Self {
            folder: folder.to_path_buf(),
            agent: agent.map(Path::to_path_buf),
            left: None,
            log: Arc::default(),
            failure: None,
            at_step: None,
            is_atomic: true,
            taken: None,
            tickets: Vec::new(),
        }
    }

    /// The source of a URI.
    ///
    /// # Errors
    /// `Unsupported` when it is another one's.
    pub fn open(uri: &str) -> Result<Box<dyn Source>> {
        let rest = uri.strip_prefix("fake:").ok_or_else(|| Error::unsupported(format!("{uri} is not a fake")))?;
        let (folder, agent) = rest.split_once("?agent=").map_or((rest, None), |(folder, agent)| (folder, Some(agent)));
        Ok(Box::new(Self::new(Path::new(folder), agent.map(Path::new))))
    }

    /// What it was asked so far: `prepare`, `cut`, `finish Failed`, `sweep`.
    pub fn log(&self) -> Arc<Mutex<Vec<String>>> {
        self.log.clone()
    }

    fn begin(&mut self, step: Step) {
        if let Some(at_step) = &mut self.at_step {
            at_step(step);
        }
    }

    fn note(&self, step: Step, words: String) -> Result<()> {
        if self.failure == Some((step, Failure::Panic)) {
            panic!("{words}: the fake source was told to panic");
        }
        self.log.lock().unwrap_or_else(PoisonError::into_inner).push(words);
        match self.failure {
            Some((failing, Failure::Error)) if failing == step => {
                Err(Error::new(ErrorKind::Io, format!("the fake source was told to fail at {step:?}")))
            }
            _ => Ok(()),
        }
    }

    fn leftover(&self, request: &Request) -> PathBuf {
        self.folder.join(format!("{}-{}", request.owner, request.run))
    }
}

fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::from_io("remove", error).at_path(path))
        }
        _ => Ok(()),
    }
}

impl Source for FakeSource {
    fn uri(&self) -> String {
        let agent = self.agent.iter().map(|agent| format!("?agent={}", agent.display()));
        std::iter::once(format!("fake:{}", self.folder.display())).chain(agent).collect()
    }

    fn guest(&self) -> Option<Arc<dyn Guest>> {
        if self.failure == Some((Step::Guest, Failure::Panic)) {
            panic!("guest: the fake source was told to panic");
        }
        self.agent.clone().map(|agent| Arc::new(AgentGuest::new(agent)) as Arc<dyn Guest>)
    }

    fn taken(&self) -> Option<Timestamp> {
        self.taken
    }

    fn is_atomic(&self) -> bool {
        self.is_atomic
    }

    fn plan(&mut self, _request: &Request) -> Result<Plan> {
        Ok(Plan::default())
    }

    fn prepare(&mut self, request: &Request) -> Result<()> {
        self.begin(Step::Prepare);
        let path = self.leftover(request);
        std::fs::write(&path, b"").map_err(|error| Error::from_io("make", error).at_path(&path))?;
        self.left = Some(path);
        self.note(Step::Prepare, "prepare".to_owned())
    }

    fn tickets(&self) -> Vec<Ticket> {
        if self.failure == Some((Step::Tickets, Failure::Panic)) {
            panic!("tickets: the fake source was told to panic");
        }
        self.tickets.clone()
    }

    fn cut(&mut self) -> Result<()> {
        self.begin(Step::Cut);
        self.note(Step::Cut, "cut".to_owned())
    }

    fn open(&mut self) -> Result<Vec<FrozenDisk>> {
        Ok(Vec::new())
    }

    fn check(&mut self) -> Result<()> {
        Ok(())
    }

    fn finish(&mut self, outcome: Outcome) -> Result<()> {
        self.begin(Step::Finish);
        self.note(Step::Finish, format!("finish {outcome:?}"))?;
        self.left.take().map_or(Ok(()), |path| remove(&path))
    }

    fn sweep(&mut self, request: &Request) -> Result<()> {
        remove(&self.leftover(request))
    }
}
