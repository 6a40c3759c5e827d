//! `millstream check` and `millstream explain`.

use std::process::ExitCode;

use crate::catalog::{self, Emit, suggestion};
use crate::cli::printing::print_errors;
use crate::cli::project_args::ProjectArgs;
use crate::planner::sql_display::{plain, sql_type};
use crate::planner::{Input, PlanKind, QueryPlan};
use crate::types::{Size, WindowSpec};
use crate::{Error, Result, pipeline};

/// Check every schema and query file, without a broker.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    project: ProjectArgs,
}

/// Show the batch plan, the window state and the final plan of a query.
#[derive(Debug, clap::Args)]
pub struct ExplainArgs {
    #[command(flatten)]
    project: ProjectArgs,
    /// The query: its name, CUSTOMER/NAME, or the path of its file
    query: String,
}

/// Plans everything; prints a paragraph a query, or all errors.
pub async fn run(args: Args) -> Result<ExitCode> {
    let mut queries = 0;
    let (catalog, mut errors) =
        match catalog::load_with_errors(&args.project.project, &args.project.customers) {
            Ok(read) => read,
            Err(errors) => return Ok(failed(&errors)),
        };
    for customer in &catalog.customers {
        match pipeline::plan(&catalog.root, customer).await {
            Err(more) => add_news(&mut errors, more),
            Ok(plan) => {
                println!("customer {} ({})", customer.name, customer.zone.name());
                for stream in &plan.streams {
                    println!(
                        "  stream {}: {} columns, watermark on {}",
                        stream.stream.name,
                        stream.schema.fields().len(),
                        stream.stream.watermark.column
                    );
                }
                for query in &plan.queries {
                    describe(query);
                    errors.extend(query.dry_run().await.err());
                }
                queries += plan.queries.len();
            }
        }
    }
    if !errors.is_empty() {
        return Ok(failed(&errors));
    }
    let customers = catalog.customers.len();
    println!("ok: {}, {}", counted(customers, "customer"), counted(queries, "query"));
    Ok(ExitCode::SUCCESS)
}

/// `1 customer`, `2 customers`, `2 queries`.
fn counted(number: usize, noun: &str) -> String {
    match (number, noun) {
        (1, _) => format!("1 {noun}"),
        (_, "query") => format!("{number} queries"),
        _ => format!("{number} {noun}s"),
    }
}

/// Adds errors about places that no other error names yet.
fn add_news(errors: &mut Vec<Error>, more: Vec<Error>) {
    for error in more {
        let told = |known: &Error| match (&known.place, &error.place) {
            (Some(a), Some(b)) => (&a.file, a.line) == (&b.file, b.line),
            _ => known.message == error.message,
        };
        if !errors.iter().any(told) {
            errors.push(error);
        }
    }
}

fn failed(errors: &[Error]) -> ExitCode {
    print_errors(errors);
    eprintln!("{} found", counted(errors.len(), "error"));
    ExitCode::FAILURE
}

fn describe(query: &QueryPlan) {
    let kind = match query.kind {
        PlanKind::Stateless => "stateless query",
        PlanKind::Windowed => "windowed query",
        PlanKind::View => "materialized view",
        PlanKind::Derived => "materialized view over views",
    };
    println!("  {kind} {}  ({})", query.name, query.query.file.display());
    let mut inputs: Vec<String> = match &query.input {
        Input::Stream(name) => vec![format!("stream {name}")],
        Input::Query(name) => vec![format!("query {name}")],
        Input::Views => Vec::new(),
    };
    inputs.extend(query.tables.iter().cloned());
    println!("    inputs   {}", inputs.join(", "));
    if let Some(window) = &query.window {
        println!(
            "    windows  {}{}",
            described(window),
            if query.panes { ", state in panes" } else { "" }
        );
    }
    println!("    state    {}", query.state_description());
    if let Emit::Every(every) = query.query.emit {
        println!("    emits    every {} s while a window is open", every / 1_000_000);
    }
    println!("    topic    {}", query.query.topic);
    let names = |indices: &[usize]| {
        indices.iter().map(|&i| query.output.field(i).name().clone()).collect::<Vec<_>>().join(", ")
    };
    println!(
        "    key      {}",
        if query.key.is_empty() { "none".to_owned() } else { names(&query.key) }
    );
    let columns =
        query.output.fields().iter().map(|f| format!("{} {}", f.name(), sql_type(f.data_type())));
    println!("    columns  {}", columns.collect::<Vec<_>>().join(", "));
    warnings(query).iter().for_each(|warning| println!("    warning  {warning}"));
}

