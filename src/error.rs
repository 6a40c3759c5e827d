//! The error type of the crate.
//!
//! An [`Error`] has a [`Kind`] (which action resolves it), a message (what is wrong), an optional
//! detail (what was found), an optional hint (what to do) and, if it concerns a SQL file, a
//! [`Place`] with the text of the line, so that it can be displayed with a caret:
//!
//! ```text
//! there is no stream, table or query 'position'
//!  --> queries/customer_a/daily.sql:2:6
//!   |
//! 2 | FROM position
//!   |      ^^^^^^^^
//!   hint: did you mean 'positions'?
//! ```

use std::fmt;
use std::path::{Path, PathBuf};

/// The result of a fallible operation of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The class of an error, by the action that resolves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A schema or query file is invalid. Edit the file at the error's place.
    Sql,
    /// A flag or setting is invalid, or something that it refers to (a topic, a file) does not
    /// exist. Change the setting or create what is missing.
    Config,
    /// Kafka is unreachable or rejected a request. Retry; if the error persists, check the broker
    /// and the network.
    Kafka,
    /// Another process has fenced this one and now runs the customer's pipeline. Stop this process.
    Fenced,
    /// Another process wrote to the same history table. No action is needed: the pipeline reads
    /// the progress log, which determines the process that continues.
    WriteConflict,
    /// The recorded state does not match Kafka (offsets no longer exist, another cluster). The
    /// operator decides how to continue; the hint lists the options.
    Recovery,
    /// The file system or object store failed. Retry; if the error persists, check the disk.
    Storage,
    /// A value cannot be processed and there is no dead-letter topic to write it to, for example in
    /// ad-hoc SQL. Correct the data or exclude it in the query.
    Data,
    /// A defect of Millstream. Report it.
    Internal,
}

/// A location in a SQL file. Lines and columns are numbered from 1; columns count characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub file: PathBuf,
    /// Line, from 1.
    pub line: u64,
    /// Column in characters, from 1.
    pub column: u64,
    /// The text of that line, displayed above the caret.
    pub text: String,
    /// The number of characters to underline; at least 1.
    pub width: u64,
}

impl Place {
    /// The location `line`:`column` in `file`, whose content is `source`.
    pub fn new(file: &Path, source: &str, line: u64, column: u64, width: u64) -> Self {
        let index = usize::try_from(line.saturating_sub(1)).unwrap_or(usize::MAX);
        Self {
            file: file.to_owned(),
            line,
            column,
            text: source.lines().nth(index).unwrap_or_default().to_owned(),
            width: width.max(1),
        }
    }
}

/// An error: what happened, where, and what to do about it.
#[derive(Debug)]
pub struct Error {
    /// The action that resolves it.
    pub kind: Kind,
    /// What happened: one sentence without a full stop.
    pub message: String,
    /// What was found, if that adds information.
    pub detail: Option<String>,
    /// What to do.
    pub hint: Option<String>,
    /// The location in a SQL file; boxed to keep every `Result` small.
    pub place: Option<Box<Place>>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error of `kind` with `message`.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), detail: None, hint: None, place: None, source: None }
    }

    /// An error in a schema or query file.
    pub fn sql(message: impl Into<String>) -> Self {
        Self::new(Kind::Sql, message)
    }

    /// An error in a flag or setting, or something missing that it refers to.
    pub fn config(message: impl Into<String>) -> Self {
        Self::new(Kind::Config, message)
    }

    /// A defect of Millstream.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Kind::Internal, message)
    }

    /// Adds what was found.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// Adds what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds what to do, if `hint` is known; otherwise keeps the present hint.
    #[must_use]
    pub fn hint_if(mut self, hint: Option<String>) -> Self {
        self.hint = hint.or(self.hint);
        self
    }

    /// Adds the location, unless the error already has one, which is more precise.
    #[must_use]
    pub fn at(mut self, place: Place) -> Self {
        self.place.get_or_insert_with(|| Box::new(place));
        self
    }

    /// Adds the cause.
    #[must_use]
    pub fn because(mut self, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(cause.into());
        self
    }
}

impl fmt::Display for Error {
    /// Writes the message, then the place with a caret, the detail, the causes and the hint, each
    /// on separate lines.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.message)?;
        if let Some(place) = &self.place {
            let number = place.line.to_string();
            let margin = " ".repeat(number.len());
            let indent: String = (place.text.chars())
                .take(usize::try_from(place.column.saturating_sub(1)).unwrap_or(0))
                .map(|c| if c == '\t' { '\t' } else { ' ' })
                .collect();
            let caret = "^".repeat(usize::try_from(place.width).unwrap_or(1));
            write!(f, "\n{margin}--> {}:{}:{}", place.file.display(), place.line, place.column)?;
            write!(f, "\n{margin} |\n{number} | {}\n{margin} | {indent}{caret}", place.text)?;
        }
        if let Some(detail) = &self.detail {
            write!(f, "\n  {detail}")?;
        }
        let mut cause = self.source.as_deref().map(|c| c as &dyn std::error::Error);
        let mut printed = String::new();
        while let Some(error) = cause {
            let text = error.to_string();
            // The text of many errors includes the text of their own cause.
            if !printed.contains(&text) {
                write!(f, "\n  cause: {text}")?;
                printed = text;
            }
            cause = error.source();
        }
        if let Some(hint) = &self.hint {
            write!(f, "\n  hint: {hint}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|c| c as _)
    }
}

impl From<datafusion::error::DataFusionError> for Error {
    fn from(error: datafusion::error::DataFusionError) -> Self {
        Self::internal("a plan failed").because(error)
    }
}

impl From<arrow::error::ArrowError> for Error {
    fn from(error: arrow::error::ArrowError) -> Self {
        Self::internal("an Arrow operation failed").because(error)
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        Self::new(Kind::Storage, "a file operation failed").because(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_caret_is_placed_under_the_word() {
        let source = "SELECT a\nFROM nowhere";
        let error = Error::sql("there is no stream 'nowhere'")
            .at(Place::new(Path::new("q.sql"), source, 2, 6, 7))
            .hint("did you mean 'positions'?");
        let expected = "there is no stream 'nowhere'\n --> q.sql:2:6\n  |\n2 | FROM nowhere\n  |      ^^^^^^^\n  hint: did you mean 'positions'?";
        assert_eq!(error.to_string(), expected);
    }
}
