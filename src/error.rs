//! Errors that tell the user what to do.
//!
//! An [`Error`] has a [`Kind`] (who can mend it), a message (what is wrong), an optional detail
//! (what was seen), a hint (what to do) and, for anything that came from a SQL file, the
//! [`Place`] with the line itself, so that it can be shown with a caret under it.

use std::fmt;
use std::path::{Path, PathBuf};

/// The result of anything that can fail in Millstream.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Who can mend an error, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A schema or query file is wrong: edit it.
    Sql,
    /// A flag, a setting or the surroundings (a missing topic, a missing file): change it.
    Config,
    /// Kafka could not be reached or refused: retry, or look at the broker.
    Kafka,
    /// Another process took over this customer: stop.
    Fenced,
    /// Another process wrote what this one writes; the log says which of the two goes on.
    WriteConflict,
    /// Recorded state and the world disagree (offsets gone, another cluster): a person decides.
    Recovery,
    /// The file system or object store failed: retry, or look at the disk.
    Storage,
    /// Data that cannot be processed, where no dead letter can take it.
    Data,
    /// A defect of Millstream.
    Internal,
}

/// A position in a SQL file. Lines and columns count from 1, columns in characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub file: PathBuf,
    /// Line, from 1.
    pub line: u64,
    /// Column in characters, from 1.
    pub column: u64,
    /// The text of that line, for the caret.
    pub text: String,
    /// How many characters the caret underlines; at least 1.
    pub width: u64,
}

impl Place {
    /// The place of (`line`, `column`) in the text of `file`.
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

/// What went wrong, where, and what to do about it.
#[derive(Debug)]
pub struct Error {
    /// Who can mend it.
    pub kind: Kind,
    /// One sentence, without a full stop.
    pub message: String,
    /// What was seen, if that adds something.
    pub detail: Option<String>,
    /// What to do.
    pub hint: Option<String>,
    /// Where in a SQL file; boxed, for errors travel in every result.
    pub place: Option<Box<Place>>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error of `kind` that says `message`.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), detail: None, hint: None, place: None, source: None }
    }

    /// Something in a schema or query file.
    pub fn sql(message: impl Into<String>) -> Self {
        Self::new(Kind::Sql, message)
    }

    /// A flag, setting or missing thing of the surroundings.
    pub fn config(message: impl Into<String>) -> Self {
        Self::new(Kind::Config, message)
    }

    /// A defect of Millstream itself.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Kind::Internal, message)
    }

    /// Adds what was seen.
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

    /// Adds what to do, if that is known.
    #[must_use]
    pub fn hint_if(mut self, hint: Option<String>) -> Self {
        self.hint = hint.or(self.hint);
        self
    }

    /// Adds where it is, unless a nearer place is known already.
    #[must_use]
    pub fn at(mut self, place: Place) -> Self {
        self.place.get_or_insert_with(|| Box::new(place));
        self
    }

    /// Keeps the cause.
    #[must_use]
    pub fn because(mut self, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(cause.into());
        self
    }
}

impl fmt::Display for Error {
    /// `error: message`, then place with caret, detail, cause and hint, each on lines of its own.
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
        let mut told = String::new();
        while let Some(error) = cause {
            let text = error.to_string();
            // Many causes repeat those behind them.
            if !told.contains(&text) {
                write!(f, "\n  cause: {text}")?;
                told = text;
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
    fn the_caret_stands_under_the_word() {
        let source = "SELECT a\nFROM nowhere";
        let error = Error::sql("there is no stream 'nowhere'")
            .at(Place::new(Path::new("q.sql"), source, 2, 6, 7))
            .hint("did you mean 'positions'?");
        let expected = "there is no stream 'nowhere'\n --> q.sql:2:6\n  |\n2 | FROM nowhere\n  |      ^^^^^^^\n  hint: did you mean 'positions'?";
        assert_eq!(error.to_string(), expected);
    }
}
