//! The catalog: all customers of a project with their streams, tables and queries.

use std::path::PathBuf;
use std::sync::Arc;

use chrono_tz::Tz;

use crate::catalog::query::Query;
use crate::catalog::settings::CustomerSettings;
use crate::catalog::stream::Stream;
use crate::catalog::table::Table;

/// All customers of a project.
#[derive(Debug, Clone)]
pub struct Catalog {
    /// The project folder.
    pub root: PathBuf,
    /// The customers, sorted by name.
    pub customers: Vec<Arc<Customer>>,
}

/// One customer: its streams, reference tables and queries.
#[derive(Debug, Clone)]
pub struct Customer {
    /// The name, which is the stem of the schema file.
    pub name: String,
    /// The time zone of calendar windows and of times without an offset.
    pub zone: Tz,
    /// The values of the SET statements.
    pub settings: CustomerSettings,
    /// The streams, in the order of the schema file.
    pub streams: Vec<Arc<Stream>>,
    /// The reference tables, in the order of the schema file.
    pub tables: Vec<Arc<Table>>,
    /// The queries in dependency order: each follows the queries that it reads.
    pub queries: Vec<Arc<Query>>,
}

impl Catalog {
    /// The customer called `name`.
    pub fn customer(&self, name: &str) -> Option<&Arc<Customer>> {
        self.customers.iter().find(|customer| customer.name == name)
    }
}

impl Customer {
    /// The stream called `name`.
    pub fn stream(&self, name: &str) -> Option<&Arc<Stream>> {
        self.streams.iter().find(|stream| stream.name == name)
    }

    /// The reference table called `name`.
    pub fn table(&self, name: &str) -> Option<&Arc<Table>> {
        self.tables.iter().find(|table| table.name == name)
    }

    /// The query called `name`.
    pub fn query(&self, name: &str) -> Option<&Arc<Query>> {
        self.queries.iter().find(|query| query.name == name)
    }
}
