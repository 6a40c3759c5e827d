//! Locates errors in a statement: by DataFusion's span, or by a word that the message names.

use std::ops::ControlFlow;
use std::path::Path;

use arrow::datatypes::DataType;
use datafusion::common::Span;
use datafusion::sql::sqlparser::ast::{
    self, FunctionArg, FunctionArgExpr, FunctionArguments, Ident, ObjectName, Spanned, Value,
};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::tokenizer::{self, Token, TokenWithSpan, Tokenizer};

use crate::catalog::Query;
use crate::catalog::ast_visitor::{QueryVisitor, visit_expr, visit_query};
use crate::error::Place;
use crate::planner::sql_display::sql_type;

/// A statement in which errors are located.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SqlSource<'a> {
    pub(crate) file: &'a Path,
    /// The whole file.
    pub(crate) text: &'a str,
    /// The parsed query, if the statement is a query.
    pub(crate) select: Option<&'a ast::Query>,
    /// The line on which the statement begins.
    pub(crate) line: u64,
    /// The known columns that the statement may name, with their types.
    pub(crate) columns: &'a [(String, DataType)],
}

impl<'a> SqlSource<'a> {
    pub(crate) fn of(query: &'a Query) -> Self {
        Self {
            file: &query.file,
            text: &query.text,
            select: Some(&query.select),
            line: query.place.line,
            columns: &[],
        }
    }

    /// Returns the place of a span of DataFusion.
    pub(crate) fn place(&self, span: Span) -> Place {
        let width = match span.end.line == span.start.line {
            true => span.end.column.saturating_sub(span.start.column),
            false => 1,
        };
        Place::new(self.file, self.text, span.start.line, span.start.column, width)
    }

    /// Finds the first call of `function` whose arguments may have the types in `arguments`.
    pub(super) fn find_call(&self, function: &str, arguments: &str) -> Option<Place> {
        let types: Vec<&str> = arguments.split(", ").collect();
        let mut finder = CallFinder { function, types: &types, columns: self.columns };
        Some(self.place_of_parser(visit_query(self.select?, &mut finder)?))
    }

    /// Finds the first `word` after the keyword `start` of a clause.
    pub(super) fn find_after(&self, start: &str, word: &str) -> Option<Place> {
        let last = word.rsplit('.').next().unwrap_or(word);
        let tokens = self.tokens();
        let begin = tokens.iter().position(|token| is_word(token, start))?;
        let found = tokens.get(begin..)?.iter().find(|token| is_word(token, last))?;
        Some(self.place_of_parser(found.span))
    }

    /// Finds the first `word` that is a column, function, relation or literal, otherwise any first `word`.
    pub(crate) fn find(&self, word: &str) -> Option<Place> {
        let last = word.rsplit('.').next().unwrap_or(word);
        let mut finder = Finder { name: last };
        let span = self.select.and_then(|select| visit_query(select, &mut finder));
        let token = || self.tokens().iter().find(|token| is_word(token, last)).map(|t| t.span);
        let span = span.filter(|span| span.start.line > 0).or_else(token)?;
        Some(self.place_of_parser(span))
    }

    /// Returns the place of a span of the parser.
    fn place_of_parser(&self, span: tokenizer::Span) -> Place {
        let width = match span.end.line == span.start.line {
            true => span.end.column.saturating_sub(span.start.column),
            false => 1,
        };
        Place::new(self.file, self.text, span.start.line, span.start.column, width)
    }

    /// Returns the tokens of the file from the statement's line on.
    fn tokens(&self) -> Vec<TokenWithSpan> {
        let mut tokens = Vec::new();
        // If the text cannot be tokenized to its end, the tokens before the error suffice.
        let _ = Tokenizer::new(&GenericDialect {}, self.text)
            .tokenize_with_location_into_buf(&mut tokens);
        tokens.retain(|token| token.span.start.line >= self.line);
        tokens
    }

    /// Whether the SELECT defines `name` as a column alias.
    pub(super) fn gives_name(&self, name: &str) -> bool {
        let aliased = |select: &&ast::Select| {
            select.projection.iter().any(|item| {
                matches!(item, ast::SelectItem::ExprWithAlias { alias, .. }
                    if alias.value.eq_ignore_ascii_case(name))
            })
        };
        self.select.and_then(|select| select.body.as_select()).filter(aliased).is_some()
    }
}

