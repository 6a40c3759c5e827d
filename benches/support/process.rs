//! Observes a process from outside: its memory and its /metrics.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

/// A free port below the range of ephemeral ports, so that a process which is restarted often finds it
/// free each time.
pub fn free_port() -> u16 {
    let begin = std::process::id().wrapping_mul(97);
    let mut ports = (0..10_000).map(|n| 10_000 + (begin.wrapping_add(n) % 10_000) as u16);
    ports.find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).unwrap()
}

/// The text of /metrics; `None` if the process does not respond.
pub fn metrics(port: u16) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text)
}

/// The sum of a metric over all of its labels.
pub fn metric(text: &str, name: &str) -> Option<f64> {
    let values: Vec<f64> = text
        .lines()
        .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{')))
        .map(|line| line.rsplit(' ').next().unwrap().parse().unwrap())
        .collect();
    (!values.is_empty()).then(|| values.iter().sum())
}

/// A memory figure of a process from /proc, in kilobytes; `what` is the name of the line.
pub fn memory(process: u32, what: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(what)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
