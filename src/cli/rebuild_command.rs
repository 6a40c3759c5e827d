//! `millstream rebuild`: a customer's state and results again, from Kafka and history.

use std::process::ExitCode;
use std::sync::Arc;

use crate::Result;
use crate::cli::kafka_args::KafkaArgs;
use crate::cli::project_args::ProjectArgs;
use crate::pipeline::PipelineConfig;
use crate::pipeline::rebuild::{Rebuilt, rebuild};
use crate::telemetry::{Metrics, StatusBoard};

/// Make a customer's state, and results that are missing, again from Kafka and history.
///
/// For a customer whose log topic or snapshots are lost, or whose source topics no longer contain
/// the offsets that a start needs. Results that are in their topics are not published again.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The customer
    name: String,
    #[command(flatten)]
    project: ProjectArgs,
    #[command(flatten)]
    kafka: KafkaArgs,
    /// Create the topics that are missing
    #[arg(long)]
    create_topics: bool,
}

/// Rebuilds, and prints what was found and done.
pub async fn run(args: Args) -> Result<ExitCode> {
    let Some(catalog) = args.project.load() else { return Ok(ExitCode::FAILURE) };
    let customer = crate::cli::project_args::find_customer(&catalog, &args.name)?;
    let (metrics, board) = (Arc::new(Metrics::new()?), StatusBoard::new(None));
    let kafka = args.kafka.config()?;
    let mut options = PipelineConfig::follow(kafka, &args.project.data_dir, metrics, board);
    options.create_topics = args.create_topics;
    let rebuilt = rebuild(&catalog, &customer, options).await?;
    tell(&rebuilt);
    Ok(ExitCode::SUCCESS)
}

fn tell(rebuilt: &Rebuilt) {
    if rebuilt.from_history > 0 {
        println!("{} rows came from history: Kafka no longer has them", rebuilt.from_history);
    }
    for (partition, from, to) in &rebuilt.gone {
        println!(
            "{partition}: offsets {from} to {} are neither in Kafka nor in history; windows that \
             they belong to and that were not published are made of the rest",
            to - 1
        );
    }
    for (topic, (before, now)) in &rebuilt.topics {
        println!("{topic}: {before} were published already, {now} are published now");
    }
    println!("the state has been rebuilt; `millstream run` continues from here");
}
