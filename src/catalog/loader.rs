//! Reads a project's files into a [`Catalog`].

use std::path::Path;
use std::sync::Arc;

use chrono_tz::Tz;
use datafusion::sql::sqlparser::tokenizer::Span;

use crate::catalog::dependency_graph::{Names, check_inputs, in_order};
use crate::catalog::project_files::{Layout, read, shown};
use crate::catalog::query::Query;
use crate::catalog::settings::{CustomerSettings, resolve};
use crate::catalog::sql_text::{Segment, SqlText};
use crate::catalog::statement::{
    self, QueryStatement, Statement, StreamStatement, TableStatement, created_names,
};
use crate::catalog::stream::Stream;
use crate::catalog::table::Table;
use crate::catalog::{Catalog, Customer, file_error, identifier, suggestion, topic_overlap};
use crate::error::{Error, Place, Result};

/// Reads `schemas/*.sql` and `queries/*/*.sql` under `root`. With `only`, the catalog holds these
/// customers and the errors are theirs; the others' topics are still looked at for overlaps, and
/// their own errors are left to themselves.
///
/// # Errors
/// Everything that is wrong in any of the files.
pub fn load(root: &Path, only: &[String]) -> Result<Catalog, Vec<Error>> {
    let (catalog, errors) = load_with_errors(root, only)?;
    if errors.is_empty() { Ok(catalog) } else { Err(errors) }
}

/// As [`load`], but what is right in the files is there beside all that is wrong, so that it can be
/// planned and its own errors be told as well.
///
/// # Errors
/// There is no project to read.
pub fn load_with_errors(root: &Path, only: &[String]) -> Result<(Catalog, Vec<Error>), Vec<Error>> {
    let mut errors = Vec::new();
    let layout = Layout::find(root, &mut errors).map_err(|error| vec![error])?;
    for wanted in only.iter().filter(|wanted| !layout.schemas.contains_key(*wanted)) {
        let known = layout.schemas.keys().map(String::as_str);
        let error = Error::config(format!("there is no customer '{wanted}'"));
        errors.push(error.hint(suggestion::suggest_or_list(wanted, "customers", known)));
    }
    let selected = |name: &str| only.is_empty() || only.iter().any(|wanted| wanted == name);
    for (folder, files) in &layout.queries {
        if let (Some(file), false, true) =
            (files.first(), layout.schemas.contains_key(folder), selected(folder))
        {
            errors.push(
                (file_error(&shown(file), format!("customer '{folder}' has no schema file")))
                    .hint(format!("write schemas/{folder}.sql, or rename the folder")),
            );
        }
    }
    let mut drafts: Vec<Draft> = Vec::new();
    for (name, schema) in &layout.schemas {
        let queries = layout.queries.get(name).map(Vec::as_slice).unwrap_or_default();
        drafts.push(Draft::read(name, schema, queries));
    }
    topic_overlap::check(&mut drafts, &selected);
    let mut customers = Vec::new();
    for mut draft in drafts.into_iter().filter(|draft| selected(&draft.name)) {
        errors.append(&mut draft.errors);
        customers.push(Arc::new(draft.finish(&mut errors)));
    }
    Ok((Catalog { root: root.to_owned(), customers }, errors))
}

/// A customer while its files are read: what is right so far, and what is wrong.
pub(super) struct Draft {
    pub name: String,
    /// Each with the place of its topics.
    pub streams: Vec<(Stream, Place)>,
    pub queries: Vec<Query>,
    pub errors: Vec<Error>,
    tables: Vec<Table>,
    zone: Tz,
    settings: CustomerSettings,
    names: Names,
}

impl Draft {
    fn read(customer: &str, schema: &Path, queries: &[std::path::PathBuf]) -> Self {
        let mut draft = Self {
            name: customer.to_owned(),
            streams: Vec::new(),
            queries: Vec::new(),
            errors: Vec::new(),
            tables: Vec::new(),
            zone: Tz::UTC,
            settings: CustomerSettings::default(),
            names: Names::default(),
        };
        draft.read_schema(schema);
        for file in queries {
            draft.read_queries(file);
        }
        let late = draft
            .streams
            .iter()
            .map(|(s, _)| (format!("{}_late", s.name), format!("stream '{}'", s.name)));
        let changes = draft
            .queries
            .iter()
            .map(|q| (format!("{}_changes", q.name), format!("query '{}'", q.name)));
        draft.names.check_derived(late.chain(changes), &mut draft.errors);
        check_inputs(&draft.queries, &draft.names, &mut draft.errors);
        draft
    }

