//! A paced source that streams into a server, honours its window, resumes after anything, and prints how long acknowledgements took.
//!
//! ```text
//! engram serve --data ./memories
//! cargo run -- http://127.0.0.1:7637 --rate 2000 --seconds 5 --position source.token
//! ```
//!
//! Run it again with the same `--position` and it goes on where it stopped; kill the server meanwhile, and start it again: nothing is lost or
//! stored twice.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::Duration;
use std::{error, fs};

use clap::Parser;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

#[allow(clippy::all, dead_code, reason = "generated")]
mod v1 {
    include!("engram.v1.rs");
}

use v1::engram_client::EngramClient;
use v1::observe_request::What as Say;
use v1::observe_response::What as Said;
use v1::{CountRequest, CreateSpaceRequest, Fault, Frame, ObserveRequest, Open, View, Window};

/// A frame leaves when it holds what the server advises, or what came in so long.
const FRAME: Duration = Duration::from_millis(5);
/// What is kept until it is acknowledged; the source waits when it is more.
const KEPT_MAX: usize = 256;
const RECONNECT: Duration = Duration::from_secs(60);

#[derive(Parser)]
struct Given {
    url: String,
    #[arg(long, default_value = "source")]
    space: String,
    #[arg(long, default_value_t = 384)]
    dim: u32,
    /// Observations a second.
    #[arg(long, default_value_t = 2_000.0)]
    rate: f64,
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// File that remembers the stream's token.
    #[arg(long)]
    position: Option<PathBuf>,
}

struct Kept {
    frame: Frame,
    /// When its first observation was due.
    due: Instant,
}

impl Kept {
    fn last(&self) -> u64 {
        self.frame.first_sequence + u64::from(self.frame.count) - 1
    }
}

struct Source {
    given: Given,
    token: String,
    begun: Instant,
    /// Observations made, and the sequence of the next.
    made: u64,
    next: u64,
    committed: u64,
    /// Not acknowledged; the first `flying` are on their way.
    kept: VecDeque<Kept>,
    flying: usize,
    window: Window,
    hold_until: Instant,
    /// That is what it is held for.
    wants_room: bool,
    seconds: Vec<f64>,
    reconnects: u32,
}

impl Source {
    fn new(given: Given) -> Self {
        let token = given.position.as_ref().and_then(|path| fs::read_to_string(path).ok()).unwrap_or_default();
        let now = Instant::now();
        Self {
            given,
            token,
            begun: now,
            made: 0,
            next: 0,
            committed: 0,
            kept: VecDeque::new(),
            flying: 0,
            window: Window::default(),
            hold_until: now,
            wants_room: false,
            seconds: Vec::new(),
            reconnects: 0,
        }
    }

    fn due(&self, observation: u64) -> Instant {
        self.begun + Duration::from_secs_f64(observation as f64 / self.given.rate)
    }

    fn is_done(&self) -> bool {
        self.made as f64 >= self.given.rate * self.given.seconds
    }

    /// Makes a frame of what is due by now.
    fn make(&mut self) {
        let all = (self.given.rate * self.given.seconds).ceil() as u64;
        let due = (self.begun.elapsed().as_secs_f64() * self.given.rate) as u64 + 1;
        let count = due.min(all).saturating_sub(self.made).min(self.window.advised_batch.max(1));
        if count == 0 || self.kept.len() >= KEPT_MAX {
            return;
        }
        let texts = (0..count).map(|i| format!("observation {}", self.next + i)).collect();
        let vectors = (0..count).flat_map(|i| vector(self.next + i, self.given.dim)).flat_map(f32::to_le_bytes);
        let frame = Frame {
            first_sequence: self.next,
            count: count as u32,
            texts,
            dim: self.given.dim,
            vectors: vectors.collect(),
            ..Frame::default()
        };
        self.kept.push_back(Kept { frame, due: self.due(self.made) });
        self.made += count;
        self.next += count;
    }

    /// The next frame that may be sent: the window bounds what is not acknowledged, but one may always go.
    fn sendable(&mut self) -> Option<Frame> {
        let next = self.kept.get(self.flying)?;
        let flying = self.kept.iter().take(self.flying);
        let (count, bytes) = flying.fold((0, 0), |(count, bytes), kept| {
            (count + u64::from(kept.frame.count), bytes + kept.frame.vectors.len() as u64)
        });
        let fits = count + u64::from(next.frame.count) <= self.window.observations
            && bytes + next.frame.vectors.len() as u64 <= self.window.bytes;
        if Instant::now() < self.hold_until || !(fits || self.flying == 0) {
            return None;
        }
        self.flying += 1;
        Some(next.frame.clone())
    }

    fn acknowledged(&mut self, through: u64) {
        let now = Instant::now();
        self.committed = self.committed.max(through);
        while self.kept.front().is_some_and(|kept| kept.last() <= through) {
            let Some(kept) = self.kept.pop_front() else { break };
            self.flying = self.flying.saturating_sub(1);
            self.seconds.push((now - kept.due).as_secs_f64());
        }
    }

