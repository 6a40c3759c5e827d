//! SIGINT and SIGTERM as a request to stop.

/// Like [`stop_signal_with_message`], with the message for pipelines.
pub fn stop_signal() -> tokio::sync::watch::Receiver<bool> {
    stop_signal_with_message(
        "stopping: committing and writing a snapshot; send the signal again to stop at once",
    )
}

/// Returns a receiver that becomes true on the first SIGINT or SIGTERM; `message` is logged then. A
/// second signal exits at once with code 130, which loses no data.
pub fn stop_signal_with_message(message: &'static str) -> tokio::sync::watch::Receiver<bool> {
    let (sender, receiver) = tokio::sync::watch::channel(false);
    tokio::spawn(async move {
        wait_for_signal().await;
        tracing::info!("{message}");
        sender.send_replace(true);
        wait_for_signal().await;
        std::process::exit(130);
    });
    receiver
}

async fn wait_for_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let (interrupt, terminate) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
    match (interrupt, terminate) {
        (Ok(mut interrupt), Ok(mut terminate)) => {
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
        }
        _ => std::future::pending().await,
    }
}
