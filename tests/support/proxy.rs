//! A TCP proxy between the engine and Kafka that breaks the network on purpose.
//!
//! It reads the frames of Kafka's protocol: of a request the length, the api key and the
//! correlation id; of an answer the length and the correlation id, which says whose answer it is.
//! Everything else passes through untouched.

use std::collections::{HashMap, HashSet};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Api keys of Kafka's protocol.
pub const INIT_PRODUCER_ID: i16 = 22;
pub const END_TXN: i16 = 26;

/// What becomes of one EndTxn request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndTxn {
    /// The broker gets it; the answer is thrown away and the connection cut.
    DropAnswer,
    /// The broker gets it; the answer is thrown away, and nothing else happens.
    Silence,
    /// The engine's connection is cut at once, and the broker gets the request so much later.
    Late(Duration),
}

/// How the network behaves.
#[derive(Debug, Clone, Default)]
pub struct Weather {
    /// The chance that a frame is cut off somewhere, and its connection with it.
    pub cut: f64,
    /// The chance that a frame waits, and the longest such wait.
    pub delay: (f64, Duration),
    /// What happens to EndTxn, and to what share of them.
    pub end_txn: Option<(EndTxn, f64)>,
}

/// What was done so far.
#[derive(Debug, Clone, Default)]
pub struct Done {
    pub requests: HashMap<i16, u64>,
    pub cuts: u64,
    pub delays: u64,
    pub end_txns: u64,
}

struct State {
    weather: Weather,
    random: StdRng,
    done: Done,
}

/// The running proxy. Its threads end with the test's process.
pub struct Proxy {
    address: String,
    state: Arc<Mutex<State>>,
    target: Arc<Mutex<Option<String>>>,
}

/// One connection's two sockets, and what is to become of answers on it.
struct Link {
    client: TcpStream,
    broker: TcpStream,
    /// Correlation ids whose answers are thrown away, and whether the connection goes with them.
    lost: Mutex<HashMap<i32, bool>>,
    /// The engine's side is gone; the broker's stays for what is late.
    orphan: AtomicBool,
    late: Mutex<HashSet<i32>>,
}

impl Proxy {
    /// Listens; connections are refused until there is a target. The weather is fair.
    pub fn start(seed: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let state = Arc::new(Mutex::new(State {
            weather: Weather::default(),
            random: StdRng::seed_from_u64(seed),
            done: Done::default(),
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

    /// Where connections go from now on.
    pub fn lead_to(&self, target: String) {
        *self.target.lock().unwrap() = Some(target);
    }

    pub fn weather(&self, weather: Weather) {
        self.state.lock().unwrap().weather = weather;
    }

    pub fn done(&self) -> Done {
        self.state.lock().unwrap().done.clone()
    }
}

fn join(client: TcpStream, broker: TcpStream, state: &Arc<Mutex<State>>) {
    client.set_nodelay(true).unwrap();
    broker.set_nodelay(true).unwrap();
    let link = Arc::new(Link {
        client,
        broker,
        lost: Mutex::default(),
        orphan: AtomicBool::new(false),
        late: Mutex::default(),
    });
    for upward in [true, false] {
        let (link, state) = (link.clone(), state.clone());
        std::thread::spawn(move || {
            let _ = if upward { requests(&link, &state) } else { answers(&link, &state) };
            if !link.orphan.load(Ordering::Acquire) {
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

/// One frame with its length; `Err` at the end of the connection.
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

/// Passes a frame on, late or in part as the weather wants it. False: the connection is cut.
fn pass(bytes: &[u8], mut to: &TcpStream, state: &Mutex<State>) -> std::io::Result<bool> {
    let (wait, cut) = {
        let mut state = state.lock().unwrap();
        let State { weather, random, done } = &mut *state;
        let (chance, longest) = weather.delay;
        let waits = random.random_bool(chance);
        let share: f64 = random.random();
        let cut = random.random_bool(weather.cut).then(|| random.random_range(0..=bytes.len()));
        done.delays += u64::from(waits);
        done.cuts += u64::from(cut.is_some());
        (if waits { longest.mul_f64(share) } else { Duration::ZERO }, cut)
    };
    std::thread::sleep(wait);
    match cut {
        None => to.write_all(bytes).map(|()| true),
        Some(at) => to.write_all(&bytes[..at]).map(|()| false),
    }
}

/// From the engine to the broker.
fn requests(link: &Arc<Link>, state: &Arc<Mutex<State>>) -> std::io::Result<()> {
    loop {
        let bytes = frame(&link.client)?;
        let (api, correlation) = (i16_at(&bytes, 4), i32_at(&bytes, 8));
        let fate = {
            let mut state = state.lock().unwrap();
            let State { weather, random, done } = &mut *state;
            *done.requests.entry(api).or_default() += 1;
            let fate =
                weather.end_txn.filter(|(_, share)| api == END_TXN && random.random_bool(*share));
            done.end_txns += u64::from(fate.is_some());
            fate.map(|(fate, _)| fate)
        };
        match fate {
            None => {}
            Some(EndTxn::DropAnswer) => drop(link.lost.lock().unwrap().insert(correlation, true)),
            Some(EndTxn::Silence) => drop(link.lost.lock().unwrap().insert(correlation, false)),
            Some(EndTxn::Late(by)) => {
                link.orphan.store(true, Ordering::Release);
                link.late.lock().unwrap().insert(correlation);
                let _ = link.client.shutdown(Shutdown::Both);
                std::thread::sleep(by);
                (&link.broker).write_all(&bytes)?;
                return Ok(());
            }
        }
        if !pass(&bytes, &link.broker, state)? {
            return Ok(());
        }
    }
}

/// From the broker to the engine.
fn answers(link: &Arc<Link>, state: &Arc<Mutex<State>>) -> std::io::Result<()> {
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
        if link.orphan.load(Ordering::Acquire) {
            continue;
        }
        if !pass(&bytes, &link.client, state)? {
            return Ok(());
        }
    }
}
