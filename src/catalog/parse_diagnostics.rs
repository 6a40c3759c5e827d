//! What was probably meant where a statement cannot be read: the parser says what it expected and
//! stops one or two words behind the mistake; here the words around that place are looked at.

use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::parser::ParserError;
use datafusion::sql::sqlparser::tokenizer::{Location, Span, Token, TokenWithSpan};

use crate::catalog::sql_text::{SqlText, WINDOW_FUNCTIONS, keyword};
use crate::catalog::suggestion::find_nearest;
use crate::error::Error;

/// Words that begin or join the parts of a statement.
const CLAUSES: [&str; 35] = [
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

const UNITS: [&str; 7] = ["SECOND", "MINUTE", "HOUR", "DAY", "WEEK", "MONTH", "YEAR"];

/// How far before the parser's place a misspelt keyword may stand: `GRUOP BY x`, `FORM t`.
const WORDS_BACK: usize = 2;

/// Words with which a statement begins.
const BEGINNINGS: [Keyword; 5] =
    [Keyword::CREATE, Keyword::SET, Keyword::SELECT, Keyword::WITH, Keyword::VALUES];

/// The parser's error as ours. It gives places as text: "Expected: x, found: y at Line: 3, Column: 7";
/// where it gives none, the error is at `next`, or at the statement's end.
pub(super) fn parser_error(
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
        Some((message, place)) => (message, location(place)),
        None => (message.as_str(), next),
    };
    let at = at.filter(|_| !message.ends_with("found: EOF"));
    let message = message
        .replacen("Expected: ", "expected ", 1)
        .replace(", found: ", ", found ")
        .replace("expected end of statement", "expected the end of the statement")
        .replace("found EOF", "found the end of the statement");
    misread(text, tokens, &message, at)
}

/// An error that says `message` about the token that starts at `at` (none: about the end of the
/// statement), or a better one, where the words before it tell what is wrong.
pub(super) fn misread(
    text: &SqlText,
    tokens: &[TokenWithSpan],
    message: &str,
    at: Option<Location>,
) -> Error {
    let words: Vec<&TokenWithSpan> = tokens.iter().filter(|token| !is_space(token)).collect();
    let found = at.and_then(|at| words.iter().position(|token| token.span.start == at));
    let context = Context { text, found: found.unwrap_or(words.len()), words };
    context
        .window_function()
        .or_else(|| context.unit_of_time())
        .or_else(|| context.keyword())
        .or_else(|| context.unended_case())
        .unwrap_or_else(|| text.error(context.span(), message).hint_if(context.hint(message)))
}

fn is_space(token: &TokenWithSpan) -> bool {
    matches!(token.token, Token::Whitespace(_))
}

/// Reads "3, Column: 7".
fn location(text: &str) -> Option<Location> {
    let (line, column) = text.split_once(", Column: ")?;
    let location = Location::new(line.parse().ok()?, column.trim().parse().ok()?);
    (location != Location::empty()).then_some(location)
}

/// The words of a statement, and the one that did not fit.
struct Context<'a> {
    text: &'a SqlText,
    words: Vec<&'a TokenWithSpan>,
    /// The index of the word; the number of words where the statement ended too early.
    found: usize,
}

