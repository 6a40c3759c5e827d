//! The HTTP endpoint: `/metrics`, `/healthz`, `/readyz`, `/status` and a page that shows it.
//!
//! The endpoint reads the status that pipelines publish and never calls a pipeline, so a slow client
//! cannot delay one. It has no authentication and listens on 127.0.0.1 by default.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::error::{Error, Kind, Result};
use crate::telemetry::metrics::{self, Metrics};
use crate::telemetry::status::{Status, StatusBoard};
use crate::time::{Clock, MINUTE, Micros, SECOND};

/// A pipeline whose status is older than this is not ready: pipelines publish about once a second.
const STALE_US: Micros = 15 * SECOND;
/// A Kafka request that is pending for longer than this means not ready. Kafka responds within
/// milliseconds; a transaction that waits for a disk may take a second.
const KAFKA_US: Micros = 5 * SECOND;
/// A row that history has not committed for this long means not ready: history commits every 10 s.
const HISTORY_US: Micros = MINUTE;
/// A newest snapshot older than this means not ready, because recovery replays everything since.
const SNAPSHOT_US: Micros = 30 * MINUTE;

/// The data that the endpoint serves.
#[derive(Debug, Clone)]
struct Endpoint {
    metrics: Arc<Metrics>,
    board: StatusBoard,
    clock: Clock,
}

/// A running endpoint.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

/// Binds `address` (port 0 selects a free port) and starts serving.
///
/// # Errors
/// [`Kind::Config`] if the address cannot be bound.
pub async fn start(
    address: SocketAddr,
    metrics: Arc<Metrics>,
    board: StatusBoard,
) -> Result<Server> {
    serve(address, Endpoint { metrics, board, clock: Clock::system() }).await
}

async fn serve(address: SocketAddr, endpoint: Endpoint) -> Result<Server> {
    let cannot_bind = |cause: std::io::Error| {
        Error::new(Kind::Config, format!("the HTTP endpoint cannot listen on {address}"))
            .because(cause)
            .hint("choose a free address, for example --http 127.0.0.1:9465")
    };
    let listener = TcpListener::bind(address).await.map_err(cannot_bind)?;
    let address = listener.local_addr().map_err(cannot_bind)?;
    let (stop, mut stopping) = watch::channel(false);
    let stopped = async move {
        // An error means that the sender was dropped, which also stops the server.
        let _ = stopping.wait_for(|stop| *stop).await;
    };
    let serve = axum::serve(listener, routes(endpoint)).with_graceful_shutdown(stopped);
    let task = tokio::spawn(async move {
        if let Err(error) = serve.await {
            tracing::error!("the HTTP endpoint failed: {error}");
        }
    });
    Ok(Server { address, stop, task })
}

impl Server {
    /// The address on which it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Closes the port. Waits at most two seconds for open requests.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        let timeout = std::time::Duration::from_secs(2);
        if tokio::time::timeout(timeout, &mut self.task).await.is_err() {
            self.task.abort();
        }
    }
}

