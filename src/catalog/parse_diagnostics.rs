//! Errors and hints for statements that do not parse.
//!
//! The parser reports what it expected and stops one or two words after the mistake. The functions
//! here inspect the words around that place to find the mistake itself.

use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::parser::ParserError;
use datafusion::sql::sqlparser::tokenizer::{Location, Span, Token, TokenWithSpan};

use crate::catalog::sql_text::{SqlText, WINDOW_FUNCTIONS, is_whitespace, keyword};
use crate::catalog::suggestion::find_nearest;
use crate::error::Error;

/// The keywords that begin or join the clauses of a statement.
const CLAUSE_KEYWORDS: [&str; 35] = [
    "SELECT",
    "DISTINCT",
    "FROM",
    "WHERE",
    "GROUP",
    "HAVING",
    "ORDER",
    "LIMIT",
    "OFFSET",
    "UNION",
    "JOIN",
    "LEFT",
    "RIGHT",
    "FULL",
    "INNER",
    "OUTER",
    "CROSS",
    "USING",
    "AND",
    "BETWEEN",
    "LIKE",
    "WITH",
    "CASE",
    "WHEN",
    "THEN",
    "ELSE",
    "PARTITION",
    "OVER",
    "VALUES",
    "INTERVAL",
    "WATERMARK",
    "METADATA",
    "DESCRIPTOR",
    "STORED",
    "LOCATION",
];

const TIME_UNITS: [&str; 7] = ["SECOND", "MINUTE", "HOUR", "DAY", "WEEK", "MONTH", "YEAR"];

/// How many words before the place that the parser reports a misspelt keyword may be, as in
/// `GRUOP BY x` or `FORM t`.
const WORDS_BACK: usize = 2;

/// The keywords that begin a statement.
const FIRST_KEYWORDS: [Keyword; 5] =
    [Keyword::CREATE, Keyword::SET, Keyword::SELECT, Keyword::WITH, Keyword::VALUES];

/// Converts an error of sqlparser. The parser gives its place as text: "Expected: x, found: y at
/// Line: 3, Column: 7". An error without a place is at `next`, or at the end of the statement.
pub(super) fn explain_parser_error(
    text: &SqlText,
    tokens: &[TokenWithSpan],
    error: ParserError,
    next: Option<Location>,
) -> Error {
    let message = match error {
        ParserError::TokenizerError(message) | ParserError::ParserError(message) => message,
        ParserError::RecursionLimitExceeded => "the statement is nested too deeply".to_owned(),
    };
    let (message, at) = match message.rsplit_once(" at Line: ") {
        Some((message, place)) => (message, parse_location(place)),
        None => (message.as_str(), next),
    };
    let at = at.filter(|_| !message.ends_with("found: EOF"));
    let message = message
        .replacen("Expected: ", "expected ", 1)
        .replace(", found: ", ", found ")
        .replace("expected end of statement", "expected the end of the statement")
        .replace("found EOF", "found the end of the statement");
    explain_unexpected_token(text, tokens, &message, at)
}

/// An error with `message` at the token that starts at `at` (`None`: at the end of the statement),
/// or a more precise error if the words around the token show the mistake.
pub(super) fn explain_unexpected_token(
    text: &SqlText,
    tokens: &[TokenWithSpan],
    message: &str,
    at: Option<Location>,
) -> Error {
    let words: Vec<&TokenWithSpan> = tokens.iter().filter(|token| !is_whitespace(token)).collect();
    let index = at.and_then(|at| words.iter().position(|token| token.span.start == at));
    let context = ErrorContext { text, unexpected: index.unwrap_or(words.len()), words };
    context
        .explain_window_function()
        .or_else(|| context.explain_time_unit())
        .or_else(|| context.explain_misspelt_keyword())
        .or_else(|| context.explain_case_without_end())
        .unwrap_or_else(|| text.error(context.span(), message).hint_if(context.hint_for(message)))
}

/// Parses "3, Column: 7".
fn parse_location(text: &str) -> Option<Location> {
    let (line, column) = text.split_once(", Column: ")?;
    let location = Location::new(line.parse().ok()?, column.trim().parse().ok()?);
    (location != Location::empty()).then_some(location)
}

/// The words of a statement and the unexpected one.
struct ErrorContext<'a> {
    text: &'a SqlText,
    words: Vec<&'a TokenWithSpan>,
    /// The index of the unexpected word; the number of words if the statement ends too early.
    unexpected: usize,
}

