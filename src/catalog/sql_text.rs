//! A SQL file as text and tokens.
//!
//! A file is tokenised once and then cut at its semicolons, so every token (and every span of the
//! syntax tree that is parsed from it) keeps the line and column that it has in the file, and an
//! error in one statement hides none in the next.

use std::path::{Path, PathBuf};

use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::tokenizer::{Span, Token, TokenWithSpan, Tokenizer, Whitespace};

use crate::catalog::parse_diagnostics::unclosed;
use crate::error::{Error, Place, Result};

/// The dialect of all Millstream SQL: DataFusion's default.
pub(super) const DIALECT: GenericDialect = GenericDialect {};

/// Table functions that assign windows; their first argument is a relation.
pub(super) const WINDOW_FUNCTIONS: [&str; 4] = ["tumble", "hop", "cumulate", "session"];

/// One file, as it is shown in errors and as it was read.
#[derive(Debug, Clone)]
pub(super) struct SqlText {
    /// The path for errors.
    pub file: PathBuf,
    /// The whole content.
    pub text: String,
}

/// The tokens of one statement, without its semicolon.
pub(super) struct Segment {
    /// All tokens, white space included; at least one of them is none.
    pub tokens: Vec<TokenWithSpan>,
    /// The `--` comment in front of the statement, its lines joined by spaces.
    pub comment: String,
    /// The last token that is no white space.
    pub last: Span,
}

impl SqlText {
    /// A file's text.
    pub fn new(file: &Path, text: &str) -> Self {
        Self { file: file.to_owned(), text: text.to_owned() }
    }

    /// The place of `span`; an empty span is the file's first character.
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

    /// The text in tokens, white space included.
    ///
    /// # Errors
    /// What cannot be tokenised, e.g. a string without its end.
    pub fn tokens(&self) -> Result<Vec<TokenWithSpan>> {
        let mut tokens = Vec::new();
        match Tokenizer::new(&DIALECT, &self.text).tokenize_with_location_into_buf(&mut tokens) {
            Ok(()) => Ok(tokens),
            Err(error) => Err(unclosed(self, &tokens, error.location)),
        }
    }

    /// Cuts the text into statements; empty ones are left out.
    ///
    /// # Errors
    /// As for [`SqlText::tokens`].
    pub fn segments(&self) -> Result<Vec<Segment>> {
        let tokens = self.tokens()?;
        let statements = tokens.split(|token| token.token == Token::SemiColon);
        Ok(statements.filter_map(|tokens| Segment::new(tokens.to_vec())).collect())
    }
}

impl Segment {
    fn new(mut tokens: Vec<TokenWithSpan>) -> Option<Self> {
        let is_space = |token: &TokenWithSpan| matches!(token.token, Token::Whitespace(_));
        let first = tokens.iter().position(|token| !is_space(token))?;
        let last = tokens.iter().rfind(|token| !is_space(token))?.span;
        let comment = (tokens.iter().take(first))
            .filter_map(|token| match &token.token {
                Token::Whitespace(Whitespace::SingleLineComment { comment, .. }) => {
                    Some(comment.trim())
                }
                _ => None,
            })
            .filter(|line| !line.is_empty())
            .collect::<Vec<_>>()
            .join(" ");
        unwrap_table_arguments(&mut tokens);
        Some(Self { tokens, comment, last })
    }

    /// The first token that is no white space.
    pub fn first(&self) -> Span {
        self.words().next().map_or(self.last, |token| token.span)
    }

    /// Whether the statement begins with CREATE.
    pub fn creates(&self) -> bool {
        self.words().next().is_some_and(|word| is(word, "create"))
    }

    /// The tokens that are no white space.
    pub fn words(&self) -> impl Iterator<Item = &TokenWithSpan> {
        self.tokens.iter().filter(|token| !matches!(token.token, Token::Whitespace(_)))
    }
}

/// Flink's `TUMBLE(TABLE t, ...)` becomes `TUMBLE(t, ...)`, which sqlparser reads as a table
/// function. `SESSION(TABLE t PARTITION BY k, ...)` loses its partitioning as well: sessions are
/// refused later by name, and only need to get there.
fn unwrap_table_arguments(tokens: &mut Vec<TokenWithSpan>) {
    let words: Vec<usize> =
        (0..tokens.len()).filter(|&i| !matches!(tokens[i].token, Token::Whitespace(_))).collect();
    let mut dropped = vec![false; tokens.len()];
    for (at, window) in words.windows(3).enumerate() {
        let function = match &tokens[window[0]].token {
            Token::Word(word) if word.quote_style.is_none() => word.value.to_lowercase(),
            _ => continue,
        };
        if !WINDOW_FUNCTIONS.contains(&function.as_str())
            || tokens[window[1]].token != Token::LParen
            || keyword(&tokens[window[2]]) != Keyword::TABLE
        {
            continue;
        }
        dropped[window[2]] = true;
        let after: &[usize] = words.get(at + 4..).unwrap_or_default();
        if function == "session" && after.first().is_some_and(|&i| is(&tokens[i], "PARTITION")) {
            let descriptor = after.iter().position(|&i| is(&tokens[i], "DESCRIPTOR")).unwrap_or(1);
            (after.iter().take(descriptor.saturating_sub(1))).for_each(|&i| dropped[i] = true);
        }
    }
    let mut dropped = dropped.into_iter();
    tokens.retain(|_| !dropped.next().unwrap_or(false));
}

/// The keyword that a token is; `NoKeyword` for anything else.
pub(super) fn keyword(token: &TokenWithSpan) -> Keyword {
    match &token.token {
        Token::Word(word) if word.quote_style.is_none() => word.keyword,
        _ => Keyword::NoKeyword,
    }
}

/// Whether a token is this unquoted word, in any case.
pub(super) fn is(token: &TokenWithSpan, word: &str) -> bool {
    matches!(&token.token, Token::Word(found)
        if found.quote_style.is_none() && found.value.eq_ignore_ascii_case(word))
}
