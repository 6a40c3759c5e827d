//! Builds one [`Customer`] from its schema and query files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use chrono_tz::Tz;
use datafusion::sql::sqlparser::tokenizer::Span;

use crate::catalog::customer::Customer;
use crate::catalog::dependency_graph::{DeclaredNames, check_inputs, sort_by_dependency};
use crate::catalog::identifier;
use crate::catalog::project_files::{display_path, file_stem, read_text};
use crate::catalog::query::Query;
use crate::catalog::settings::{CustomerSettings, resolve_settings};
use crate::catalog::sql_text::SqlText;
use crate::catalog::statement::{QueryStatement, Statement, StreamStatement, TableStatement};
use crate::catalog::statement_parser::{created_names, parse_statement};
use crate::catalog::statement_tokens::{StatementTokens, split_statements};
use crate::catalog::stream::Stream;
use crate::catalog::table::Table;
use crate::error::{Error, Place};

/// The valid declarations and the errors of a customer's files, collected file by file.
pub(super) struct CustomerBuilder {
    pub name: String,
    /// Each stream with the place of its `topics` or `topic_pattern` option.
    pub streams: Vec<(Stream, Place)>,
    pub queries: Vec<Query>,
    pub errors: Vec<Error>,
    tables: Vec<Table>,
    zone: Tz,
    settings: CustomerSettings,
    names: DeclaredNames,
}

impl CustomerBuilder {
    /// Reads the schema file and the query files of `customer`.
    pub fn read(customer: &str, schema: &Path, queries: &[PathBuf]) -> Self {
        let mut builder = Self {
            name: customer.to_owned(),
            streams: Vec::new(),
            queries: Vec::new(),
            errors: Vec::new(),
            tables: Vec::new(),
            zone: Tz::UTC,
            settings: CustomerSettings::default(),
            names: DeclaredNames::default(),
        };
        builder.read_schema_file(schema);
        for file in queries {
            builder.read_query_file(file);
        }
        let late_tables = (builder.streams.iter())
            .map(|(s, _)| (format!("{}_late", s.name), format!("stream '{}'", s.name)));
        let change_tables = (builder.queries.iter())
            .map(|q| (format!("{}_changes", q.name), format!("query '{}'", q.name)));
        let derived = late_tables.chain(change_tables);
        builder.names.check_derived(derived, &mut builder.errors);
        check_inputs(&builder.queries, &builder.names, &mut builder.errors);
        builder
    }

    /// Returns the customer with its queries in dependency order; cycles are added to `errors`.
    pub fn finish(self, errors: &mut Vec<Error>) -> Customer {
        let queries = sort_by_dependency(self.queries, errors);
        Customer {
            name: self.name,
            zone: self.zone,
            settings: self.settings,
            streams: self.streams.into_iter().map(|(stream, _)| Arc::new(stream)).collect(),
            tables: self.tables.into_iter().map(Arc::new).collect(),
            queries: queries.into_iter().map(Arc::new).collect(),
        }
    }

    /// Reads a file and splits it into statements. `None` after an error.
    fn open(&mut self, file: &Path) -> Option<(SqlText, Vec<StatementTokens>)> {
        let opened = read_text(file).and_then(|content| {
            let text = SqlText::new(&display_path(file), &content);
            let statements = split_statements(&text)?;
            Ok((text, statements))
        });
        opened.map_err(|error| self.errors.push(error)).ok()
    }

    fn read_schema_file(&mut self, file: &Path) {
        let Some((text, statements)) = self.open(file) else {
            self.names.incomplete = true;
            return;
        };
        self.errors.extend(identifier::check_customer_name(&self.name, &text).err());
        if statements.is_empty() {
            self.names.incomplete = true;
            let error = text.error(Span::empty(), "the schema file contains no statement");
            self.errors.push(error.hint("declare a stream with CREATE STREAM"));
        }
        let (mut streams, mut tables, mut sets) = (Vec::new(), Vec::new(), Vec::new());
        for tokens in &statements {
            match parse_statement(&text, tokens) {
                Ok(Statement::Stream(stream)) => streams.push(stream),
                Ok(Statement::Table(table)) => tables.push(table),
                Ok(Statement::Set(set)) => sets.push(set),
                Ok(Statement::Query(query)) => {
                    self.names.declare_invalid(created_names(tokens));
                    let error = text.error(query.span, "a schema file cannot contain queries");
                    let hint = format!("move it to a file in queries/{}/", self.name);
                    self.errors.push(error.hint(hint));
                }
                Err(error) => {
                    let names = created_names(tokens);
                    // A CREATE without a name may have declared any name.
                    self.names.incomplete |= names.is_empty() && tokens.is_create();
                    self.names.declare_invalid(names);
                    self.errors.push(error);
                }
            }
        }
        (self.zone, self.settings) = resolve_settings(&sets, &text, &mut self.errors);
        streams.into_iter().for_each(|stream| self.add_stream(stream, &text));
        tables.into_iter().for_each(|table| self.add_table(table, &text));
    }

    fn add_stream(&mut self, statement: StreamStatement, text: &SqlText) {
        let place = text.place(statement.name.span);
        let is_new = self.names.declare(&statement.name.value, &place, &mut self.errors);
        let stream = Stream::from_statement(statement, text, self.zone, &mut self.errors);
        self.streams.extend(stream.filter(|_| is_new));
    }

    fn add_table(&mut self, statement: TableStatement, text: &SqlText) {
        let place = text.place(statement.name.span);
        let is_new = self.names.declare(&statement.name.value, &place, &mut self.errors);
        let table = Table::from_statement(statement, text, self.zone, &mut self.errors);
        self.tables.extend(table.filter(|_| is_new));
    }

    fn read_query_file(&mut self, file: &Path) {
        let stem = file_stem(file);
        let Some((text, statements)) = self.open(file) else {
            self.names.declare_invalid(vec![stem]);
            return;
        };
        if statements.is_empty() {
            self.errors.push(text.error(Span::empty(), "the query file contains no query"));
            self.names.declare_invalid(vec![stem.clone()]);
        }
        let mut bare_queries = 0;
        for tokens in &statements {
            match parse_statement(&text, tokens) {
                Ok(Statement::Query(query)) => {
                    bare_queries += usize::from(query.name.is_none());
                    if query.name.is_none() && bare_queries > 1 {
                        let message = "a file can contain only one bare query";
                        let hint =
                            "both would be named after the file: write CREATE STREAM name AS";
                        self.errors.push(text.error(query.span, message).hint(hint));
                    } else {
                        self.add_query(query, &stem, &text);
                    }
                }
                Ok(_) => {
                    let error = text.error(tokens.first(), "a query file can contain only queries");
                    self.errors.push(error.hint(format!("move it to schemas/{}.sql", self.name)));
                    self.names.declare_invalid(created_names(tokens));
                }
                Err(error) => {
                    let names = created_names(tokens);
                    self.names.declare_invalid(match names.is_empty() {
                        true => vec![stem.clone()],
                        false => names,
                    });
                    self.errors.push(error);
                }
            }
        }
    }

    fn add_query(&mut self, statement: QueryStatement, stem: &str, text: &SqlText) {
        let (name, span) = match &statement.name {
            Some(name) => (name.value.clone(), name.span),
            None => (stem.to_owned(), statement.span),
        };
        let is_new = self.names.declare(&name, &text.place(span), &mut self.errors);
        let query = Query::from_statement(statement, &self.name, text, &mut self.errors);
        self.queries.extend(query.filter(|_| is_new));
    }
}
