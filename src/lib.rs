//! Millstream: a streaming engine that turns a folder of SQL files into exactly-once pipelines over
//! Kafka, and keeps events and results as Delta tables.
//!
//! ```text
//!  schemas/*.sql, queries/*/*.sql ─► catalog ─► planner: batch plan │ window state │ final plan
//!                                                          │
//!  Kafka ─► source ─► decode ─► watermark ─► window ─► sink ─► commit ─► Kafka
//!           chunks    batches   per partition  │       records  one transaction per epoch
//!                        │                   state                       │
//!                        └───────────────► history ◄─────────────────────┘
//!                                          Delta tables ─► ad-hoc SQL, backfill, BI
//! ```
//!
//! The modules, in the order in which data passes through them. A module imports only modules above
//! it; [`pipeline`] connects them.
//!
//! | module | content |
//! |---|---|
//! | [`mod@error`] | [`Error`] with message, hint and place in the SQL; its [`Kind`] determines the action |
//! | [`time`] | event time, half-open windows, and the clock |
//! | [`failpoint`] | named points at which tests kill the process |
//! | `storage` | the object store of snapshots and history, with time limits |
//! | [`types`] | types that several stages share |
//! | [`telemetry`] | metrics and status that the stages report |
//! | [`catalog`] | schema and query files, checked and resolved |
//! | [`source`] | Kafka readers that produce chunks of records |
//! | [`decode`] | chunks to Arrow record batches and rejected rows |
//! | [`watermark`] | watermarks per partition, idleness, and their minimum |
//! | [`state`] | key sets and the snapshot store |
//! | [`planner`] | SQL to batch plan, window state and final plan |
//! | [`window`] | window assignment, panes and operators; no I/O |
//! | [`sink`] | results, late rows and dead letters as Kafka records |
//! | [`commit`] | the Kafka transaction and progress record of an epoch |
//! | [`history`] | Delta tables: write, compact, query |
//! | [`pipeline`] | the pipeline of one customer: recovery, engine, supervisor |
//! | [`backfill`] | a query file run over history |
//! | [`sensors`] | simulated sensors for the demo and tests |
//! | [`serve`] | HTTP: metrics, health, status |
//! | [`cli`] | command-line arguments and output |
//!
//! # Load a project
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let project = tempfile::tempdir()?;
//! std::fs::create_dir_all(project.path().join("schemas"))?;
//! std::fs::create_dir_all(project.path().join("queries/office"))?;
//! std::fs::write(
//!     project.path().join("schemas/office.sql"),
//!     "CREATE STREAM visits (room VARCHAR NOT NULL, ts TIMESTAMP NOT NULL,
//!        WATERMARK FOR ts AS ts - INTERVAL '30' SECOND)
//!      WITH (topics = 'visits')",
//! )?;
//! std::fs::write(
//!     project.path().join("queries/office/hourly.sql"),
//!     "SELECT window_start, room, count(*) AS visits
//!      FROM TUMBLE(TABLE visits, DESCRIPTOR(ts), INTERVAL '1' HOUR)
//!      GROUP BY window_start, room",
//! )?;
//!
//! let catalog = millstream::catalog::load(project.path(), &[]).map_err(|mut e| e.remove(0))?;
//! let office = catalog.customer("office").ok_or("no customer")?;
//! assert_eq!(office.streams[0].name, "visits");
//! assert_eq!(office.queries[0].topic, "millstream.office.hourly");
//! # Ok(())
//! # }
//! ```
//!
//! # Run a query over history
//!
//! ```
//! use futures::TryStreamExt;
//! use millstream::catalog::Catalog;
//! use millstream::history;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let data = tempfile::tempdir()?;
//! # let catalog = Catalog { root: data.path().to_owned(), customers: Vec::new() };
//! // `catalog` is that of `catalog::load`; history is in the folder `history` of the data directory.
//! let batches = tokio::runtime::Runtime::new()?.block_on(async {
//!     let context = history::context(&data.path().join("history"), &catalog).await?;
//!     let rows = history::run_sql(&context, "SELECT 1 AS one").await?;
//!     rows.try_collect::<Vec<_>>().await.map_err(history::sql_error)
//! })?;
//! assert_eq!(batches[0].num_rows(), 1);
//! # Ok(())
//! # }
//! ```

pub mod error;

pub mod time;

pub mod failpoint;

mod storage;

pub mod types;

pub mod telemetry;

pub mod catalog;

pub mod source;

pub mod decode;

pub mod watermark;

pub mod state;

pub mod planner;

pub mod window;

pub mod sink;

pub mod commit;

pub mod history;

pub mod pipeline;

pub mod backfill;

pub mod sensors;

pub mod serve;

pub mod cli;

pub use error::{Error, Kind, Place, Result};