    /// A frame was refused: it, and what follows, is sent again, at once or when there may be room. What no waiting mends ends the program.
    fn refused(&mut self, fault: &Fault) -> Result<(), Status> {
        let (waits, pause) = match fault.code.as_str() {
            "OVERLOADED" => (true, Duration::from_millis(fault.retry_after_ms)),
            "DISK_FULL" | "PAUSED" => (false, Duration::from_millis(fault.retry_after_ms.max(250))),
            "SEQUENCE_GAP" => (false, Duration::ZERO),
            _ => return Err(Status::failed_precondition(fault.message.clone())),
        };
        self.flying = self.kept.iter().position(|kept| kept.last() >= fault.expected).unwrap_or(0);
        if !pause.is_zero() {
            (self.wants_room, self.hold_until) = (waits, Instant::now() + pause);
        }
        Ok(())
    }

    /// One stream, until all is acknowledged.
    async fn stream(&mut self, client: &mut EngramClient<tonic::transport::Channel>) -> Result<(), Status> {
        let (say, said) = mpsc::channel(4);
        let open = Open { space: self.given.space.clone(), token: self.token.clone(), ..Open::default() };
        let _ = say.send(ObserveRequest { what: Some(Say::Open(open)) }).await;
        let mut answers = client.observe(ReceiverStream::new(said)).await?.into_inner();
        let ended = || Status::unavailable("the stream ended");
        let mut tick = interval(FRAME);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.flying = 0;
        loop {
            if self.is_done() && self.kept.is_empty() {
                return Ok(());
            }
            while let Some(frame) = self.sendable() {
                say.send(ObserveRequest { what: Some(Say::Frame(frame)) }).await.map_err(|_| ended())?;
            }
            let open = self.window.advised_batch > 0;
            let answer = tokio::select! {
                answer = answers.message() => answer?.ok_or_else(ended)?,
                _ = tick.tick(), if open => {
                    self.make();
                    continue;
                }
            };
            match answer.what {
                Some(Said::Opened(opened)) => self.opened(opened)?,
                Some(Said::Ack(ack)) => self.acknowledged(ack.first_sequence + u64::from(ack.count) - 1),
                Some(Said::Fault(fault)) => self.refused(&fault)?,
                Some(Said::Window(window)) => self.window = window,
                Some(Said::Pressure(pressure)) => {
                    if self.wants_room && pressure.level != "OVERLOADED" {
                        self.hold_until = Instant::now();
                    }
                    self.window.level = pressure.level;
                }
                _ => {}
            }
        }
    }

    fn opened(&mut self, opened: v1::Opened) -> Result<(), Status> {
        if self.next == 0 {
            println!("goes on behind {}", opened.committed);
            self.next = opened.committed + 1;
            self.begun = Instant::now();
        }
        // What is committed and was not acknowledged: the answer was lost with the connection.
        self.acknowledged(opened.committed);
        self.window = opened.window.unwrap_or_default();
        if let Some(path) = &self.given.position {
            fs::write(path, &opened.token).map_err(|e| Status::internal(e.to_string()))?;
        }
        self.token = opened.token;
        Ok(())
    }

    /// Streams until all is acknowledged, over as many connections as it takes.
    async fn run(&mut self, client: &mut EngramClient<tonic::transport::Channel>) -> Result<(), Status> {
        let mut broken_at = None;
        loop {
            let committed = self.committed;
            let Err(status) = self.stream(client).await else { return Ok(()) };
            if !matches!(status.code(), Code::Unavailable | Code::ResourceExhausted | Code::Unknown) {
                return Err(status);
            }
            let since = *broken_at.get_or_insert_with(Instant::now);
            if self.committed > committed {
                broken_at = None;
            } else if since.elapsed() > RECONNECT {
                return Err(status);
            }
            self.reconnects += 1;
            sleep(Duration::from_millis(200)).await;
        }
    }
}

/// Some vector, the same for the same sequence.
fn vector(sequence: u64, dim: u32) -> impl Iterator<Item = f32> {
    let mut state = sequence.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..dim).map(move |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    })
}

fn quantile(sorted: &[f64], share: f64) -> f64 {
    let at = (share * sorted.len().saturating_sub(1) as f64).round() as usize;
    sorted.get(at).copied().unwrap_or(f64::NAN) * 1e3
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn error::Error>> {
    let given = Given::parse();
    let url = given.url.replacen("grpc://", "http://", 1);
    let mut client = EngramClient::connect(url).await?;
    let space = CreateSpaceRequest { space: given.space.clone(), dim: given.dim, ..CreateSpaceRequest::default() };
    client.create_space(space).await?;
    let mut source = Source::new(given);
    source.run(&mut client).await?;
    let seconds = source.begun.elapsed().as_secs_f64();
    source.seconds.sort_by(f64::total_cmp);
    let (p50, p99) = (quantile(&source.seconds, 0.5), quantile(&source.seconds, 0.99));
    println!("{} observations in {seconds:.1} s; acknowledged after p50 {p50:.1} ms, p99 {p99:.1} ms", source.made);
    let view = View { space: source.given.space.clone(), ..View::default() };
    let count = client.count(CountRequest { view: Some(view) }).await?.into_inner().count;
    let (space, level) = (&source.given.space, &source.window.level);
    println!("{count} memories in {space}; level {level}; {} reconnects", source.reconnects);
    Ok(())
}
