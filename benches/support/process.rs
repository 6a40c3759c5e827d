//! A process looked at from outside: its memory, and what its /metrics says.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

/// A port of this machine that nobody listens on.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
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

/// How much of a process's CPU went into commits, in percent: the threads of transactions and of
/// librdkafka, which sends what they commit and nothing else. Of threads that have ended nobody
/// knows the name.
#[allow(dead_code, reason = "not every benchmark asks")]
pub fn commit_share(process: u32) -> f64 {
    // Its name in brackets, then fields 14 and 15: user and system time.
    let read = |path: &std::path::Path| -> Option<(String, f64)> {
        let stat = std::fs::read_to_string(path).ok()?;
        let (head, rest) = stat.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let ticks = |at: usize| fields[at].parse::<f64>().unwrap();
        Some((head.split_once('(')?.1.to_owned(), ticks(11) + ticks(12)))
    };
    let folder = format!("/proc/{process}");
    let (_, all) = read(format!("{folder}/stat").as_ref()).unwrap();
    let tasks = std::fs::read_dir(format!("{folder}/task")).unwrap().flatten();
    let threads = tasks.filter_map(|task| read(&task.path().join("stat")));
    let commits =
        threads.filter(|(name, _)| name.starts_with("commit-") || name.starts_with("rdk:"));
    commits.map(|(_, ticks)| ticks).sum::<f64>() / all * 100.0
}
