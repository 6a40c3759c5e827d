//! A SQL file as text, and the tests for tokens that all parsers of statements share.

use std::path::{Path, PathBuf};

use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::tokenizer::{Span, Token, TokenWithSpan};

use crate::error::{Error, Place};

/// The dialect of all Millstream SQL, which is DataFusion's default.
pub(super) const DIALECT: GenericDialect = GenericDialect {};

/// The table functions that assign windows; their first argument is a relation.
pub(super) const WINDOW_FUNCTIONS: [&str; 4] = ["tumble", "hop", "cumulate", "session"];

/// The path and content of one file.
#[derive(Debug, Clone)]
pub(super) struct SqlText {
    /// The path that errors display.
    pub file: PathBuf,
    /// The whole content.
    pub text: String,
}

impl SqlText {
    /// The content `text` of `file`.
    pub fn new(file: &Path, text: &str) -> Self {
        Self { file: file.to_owned(), text: text.to_owned() }
    }

    /// The place of `span`. An empty span is the first character of the file; of a span of several
    /// lines, the place covers the first.
    pub fn place(&self, span: Span) -> Place {
        let (line, column) = (span.start.line.max(1), span.start.column.max(1));
        let width = if span.end.line == span.start.line {
            span.end.column.saturating_sub(column)
        } else {
            let index = usize::try_from(line - 1).unwrap_or(usize::MAX);
            let length = self.text.lines().nth(index).map_or(0, |text| text.chars().count());
            (length as u64 + 1).saturating_sub(column)
        };
        Place::new(&self.file, &self.text, line, column, width)
    }

    /// An error at `span`.
    pub fn error(&self, span: Span, message: impl Into<String>) -> Error {
        Error::sql(message).at(self.place(span))
    }

    /// An error about `file` as a whole, whose content is not displayed.
    pub fn file_error(file: &Path, message: impl Into<String>) -> Error {
        Self::new(file, "").error(Span::empty(), message)
    }
}

/// The keyword that a token is; `NoKeyword` for any other token.
pub(super) fn keyword(token: &TokenWithSpan) -> Keyword {
    match &token.token {
        Token::Word(word) if word.quote_style.is_none() => word.keyword,
        _ => Keyword::NoKeyword,
    }
}

/// Whether a token is the unquoted word `word`, in upper or lower case.
pub(super) fn is_word(token: &TokenWithSpan, word: &str) -> bool {
    matches!(&token.token, Token::Word(found)
        if found.quote_style.is_none() && found.value.eq_ignore_ascii_case(word))
}

/// Whether a token is white space or a comment.
pub(super) fn is_whitespace(token: &TokenWithSpan) -> bool {
    matches!(token.token, Token::Whitespace(_))
}