impl<'a> Context<'a> {
    /// The word `back` words before the one that did not fit.
    fn before(&self, back: usize) -> Option<&'a TokenWithSpan> {
        self.words.get(self.found.checked_sub(back)?).copied()
    }

    fn span(&self) -> Span {
        let end = |token: &&TokenWithSpan| Span::new(token.span.end, token.span.end);
        let last = self.words.last().map_or(Span::empty(), end);
        self.words.get(self.found).map_or(last, |token| token.span)
    }

    /// `TUMBEL(TABLE t`: only the window functions' own names may be followed by TABLE.
    fn window_function(&self) -> Option<Error> {
        let (name, open, table) = (self.before(3)?, self.before(2)?, self.before(1)?);
        if open.token != Token::LParen || keyword(table) != Keyword::TABLE {
            return None;
        }
        let word = plain_word(name)?;
        if WINDOW_FUNCTIONS.contains(&word.to_lowercase().as_str()) {
            let message = query_files_only(word);
            return Some(self.text.error(name.span, message).hint(HISTORY_WINDOW_HINT));
        }
        let message = format!("there is no window function '{word}'");
        Some(self.text.error(name.span, message).hint(suggest_window_function(word)))
    }

    /// `INTERVAL '1' DYA`
    fn unit_of_time(&self) -> Option<Error> {
        let (interval, unit) = (self.before(2)?, self.before(0)?);
        let word = plain_word(unit).filter(|_| keyword(interval) == Keyword::INTERVAL)?;
        let unit_meant = find_nearest(word, UNITS)?;
        let message = format!("'{word}' is no unit of time");
        Some(self.text.error(unit.span, message).hint(format!("did you mean {unit_meant}?")))
    }

    /// `GRUOP BY`, `FORM t`: a misspelt keyword is taken for a name, and the next word is wrong.
    fn keyword(&self) -> Option<Error> {
        (0..=WORDS_BACK).find_map(|back| {
            let token = self.before(back)?;
            let word = plain_word(token).filter(|word| word.chars().count() > 2)?;
            if keyword(token) != Keyword::NoKeyword {
                return None;
            }
            let meant = find_nearest(word, CLAUSES)?;
            let next = self.words.get(self.found + 1 - back);
            let by = match next.is_some_and(|next| keyword(next) == Keyword::BY) {
                true => " BY",
                false => "",
            };
            let message = format!("'{word}' does not belong here");
            Some(self.text.error(token.span, message).hint(format!("did you mean {meant}{by}?")))
        })
    }

    /// A CASE without its END is taken for a column's name.
    fn unended_case(&self) -> Option<Error> {
        let mut open = Vec::new();
        for token in &self.words {
            match keyword(token) {
                Keyword::CASE => open.push(token.span),
                Keyword::END => drop(open.pop()),
                _ => {}
            }
        }
        let error = self.text.error(open.pop()?, "this CASE is never ended");
        Some(error.hint("write END after its last branch"))
    }

    fn hint(&self, message: &str) -> Option<String> {
        if let Some(text) = self.text_over_lines() {
            return Some(format!(
                "the text that begins at line {}, column {} goes on over the end of the line: is its closing ' missing?",
                text.start.line, text.start.column
            ));
        }
        let found = self.words.get(self.found);
        let in_columns = message.contains("a comma or a closing parenthesis");
        match self.parentheses() {
            Some(Parenthesis::Unclosed(open))
                if message.starts_with("expected )") || in_columns =>
            {
                return Some(format!(
                    "the parenthesis that opens at line {}, column {} is not closed",
                    open.start.line, open.start.column
                ));
            }
            Some(Parenthesis::Unopened(close)) if found.is_some_and(|f| f.span == close) => {
                return Some("there is one ) too many".to_owned());
            }
            _ => {}
        }
        let Some(found) = found else { return Some("the statement is not complete".to_owned()) };
        let is_name = |token: &TokenWithSpan| {
            plain_word(token).is_some() && keyword(token) == Keyword::NoKeyword
        };
        if in_columns && is_name(found) {
            return Some(format!("is a comma missing before {found}?"));
        }
        if !message.starts_with("expected the end of the statement") {
            return None;
        }
        if BEGINNINGS.contains(&keyword(found)) {
            return Some(format!("is a semicolon missing before {found}?"));
        }
        let is_value = |token: &TokenWithSpan| {
            is_name(token)
                || matches!(token.token, Token::Number(..) | Token::SingleQuotedString(_))
        };
        let after_value =
            self.before(1).is_some_and(|token| is_value(token) || token.token == Token::RParen);
        (is_value(found) && after_value)
            .then(|| format!("is a comma or an operator missing before {found}?"))
    }

    /// A text that goes on over the end of a line, before the word that did not fit.
    fn text_over_lines(&self) -> Option<Span> {
        let texts = self.words.iter().take(self.found + 1).filter(|token| is_text(token));
        texts.map(|token| token.span).find(|span| span.start.line != span.end.line)
    }

    /// The first parenthesis without a partner.
    fn parentheses(&self) -> Option<Parenthesis> {
        let mut open = Vec::new();
        for token in &self.words {
            match token.token {
                Token::LParen => open.push(token.span),
                Token::RParen if open.pop().is_none() => {
                    return Some(Parenthesis::Unopened(token.span));
                }
                _ => {}
            }
        }
        open.pop().map(Parenthesis::Unclosed)
    }
}

enum Parenthesis {
    Unclosed(Span),
    Unopened(Span),
}

fn plain_word(token: &TokenWithSpan) -> Option<&str> {
    match &token.token {
        Token::Word(word) if word.quote_style.is_none() => Some(&word.value),
        _ => None,
    }
}

fn is_text(token: &TokenWithSpan) -> bool {
    matches!(token.token, Token::SingleQuotedString(_))
}

/// What to write instead of TUMBLE over history.
pub(crate) const HISTORY_WINDOW_HINT: &str =
    "over history write GROUP BY date_bin(INTERVAL '1' HOUR, event_time)";

/// A window function where only DataFusion's own functions are known.
pub(crate) fn query_files_only(function: &str) -> String {
    format!("{} is for query files", function.to_uppercase())
}

/// What to write instead of a window function that does not exist.
pub(crate) fn suggest_window_function(word: &str) -> String {
    match find_nearest(word, WINDOW_FUNCTIONS) {
        Some(meant) => format!("did you mean {}?", meant.to_uppercase()),
        None => "the window functions are TUMBLE and HOP".to_owned(),
    }
}

/// "did you mean SELECT?", for a word at which `known` are expected.
pub(super) fn meant<const N: usize>(word: &TokenWithSpan, known: [&str; N]) -> Option<String> {
    find_nearest(plain_word(word)?, known).map(|meant| format!("did you mean {meant}?"))
}

/// What the tokenizer gave up on: something that is opened and never closed. `tokens` are those
/// before it.
pub(super) fn unclosed(text: &SqlText, tokens: &[TokenWithSpan], at: Location) -> Error {
    let start = tokens.last().map_or(Location::new(1, 1), |token| token.span.end);
    let opening = text.text.lines().nth(usize::try_from(start.line - 1).unwrap_or(usize::MAX));
    let opening = opening.and_then(|line| {
        let column = usize::try_from(start.column.saturating_sub(1)).unwrap_or(usize::MAX);
        line.chars().nth(column)
    });
    let one = |at: Location| Span::new(at, Location::new(at.line, at.column + 1));
    match opening {
        // With an odd number of quotes the last one is left over; the one that lacks its partner
        // is rather where a text first goes on over the end of its line.
        Some('\'') => {
            let early = tokens
                .iter()
                .find(|token| is_text(token) && token.span.start.line != token.span.end.line);
            let start = early.map_or(start, |token| token.span.start);
            text.error(one(start), "this text is never closed").hint("write the closing '")
        }
        Some(quote @ ('"' | '`')) => text
            .error(one(start), "this quoted name is never closed")
            .hint(format!("write the closing {quote}; a text stands in single quotes")),
        Some('/') => {
            text.error(one(start), "this comment is never closed").hint("write the closing */")
        }
        _ => text.error(one(at), "this cannot be read"),
    }
}