/// Whether the name at `place` is in double quotes.
pub(super) fn is_quoted(place: &Place) -> bool {
    let column = usize::try_from(place.column.saturating_sub(1)).unwrap_or(usize::MAX);
    place.text.chars().nth(column) == Some('"')
}

fn is_word(token: &TokenWithSpan, word: &str) -> bool {
    match &token.token {
        Token::Word(found) => found.value.eq_ignore_ascii_case(word),
        Token::Number(found, _) | Token::SingleQuotedString(found) => found == word,
        Token::Whitespace(_) => false,
        operator => operator.to_string() == word,
    }
}

/// Returns the place of a span of the parser, or `None` if the span is empty.
pub(crate) fn place_of_span(query: &Query, span: tokenizer::Span) -> Option<Place> {
    (span.start.line > 0).then(|| SqlSource::of(query).place_of_parser(span))
}

/// Finds the first `word` in an expression.
pub(crate) fn find_in(expr: &ast::Expr, word: &str) -> Option<tokenizer::Span> {
    let last = word.rsplit('.').next().unwrap_or(word);
    visit_expr(expr, &mut Finder { name: last }).filter(|span| span.start.line > 0)
}

/// Returns the keyword with which a message begins, as in "ORDER BY over a stream needs a window".
pub(crate) fn keyword_in(message: &str) -> Option<&str> {
    let word = message.split(' ').next()?;
    (word.len() > 1 && word.chars().all(|c| c.is_ascii_uppercase())).then_some(word)
}

/// Finds a call by its name and the types of the arguments that are plain columns.
struct CallFinder<'a> {
    function: &'a str,
    types: &'a [&'a str],
    columns: &'a [(String, DataType)],
}

impl CallFinder<'_> {
    fn fits(&self, argument: &FunctionArg, wanted: &str) -> bool {
        let FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) = argument else { return true };
        let ident = match expr {
            ast::Expr::Identifier(ident) => Some(ident),
            ast::Expr::CompoundIdentifier(parts) => parts.last(),
            _ => None,
        };
        let Some(ident) = ident else { return true };
        let named = |column: &&(String, DataType)| column.0.eq_ignore_ascii_case(&ident.value);
        let mut types = self.columns.iter().filter(named).map(|column| &column.1).peekable();
        types.peek().is_none() || types.any(|data_type| sql_type(data_type) == wanted)
    }
}

impl QueryVisitor for CallFinder<'_> {
    fn expr(&mut self, expr: &ast::Expr) -> ControlFlow<tokenizer::Span> {
        let ast::Expr::Function(function) = expr else { return ControlFlow::Continue(()) };
        let FunctionArguments::List(list) = &function.args else {
            return ControlFlow::Continue(());
        };
        let name = function.name.0.last().and_then(|part| part.as_ident());
        let is_named = name.is_some_and(|name| name.value.eq_ignore_ascii_case(self.function));
        let fit = list.args.iter().zip(self.types).all(|(argument, of)| self.fits(argument, of));
        match name {
            Some(name) if is_named && fit => ControlFlow::Break(name.span),
            _ => ControlFlow::Continue(()),
        }
    }
}

struct Finder<'a> {
    name: &'a str,
}

impl Finder<'_> {
    fn check(&self, ident: Option<&Ident>) -> ControlFlow<tokenizer::Span> {
        match ident {
            Some(ident) if ident.value.eq_ignore_ascii_case(self.name) => {
                ControlFlow::Break(ident.span)
            }
            _ => ControlFlow::Continue(()),
        }
    }

    fn check_object(&self, name: &ObjectName) -> ControlFlow<tokenizer::Span> {
        self.check(name.0.last().and_then(|part| part.as_ident()))
    }
}

impl QueryVisitor for Finder<'_> {
    fn relation(&mut self, relation: &ObjectName) -> ControlFlow<tokenizer::Span> {
        self.check_object(relation)
    }

    fn expr(&mut self, expr: &ast::Expr) -> ControlFlow<tokenizer::Span> {
        match expr {
            ast::Expr::Identifier(ident) => self.check(Some(ident)),
            ast::Expr::CompoundIdentifier(idents) => match self.check(idents.last()) {
                ControlFlow::Break(_) => ControlFlow::Break(expr.span()),
                next => next,
            },
            ast::Expr::Function(function) => self.check_object(&function.name),
            ast::Expr::Value(value) => match &value.value {
                Value::SingleQuotedString(text) if text == self.name => {
                    ControlFlow::Break(value.span)
                }
                _ => ControlFlow::Continue(()),
            },
            _ => ControlFlow::Continue(()),
        }
    }
}
