//! `millstream query` and `millstream compact`.

use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::cli::output::{Format, write};
use crate::cli::project_args::ProjectArgs;
use crate::{Error, Result, history, pipeline};

/// Run SQL over history.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    project: ProjectArgs,
    /// The SQL query; '-' or nothing reads it from standard input
    sql: Option<String>,
    /// Read the SQL query from a file
    #[arg(long, short, value_name = "FILE", conflicts_with = "sql")]
    file: Option<PathBuf>,
    /// Output format; the default follows from the extension of --output, else a table
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Write the answer to a file
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Merge the small files of history.
#[derive(Debug, clap::Args)]
pub struct CompactArgs {
    #[command(flatten)]
    project: ProjectArgs,
    /// Delete files that no version of the last day needs
    #[arg(long)]
    vacuum: bool,
}

/// Runs one query.
pub async fn run(args: Args) -> Result<ExitCode> {
    let format = Format::wanted(args.format, args.output.as_deref())?;
    let text = match (&args.sql, &args.file) {
        (_, Some(file)) => std::fs::read_to_string(file)
            .map_err(|e| Error::config(format!("{} cannot be read", file.display())).because(e))?,
        (Some(sql), None) if sql != "-" => sql.clone(),
        _ => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text)?;
            text
        }
    };
    let Some(catalog) = args.project.load() else { return Ok(ExitCode::FAILURE) };
    let root = pipeline::history_root(&args.project.data_dir);
    let context = history::context(&root, &catalog).await?;
    let rows = history::run_sql(&context, &text).await?;
    history::check_there(&root)?;
    write(rows, format, args.output.as_deref()).await?;
    Ok(ExitCode::SUCCESS)
}

/// Compacts all tables, or one customer's.
pub async fn compact(args: CompactArgs) -> Result<ExitCode> {
    let root = pipeline::history_root(&args.project.data_dir);
    for report in history::compact_all(&root, &args.project.customers, args.vacuum).await? {
        println!("{report}");
    }
    Ok(ExitCode::SUCCESS)
}
