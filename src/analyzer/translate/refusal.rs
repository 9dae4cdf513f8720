//! Why a query is not maintained incrementally: a stable code for programs, a sentence and a hint for people.

use crate::error::Error;

/// A construct that the dataflow does not maintain. It is no failure: the caller recomputes such a query, or refuses it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Stable, e.g. `unsupported.window_function`.
    pub code: &'static str,
    /// One sentence without a full stop.
    pub reason: String,
    pub hint: Option<String>,
}

impl Refusal {
    pub fn new(code: &'static str, reason: impl Into<String>) -> Refusal {
        Refusal { code, reason: reason.into(), hint: None }
    }

    /// Adds what the user can do about it.
    pub fn hint(mut self, hint: impl Into<String>) -> Refusal {
        self.hint = Some(hint.into());
        self
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Error {
        let error = Error::unsupported(refusal.reason);
        match refusal.hint {
            Some(hint) => error.with_hint(hint),
            None => error,
        }
    }
}

/// Readers of the tree report a form they do not know as an error; for the translator that is a refusal.
impl From<Error> for Refusal {
    fn from(error: Error) -> Refusal {
        let hint = error.hint().map(str::to_owned);
        Refusal { code: "unsupported.tree", reason: error.context().to_owned(), hint }
    }
}

/// Result of every step of the translation.
pub type Step<T> = Result<T, Refusal>;
