//! The statements of schema and query files, as they are written.
//!
//! sqlparser reads names, types, expressions and queries; this module adds the clauses that it does
//! not know (CREATE STREAM, METADATA FROM, FORMAT, WATERMARK FOR). Nothing is checked here beyond
//! the grammar, and every part keeps its span in the file.

use datafusion::sql::sqlparser::ast::{self, Spanned};
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::parser::{Parser, ParserError};
use datafusion::sql::sqlparser::tokenizer::{Span, Token, TokenWithSpan};

use crate::catalog::parse_diagnostics::{meant, misread, parser_error};
use crate::catalog::sql_text::{DIALECT, Segment, SqlText, is, keyword};
use crate::error::{Error, Result};

/// A statement of ours.
#[derive(Debug)]
pub(super) enum Statement {
    /// `CREATE STREAM name (...) WITH (...)`
    Stream(StreamStatement),
    /// `CREATE STREAM ... AS`, `CREATE MATERIALIZED VIEW ... AS` or a bare query
    Query(QueryStatement),
    /// `CREATE EXTERNAL TABLE`
    Table(TableStatement),
    /// `SET millstream.key = value`
    Set(SetStatement),
}

/// A word or a text literal with its span: a name (folded as DataFusion folds it) or a value.
#[derive(Debug, Clone)]
pub(super) struct Word {
    pub value: String,
    pub span: Span,
}

/// `CREATE STREAM name (columns, WATERMARK ...) WITH (options)`
#[derive(Debug)]
pub(super) struct StreamStatement {
    pub name: Word,
    pub columns: Vec<ColumnClause>,
    pub watermarks: Vec<WatermarkClause>,
    pub options: Vec<OptionClause>,
}

/// `name TYPE [NOT NULL] [AS expr | METADATA FROM '..' | FORMAT '..']`
#[derive(Debug)]
pub(super) struct ColumnClause {
    pub name: Word,
    pub sql_type: ast::DataType,
    pub type_span: Span,
    pub not_null: Option<Span>,
    pub source: SourceClause,
}

/// Where a column's values come from, as written.
#[derive(Debug)]
pub(super) enum SourceClause {
    Payload,
    Format(Word),
    Metadata(Word),
    Computed(Box<ast::Expr>),
}

/// `WATERMARK FOR column AS expr`
#[derive(Debug)]
pub(super) struct WatermarkClause {
    pub column: Word,
    pub delayed: ast::Expr,
    pub span: Span,
}

/// `key = value` of a WITH or OPTIONS list.
#[derive(Debug, Clone)]
pub(super) struct OptionClause {
    pub key: Word,
    pub value: Word,
}

/// What a query statement makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum QueryForm {
    Bare,
    Stream,
    View,
}

/// Any statement that holds a query.
#[derive(Debug)]
pub(super) struct QueryStatement {
    pub name: Option<Word>,
    pub form: QueryForm,
    pub options: Vec<OptionClause>,
    pub select: Box<ast::Query>,
    pub span: Span,
    pub comment: String,
}

/// `CREATE EXTERNAL TABLE name [(columns)] STORED AS format LOCATION '..' [OPTIONS (...)]`
#[derive(Debug)]
pub(super) struct TableStatement {
    pub name: Word,
    pub columns: Vec<ColumnClause>,
    pub format: Word,
    pub location: Word,
    pub options: Vec<OptionClause>,
}

/// `SET key = value`
#[derive(Debug)]
pub(super) struct SetStatement {
    pub key: Word,
    pub value: Word,
}

/// Parses one statement.
///
/// # Errors
/// Anything that is not one of our statements, at the token that does not fit.
pub(super) fn parse(text: &SqlText, segment: &Segment) -> Result<Statement> {
    let parser = Parser::new(&DIALECT).with_tokens_with_locations(segment.tokens.clone());
    StatementParser { parser, text, segment }.statement()
}

