//! Splits a SQL file into the tokens of its statements.
//!
//! A file is tokenized once and then split at its semicolons. Every token, and every span of the
//! syntax tree parsed from it, therefore keeps its line and column in the file, and an error in
//! one statement does not hide errors in the next.

use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::tokenizer::{Span, Token, TokenWithSpan, Tokenizer, Whitespace};

use crate::catalog::parse_diagnostics::explain_tokenizer_error;
use crate::catalog::sql_text::{
    DIALECT, SqlText, WINDOW_FUNCTIONS, is_whitespace, is_word, keyword,
};
use crate::error::Result;

/// The tokens of one statement, without its semicolon.
pub(super) struct StatementTokens {
    /// All tokens, white space included; at least one of them is not white space.
    pub tokens: Vec<TokenWithSpan>,
    /// The `--` comment before the statement, its lines joined by spaces.
    pub comment: String,
    /// The span of the last token that is not white space.
    last: Span,
}

/// Splits `text` into tokens, white space included.
///
/// # Errors
/// `text` cannot be tokenized, for example because of an unterminated string.
pub(super) fn tokenize(text: &SqlText) -> Result<Vec<TokenWithSpan>> {
    let mut tokens = Vec::new();
    match Tokenizer::new(&DIALECT, &text.text).tokenize_with_location_into_buf(&mut tokens) {
        Ok(()) => Ok(tokens),
        Err(error) => Err(explain_tokenizer_error(text, &tokens, error.location)),
    }
}

/// Splits `text` into statements; empty statements are left out.
///
/// # Errors
/// As for [`tokenize`].
pub(super) fn split_statements(text: &SqlText) -> Result<Vec<StatementTokens>> {
    let tokens = tokenize(text)?;
    let statements = tokens.split(|token| token.token == Token::SemiColon);
    Ok(statements.filter_map(|tokens| StatementTokens::new(tokens.to_vec())).collect())
}

impl StatementTokens {
    /// `None` if all tokens are white space.
    fn new(mut tokens: Vec<TokenWithSpan>) -> Option<Self> {
        let first = tokens.iter().position(|token| !is_whitespace(token))?;
        let last = tokens.iter().rfind(|token| !is_whitespace(token))?.span;
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

    /// The span of the first token that is not white space.
    pub fn first(&self) -> Span {
        self.words().next().map_or(self.last, |token| token.span)
    }

    /// Whether the statement begins with CREATE.
    pub fn is_create(&self) -> bool {
        self.words().next().is_some_and(|word| is_word(word, "create"))
    }

    /// The tokens that are not white space.
    pub fn words(&self) -> impl Iterator<Item = &TokenWithSpan> {
        self.tokens.iter().filter(|token| !is_whitespace(token))
    }
}

/// Rewrites Flink's `TUMBLE(TABLE t, ...)` to `TUMBLE(t, ...)`, which sqlparser parses as a table
/// function. Also removes the partitioning of `SESSION(TABLE t PARTITION BY k, ...)`, so that the
/// statement parses and the planner can reject the session window by name.
fn unwrap_table_arguments(tokens: &mut Vec<TokenWithSpan>) {
    let words: Vec<usize> = (0..tokens.len()).filter(|&i| !is_whitespace(&tokens[i])).collect();
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
        if function == "session" && after.first().is_some_and(|&i| is_word(&tokens[i], "PARTITION"))
        {
            let descriptor =
                after.iter().position(|&i| is_word(&tokens[i], "DESCRIPTOR")).unwrap_or(1);
            (after.iter().take(descriptor.saturating_sub(1))).for_each(|&i| dropped[i] = true);
        }
    }
    let mut dropped = dropped.into_iter();
    tokens.retain(|_| !dropped.next().unwrap_or(false));
}