/// Warns about what is allowed but probably not intended.
fn warnings(query: &QueryPlan) -> Vec<String> {
    let mut warnings = Vec::new();
    if query.kind == PlanKind::Windowed && !query.has_window_column {
        let keys = if query.key.is_empty() {
            ""
        } else {
            ", and rows of different windows have the same key"
        };
        warnings.push(format!(
            "no result column identifies the window of a row{keys}: select window_start"
        ));
    }
    if let Some(WindowSpec::Hop { slide, size, .. }) = &query.window
        && is_longer(slide, size)
    {
        warnings.push(
            "rows between two windows belong to no window: the arguments of HOP are first the slide, then the size"
                .to_owned(),
        );
    }
    for field in query.output.fields() {
        if field.name().contains(['(', '.']) {
            let name = plain(field.name());
            warnings.push(format!(
                "a column has the generated name \"{name}\": give it a name with AS"
            ));
        }
    }
    warnings
}

/// Whether a length is longer than another, where they are of one kind.
fn is_longer(a: &Size, b: &Size) -> bool {
    match (a, b) {
        (Size::Fixed(a), Size::Fixed(b)) => a > b,
        (Size::Days(a), Size::Days(b))
        | (Size::Weeks(a), Size::Weeks(b))
        | (Size::Months(a), Size::Months(b)) => a > b,
        _ => false,
    }
}

/// A window in words.
fn described(window: &WindowSpec) -> String {
    let size = |size: &Size| match size {
        Size::Fixed(us) => span(*us),
        Size::Days(n) => calendar(*n, "day"),
        Size::Weeks(n) => calendar(*n, "week"),
        Size::Months(n) => calendar(*n, "month"),
    };
    let shifted = |offset_us: i64| {
        if offset_us == 0 { String::new() } else { format!(", shifted by {}", span(offset_us)) }
    };
    match window {
        WindowSpec::Tumble { size: of, offset_us } => {
            format!("tumble by {}{}", size(of), shifted(*offset_us))
        }
        WindowSpec::Hop { slide, size: of, offset_us } => {
            format!("hop by {}, each of {}{}", size(slide), size(of), shifted(*offset_us))
        }
        WindowSpec::DateBin { stride, .. } => format!("date_bin by {}", size(stride)),
        WindowSpec::DateTrunc { unit } => {
            format!("date_trunc to the {}", format!("{unit:?}").to_lowercase())
        }
    }
}

fn calendar(number: u32, unit: &str) -> String {
    format!("{number} calendar {unit}{}", if number == 1 { "" } else { "s" })
}

/// A length of time in its largest whole unit.
fn span(us: i64) -> String {
    let units = [
        (86_400_000_000, "d"),
        (3_600_000_000, "h"),
        (60_000_000, "min"),
        (1_000_000, "s"),
        (1_000, "ms"),
    ];
    let unit = units.iter().find(|(length, _)| us % length == 0);
    unit.map_or_else(|| format!("{us} us"), |(length, name)| format!("{} {name}", us / length))
}

/// Prints the batch plan, the window state and the final plan of one query.
pub async fn explain(args: ExplainArgs) -> Result<ExitCode> {
    let Some(catalog) = args.project.load() else { return Ok(ExitCode::FAILURE) };
    let mut seen = Vec::new();
    for customer in &catalog.customers {
        let plan = match pipeline::plan(&catalog.root, customer).await {
            Ok(plan) => plan,
            Err(errors) => return Ok(failed(&errors)),
        };
        for query in &plan.queries {
            let full = format!("{}/{}", customer.name, query.name);
            let wanted = [query.name.as_str(), full.as_str()].contains(&args.query.as_str())
                || query.query.file.ends_with(&args.query);
            if wanted {
                println!("{full}\n{}", query.explain());
                return Ok(ExitCode::SUCCESS);
            }
            seen.push(full);
        }
    }
    Err(Error::config(format!("there is no query '{}'", args.query))
        .hint_if(suggestion::suggest(&args.query, seen.iter().map(String::as_str))))
}
