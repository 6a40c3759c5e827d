//! A process looked at from outside: its memory, and what its /metrics says.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

/// A port of this machine that nobody listens on, below those that the system gives to outgoing
/// connections: a process that is started again and again finds it free each time.
pub fn free_port() -> u16 {
    let begin = std::process::id().wrapping_mul(97);
    let mut ports = (0..10_000).map(|n| 10_000 + (begin.wrapping_add(n) % 10_000) as u16);
    ports.find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).unwrap()
}

/// What /metrics says, if it answers.
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

/// Memory of a process in kilobytes, from /proc.
pub fn memory(process: u32, what: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(what)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