/// The relations that the CREATEs of a statement would have made, even if the rest does not parse.
/// There may be several where a semicolon is missing.
pub(super) fn created_names(segment: &Segment) -> Vec<String> {
    let words: Vec<&TokenWithSpan> = segment.words().collect();
    (0..words.len()).filter_map(|start| created_name(words.get(start..)?)).collect()
}

/// The relation that `CREATE ...` makes.
fn created_name(words: &[&TokenWithSpan]) -> Option<String> {
    let skipped = match words {
        [create, stream, ..] if is(create, "create") && is(stream, "stream") => 2,
        [create, middle, last, ..] if is(create, "create") => {
            match (keyword(middle), keyword(last)) {
                (Keyword::MATERIALIZED, Keyword::VIEW) | (Keyword::EXTERNAL, Keyword::TABLE) => 3,
                // A misspelt word, or a kind of thing that there is not here.
                _ => 2,
            }
        }
        _ => return None,
    };
    match &words.get(skipped)?.token {
        Token::Word(word) => Some(folded(&word.value, word.quote_style)),
        _ => None,
    }
}

/// An identifier as DataFusion compares it: lower case, unless it is quoted.
pub(super) fn folded(value: &str, quote: Option<char>) -> String {
    if quote.is_some() { value.to_owned() } else { value.to_ascii_lowercase() }
}

struct StatementParser<'a> {
    parser: Parser<'a>,
    text: &'a SqlText,
    segment: &'a Segment,
}