impl<'a> ErrorContext<'a> {
    /// The word `back` words before the unexpected one.
    fn word_before(&self, back: usize) -> Option<&'a TokenWithSpan> {
        self.words.get(self.unexpected.checked_sub(back)?).copied()
    }

    fn span(&self) -> Span {
        let end = |token: &&TokenWithSpan| Span::new(token.span.end, token.span.end);
        let last = self.words.last().map_or(Span::empty(), end);
        self.words.get(self.unexpected).map_or(last, |token| token.span)
    }

    /// `TUMBEL(TABLE t`: only the name of a window function may be followed by `(TABLE`.
    fn explain_window_function(&self) -> Option<Error> {
        let (name, open, table) =
            (self.word_before(3)?, self.word_before(2)?, self.word_before(1)?);
        if open.token != Token::LParen || keyword(table) != Keyword::TABLE {
            return None;
        }
        let word = unquoted_word(name)?;
        if WINDOW_FUNCTIONS.contains(&word.to_lowercase().as_str()) {
            let message = query_files_only(word);
            return Some(self.text.error(name.span, message).hint(HISTORY_WINDOW_HINT));
        }
        let message = format!("unknown window function '{word}'");
        Some(self.text.error(name.span, message).hint(suggest_window_function(word)))
    }

    /// `INTERVAL '1' DYA`: a misspelt unit of time.
    fn explain_time_unit(&self) -> Option<Error> {
        let (interval, unit) = (self.word_before(2)?, self.word_before(0)?);
        let word = unquoted_word(unit).filter(|_| keyword(interval) == Keyword::INTERVAL)?;
        let unit_meant = find_nearest(word, TIME_UNITS)?;
        let message = format!("unknown time unit '{word}'");
        Some(self.text.error(unit.span, message).hint(format!("did you mean {unit_meant}?")))
    }

    /// `GRUOP BY`, `FORM t`: the parser takes a misspelt keyword for a name and rejects the next word.
    fn explain_misspelt_keyword(&self) -> Option<Error> {
        (0..=WORDS_BACK).find_map(|back| {
            let token = self.word_before(back)?;
            let word = unquoted_word(token).filter(|word| word.chars().count() > 2)?;
            if keyword(token) != Keyword::NoKeyword {
                return None;
            }
            let meant = find_nearest(word, CLAUSE_KEYWORDS)?;
            let next = self.words.get(self.unexpected + 1 - back);
            let by = match next.is_some_and(|next| keyword(next) == Keyword::BY) {
                true => " BY",
                false => "",
            };
            let message = format!("unexpected word '{word}'");
            Some(self.text.error(token.span, message).hint(format!("did you mean {meant}{by}?")))
        })
    }

    /// The parser takes a CASE without END for the name of a column.
    fn explain_case_without_end(&self) -> Option<Error> {
        let mut open = Vec::new();
        for token in &self.words {
            match keyword(token) {
                Keyword::CASE => open.push(token.span),
                Keyword::END => drop(open.pop()),
                _ => {}
            }
        }
        let error = self.text.error(open.pop()?, "this CASE has no END");
        Some(error.hint("write END after the last branch"))
    }

    fn hint_for(&self, message: &str) -> Option<String> {
        if let Some(string) = self.multi_line_string() {
            return Some(format!(
                "the string that starts at line {}, column {} continues on the next line: is its closing ' missing?",
                string.start.line, string.start.column
            ));
        }
        let found = self.words.get(self.unexpected);
        let in_columns = message.contains("a comma or a closing parenthesis");
        match self.unmatched_parenthesis() {
            Some(UnmatchedParenthesis::Open(open))
                if message.starts_with("expected )") || in_columns =>
            {
                return Some(format!(
                    "the parenthesis opened at line {}, column {} is not closed",
                    open.start.line, open.start.column
                ));
            }
            Some(UnmatchedParenthesis::Close(close)) if found.is_some_and(|f| f.span == close) => {
                return Some("this ) has no matching (".to_owned());
            }
            _ => {}
        }
        let Some(found) = found else { return Some("the statement is incomplete".to_owned()) };
        let is_name = |token: &TokenWithSpan| {
            unquoted_word(token).is_some() && keyword(token) == Keyword::NoKeyword
        };
        if in_columns && is_name(found) {
            return Some(format!("is a comma missing before {found}?"));
        }
        if !message.starts_with("expected the end of the statement") {
            return None;
        }
        if FIRST_KEYWORDS.contains(&keyword(found)) {
            return Some(format!("is a semicolon missing before {found}?"));
        }
        let is_value = |token: &TokenWithSpan| {
            is_name(token)
                || matches!(token.token, Token::Number(..) | Token::SingleQuotedString(_))
        };
        let after_value = self
            .word_before(1)
            .is_some_and(|token| is_value(token) || token.token == Token::RParen);
        (is_value(found) && after_value)
            .then(|| format!("is a comma or an operator missing before {found}?"))
    }

    /// The first string that spans several lines, up to the unexpected word.
    fn multi_line_string(&self) -> Option<Span> {
        let strings = self.words.iter().take(self.unexpected + 1).filter(|token| is_string(token));
        strings.map(|token| token.span).find(|span| span.start.line != span.end.line)
    }

    /// The first parenthesis without a match.
    fn unmatched_parenthesis(&self) -> Option<UnmatchedParenthesis> {
        let mut open = Vec::new();
        for token in &self.words {
            match token.token {
                Token::LParen => open.push(token.span),
                Token::RParen if open.pop().is_none() => {
                    return Some(UnmatchedParenthesis::Close(token.span));
                }
                _ => {}
            }
        }
        open.pop().map(UnmatchedParenthesis::Open)
    }
}