    fn finish(self, errors: &mut Vec<Error>) -> Customer {
        Customer {
            name: self.name,
            zone: self.zone,
            settings: self.settings,
            streams: self.streams.into_iter().map(|(stream, _)| Arc::new(stream)).collect(),
            tables: self.tables.into_iter().map(Arc::new).collect(),
            queries: in_order(self.queries, errors).into_iter().map(Arc::new).collect(),
        }
    }

    /// Reads and cuts a file; without its text, the customer's names are incomplete.
    fn open(&mut self, file: &Path) -> Option<(SqlText, Vec<Segment>)> {
        let opened = read(file).and_then(|content| {
            let text = SqlText::new(&shown(file), &content);
            let segments = text.segments()?;
            Ok((text, segments))
        });
        match opened {
            Ok(opened) => Some(opened),
            Err(error) => {
                self.errors.push(error);
                None
            }
        }
    }

    fn read_schema(&mut self, file: &Path) {
        let Some((text, segments)) = self.open(file) else {
            self.names.incomplete = true;
            return;
        };
        self.errors.extend(identifier::customer(&self.name, &text).err());
        if segments.is_empty() {
            self.names.incomplete = true;
            let error = text.error(Span::empty(), "the file declares nothing");
            self.errors.push(error.hint("a customer has streams: write CREATE STREAM"));
        }
        let (mut streams, mut tables, mut sets) = (Vec::new(), Vec::new(), Vec::new());
        for segment in &segments {
            match statement::parse(&text, segment) {
                Ok(Statement::Stream(stream)) => streams.push(stream),
                Ok(Statement::Table(table)) => tables.push(table),
                Ok(Statement::Set(set)) => sets.push(set),
                Ok(Statement::Query(query)) => {
                    self.names.declare_broken(created_names(segment));
                    let hint = format!("move it to a file in queries/{}/", self.name);
                    self.errors
                        .push(text.error(query.span, "a schema file holds no queries").hint(hint));
                }
                Err(error) => {
                    let names = created_names(segment);
                    // A CREATE that lacks its name could be any.
                    self.names.incomplete |= names.is_empty() && segment.creates();
                    self.names.declare_broken(names);
                    self.errors.push(error);
                }
            }
        }
        (self.zone, self.settings) = resolve(&sets, &text, &mut self.errors);
        streams.into_iter().for_each(|stream| self.add_stream(stream, &text));
        tables.into_iter().for_each(|table| self.add_table(table, &text));
    }

    fn add_stream(&mut self, statement: StreamStatement, text: &SqlText) {
        let place = text.place(statement.name.span);
        let new = self.names.declare(&statement.name.value, &place, &mut self.errors);
        let stream = Stream::from_statement(statement, text, self.zone, &mut self.errors);
        self.streams.extend(stream.filter(|_| new));
    }

    fn add_table(&mut self, statement: TableStatement, text: &SqlText) {
        let place = text.place(statement.name.span);
        let new = self.names.declare(&statement.name.value, &place, &mut self.errors);
        let table = Table::from_statement(statement, text, self.zone, &mut self.errors);
        self.tables.extend(table.filter(|_| new));
    }

    fn read_queries(&mut self, file: &Path) {
        let stem = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let Some((text, segments)) = self.open(file) else {
            self.names.declare_broken(vec![stem]);
            return;
        };
        if segments.is_empty() {
            self.errors.push(text.error(Span::empty(), "the file holds no query"));
            self.names.declare_broken(vec![stem.clone()]);
        }
        let mut bare = 0;
        for segment in &segments {
            match statement::parse(&text, segment) {
                Ok(Statement::Query(query)) => {
                    bare += usize::from(query.name.is_none());
                    if query.name.is_none() && bare > 1 {
                        self.errors.push(
                            (text.error(query.span, "a second bare query in one file"))
                                .hint("it would have the same name: write CREATE STREAM name AS"),
                        );
                    } else {
                        self.add_query(query, &stem, &text);
                    }
                }
                Ok(_) => {
                    let hint = format!("move it to schemas/{}.sql", self.name);
                    self.errors.push(
                        text.error(segment.first(), "a query file holds queries only").hint(hint),
                    );
                    self.names.declare_broken(created_names(segment));
                }
                Err(error) => {
                    let names = created_names(segment);
                    self.names.declare_broken(match names.is_empty() {
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
        let new = self.names.declare(&name, &text.place(span), &mut self.errors);
        let query = Query::from_statement(statement, &self.name, text, &mut self.errors);
        self.queries.extend(query.filter(|_| new));
    }
}
