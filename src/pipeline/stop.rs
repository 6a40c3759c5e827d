//! The deadline of a pipeline that is stopping.

use std::time::Duration;

use tokio::sync::watch;

/// How long a stopping pipeline waits for Kafka.
const STOP_WAIT: Duration = Duration::from_secs(2);

/// Returns 2 seconds after a stop is requested; never, if none is.
pub async fn stop_deadline(mut stop: watch::Receiver<bool>) {
    // Without a sender no stop can be requested any more.
    match stop.wait_for(|stop| *stop).await.map(drop) {
        Ok(()) => tokio::time::sleep(STOP_WAIT).await,
        Err(_) => std::future::pending().await,
    }
}