/// A parenthesis without a match.
enum UnmatchedParenthesis {
    Open(Span),
    Close(Span),
}

/// The text of an unquoted word.
fn unquoted_word(token: &TokenWithSpan) -> Option<&str> {
    match &token.token {
        Token::Word(word) if word.quote_style.is_none() => Some(&word.value),
        _ => None,
    }
}

fn is_string(token: &TokenWithSpan) -> bool {
    matches!(token.token, Token::SingleQuotedString(_))
}

/// The hint for a window function such as TUMBLE in SQL over history.
pub(crate) const HISTORY_WINDOW_HINT: &str =
    "over history, use GROUP BY date_bin(INTERVAL '1' HOUR, event_time)";

/// The message for a window function where only the functions of DataFusion exist.
pub(crate) fn query_files_only(function: &str) -> String {
    format!("{} can be used only in query files", function.to_uppercase())
}

/// The hint for an unknown window function.
pub(crate) fn suggest_window_function(word: &str) -> String {
    match find_nearest(word, WINDOW_FUNCTIONS) {
        Some(meant) => format!("did you mean {}?", meant.to_uppercase()),
        None => "the supported window functions are TUMBLE and HOP".to_owned(),
    }
}

/// A hint "did you mean SELECT?" for a word in place of which one of `known` is expected.
pub(super) fn suggest_keyword<const N: usize>(
    word: &TokenWithSpan,
    known: [&str; N],
) -> Option<String> {
    find_nearest(unquoted_word(word)?, known).map(|meant| format!("did you mean {meant}?"))
}

/// Explains an error of the tokenizer at `at`: an unterminated string, name or comment. `tokens` are
/// those before it.
pub(super) fn explain_tokenizer_error(
    text: &SqlText,
    tokens: &[TokenWithSpan],
    at: Location,
) -> Error {
    let start = tokens.last().map_or(Location::new(1, 1), |token| token.span.end);
    let opening = text.text.lines().nth(usize::try_from(start.line - 1).unwrap_or(usize::MAX));
    let opening = opening.and_then(|line| {
        let column = usize::try_from(start.column.saturating_sub(1)).unwrap_or(usize::MAX);
        line.chars().nth(column)
    });
    let one_character = |at: Location| Span::new(at, Location::new(at.line, at.column + 1));
    match opening {
        // With an odd number of quotes the tokenizer fails at the last one. The mistake is more likely
        // at the first string that spans several lines.
        Some('\'') => {
            let multi_line = tokens
                .iter()
                .find(|token| is_string(token) && token.span.start.line != token.span.end.line);
            let start = multi_line.map_or(start, |token| token.span.start);
            text.error(one_character(start), "unterminated string").hint("write the closing '")
        }
        Some(quote @ ('"' | '`')) => text
            .error(one_character(start), "unterminated quoted name")
            .hint(format!("write the closing {quote}; a string is written in single quotes")),
        Some('/') => {
            text.error(one_character(start), "unterminated comment").hint("write the closing */")
        }
        _ => text.error(one_character(at), "cannot tokenize this text"),
    }
}
