//! A pipeline's life: it begins, lives, fails, begins again, and ends.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::catalog::{Catalog, Customer};
use crate::commit::{Process, Progress, read_stable_log};
use crate::pipeline::OnMissingOffsets;
use crate::pipeline::driver::Pipeline;
use crate::pipeline::history::output_archiver::{self};
use crate::pipeline::{Mode, PipelineConfig, Reset, recovery};
use crate::telemetry::status::Status;
use crate::{Error, Kind, Result};

/// How long a pipeline that is to stop waits for Kafka.
const STOP_WAIT: Duration = Duration::from_secs(2);
/// How long a pipeline that failed waits before it begins again; twice as long after each failure.
const RESTART_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_RESTART_PAUSE: Duration = Duration::from_secs(60);

/// Runs one customer's pipeline until its mode's end or `stop`. One that follows its topics and
/// has run before begins again when Kafka or the disk fails it.
///
/// # Errors
/// What nobody but a person can mend; or that Kafka did not answer when it was to stop.
pub async fn run(
    catalog: Arc<Catalog>,
    customer: Arc<Customer>,
    mut options: PipelineConfig,
    mut stop: watch::Receiver<bool>,
) -> Result<()> {
    let mut pause = RESTART_PAUSE;
    let mut life = Life { process: Process::this(options.clock.now()), began_after: None };
    loop {
        let begun = Instant::now();
        let result = run_pipeline(&catalog, &customer, &mut options, stop.clone(), &mut life).await;
        let Err(mut error) = result else { return Ok(()) };
        let mut overtaken = error.kind == Kind::WriteConflict;
        if overtaken {
            error = life.overtaken(&customer.name, &options, error).await;
            overtaken = error.kind == Kind::Storage;
        }
        let failed = Some(error.to_string());
        options.board.publish(Status {
            customer: customer.name.clone(),
            failed,
            ..Status::default()
        });
        // A gap is passed over at the start, which tells it from other errors.
        let passable = error.kind == Kind::Recovery && options.on_gap == OnMissingOffsets::Skip;
        let passing = passable || matches!(error.kind, Kind::Kafka | Kind::Storage);
        if overtaken && *stop.borrow() {
            tracing::warn!(customer = customer.name, %error, "stopped without a snapshot");
            return Ok(());
        }
        if life.began_after.is_none() || !passing || options.mode != Mode::Follow || *stop.borrow()
        {
            return Err(error);
        }
        if begun.elapsed() > LONGEST_RESTART_PAUSE {
            pause = RESTART_PAUSE;
        }
        tracing::error!(customer = customer.name, %error, "the pipeline failed and begins again in {} s", pause.as_secs());
        let stopped = stop.wait_for(|stop| *stop);
        if tokio::time::timeout(pause, stopped).await.is_ok() {
            return Err(error);
        }
        pause = (pause * 2).min(LONGEST_RESTART_PAUSE);
    }
}

/// What a process knows of itself.
struct Life {
    process: Process,
    /// The newest committed epoch when its pipeline began last; `None`: it never did.
    began_after: Option<u64>,
}

impl Life {
    /// What it means that another process wrote to history: it took over, or it was fenced by this
    /// one and had committed epochs to copy still. Then the copies are right, and this process
    /// begins again behind them.
    async fn overtaken(&self, customer: &str, options: &PipelineConfig, error: Error) -> Error {
        let newest = async {
            let log = read_stable_log(&options.kafka, customer).await?;
            log.last().map(|record| Progress::decode(record)).transpose()
        };
        let newest = match newest.await {
            Ok(newest) => newest.unwrap_or_default(),
            Err(unread) => return unread,
        };
        let ours = newest.process.as_ref() == Some(&self.process);
        if ours || Some(newest.epoch) <= self.began_after {
            let message = "a process that this one fenced has written to history since";
            return Error::new(Kind::Storage, message)
                .hint("nothing is lost or twice: run again")
                .because(error);
        }
        let by = newest.process.map_or_else(|| "it".to_owned(), |process| process.to_string());
        let message = format!(
            "another process took over customer {customer}: {by}, has committed epoch {}",
            newest.epoch
        );
        Error::new(Kind::Fenced, message)
            .hint("one process runs a customer at a time; this one stops")
            .because(error)
    }
}

async fn run_pipeline(
    catalog: &Catalog,
    customer: &Arc<Customer>,
    options: &mut PipelineConfig,
    mut stop: watch::Receiver<bool>,
    life: &mut Life,
) -> Result<()> {
    let mut begun = tokio::select! {
        begun = recovery::begin(catalog, customer, options) => begun?,
        // Nothing is under way that a commit would be needed for.
        _ = stop.wait_for(|stop| *stop) => return Ok(()),
    };
    let mut tail = begun.tail.take();
    let waits_since = tail.as_ref().map(|tail| tail.waits.clone());
    life.began_after = Some(begun.epoch);
    let process = life.process.clone();
    let mut pipeline = Pipeline::new(begun, process, options.clone(), stop.clone(), waits_since);
    let lived = tokio::select! {
        lived = pipeline.live() => lived,
        error = output_archiver::failure(&mut tail) => Err(error),
    };
    if !pipeline.begun.restate {
        // What was dropped is dropped once.
        options.reset = Reset::default();
    }
    if let Err(error) = lived {
        if error.kind == Kind::Recovery && options.on_gap == OnMissingOffsets::Skip {
            // So that nothing but the gap is passed over.
            pipeline.finish().await?;
        }
        return Err(error);
    }
    pipeline.finish().await?;
    drop(pipeline);
    let Some(tail) = tail else { return Ok(()) };
    tokio::select! {
        done = tail.finish() => done,
        () = out_of_patience(stop) => {
            tracing::warn!(customer = customer.name, "the newest results reach history at the next start");
            Ok(())
        }
    }
}

/// Returns when somebody wants to stop and has waited for Kafka long enough.
pub(super) async fn out_of_patience(mut stop: watch::Receiver<bool>) {
    // Without a sender nobody will ever want to stop.
    match stop.wait_for(|stop| *stop).await.map(drop) {
        Ok(()) => tokio::time::sleep(STOP_WAIT).await,
        Err(_) => std::future::pending().await,
    }
}
