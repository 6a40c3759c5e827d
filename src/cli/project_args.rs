//! The arguments `--project`, `--data-dir` and `--customer`, which several commands share.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use crate::catalog::{self, Catalog, Customer};
use crate::cli::printing::print_errors;
use crate::{Error, Result};

/// Arguments that select the project folder, the data directory and the customers.
#[derive(Debug, Clone, Args)]
pub struct ProjectArgs {
    /// Project folder, which contains schemas/ and queries/
    #[arg(long, default_value = ".")]
    pub project: PathBuf,
    /// Data directory: history, snapshots and status files
    #[arg(long, default_value = ".millstream")]
    pub data_dir: PathBuf,
    /// Process only this customer; can be repeated
    #[arg(long = "customer", value_name = "CUSTOMER")]
    pub customers: Vec<String>,
}

impl ProjectArgs {
    /// Loads all schema and query files. Prints all errors and returns `None` if there is any.
    pub fn load(&self) -> Option<Arc<Catalog>> {
        match catalog::load(&self.project, &self.customers) {
            Ok(catalog) => Some(Arc::new(catalog)),
            Err(errors) => {
                print_errors(&errors);
                None
            }
        }
    }
}

/// Returns the customer with this name.
///
/// # Errors
/// The catalog has no such customer.
pub fn find_customer(catalog: &Catalog, name: &str) -> Result<Arc<Customer>> {
    let found = catalog.customers.iter().find(|c| c.name == name).cloned();
    found.ok_or_else(|| {
        let names: Vec<_> = catalog.customers.iter().map(|c| c.name.as_str()).collect();
        Error::config(format!("there is no customer '{name}'"))
            .hint(format!("each file in schemas/ defines a customer: {}", names.join(", ")))
    })
}
