//! A customer's worker pool: each worker processes the chunks of its own partitions on a thread of
//! its own.
//!
//! ```text
//!          submit(chunk)          next_result(): ChunkResult
//! engine ────────────────► worker ───────────────────────────► engine
//!           end_epoch()           StateBuffers
//! ```
//!
//! Promises: all chunks of a partition go to one worker, in the order in which they were submitted;
//! few chunks wait at a worker, so that little memory is used for chunks that were read ahead. With
//! one worker there is no thread: chunks are processed where they are submitted.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::thread;

use tokio::sync::{mpsc, oneshot};

use crate::pipeline::engine::worker::{ChunkResult, Epoch, StateBuffers, Task, Work, Worker};
use crate::types::TopicPartition;
use crate::{Error, Kind, Result};

/// The number of chunks that may wait at a worker, including the one in work. Two would be enough
/// if all chunks took equally long.
const MAX_WAITING: usize = 4;

/// What the pool sends to a worker's thread.
enum WorkerCommand {
    Begin(Epoch),
    Process(Task),
    End(oneshot::Sender<StateBuffers>),
}

/// What a worker's thread sends back for a chunk: the worker's number and the result.
type NumberedResult = (usize, Result<ChunkResult>);

/// The pool's end of a worker's thread.
struct WorkerHandle {
    commands: mpsc::UnboundedSender<WorkerCommand>,
    waiting: usize,
}

/// Where chunks are processed.
enum Workers {
    Inline { worker: Box<Worker>, completed: VecDeque<ChunkResult> },
    Threads { handles: Vec<WorkerHandle>, results: mpsc::UnboundedReceiver<NumberedResult> },
}

/// The workers of a customer.
pub struct WorkerPool {
    workers: Workers,
    /// The worker that each partition is assigned to.
    assignment: HashMap<TopicPartition, usize>,
}

impl WorkerPool {
    /// Starts `parallelism` workers, at least one.
    ///
    /// # Errors
    /// A decoder cannot be made, or a thread cannot be started.
    pub fn start(work: Work, parallelism: usize) -> Result<Self> {
        let work = Arc::new(work);
        let assignment = HashMap::new();
        if parallelism <= 1 {
            let worker = Box::new(Worker::new(work)?);
            let workers = Workers::Inline { worker, completed: VecDeque::new() };
            return Ok(Self { workers, assignment });
        }
        let (sender, results) = mpsc::unbounded_channel();
        let handles = (0..parallelism).map(|number| {
            let worker = Worker::new(work.clone())?;
            let (commands, receiver) = mpsc::unbounded_channel();
            start_thread(number, worker, receiver, sender.clone())?;
            Ok(WorkerHandle { commands, waiting: 0 })
        });
        let handles = handles.collect::<Result<_>>()?;
        Ok(Self { workers: Workers::Threads { handles, results }, assignment })
    }

    /// Begins an epoch on all workers.
    ///
    /// # Errors
    /// A worker's thread has stopped.
    pub fn begin(&mut self, epoch: Epoch) -> Result<()> {
        match &mut self.workers {
            Workers::Inline { worker, .. } => worker.begin(epoch),
            Workers::Threads { handles, .. } => {
                for handle in handles {
                    let command = WorkerCommand::Begin(epoch.clone());
                    handle.commands.send(command).map_err(|_| stopped())?;
                }
            }
        }
        Ok(())
    }

    /// Whether the worker of `partition` has as many chunks as it may have.
    pub fn is_busy(&self, partition: &TopicPartition) -> bool {
        let Workers::Threads { handles, .. } = &self.workers else { return false };
        let handle = self.assignment.get(partition).and_then(|number| handles.get(*number));
        handle.is_some_and(|handle| handle.waiting >= MAX_WAITING)
    }

    /// Submits a chunk to the worker of its partition.
    ///
    /// # Errors
    /// The worker's thread has stopped; with one worker: processing the chunk failed.
    pub async fn submit(&mut self, partition: &TopicPartition, task: Task) -> Result<()> {
        match &mut self.workers {
            Workers::Inline { worker, completed } => {
                completed.push_back(worker.process(task).await?);
            }
            Workers::Threads { handles, .. } => {
                let next = self.assignment.len() % handles.len();
                let number = *self.assignment.entry(partition.clone()).or_insert(next);
                let handle = &mut handles[number];
                handle.commands.send(WorkerCommand::Process(task)).map_err(|_| stopped())?;
                handle.waiting += 1;
            }
        }
        Ok(())
    }

    /// The result of a completed chunk, if there is one now.
    pub fn poll_result(&mut self) -> Option<Result<ChunkResult>> {
        match &mut self.workers {
            Workers::Inline { completed, .. } => completed.pop_front().map(Ok),
            Workers::Threads { handles, results } => {
                results.try_recv().ok().map(|result| accept_result(handles, result))
            }
        }
    }

    /// Waits for the result of the next completed chunk; `None` if no worker has any chunk.
    /// Dropping the future loses nothing.
    pub async fn next_result(&mut self) -> Option<Result<ChunkResult>> {
        match &mut self.workers {
            Workers::Inline { completed, .. } => completed.pop_front().map(Ok),
            Workers::Threads { handles, results } => {
                if handles.iter().all(|handle| handle.waiting == 0) {
                    return None;
                }
                let result = results.recv().await;
                Some(result.map_or_else(|| Err(stopped()), |r| accept_result(handles, r)))
            }
        }
    }

    /// Ends the epoch. Returns each worker's buffers. All chunks must be completed.
    ///
    /// # Errors
    /// A worker's thread has stopped.
    pub async fn end_epoch(&mut self) -> Result<Vec<StateBuffers>> {
        match &mut self.workers {
            Workers::Inline { worker, .. } => Ok(vec![worker.end()]),
            Workers::Threads { handles, .. } => {
                let mut replies = Vec::with_capacity(handles.len());
                for handle in handles {
                    let (sender, reply) = oneshot::channel();
                    handle.commands.send(WorkerCommand::End(sender)).map_err(|_| stopped())?;
                    replies.push(reply);
                }
                let mut all = Vec::with_capacity(replies.len());
                for reply in replies {
                    all.push(reply.await.map_err(|_| stopped())?);
                }
                Ok(all)
            }
        }
    }
}

/// Counts a chunk as completed.
fn accept_result(
    handles: &mut [WorkerHandle],
    (number, result): NumberedResult,
) -> Result<ChunkResult> {
    handles[number].waiting -= 1;
    result
}

fn stopped() -> Error {
    Error::internal("a worker thread stopped early")
}

/// Starts a worker's thread. It ends when the sender of commands or the receiver of results is
/// dropped.
fn start_thread(
    number: usize,
    mut worker: Worker,
    mut commands: mpsc::UnboundedReceiver<WorkerCommand>,
    results: mpsc::UnboundedSender<NumberedResult>,
) -> Result<()> {
    let failed = |error: std::io::Error| {
        Error::new(Kind::Config, "cannot start a worker thread").because(error)
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build().map_err(failed)?;
    let work = async move {
        while let Some(command) = commands.recv().await {
            match command {
                WorkerCommand::Begin(epoch) => worker.begin(epoch),
                WorkerCommand::Process(task) => {
                    if results.send((number, worker.process(task).await)).is_err() {
                        return;
                    }
                }
                WorkerCommand::End(reply) => drop(reply.send(worker.end())),
            }
        }
    };
    let thread = thread::Builder::new().name(format!("worker-{number}"));
    thread.spawn(move || runtime.block_on(work)).map_err(failed)?;
    Ok(())
}