impl StatementParser<'_> {
    fn statement(mut self) -> Result<Statement> {
        let first = self.parser.peek_token();
        let statement = match keyword(&first) {
            Keyword::CREATE => self.create()?,
            Keyword::SET => Statement::Set(self.set()?),
            Keyword::SELECT | Keyword::WITH | Keyword::VALUES | Keyword::FROM => {
                self.bare(&first)?
            }
            _ if first.token == Token::LParen => self.bare(&first)?,
            _ => return Err(self.no_statement(&first)),
        };
        let next = self.parser.peek_token();
        if next.token != Token::EOF {
            return Err(self.unexpected("the end of the statement", &next));
        }
        Ok(statement)
    }

    fn create(&mut self) -> Result<Statement> {
        let create = self.parser.next_token();
        let what = self.parser.next_token();
        if is(&what, "stream") {
            return self.create_stream(create.span);
        }
        match keyword(&what) {
            Keyword::MATERIALIZED => {
                self.keyword(Keyword::VIEW)?;
                let name = self.name()?;
                self.query(Some(name), QueryForm::View, create.span).map(Statement::Query)
            }
            Keyword::EXTERNAL => {
                self.keyword(Keyword::TABLE)?;
                self.create_table().map(Statement::Table)
            }
            Keyword::VIEW => Err(self
                .unexpected("STREAM, MATERIALIZED VIEW or EXTERNAL TABLE", &what)
                .hint("a view that is kept up to date is a CREATE MATERIALIZED VIEW")),
            Keyword::TABLE => Err(self
                .unexpected("STREAM, MATERIALIZED VIEW or EXTERNAL TABLE", &what)
                .hint("rows from Kafka are a CREATE STREAM, a file is a CREATE EXTERNAL TABLE")),
            _ => {
                let error = self.unexpected("STREAM, MATERIALIZED VIEW or EXTERNAL TABLE", &what);
                Err(error.hint_if(meant(&what, ["STREAM", "MATERIALIZED", "EXTERNAL"])))
            }
        }
    }

    fn create_stream(&mut self, create: Span) -> Result<Statement> {
        let name = self.name()?;
        if self.parser.peek_token().token != Token::LParen {
            return self.query(Some(name), QueryForm::Stream, create).map(Statement::Query);
        }
        let (columns, watermarks) = self.columns()?;
        let options = self.with_options()?;
        let next = self.parser.peek_token();
        if next.token == Token::LParen {
            return Err(self.unexpected("WITH", &next));
        }
        if keyword(&next) == Keyword::AS {
            return Err(self.unexpected("the end of the statement", &next).hint(
                "CREATE STREAM ... AS takes its columns from the query: leave the list out",
            ));
        }
        Ok(Statement::Stream(StreamStatement { name, columns, watermarks, options }))
    }

    fn bare(&mut self, first: &TokenWithSpan) -> Result<Statement> {
        let [with, list] = self.parser.peek_tokens_with_location::<2>();
        if keyword(&with) == Keyword::WITH && list.token == Token::LParen {
            let message = "a bare query has no options";
            let hint = "write CREATE STREAM name WITH (...) AS SELECT";
            return Err(self.text.error(with.span, message).hint(hint));
        }
        let select = self.parsed(|parser| parser.parse_query())?;
        self.select_only(&select, first.span)?;
        Ok(Statement::Query(QueryStatement {
            name: None,
            form: QueryForm::Bare,
            options: Vec::new(),
            select,
            span: first.span,
            comment: self.segment.comment.clone(),
        }))
    }

    /// `[WITH (...)] AS query`
    fn query(&mut self, name: Option<Word>, form: QueryForm, span: Span) -> Result<QueryStatement> {
        let options = self.with_options()?;
        self.keyword(Keyword::AS)?;
        let first = self.parser.peek_token();
        let select = self.parsed(|parser| parser.parse_query())?;
        self.select_only(&select, first.span)?;
        let comment = self.segment.comment.clone();
        Ok(QueryStatement { name, form, options, select, span, comment })
    }

    /// sqlparser takes `WITH ... INSERT` and its kin for queries.
    fn select_only(&self, select: &ast::Query, span: Span) -> Result<()> {
        use ast::SetExpr::{Delete, Insert, Merge, Update};
        let mut body = select.body.as_ref();
        while let ast::SetExpr::Query(inner) = body {
            body = inner.body.as_ref();
        }
        match body {
            Insert(_) | Update(_) | Delete(_) | Merge(_) => Err(self
                .text
                .error(span, "a query reads: INSERT, UPDATE, DELETE and MERGE have no place here")),
            _ => Ok(()),
        }
    }

    fn columns(&mut self) -> Result<(Vec<ColumnClause>, Vec<WatermarkClause>)> {
        let (mut columns, mut watermarks) = (Vec::new(), Vec::new());
        self.token(&Token::LParen)?;
        loop {
            let tokens = self.parser.peek_tokens_with_location::<2>();
            if is(&tokens[0], "watermark") && is(&tokens[1], "for") {
                watermarks.push(self.watermark()?);
            } else {
                columns.push(self.column()?);
            }
            if !self.parser.consume_token(&Token::Comma) {
                let next = self.parser.peek_token();
                if next.token != Token::RParen {
                    return Err(self.unexpected(
                        "NOT NULL, AS, METADATA FROM, FORMAT, a comma or a closing parenthesis",
                        &next,
                    ));
                }
                self.parser.next_token();
                return Ok((columns, watermarks));
            }
        }
    }

    fn column(&mut self) -> Result<ColumnClause> {
        let name = self.name()?;
        let first = self.parser.peek_token();
        if matches!(first.token, Token::Comma | Token::RParen) || keyword(&first) == Keyword::AS {
            return Err(self.unexpected(&format!("the type of column '{}'", name.value), &first));
        }
        let sql_type = self.parsed(|parser| parser.parse_data_type())?;
        let type_span = Span::new(first.span.start, self.parser.get_current_token().span.end);
        let (mut not_null, mut source) = (None, SourceClause::Payload);
        loop {
            let next = self.parser.peek_token();
            if keyword(&next) == Keyword::NOT {
                self.parser.next_token();
                self.keyword(Keyword::NULL)?;
                let end = self.parser.get_current_token().span.end;
                not_null = Some(Span::new(next.span.start, end));
            } else if keyword(&next) == Keyword::NULL {
                self.parser.next_token();
            } else if !matches!(source, SourceClause::Payload) {
                break;
            } else if keyword(&next) == Keyword::AS {
                self.parser.next_token();
                source = SourceClause::Computed(Box::new(self.computed()?));
            } else if is(&next, "metadata") {
                self.parser.next_token();
                self.keyword(Keyword::FROM)?;
                source = SourceClause::Metadata(self.literal()?);
            } else if is(&next, "format") {
                self.parser.next_token();
                source = SourceClause::Format(self.literal()?);
            } else {
                break;
            }
        }
        Ok(ColumnClause { name, sql_type, type_span, not_null, source })
    }

    /// The expression of a computed column. sqlparser reads `a NOT NULL` as `a IS NOT NULL`, which
    /// nobody means at the end of a column.
    fn computed(&mut self) -> Result<ast::Expr> {
        let from = self.parser.peek_token().span.start;
        let expr = self.parsed(|parser| parser.parse_expr())?;
        let to = self.parser.get_current_token().span.end;
        let inside = |token: &&TokenWithSpan| token.span.start >= from && token.span.end <= to;
        let words: Vec<&TokenWithSpan> = self.segment.words().filter(inside).collect();
        if let [.., before, not, null] = words.as_slice()
            && keyword(not) == Keyword::NOT
            && keyword(null) == Keyword::NULL
            && keyword(before) != Keyword::IS
        {
            let span = Span::new(not.span.start, null.span.end);
            return Err((self
                .text
                .error(span, "NOT NULL after an expression is read as part of it"))
            .hint("write NOT NULL in front of AS"));
        }
        Ok(expr)
    }

    fn watermark(&mut self) -> Result<WatermarkClause> {
        let first = self.parser.next_token();
        self.keyword(Keyword::FOR)?;
        let column = self.name()?;
        self.keyword(Keyword::AS)?;
        let delayed = self.parsed(|parser| parser.parse_expr())?;
        let span = first.span.union(&delayed.span());
        Ok(WatermarkClause { column, delayed, span })
    }

    fn create_table(&mut self) -> Result<TableStatement> {
        let name = self.name()?;
        let mut columns = Vec::new();
        if self.parser.peek_token().token == Token::LParen {
            let (declared, watermarks) = self.columns()?;
            columns = declared;
            if let Some(watermark) = watermarks.first() {
                return Err(self.text.error(watermark.span, "a table has no watermark"));
            }
        }
        let (mut format, mut location, mut options) = (None, None, Vec::new());
        loop {
            let next = self.parser.peek_token();
            if is(&next, "stored") && format.is_none() {
                self.parser.next_token();
                self.keyword(Keyword::AS)?;
                format = Some(self.name()?);
            } else if is(&next, "location") && location.is_none() {
                self.parser.next_token();
                location = Some(self.literal()?);
            } else if is(&next, "options") && options.is_empty() {
                self.parser.next_token();
                options = self.options(false)?;
            } else if let (Some(format), Some(location)) = (format.clone(), location.clone()) {
                return Ok(TableStatement { name, columns, format, location, options });
            } else {
                let missing =
                    if format.is_none() { "STORED AS CSV or PARQUET" } else { "LOCATION '..'" };
                return Err(self.unexpected(missing, &next));
            }
        }
    }

    fn set(&mut self) -> Result<SetStatement> {
        self.parser.next_token();
        let key = self.dotted()?;
        if !self.parser.consume_token(&Token::Eq) && !self.parser.parse_keyword(Keyword::TO) {
            return Err(self.unexpected("=", &self.parser.peek_token()));
        }
        let value = self.value()?;
        Ok(SetStatement { key, value })
    }

    fn with_options(&mut self) -> Result<Vec<OptionClause>> {
        if self.parser.parse_keyword(Keyword::WITH) { self.options(true) } else { Ok(Vec::new()) }
    }

    /// `(key = value, ...)`; in OPTIONS the sign may be left out.
    fn options(&mut self, sign: bool) -> Result<Vec<OptionClause>> {
        let mut options = Vec::new();
        self.token(&Token::LParen)?;
        while !self.parser.consume_token(&Token::RParen) {
            let key = match self.parser.peek_token().token {
                Token::SingleQuotedString(_) => self.literal()?,
                _ => self.dotted()?,
            };
            if sign {
                self.token(&Token::Eq)?;
            } else {
                let _ = self.parser.consume_token(&Token::Eq);
            }
            options.push(OptionClause { key, value: self.value()? });
            let next = self.parser.peek_token();
            if !self.parser.consume_token(&Token::Comma) && next.token != Token::RParen {
                return Err(self.unexpected("a comma or a closing parenthesis", &next));
            }
        }
        Ok(options)
    }

    fn name(&mut self) -> Result<Word> {
        let ident = self.parsed(|parser| parser.parse_identifier())?;
        let next = self.parser.peek_token();
        if next.token == Token::Period {
            return Err(self.unexpected("a name of one part", &next));
        }
        Ok(Word { value: folded(&ident.value, ident.quote_style), span: ident.span })
    }

    /// `a.b.c` as one word.
    fn dotted(&mut self) -> Result<Word> {
        let name = self.parsed(|parser| parser.parse_object_name(false))?;
        let parts: Vec<String> = (name.0.iter())
            .filter_map(|part| part.as_ident())
            .map(|ident| folded(&ident.value, ident.quote_style))
            .collect();
        Ok(Word { value: parts.join("."), span: name.span() })
    }

    /// A text in single quotes.
    fn literal(&mut self) -> Result<Word> {
        let token = self.parser.next_token();
        match &token.token {
            Token::SingleQuotedString(value) => Ok(Word { value: value.clone(), span: token.span }),
            _ => Err(self.unexpected("a text in single quotes", &token)),
        }
    }

    /// A text, a number or a word such as `on`.
    fn value(&mut self) -> Result<Word> {
        let token = self.parser.next_token();
        let value = match &token.token {
            Token::SingleQuotedString(value) => value.clone(),
            Token::Number(value, _) => value.clone(),
            Token::Word(word) if word.quote_style.is_none() => word.value.clone(),
            _ => return Err(self.unexpected("a value", &token)),
        };
        Ok(Word { value, span: token.span })
    }

    fn keyword(&mut self, expected: Keyword) -> Result<()> {
        self.parsed(|parser| parser.expect_keyword_is(expected))
    }

    fn token(&mut self, expected: &Token) -> Result<()> {
        self.parsed(|parser| parser.expect_token(expected)).map(drop)
    }

    /// Runs one of sqlparser's own parsers and gives its error a place.
    fn parsed<T>(
        &mut self,
        part: impl FnOnce(&mut Parser<'_>) -> Result<T, ParserError>,
    ) -> Result<T> {
        part(&mut self.parser).map_err(|error| self.failure(error))
    }

    fn failure(&self, error: ParserError) -> Error {
        let next = self.parser.peek_token();
        let next = (next.token != Token::EOF).then_some(next.span.start);
        parser_error(self.text, &self.segment.tokens, error, next)
    }

    fn unexpected(&self, expected: &str, found: &TokenWithSpan) -> Error {
        let (found, at) = match found.token {
            Token::EOF => ("the end of the statement".to_owned(), None),
            _ => (found.to_string(), Some(found.span.start)),
        };
        let message = format!("expected {expected}, found {found}");
        misread(self.text, &self.segment.tokens, &message, at)
    }

    fn no_statement(&self, first: &TokenWithSpan) -> Error {
        let statements = "schema files hold SET, CREATE STREAM and CREATE EXTERNAL TABLE; query files hold SELECT, \
             CREATE STREAM ... AS and CREATE MATERIALIZED VIEW ... AS";
        let hint = meant(first, ["SELECT", "CREATE", "SET", "WITH", "VALUES"]);
        let message = format!("expected a statement, found {first}");
        self.text.error(first.span, message).hint(hint.unwrap_or_else(|| statements.to_owned()))
    }
}
