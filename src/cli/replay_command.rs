//! `millstream replay`: a query file as a batch over history.

use std::path::PathBuf;
use std::process::ExitCode;

use chrono_tz::Tz;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;

use crate::backfill::{Replay, replay};
use crate::catalog::parse_instant;
use crate::cli::output::{Format, write};
use crate::cli::project_args::ProjectArgs;
use crate::pipeline::history_root;
use crate::time::Micros;
use crate::{Error, Result, history};

/// Run a query file over history, as a batch.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    project: ProjectArgs,
    /// The query file, such as queries/customer_a/daily_visits.sql, or CUSTOMER/QUERY
    query: String,
    /// Windows from this date or time on, in the customer's zone
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// Windows that end by this date or time
    #[arg(long, value_name = "TIME")]
    to: Option<String>,
    /// Leave out rows that the stream refused as late
    #[arg(long)]
    as_streamed: bool,
    /// Output format; the default follows from the extension of --output, else a table
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Write the answer to a file
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Runs one replay.
pub async fn run(args: Args) -> Result<ExitCode> {
    let format = Format::wanted(args.format, args.output.as_deref())?;
    let Some(catalog) = args.project.load() else { return Ok(ExitCode::FAILURE) };
    let found = catalog.customers.iter().find_map(|customer| {
        let query = customer.queries.iter().find(|q| {
            q.file.ends_with(&args.query)
                || format!("{}/{}", customer.name, q.name) == args.query
                || PathBuf::from(&args.query).ends_with(&q.file)
        })?;
        Some((customer.clone(), query.name.clone()))
    });
    let (customer, query) = found.ok_or_else(|| {
        Error::config(format!("there is no query '{}'", args.query))
            .hint("give the path of a query file of this project, or CUSTOMER/QUERY")
    })?;
    let instant =
        |text: &Option<String>| text.as_deref().map(|t| parse_time(t, customer.zone)).transpose();
    let wanted = Replay {
        data_dir: args.project.data_dir.clone(),
        query,
        from: instant(&args.from)?,
        to: instant(&args.to)?,
        as_streamed: args.as_streamed,
    };
    if let (Some(from), Some(to)) = (wanted.from, wanted.to)
        && from >= to
    {
        return Err(Error::config("--from is not before --to")
            .hint("--from is where the first window begins, --to is where the last one ends"));
    }
    history::check_there(&history_root(&wanted.data_dir))?;
    let (schema, rows) = replay(&catalog, &customer, &wanted).await?;
    let rows = futures::stream::iter(rows.into_iter().map(Ok));
    let rows = Box::pin(RecordBatchStreamAdapter::new(schema, rows));
    write(rows, format, args.output.as_deref()).await?;
    Ok(ExitCode::SUCCESS)
}

/// Parses a date (its first instant) or a time; local time unless it has an offset.
fn parse_time(text: &str, zone: Tz) -> Result<Micros> {
    parse_instant(text, zone).ok_or_else(|| {
        Error::config(format!("cannot parse '{text}' as a date or a time"))
            .hint("write it as 2019-10-01 or '2019-10-01 12:00:00', in the customer's zone")
    })
}
