//! Phase 6, replay: runs the recorded epochs after the snapshot again, with the same offset ranges
//! and the same decisions of the clock. Their records are dropped: they were committed before.

use std::collections::{BTreeSet, VecDeque};

use crate::Result;
use crate::commit::Progress;
use crate::failpoint::reach;
use crate::pipeline::engine::stream_state::StreamState;
use crate::pipeline::recovery::open_outputs::Opened;
use crate::pipeline::recovery::replay_check;
use crate::pipeline::recovery::replay_lag::ReplayLag;
use crate::pipeline::running_pipeline::RunningPipeline;
use crate::source::Event;
use crate::source::chunk::Chunk;
use crate::types::TopicPartition;

/// Replays the recorded epochs, if there are any to replay, and ends recovery.
///
/// # Errors
/// An epoch cannot be read again, or its state differs from the recorded digests.
pub async fn replay(opened: Opened) -> Result<RunningPipeline> {
    let Opened { mut running, config, cluster, recovered, snapshot, new_queries, .. } = opened;
    if opened.replays {
        let epochs = recovered.after(snapshot.as_ref())?;
        // The epochs of a customer that is reset concern time and history only.
        running.engine.suspend_queries(opened.is_reset);
        if !epochs.is_empty() {
            let lag = ReplayLag::watch(&cluster, &running.engine, &config);
            replay_epochs(&mut running, epochs, !opened.is_reset, lag).await?;
        }
        running.engine.suspend_queries(false);
        running.engine.reset_queries(&new_queries)?;
    }
    finish_recovery(running).await
}

/// Ends recovery: snapshots that a changed state has made invalid are discarded, and reference
/// tables that have changed are loaded.
///
/// # Errors
/// A table's new version cannot be stored.
pub async fn finish_recovery(mut running: RunningPipeline) -> Result<RunningPipeline> {
    if running.required_snapshot.is_some() {
        running.snapshots.discard_named();
    }
    running.load_changed_tables().await?;
    reach("recovery.done");
    Ok(running)
}

/// Replays recorded epochs. `with_tables`: reference tables get the versions that they had.
async fn replay_epochs(
    running: &mut RunningPipeline,
    epochs: &[Progress],
    with_tables: bool,
    mut lag: ReplayLag,
) -> Result<()> {
    tracing::info!(
        customer = running.engine.customer.name,
        epochs = epochs.len(),
        "replaying recorded epochs"
    );
    for record in epochs {
        for (name, hash) in record.tables.iter().filter(|_| with_tables) {
            let rows = running.tables.load_version(name, hash).await?;
            running.engine.set_table(name, rows);
        }
        running.join(&record.joined)?;
        if record.clean {
            // The epoch has no events. It is not ended here, because that would publish the
            // content of a changed view.
            running.history.append(record.epoch, Vec::new()).await?;
            continue;
        }
        replay_epoch(running, record).await?;
        lag.report(&running.engine);
    }
    Ok(())
}

async fn replay_epoch(running: &mut RunningPipeline, record: &Progress) -> Result<()> {
    reach("recovery.rerun");
    running.engine.begin(record.now)?;
    absorb_range(running, record).await?;
    reach("recovery.rerun.absorbed");
    let output = running.engine.end(&record.decisions, &record.emitted, record.drained).await?;
    // With a changed plan or without its state, a query's state differs from the recorded one.
    if running.required_snapshot.is_none() {
        replay_check::compare_digests(record, &running.engine)?;
    }
    reach("recovery.rerun.ended");
    running.history.append(record.epoch, output.history).await?;
    reach("recovery.rerun.handed");
    Ok(())
}

/// Absorbs exactly the offsets of a recorded epoch. What was read beyond them is kept for the
/// epochs that follow.
async fn absorb_range(running: &mut RunningPipeline, record: &Progress) -> Result<()> {
    let end_of = |p: &TopicPartition| record.positions.get(p).map(|at| at.offset);
    let positions = running.engine.streams().values().flat_map(StreamState::positions);
    let incomplete = positions.filter(|(p, at)| end_of(p).is_some_and(|end| at.offset < end));
    let mut incomplete: BTreeSet<TopicPartition> = incomplete.map(|(p, _)| p.clone()).collect();
    let mut later = VecDeque::new();
    let mut read_ahead = std::mem::take(&mut running.source.read_ahead);
    while !incomplete.is_empty() {
        let chunk = match read_ahead.pop_front() {
            Some(chunk) => chunk,
            None => match running.source.reader.next().await? {
                Event::Chunk(chunk) => chunk,
                Event::End { partition, position } => {
                    // The offsets before the end may be control records only.
                    if let Some(end) = end_of(&partition).filter(|end| position >= *end)
                        && incomplete.remove(&partition)
                    {
                        running.engine.skip_to(&partition, end);
                    }
                    continue;
                }
            },
        };
        let partition = TopicPartition { topic: chunk.topic.clone(), partition: chunk.partition };
        let end = end_of(&partition).unwrap_or(i64::MIN);
        if !incomplete.contains(&partition) || chunk.first_offset >= end {
            if incomplete.remove(&partition) {
                running.engine.skip_to(&partition, end);
            }
            later.push_back(chunk);
            continue;
        }
        let (in_range, rest) = split_chunk(chunk, end);
        if in_range.next_offset >= end {
            incomplete.remove(&partition);
        }
        running.engine.absorb(in_range).await?;
        later.extend(rest);
    }
    later.extend(read_ahead);
    running.source.read_ahead = later;
    Ok(())
}

/// Splits a chunk into the part before the offset `end` and the part from there on.
fn split_chunk(chunk: Chunk, end: i64) -> (Chunk, Option<Chunk>) {
    if chunk.next_offset <= end {
        return (chunk, None);
    }
    let rest = chunk.slice(end);
    (chunk.slice_until(end), Some(rest))
}
