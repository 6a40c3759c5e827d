//! A TCP proxy between the engine and Kafka that injects network faults.
//!
//! It parses the frames of Kafka's protocol: the length, the API key and the correlation id of a request,
//! and the length and the correlation id of a response. Everything else is forwarded unchanged.

use std::collections::{HashMap, HashSet};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// API keys of Kafka's protocol.
pub const INIT_PRODUCER_ID: i16 = 22;
pub const END_TXN: i16 = 26;

/// The fault for an EndTxn request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndTxn {
    /// The broker receives it; the response is dropped and the connection is closed.
    DropResponse,
    /// The broker receives it; the response is dropped.
    NoResponse,
    /// The engine's connection is closed at once; the broker receives the request after this delay.
    Late(Duration),
}

/// The faults that the proxy injects.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// The probability that a frame is cut at a random byte and its connection is closed.
    pub cut: f64,
    /// The probability that a frame is delayed, and the longest delay.
    pub delay: (f64, Duration),
    /// The fault for EndTxn requests, and the share of affected requests.
    pub end_txn: Option<(EndTxn, f64)>,
}

/// Counts of requests and injected faults.
#[derive(Debug, Clone, Default)]
pub struct Injected {
    pub requests: HashMap<i16, u64>,
    pub cuts: u64,
    pub delays: u64,
    pub end_txns: u64,
}

struct State {
    faults: Faults,
    random: StdRng,
    injected: Injected,
}

/// The running proxy. Its threads end with the test's process.
pub struct Proxy {
    address: String,
    state: Arc<Mutex<State>>,
    target: Arc<Mutex<Option<String>>>,
}

/// The two sockets of a connection, and the responses that must not reach the engine.
struct Link {
    client: TcpStream,
    broker: TcpStream,
    /// Correlation ids whose responses are dropped, and whether the connection is closed as well.
    lost: Mutex<HashMap<i32, bool>>,
    /// The engine's side is closed; the broker's side stays open for a delayed request.
    client_closed: AtomicBool,
    late: Mutex<HashSet<i32>>,
}

impl Proxy {
    /// Starts to listen. Connections are refused until there is a target. No faults are injected.
    pub fn start(seed: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let state = Arc::new(Mutex::new(State {
            faults: Faults::default(),
            random: StdRng::seed_from_u64(seed),
            injected: Injected::default(),
        }));
        let target: Arc<Mutex<Option<String>>> = Arc::default();
        let proxy = Self { address, state: state.clone(), target: target.clone() };
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Some(target) = target.lock().unwrap().clone() else { continue };
                let Ok(broker) = TcpStream::connect(&target) else { continue };
                join(client, broker, &state);
            }
        });
        proxy
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    /// Sets the target of new connections.
    pub fn set_target(&self, target: String) {
        *self.target.lock().unwrap() = Some(target);
    }

    pub fn faults(&self, faults: Faults) {
        self.state.lock().unwrap().faults = faults;
    }

    pub fn injected(&self) -> Injected {
        self.state.lock().unwrap().injected.clone()
    }
}

fn join(client: TcpStream, broker: TcpStream, state: &Arc<Mutex<State>>) {
    client.set_nodelay(true).unwrap();
    broker.set_nodelay(true).unwrap();
    let link = Arc::new(Link {
        client,
        broker,
        lost: Mutex::default(),
        client_closed: AtomicBool::new(false),
        late: Mutex::default(),
    });
    for upward in [true, false] {
        let (link, state) = (link.clone(), state.clone());
        std::thread::spawn(move || {
            let _ = if upward { requests(&link, &state) } else { responses(&link, &state) };
            if !link.client_closed.load(Ordering::Acquire) {
                link.cut();
            }
        });
    }
}

impl Link {
    fn cut(&self) {
        let _ = self.client.shutdown(Shutdown::Both);
        let _ = self.broker.shutdown(Shutdown::Both);
    }
}

/// Reads one frame with its length; `Err` at the end of the connection.
fn frame(mut from: &TcpStream) -> std::io::Result<Vec<u8>> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let size = usize::try_from(i32::from_be_bytes(length)).unwrap_or(0);
    let mut bytes = vec![0; 4 + size];
    bytes[..4].copy_from_slice(&length);
    from.read_exact(&mut bytes[4..])?;
    Ok(bytes)
}

fn i16_at(bytes: &[u8], at: usize) -> i16 {
    i16::from_be_bytes(bytes[at..at + 2].try_into().unwrap())
}

fn i32_at(bytes: &[u8], at: usize) -> i32 {
    i32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// Forwards a frame, delayed or cut according to the faults. Returns false if the connection must close.
fn forward(bytes: &[u8], mut to: &TcpStream, state: &Mutex<State>) -> std::io::Result<bool> {
    let (wait, cut) = {
        let mut state = state.lock().unwrap();
        let State { faults, random, injected } = &mut *state;
        let (chance, longest) = faults.delay;
        let waits = random.random_bool(chance);
        let share: f64 = random.random();
        let cut = random.random_bool(faults.cut).then(|| random.random_range(0..=bytes.len()));
        injected.delays += u64::from(waits);
        injected.cuts += u64::from(cut.is_some());
        (if waits { longest.mul_f64(share) } else { Duration::ZERO }, cut)
    };
    std::thread::sleep(wait);
    match cut {
        None => to.write_all(bytes).map(|()| true),
        Some(at) => to.write_all(&bytes[..at]).map(|()| false),
    }
}

/// Forwards requests from the engine to the broker.
fn requests(link: &Arc<Link>, state: &Arc<Mutex<State>>) -> std::io::Result<()> {
    loop {
        let bytes = frame(&link.client)?;
        let (api, correlation) = (i16_at(&bytes, 4), i32_at(&bytes, 8));
        let fault = {
            let mut state = state.lock().unwrap();
            let State { faults, random, injected } = &mut *state;
            *injected.requests.entry(api).or_default() += 1;
            let fault =
                faults.end_txn.filter(|(_, share)| api == END_TXN && random.random_bool(*share));
            injected.end_txns += u64::from(fault.is_some());
            fault.map(|(fault, _)| fault)
        };
        match fault {
            None => {}
            Some(EndTxn::DropResponse) => drop(link.lost.lock().unwrap().insert(correlation, true)),
            Some(EndTxn::NoResponse) => drop(link.lost.lock().unwrap().insert(correlation, false)),
            Some(EndTxn::Late(by)) => {
                link.client_closed.store(true, Ordering::Release);
                link.late.lock().unwrap().insert(correlation);
                let _ = link.client.shutdown(Shutdown::Both);
                std::thread::sleep(by);
                (&link.broker).write_all(&bytes)?;
                return Ok(());
            }
        }
        if !forward(&bytes, &link.broker, state)? {
            return Ok(());
        }
    }
}

/// Forwards responses from the broker to the engine.
fn responses(link: &Arc<Link>, state: &Arc<Mutex<State>>) -> std::io::Result<()> {
    loop {
        let bytes = frame(&link.broker)?;
        let correlation = i32_at(&bytes, 4);
        if link.late.lock().unwrap().contains(&correlation) {
            let _ = link.broker.shutdown(Shutdown::Both);
            return Ok(());
        }
        match link.lost.lock().unwrap().remove(&correlation) {
            None => {}
            Some(true) => return Ok(()),
            Some(false) => continue,
        }
        if link.client_closed.load(Ordering::Acquire) {
            continue;
        }
        if !forward(&bytes, &link.client, state)? {
            return Ok(());
        }
    }
}
