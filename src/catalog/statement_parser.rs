//! The grammar of the statements in schema and query files.
//!
//! sqlparser parses names, types, expressions and queries. This module adds the clauses that
//! sqlparser does not know: CREATE STREAM, METADATA FROM, FORMAT, WATERMARK FOR.

use datafusion::sql::sqlparser::ast::{self, Spanned};
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::parser::{Parser, ParserError};
use datafusion::sql::sqlparser::tokenizer::{Span, Token, TokenWithSpan};

use crate::catalog::parse_diagnostics::{
    explain_parser_error, explain_unexpected_token, suggest_keyword,
};
use crate::catalog::sql_text::{DIALECT, SqlText, is_word, keyword};
use crate::catalog::statement::{
    ColumnClause, OptionClause, QueryForm, QueryStatement, SetStatement, SourceClause, SpannedText,
    Statement, StreamStatement, TableStatement, WatermarkClause, fold_identifier,
};
use crate::catalog::statement_tokens::StatementTokens;
use crate::error::{Error, Result};

/// The words that may follow CREATE.
const CREATABLE: &str = "STREAM, MATERIALIZED VIEW or EXTERNAL TABLE";

/// Parses one statement.
///
/// # Errors
/// The tokens are not a [`Statement`]; the place is that of the first unexpected token.
pub(super) fn parse_statement(text: &SqlText, tokens: &StatementTokens) -> Result<Statement> {
    let parser = Parser::new(&DIALECT).with_tokens_with_locations(tokens.tokens.clone());
    StatementParser { parser, text, tokens }.parse_statement()
}

/// The names of the relations that a statement creates, even if it does not parse. There may be
/// several if a semicolon is missing between two CREATEs.
pub(super) fn created_names(tokens: &StatementTokens) -> Vec<String> {
    let words: Vec<&TokenWithSpan> = tokens.words().collect();
    (0..words.len()).filter_map(|start| created_name(words.get(start..)?)).collect()
}

/// The name of the relation that `CREATE ...` at the start of `words` creates.
fn created_name(words: &[&TokenWithSpan]) -> Option<String> {
    let name_index = match words {
        [create, stream, ..] if is_word(create, "create") && is_word(stream, "stream") => 2,
        [create, middle, last, ..] if is_word(create, "create") => {
            match (keyword(middle), keyword(last)) {
                (Keyword::MATERIALIZED, Keyword::VIEW) | (Keyword::EXTERNAL, Keyword::TABLE) => 3,
                // A misspelt word, or a kind of relation that does not exist here.
                _ => 2,
            }
        }
        _ => return None,
    };
    match &words.get(name_index)?.token {
        Token::Word(word) => Some(fold_identifier(&word.value, word.quote_style)),
        _ => None,
    }
}

struct StatementParser<'a> {
    parser: Parser<'a>,
    text: &'a SqlText,
    tokens: &'a StatementTokens,
}