fn routes(endpoint: Endpoint) -> Router {
    Router::new()
        .route("/", get(|| async { Html(include_str!("status.html")) }))
        .route("/healthz", get(|| async { "alive\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(scrape))
        .route("/status", get(status))
        .with_state(Arc::new(endpoint))
}

async fn scrape(State(endpoint): State<Arc<Endpoint>>) -> Response {
    match endpoint.metrics.render() {
        Ok(text) => ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn ready(State(endpoint): State<Arc<Endpoint>>) -> (StatusCode, String) {
    let reasons = unready_reasons(&endpoint);
    match reasons.is_empty() {
        true => (StatusCode::OK, "ready\n".to_owned()),
        false => (StatusCode::SERVICE_UNAVAILABLE, reasons.join("\n") + "\n"),
    }
}

async fn status(State(endpoint): State<Arc<Endpoint>>) -> Response {
    let all: Vec<Arc<Status>> = endpoint.board.all();
    let all: Vec<&Status> = all.iter().map(AsRef::as_ref).collect();
    match serde_json::to_vec(&all) {
        Ok(json) => ([(header::CONTENT_TYPE, "application/json")], json).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// The reasons why this process is not ready, one line each.
fn unready_reasons(endpoint: &Endpoint) -> Vec<String> {
    let now = endpoint.clock.now();
    let statuses = endpoint.board.all();
    let mut reasons: Vec<String> = endpoint
        .board
        .missing()
        .iter()
        .map(|customer| format!("{customer}: the pipeline has not started yet"))
        .collect();
    if statuses.is_empty() && reasons.is_empty() {
        reasons.push("no pipeline has started yet".to_owned());
    }
    let reason = |status: &Arc<Status>| {
        Some(format!("{}: {}", status.customer, unready_reason(status, now)?))
    };
    reasons.extend(statuses.iter().filter_map(reason));
    reasons
}

fn unready_reason(status: &Status, now: Micros) -> Option<String> {
    let seconds = |since: Micros| (now - since) / SECOND;
    if let Some(error) = &status.failed {
        return Some(format!("the pipeline failed: {error}"));
    }
    if now - status.at > STALE_US {
        return Some(format!("the pipeline has published no status for {} s", seconds(status.at)));
    }
    if let Some(since) = status.kafka_waits_since.filter(|since| now - since > KAFKA_US) {
        let cause =
            status.kafka_error.as_ref().map_or_else(String::new, |error| format!(": {error}"));
        return Some(format!("Kafka has not responded for {} s{cause}", seconds(since)));
    }
    if let Some(since) = status.history_waits_since.filter(|since| now - since > HISTORY_US) {
        return Some(format!("history has not committed for {} s", seconds(since)));
    }
    if let Some(since) = status.snapshot_at.filter(|since| now - since > SNAPSHOT_US) {
        return Some(format!("no snapshot for {} s", seconds(since)));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    async fn get(server: &Server, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(server.address()).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).await.unwrap();
        let (head, body) = response.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    #[tokio::test]
    async fn every_path_returns_its_content() {
        let endpoint = Endpoint {
            metrics: Arc::new(Metrics::new().unwrap()),
            board: StatusBoard::default(),
            clock: Clock::manual(100 * SECOND),
        };
        endpoint.metrics.sink("a", "history.positions").inc();
        let server = serve(SocketAddr::from(([127, 0, 0, 1], 0)), endpoint.clone()).await.unwrap();
        assert_eq!(
            get(&server, "/readyz").await,
            (503, "no pipeline has started yet\n".to_owned())
        );
        endpoint.board.expect(["a"]);
        assert_eq!(get(&server, "/healthz").await, (200, "alive\n".to_owned()));
        assert_eq!(
            get(&server, "/readyz").await,
            (503, "a: the pipeline has not started yet\n".to_owned())
        );
        endpoint.board.publish(Status {
            customer: "a".to_owned(),
            at: 99 * SECOND,
            epoch: 7,
            ..Status::default()
        });
        assert_eq!(get(&server, "/readyz").await.0, 200);
        let (code, body) = get(&server, "/status").await;
        let json: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!((code, &json[0]["epoch"]), (200, &serde_json::json!(7)));
        assert!(get(&server, "/metrics").await.1.contains("millstream_records_written_total{"));
        assert!(get(&server, "/").await.1.contains("<title>Millstream</title>"));
        assert_eq!(get(&server, "/nothing").await.0, 404);

        let address = server.address();
        let error = serve(address, endpoint).await.unwrap_err().to_string();
        assert!(error.contains(&format!("cannot listen on {address}")), "{error}");
        server.stop().await;
        assert!(TcpStream::connect(address).await.is_err());
    }

    #[test]
    fn a_pipeline_is_ready_while_it_publishes_and_keeps_up() {
        let now = 10_000 * SECOND;
        let good = Status {
            at: now - SECOND,
            history_waits_since: Some(now - 10 * SECOND),
            snapshot_at: Some(now - MINUTE),
            kafka_waits_since: Some(now - SECOND),
            ..Status::default()
        };
        assert_eq!(unready_reason(&good, now), None);
        for (status, why) in [
            (
                Status { failed: Some("fenced".to_owned()), ..good.clone() },
                "the pipeline failed: fenced",
            ),
            (Status { at: now - 16 * SECOND, ..good.clone() }, "published no status for 16 s"),
            (
                Status { kafka_waits_since: Some(now - 6 * SECOND), ..good.clone() },
                "Kafka has not responded for 6 s",
            ),
            (
                Status { history_waits_since: Some(now - 61 * SECOND), ..good.clone() },
                "history has not committed for 61 s",
            ),
            (
                Status { snapshot_at: Some(now - 31 * MINUTE), ..good.clone() },
                "no snapshot for 1860 s",
            ),
        ] {
            assert!(unready_reason(&status, now).unwrap().contains(why));
        }
    }
}
