//! The one error type: what went wrong, where, what was expected, and what to do next.

use std::fmt;

/// The library's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Who has to act on an error; the program's exit code follows from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A checkpoint, tokenizer or configuration is broken, unknown or unsupported (exit 1).
    Model,
    /// The request itself is wrong: a flag, a name, a combination (exit 2).
    Usage,
    /// An image, a prompt or a line of data is wrong (exit 3).
    Input,
    /// Training stopped itself: a number is not finite (exit 4).
    Training,
    /// Not enough memory or disk (exit 5).
    Resource,
    /// The network or the right to use it (exit 6).
    Network,
    /// The operating system refused a read or a write (exit 1).
    Io,
    /// The caller asked to stop (exit 130).
    Cancelled,
}

/// An error that says what, where, what was expected, and gives a hint.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct Error(Box<Parts>);

#[derive(Debug, thiserror::Error)]
struct Parts {
    kind: Kind,
    what: String,
    place: Option<String>,
    expected: Option<String>,
    hint: Option<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// A new error: `what` is a sentence without a final stop that names the thing.
    pub fn new(kind: Kind, what: impl Into<String>) -> Self {
        Error(Box::new(Parts {
            kind,
            what: what.into(),
            place: None,
            expected: None,
            hint: None,
            source: None,
        }))
    }

    /// A model file that is broken, unknown or unsupported.
    pub fn model(what: impl Into<String>) -> Self {
        Error::new(Kind::Model, what)
    }

    /// A wrong request.
    pub fn usage(what: impl Into<String>) -> Self {
        Error::new(Kind::Usage, what)
    }

    /// A wrong image, prompt or data line.
    pub fn input(what: impl Into<String>) -> Self {
        Error::new(Kind::Input, what)
    }

    /// An operating-system error on `path`.
    pub fn io(path: impl AsRef<std::path::Path>, source: std::io::Error) -> Self {
        // A full disk is a lack of resources, whatever was being written; so is a limit on the size of files or on memory.
        let kind = match source.kind() {
            std::io::ErrorKind::StorageFull
            | std::io::ErrorKind::QuotaExceeded
            | std::io::ErrorKind::FileTooLarge
            | std::io::ErrorKind::OutOfMemory => Kind::Resource,
            _ => Kind::Io,
        };
        Error::new(kind, source.to_string()).at(path.as_ref().display().to_string()).because(source)
    }

    /// Adds where it happened: a file, a tensor, a line. A second call puts the new place in front.
    #[must_use]
    pub fn at(mut self, place: impl Into<String>) -> Self {
        let place = place.into();
        self.0.place = Some(match self.0.place.take() {
            Some(inner) => format!("{place}, {inner}"),
            None => place,
        });
        self
    }

    /// Adds what would have been right.
    #[must_use]
    pub fn expected(mut self, expected: impl Into<String>) -> Self {
        self.0.expected = Some(expected.into());
        self
    }

    /// Adds the next step to take.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// Says who has to act, where that is someone else than the error at first thought.
    #[must_use]
    pub fn of_kind(mut self, kind: Kind) -> Self {
        self.0.kind = kind;
        self
    }

    /// Adds the error underneath.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Who has to act.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// The first line alone: what went wrong.
    pub fn what(&self) -> &str {
        &self.0.what
    }

    /// The next step to take, if one is known.
    pub fn hint_text(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }
}

impl fmt::Display for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.what)?;
        if let Some(place) = &self.place {
            write!(f, "\n  in {place}")?;
        }
        if let Some(expected) = &self.expected {
            write!(f, "\n  expected {expected}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\n\nhint: {hint}")?;
        }
        Ok(())
    }
}