impl StatementParser<'_> {
    fn parse_statement(mut self) -> Result<Statement> {
        let first = self.parser.peek_token();
        let statement = match keyword(&first) {
            Keyword::CREATE => self.parse_create()?,
            Keyword::SET => Statement::Set(self.parse_set()?),
            Keyword::SELECT | Keyword::WITH | Keyword::VALUES | Keyword::FROM => {
                self.parse_bare_query(&first)?
            }
            _ if first.token == Token::LParen => self.parse_bare_query(&first)?,
            _ => return Err(self.not_a_statement(&first)),
        };
        let next = self.parser.peek_token();
        if next.token != Token::EOF {
            return Err(self.unexpected("the end of the statement", &next));
        }
        Ok(statement)
    }

    fn parse_create(&mut self) -> Result<Statement> {
        let create = self.parser.next_token();
        let kind = self.parser.next_token();
        if is_word(&kind, "stream") {
            return self.parse_create_stream(create.span);
        }
        match keyword(&kind) {
            Keyword::MATERIALIZED => {
                self.expect_keyword(Keyword::VIEW)?;
                let name = self.parse_name()?;
                self.parse_named_query(Some(name), QueryForm::View, create.span)
                    .map(Statement::Query)
            }
            Keyword::EXTERNAL => {
                self.expect_keyword(Keyword::TABLE)?;
                self.parse_create_table().map(Statement::Table)
            }
            Keyword::VIEW => Err(self
                .unexpected(CREATABLE, &kind)
                .hint("use CREATE MATERIALIZED VIEW for a view that is updated continuously")),
            Keyword::TABLE => Err(self
                .unexpected(CREATABLE, &kind)
                .hint("use CREATE STREAM for Kafka topics and CREATE EXTERNAL TABLE for files")),
            _ => {
                let error = self.unexpected(CREATABLE, &kind);
                Err(error.hint_if(suggest_keyword(&kind, ["STREAM", "MATERIALIZED", "EXTERNAL"])))
            }
        }
    }

    fn parse_create_stream(&mut self, create: Span) -> Result<Statement> {
        let name = self.parse_name()?;
        if self.parser.peek_token().token != Token::LParen {
            return self
                .parse_named_query(Some(name), QueryForm::Stream, create)
                .map(Statement::Query);
        }
        let (columns, watermarks) = self.parse_columns()?;
        let options = self.parse_with_options()?;
        let next = self.parser.peek_token();
        if next.token == Token::LParen {
            return Err(self.unexpected("WITH", &next));
        }
        if keyword(&next) == Keyword::AS {
            return Err(self.unexpected("the end of the statement", &next).hint(
                "CREATE STREAM ... AS takes its columns from the query: remove the column list",
            ));
        }
        Ok(Statement::Stream(StreamStatement { name, columns, watermarks, options }))
    }

    fn parse_bare_query(&mut self, first: &TokenWithSpan) -> Result<Statement> {
        let [with, list] = self.parser.peek_tokens_with_location::<2>();
        if keyword(&with) == Keyword::WITH && list.token == Token::LParen {
            let message = "a bare query cannot have options";
            let hint = "write CREATE STREAM name WITH (...) AS SELECT";
            return Err(self.text.error(with.span, message).hint(hint));
        }
        let select = self.run_sqlparser(|parser| parser.parse_query())?;
        self.check_read_only(&select, first.span)?;
        Ok(Statement::Query(QueryStatement {
            name: None,
            form: QueryForm::Bare,
            options: Vec::new(),
            select,
            span: first.span,
            comment: self.tokens.comment.clone(),
        }))
    }

    /// Parses `[WITH (...)] AS query`.
    fn parse_named_query(
        &mut self,
        name: Option<SpannedText>,
        form: QueryForm,
        span: Span,
    ) -> Result<QueryStatement> {
        let options = self.parse_with_options()?;
        self.expect_keyword(Keyword::AS)?;
        let first = self.parser.peek_token();
        let select = self.run_sqlparser(|parser| parser.parse_query())?;
        self.check_read_only(&select, first.span)?;
        let comment = self.tokens.comment.clone();
        Ok(QueryStatement { name, form, options, select, span, comment })
    }

    /// Rejects `WITH ... INSERT` and similar statements, which sqlparser parses as queries.
    fn check_read_only(&self, select: &ast::Query, span: Span) -> Result<()> {
        use ast::SetExpr::{Delete, Insert, Merge, Update};
        let mut body = select.body.as_ref();
        while let ast::SetExpr::Query(inner) = body {
            body = inner.body.as_ref();
        }
        match body {
            Insert(_) | Update(_) | Delete(_) | Merge(_) => Err(self
                .text
                .error(span, "INSERT, UPDATE, DELETE and MERGE are not allowed in a query")),
            _ => Ok(()),
        }
    }

    fn parse_columns(&mut self) -> Result<(Vec<ColumnClause>, Vec<WatermarkClause>)> {
        let (mut columns, mut watermarks) = (Vec::new(), Vec::new());
        self.expect_token(&Token::LParen)?;
        loop {
            let tokens = self.parser.peek_tokens_with_location::<2>();
            if is_word(&tokens[0], "watermark") && is_word(&tokens[1], "for") {
                watermarks.push(self.parse_watermark()?);
            } else {
                columns.push(self.parse_column()?);
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

    fn parse_column(&mut self) -> Result<ColumnClause> {
        let name = self.parse_name()?;
        let first = self.parser.peek_token();
        if matches!(first.token, Token::Comma | Token::RParen) || keyword(&first) == Keyword::AS {
            return Err(self.unexpected(&format!("the type of column '{}'", name.value), &first));
        }
        let sql_type = self.run_sqlparser(|parser| parser.parse_data_type())?;
        let type_span = Span::new(first.span.start, self.parser.get_current_token().span.end);
        let (mut not_null, mut source) = (None, SourceClause::Payload);
        loop {
            let next = self.parser.peek_token();
            if keyword(&next) == Keyword::NOT {
                self.parser.next_token();
                self.expect_keyword(Keyword::NULL)?;
                let end = self.parser.get_current_token().span.end;
                not_null = Some(Span::new(next.span.start, end));
            } else if keyword(&next) == Keyword::NULL {
                self.parser.next_token();
            } else if !matches!(source, SourceClause::Payload) {
                break;
            } else if keyword(&next) == Keyword::AS {
                self.parser.next_token();
                source = SourceClause::Computed(Box::new(self.parse_computed()?));
            } else if is_word(&next, "metadata") {
                self.parser.next_token();
                self.expect_keyword(Keyword::FROM)?;
                source = SourceClause::Metadata(self.parse_string()?);
            } else if is_word(&next, "format") {
                self.parser.next_token();
                source = SourceClause::Format(self.parse_string()?);
            } else {
                break;
            }
        }
        Ok(ColumnClause { name, sql_type, type_span, not_null, source })
    }

    /// Parses the expression of a computed column. Rejects a trailing NOT NULL: sqlparser parses
    /// `a NOT NULL` as `a IS NOT NULL`, but at the end of a column the constraint is meant.
    fn parse_computed(&mut self) -> Result<ast::Expr> {
        let from = self.parser.peek_token().span.start;
        let expr = self.run_sqlparser(|parser| parser.parse_expr())?;
        let to = self.parser.get_current_token().span.end;
        let inside = |token: &&TokenWithSpan| token.span.start >= from && token.span.end <= to;
        let words: Vec<&TokenWithSpan> = self.tokens.words().filter(inside).collect();
        if let [.., before, not, null] = words.as_slice()
            && keyword(not) == Keyword::NOT
            && keyword(null) == Keyword::NULL
            && keyword(before) != Keyword::IS
        {
            let span = Span::new(not.span.start, null.span.end);
            return Err((self
                .text
                .error(span, "NOT NULL after an expression is parsed as part of the expression"))
            .hint("write NOT NULL before AS"));
        }
        Ok(expr)
    }

    fn parse_watermark(&mut self) -> Result<WatermarkClause> {
        let first = self.parser.next_token();
        self.expect_keyword(Keyword::FOR)?;
        let column = self.parse_name()?;
        self.expect_keyword(Keyword::AS)?;
        let delayed = self.run_sqlparser(|parser| parser.parse_expr())?;
        let span = first.span.union(&delayed.span());
        Ok(WatermarkClause { column, delayed, span })
    }

    fn parse_create_table(&mut self) -> Result<TableStatement> {
        let name = self.parse_name()?;
        let mut columns = Vec::new();
        if self.parser.peek_token().token == Token::LParen {
            let (declared, watermarks) = self.parse_columns()?;
            columns = declared;
            if let Some(watermark) = watermarks.first() {
                return Err(self.text.error(watermark.span, "a table cannot have a watermark"));
            }
        }
        let (mut format, mut location, mut options) = (None, None, Vec::new());
        loop {
            let next = self.parser.peek_token();
            if is_word(&next, "stored") && format.is_none() {
                self.parser.next_token();
                self.expect_keyword(Keyword::AS)?;
                format = Some(self.parse_name()?);
            } else if is_word(&next, "location") && location.is_none() {
                self.parser.next_token();
                location = Some(self.parse_string()?);
            } else if is_word(&next, "options") && options.is_empty() {
                self.parser.next_token();
                options = self.parse_options(false)?;
            } else if let (Some(format), Some(location)) = (format.clone(), location.clone()) {
                return Ok(TableStatement { name, columns, format, location, options });
            } else {
                let missing =
                    if format.is_none() { "STORED AS CSV or PARQUET" } else { "LOCATION '..'" };
                return Err(self.unexpected(missing, &next));
            }
        }
    }

    fn parse_set(&mut self) -> Result<SetStatement> {
        self.parser.next_token();
        let key = self.parse_dotted_name()?;
        if !self.parser.consume_token(&Token::Eq) && !self.parser.parse_keyword(Keyword::TO) {
            return Err(self.unexpected("=", &self.parser.peek_token()));
        }
        let value = self.parse_value()?;
        Ok(SetStatement { key, value })
    }

    fn parse_with_options(&mut self) -> Result<Vec<OptionClause>> {
        if self.parser.parse_keyword(Keyword::WITH) {
            self.parse_options(true)
        } else {
            Ok(Vec::new())
        }
    }

    /// Parses `(key = value, ...)`; in OPTIONS the equals sign is optional.
    fn parse_options(&mut self, equals_required: bool) -> Result<Vec<OptionClause>> {
        let mut options = Vec::new();
        self.expect_token(&Token::LParen)?;
        while !self.parser.consume_token(&Token::RParen) {
            let key = match self.parser.peek_token().token {
                Token::SingleQuotedString(_) => self.parse_string()?,
                _ => self.parse_dotted_name()?,
            };
            if equals_required {
                self.expect_token(&Token::Eq)?;
            } else {
                let _ = self.parser.consume_token(&Token::Eq);
            }
            options.push(OptionClause { key, value: self.parse_value()? });
            let next = self.parser.peek_token();
            if !self.parser.consume_token(&Token::Comma) && next.token != Token::RParen {
                return Err(self.unexpected("a comma or a closing parenthesis", &next));
            }
        }
        Ok(options)
    }

    fn parse_name(&mut self) -> Result<SpannedText> {
        let ident = self.run_sqlparser(|parser| parser.parse_identifier())?;
        let next = self.parser.peek_token();
        if next.token == Token::Period {
            return Err(self.unexpected("an unqualified name", &next));
        }
        Ok(SpannedText {
            value: fold_identifier(&ident.value, ident.quote_style),
            span: ident.span,
        })
    }

    /// Parses `a.b.c` as one text.
    fn parse_dotted_name(&mut self) -> Result<SpannedText> {
        let name = self.run_sqlparser(|parser| parser.parse_object_name(false))?;
        let parts: Vec<String> = (name.0.iter())
            .filter_map(|part| part.as_ident())
            .map(|ident| fold_identifier(&ident.value, ident.quote_style))
            .collect();
        Ok(SpannedText { value: parts.join("."), span: name.span() })
    }

    /// Parses a string in single quotes.
    fn parse_string(&mut self) -> Result<SpannedText> {
        let token = self.parser.next_token();
        match &token.token {
            Token::SingleQuotedString(value) => {
                Ok(SpannedText { value: value.clone(), span: token.span })
            }
            _ => Err(self.unexpected("a string in single quotes", &token)),
        }
    }

    /// Parses a string, a number or a word such as `on`.
    fn parse_value(&mut self) -> Result<SpannedText> {
        let token = self.parser.next_token();
        let value = match &token.token {
            Token::SingleQuotedString(value) => value.clone(),
            Token::Number(value, _) => value.clone(),
            Token::Word(word) if word.quote_style.is_none() => word.value.clone(),
            _ => return Err(self.unexpected("a value", &token)),
        };
        Ok(SpannedText { value, span: token.span })
    }

    fn expect_keyword(&mut self, expected: Keyword) -> Result<()> {
        self.run_sqlparser(|parser| parser.expect_keyword_is(expected))
    }

    fn expect_token(&mut self, expected: &Token) -> Result<()> {
        self.run_sqlparser(|parser| parser.expect_token(expected)).map(drop)
    }

    /// Runs a parser of sqlparser and adds the place to its error.
    fn run_sqlparser<T>(
        &mut self,
        part: impl FnOnce(&mut Parser<'_>) -> Result<T, ParserError>,
    ) -> Result<T> {
        part(&mut self.parser).map_err(|error| self.convert_error(error))
    }

    fn convert_error(&self, error: ParserError) -> Error {
        let next = self.parser.peek_token();
        let next = (next.token != Token::EOF).then_some(next.span.start);
        explain_parser_error(self.text, &self.tokens.tokens, error, next)
    }

    fn unexpected(&self, expected: &str, found: &TokenWithSpan) -> Error {
        let (found, at) = match found.token {
            Token::EOF => ("the end of the statement".to_owned(), None),
            _ => (found.to_string(), Some(found.span.start)),
        };
        let message = format!("expected {expected}, found {found}");
        explain_unexpected_token(self.text, &self.tokens.tokens, &message, at)
    }

    fn not_a_statement(&self, first: &TokenWithSpan) -> Error {
        let statements = "a schema file contains SET, CREATE STREAM and CREATE EXTERNAL TABLE; a query file contains \
             SELECT, CREATE STREAM ... AS and CREATE MATERIALIZED VIEW ... AS";
        let hint = suggest_keyword(first, ["SELECT", "CREATE", "SET", "WITH", "VALUES"]);
        let message = format!("expected a statement, found {first}");
        self.text.error(first.span, message).hint(hint.unwrap_or_else(|| statements.to_owned()))
    }
}
