//! Plans a customer's queries over the columns that its reference tables have.

use std::path::Path;

use crate::catalog::Customer;
use crate::pipeline::engine::reference_tables;
use crate::{Error, planner};

/// Plans a customer with the columns that its reference tables have now.
///
/// # Errors
/// All errors of its queries and tables.
pub async fn plan(root: &Path, customer: &Customer) -> Result<planner::CustomerPlan, Vec<Error>> {
    plan_with_versions(root, customer, None).await
}

/// Plans a customer as [`plan`] does. If the folder `versions` has the columns of a table with
/// which state was produced, the table keeps these columns even if its file has others by now.
///
/// # Errors
/// As of [`plan`].
pub async fn plan_with_versions(
    root: &Path,
    customer: &Customer,
    versions: Option<&Path>,
) -> Result<planner::CustomerPlan, Vec<Error>> {
    let mut schemas = Vec::new();
    let mut errors = Vec::new();
    for table in &customer.tables {
        match reference_tables::schema(root, table, versions).await {
            Ok(schema) => schemas.push((table.name.clone(), schema)),
            Err(error) => errors.push(error),
        }
    }
    for query in customer.queries.iter().filter(|q| q.ttl_us.is_some()) {
        errors.push(
            Error::sql(format!(
                "'{}' sets a ttl, but keys of views are not dropped yet",
                query.name
            ))
            .at(query.place.clone())
            .hint("remove ttl; a HAVING on the event time hides old keys"),
        );
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    planner::plan_customer(customer, &schemas)
}
