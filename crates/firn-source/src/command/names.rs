//! What snapshots are called on the array, and what stands for it in the user's commands.
//!
//! ```text
//!   firn-OWNER-RUN            while the snapshot is taken; one that is found later was left by a run that died
//!   MACHINE-firn-OWNER-RUN    {kept}: what `rename` calls it once it is in the pool
//! ```
//! OWNER is 16 hexadecimal digits, RUN 8. Everything that takes a placeholder's place has letters, digits, dots, dashes and
//! underscores only, and begins with a letter or digit, so it means the same to a shell in and out of quotes.

use crate::source::Request;
use firn_disk::{Error, Result};

/// The names of one run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Names {
    machine: String,
    owner: String,
    run: String,
    /// The snapshot that the pool has already and that is still on the array.
    pub(super) previous: Option<String>,
}

impl Names {
    /// # Errors
    /// `Invalid` for a request whose parts are not what the shell may see.
    pub(super) fn of(request: &Request) -> Result<Self> {
        let Request { machine, owner, run, .. } = request;
        let is_hexadecimal = |text: &str| text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if !is_word(machine) || owner.len() != 16 || run.len() != 8 || !is_hexadecimal(owner) || !is_hexadecimal(run) {
            return Err(Error::invalid(format!("no snapshot of {machine:?} can be named for {owner:?} and {run:?}")));
        }
        Ok(Self { machine: machine.clone(), owner: owner.clone(), run: run.clone(), previous: None })
    }

    /// The same beside the snapshot that is the base of this one.
    pub(super) fn with_previous(self, previous: Option<String>) -> Self {
        Self { previous, ..self }
    }

    /// What this run's snapshot is called while it is taken.
    pub(super) fn name(&self) -> String {
        format!("firn-{}-{}", self.owner, self.run)
    }

    /// What it is called if it stays.
    pub(super) fn kept(&self) -> String {
        format!("{}-firn-{}-{}", self.machine, self.owner, self.run)
    }

    /// Whether `name` was made by a run of this owner and was not kept.
    pub(super) fn is_transient(&self, name: &str) -> bool {
        self.ends(name.strip_prefix("firn-"))
    }

    /// Whether `name` is one that a run of this owner kept.
    pub(super) fn is_kept(&self, name: &str) -> bool {
        // The machine may have had another name then.
        self.ends(name.rsplit_once("-firn-").map(|(_, rest)| rest))
    }

    fn ends(&self, rest: Option<&str>) -> bool {
        let run = rest.and_then(|rest| rest.strip_prefix(&self.owner)).and_then(|rest| rest.strip_prefix('-'));
        run.is_some_and(|run| run.len() == 8 && run.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')))
    }

    /// The placeholders with what stands for them while a command works on the snapshot `name`.
    fn values(&self, name: &str) -> [(&'static str, String); 6] {
        [
            ("name", name.to_owned()),
            ("kept", self.kept()),
            ("machine", self.machine.clone()),
            ("previous", self.previous.clone().unwrap_or_default()),
            ("owner", self.owner.clone()),
            ("run", self.run.clone()),
        ]
    }

    /// `command` with its placeholders filled in. `${name}` is the shell's and stays.
    pub(super) fn fill(&self, command: &str, name: &str) -> String {
        let values = self.values(name);
        let mut filled = String::with_capacity(command.len());
        let mut rest = command;
        while let Some(at) = rest.find('{') {
            let (before, after) = rest.split_at(at);
            let value = values.iter().find_map(|(word, value)| {
                let end = after.strip_prefix('{')?.strip_prefix(word)?.strip_prefix('}')?;
                Some((value, end)).filter(|_| !before.ends_with('$'))
            });
            filled.push_str(before);
            match value {
                Some((value, end)) => {
                    filled.push_str(value);
                    rest = end;
                }
                None => {
                    filled.push('{');
                    rest = &after[1..];
                }
            }
        }
        filled.push_str(rest);
        filled
    }

    /// The same for a command's environment: `FIRN_NAME` and so on.
    pub(super) fn environment(&self, name: &str) -> Vec<(String, String)> {
        let variable = |(word, value): (&str, String)| (format!("FIRN_{}", word.to_uppercase()), value);
        self.values(name).map(variable).into()
    }
}

/// What may stand in a command: `[A-Za-z0-9][A-Za-z0-9._-]*`, at most 255 bytes.
pub(crate) fn is_word(text: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    text.len() <= 255 && text.bytes().all(is_inner) && text.starts_with(|c: char| c.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Request {
        Request {
            machine: "web-1.a".into(),
            owner: "0123456789abcdef".into(),
            run: "00c0ffee".into(),
            ..Request::default()
        }
    }

    #[test]
    fn placeholders_are_filled_and_what_is_the_shells_stays() {
        let names = Names::of(&request()).unwrap().with_previous(Some("p-1".into()));
        let name = "firn-0123456789abcdef-00c0ffee";
        assert_eq!(names.name(), name);
        let filled = names.fill("a {name} '{machine}'{previous}{kept} ${name} {x} {a,b} {", name);
        let kept = format!("web-1.a-{name}");
        assert_eq!(filled, format!("a {name} 'web-1.a'p-1{kept} ${{name}} {{x}} {{a,b}} {{"));
        assert!(names.environment(name).contains(&("FIRN_PREVIOUS".to_owned(), "p-1".to_owned())));
    }

    #[test]
    fn only_what_this_owner_made_is_known_again() {
        let names = Names::of(&request()).unwrap();
        assert!(names.is_transient("firn-0123456789abcdef-deadbeef") && names.is_transient(&names.name()));
        assert!(names.is_kept(&names.kept()) && !names.is_transient(&names.kept()));
        for other in [
            "firn-0123456789abcdee-deadbeef",
            "firn-0123456789abcdef-deadbee",
            "firn-0123456789abcdef-deadbeef0",
            "firn-0123456789abcdef-DEADBEEF",
            "webfirn-0123456789abcdef-deadbeef",
            "firn",
            "",
        ] {
            assert!(!names.is_transient(other) && !names.is_kept(other), "{other}");
        }
    }

    #[test]
    fn what_a_shell_could_misunderstand_is_refused() {
        for machine in ["", "-rf", "a b", "a;b", "a'b", "$(x)", "a\nb", "ä"] {
            assert!(Names::of(&Request { machine: machine.into(), ..request() }).is_err(), "{machine:?}");
        }
        assert!(Names::of(&Request { owner: "0123".into(), ..request() }).is_err());
        assert!(Names::of(&Request { run: "deadbee$".into(), ..request() }).is_err());
    }
}
