//! A customer's workers: each takes the chunks of its own partitions, on a thread of its own.
//!
//! ```text
//!           give(chunk)          next(): ChunkResult
//! pipeline ─────────────► worker ───────────────► pipeline
//!              end()                 Kept
//! ```
//!
//! Promises: a partition's chunks all go to one worker, in the order in which they were given; a
//! worker has few chunks waiting, so that what is read ahead stays small. With one worker there is
//! no thread: chunks are taken where they are given.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::thread;

use tokio::sync::{mpsc, oneshot};

use crate::pipeline::engine::worker::{ChunkResult, Epoch, Kept, Task, Work, Worker};
use crate::types::TopicPartition;
use crate::{Error, Kind, Result};

/// Chunks given to a worker and not taken yet, the one at work included. Two would do if chunks
/// took equally long.
const MOST_WAITING: usize = 4;

enum Order {
    Begin(Epoch),
    Take(Task),
    End(oneshot::Sender<Kept>),
}

/// What a thread answers to a chunk, and which one it is.
type Answer = (usize, Result<ChunkResult>);

struct Member {
    orders: mpsc::UnboundedSender<Order>,
    waiting: usize,
}

/// Some threads, or none.
enum Hands {
    One { worker: Box<Worker>, done: VecDeque<ChunkResult> },
    Many { members: Vec<Member>, answers: mpsc::UnboundedReceiver<Answer> },
}

/// A customer's workers.
pub struct WorkerPool {
    hands: Hands,
    /// Which worker takes a partition.
    homes: HashMap<TopicPartition, usize>,
}

impl WorkerPool {
    /// `parallelism` workers, at least one.
    ///
    /// # Errors
    /// A decoder cannot be made, or a thread cannot be started.
    pub fn start(work: Work, parallelism: usize) -> Result<Self> {
        let work = Arc::new(work);
        let homes = HashMap::new();
        if parallelism <= 1 {
            let worker = Box::new(Worker::new(work)?);
            return Ok(Self { hands: Hands::One { worker, done: VecDeque::new() }, homes });
        }
        let (sender, answers) = mpsc::unbounded_channel();
        let members = (0..parallelism).map(|number| {
            let worker = Worker::new(work.clone())?;
            let (orders, receiver) = mpsc::unbounded_channel();
            start_thread(number, worker, receiver, sender.clone())?;
            Ok(Member { orders, waiting: 0 })
        });
        Ok(Self { hands: Hands::Many { members: members.collect::<Result<_>>()?, answers }, homes })
    }

    /// Begins an epoch.
    pub fn begin(&mut self, epoch: Epoch) -> Result<()> {
        match &mut self.hands {
            Hands::One { worker, .. } => worker.begin(epoch),
            Hands::Many { members, .. } => {
                for member in members {
                    member.orders.send(Order::Begin(epoch.clone())).map_err(|_| gone())?;
                }
            }
        }
        Ok(())
    }

    /// Whether the worker of `partition` should get no more chunks for now.
    pub fn is_busy(&self, partition: &TopicPartition) -> bool {
        let Hands::Many { members, .. } = &self.hands else { return false };
        let home = self.homes.get(partition).and_then(|home| members.get(*home));
        home.is_some_and(|member| member.waiting >= MOST_WAITING)
    }

    /// Gives a chunk to the worker of its partition.
    pub async fn give(&mut self, partition: &TopicPartition, task: Task) -> Result<()> {
        match &mut self.hands {
            Hands::One { worker, done } => done.push_back(worker.take(task).await?),
            Hands::Many { members, .. } => {
                let next = self.homes.len() % members.len();
                let home = *self.homes.entry(partition.clone()).or_insert(next);
                let member = &mut members[home];
                member.orders.send(Order::Take(task)).map_err(|_| gone())?;
                member.waiting += 1;
            }
        }
        Ok(())
    }

    /// What became of a chunk, if one is done.
    pub fn done(&mut self) -> Option<Result<ChunkResult>> {
        match &mut self.hands {
            Hands::One { done, .. } => done.pop_front().map(Ok),
            Hands::Many { members, answers } => {
                answers.try_recv().ok().map(|answer| answered(members, answer))
            }
        }
    }

    /// Waits for the next chunk that is done; `None` when no chunk is being taken. A caller that
    /// stops waiting loses nothing.
    pub async fn next(&mut self) -> Option<Result<ChunkResult>> {
        match &mut self.hands {
            Hands::One { done, .. } => done.pop_front().map(Ok),
            Hands::Many { members, answers } => {
                if members.iter().all(|member| member.waiting == 0) {
                    return None;
                }
                let answer = answers.recv().await;
                Some(answer.map_or_else(|| Err(gone()), |answer| answered(members, answer)))
            }
        }
    }

    /// Ends the epoch: what each worker kept. All chunks must be done.
    pub async fn end(&mut self) -> Result<Vec<Kept>> {
        match &mut self.hands {
            Hands::One { worker, .. } => Ok(vec![worker.end()]),
            Hands::Many { members, .. } => {
                let mut asked = Vec::with_capacity(members.len());
                for member in members {
                    let (sender, kept) = oneshot::channel();
                    member.orders.send(Order::End(sender)).map_err(|_| gone())?;
                    asked.push(kept);
                }
                let mut all = Vec::with_capacity(asked.len());
                for kept in asked {
                    all.push(kept.await.map_err(|_| gone())?);
                }
                Ok(all)
            }
        }
    }
}

fn answered(members: &mut [Member], (number, worked): Answer) -> Result<ChunkResult> {
    members[number].waiting -= 1;
    worked
}

fn gone() -> Error {
    Error::internal("a worker has ended early")
}

/// Ends with the orders' sender, or with whoever would hear the answers.
fn start_thread(
    number: usize,
    mut worker: Worker,
    mut orders: mpsc::UnboundedReceiver<Order>,
    answers: mpsc::UnboundedSender<Answer>,
) -> Result<()> {
    let failed = |error: std::io::Error| {
        Error::new(Kind::Config, "a worker's thread cannot be started").because(error)
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build().map_err(failed)?;
    let work = async move {
        while let Some(order) = orders.recv().await {
            match order {
                Order::Begin(epoch) => worker.begin(epoch),
                Order::Take(task) => {
                    if answers.send((number, worker.take(task).await)).is_err() {
                        return;
                    }
                }
                Order::End(kept) => drop(kept.send(worker.end())),
            }
        }
    };
    let thread = thread::Builder::new().name(format!("worker-{number}"));
    thread.spawn(move || runtime.block_on(work)).map_err(failed)?;
    Ok(())
}
