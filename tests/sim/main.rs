//! The TCP engine between a model of a guest's kernel and a model of the host's, on a virtual clock.
//!
//! Every cell of the grid is one connection from SYN to the last FIN. Asserted in each: every byte arrives once, in
//! order, with its value, in both directions; both sides see a clean end; nothing is left behind in the engine; no
//! reset; and nobody who is owed bytes waits longer than the cell's conditions explain. Everything is
//! deterministic; a failure prints the scenario, and `SIM_TRACE=1` prints every frame of it.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap,
    clippy::print_stdout,
    reason = "numbers are small and the summary is the point"
)]

mod chaos;
mod guest;
mod inbound;
mod rng;
mod scripted;
mod socket;
mod world;

use guest::Behaviour;
use passt::sys::piece::Piece;
use socket::Peer;
use world::{Outcome, Scenario, Tap, World};

/// What a piece of memory holds.
fn bytes_of(piece: &Piece<'_>) -> Vec<u8> {
    let mut bytes = vec![0; piece.len()];
    piece.copy_to(&mut bytes);
    bytes
}

/// A payload in up to four pieces, as the super-frame of a guest with shared memory comes.
fn divide(payload: &[u8]) -> (Piece<'_>, Vec<Piece<'_>>) {
    let (first, rest) = payload.split_at(payload.len() / 7);
    let rest = rest.chunks(payload.len() / 3 + 1).map(Piece::new).collect();
    (Piece::new(first), rest)
}

const RTTS: [u64; 6] = [0, 50, 200, 1000, 20_000, 200_000];
const LOSSES: [u32; 3] = [0, 10, 200];
const MTUS: [u16; 3] = [576, 1500, 65_520];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Direction {
    Up,
    Down,
    Both,
}

/// One cell of the grid.
#[derive(Clone, Copy, Debug)]
struct Cell {
    direction: Direction,
    rtt: u64,
    loss: (u32, u32),
    reorder: bool,
    large: bool,
    mtu: u16,
    slow: bool,
    half_close: bool,
    inbound: bool,
}

impl Cell {
    fn scenario(self, seed: u64) -> Scenario {
        let offload = seed % 3 > 0;
        let amount = if offload || self.mtu > 10_000 {
            300_000
        } else {
            120 * u64::from(self.mtu)
        } + seed % 1000;
        let up = if self.direction == Direction::Down {
            seed % 500
        } else {
            amount
        };
        let down = if self.direction == Direction::Up {
            seed % 300
        } else {
            amount
        };
        let slow_rate = if self.slow { 2000 } else { 0 };
        Scenario {
            seed,
            inbound: self.inbound,
            tap: Tap {
                loss: self.loss,
                lost: (0, 0),
                reorder: if self.reorder { 100 } else { 0 },
                queue: 1000,
                mtu: self.mtu,
            },
            guest: Behaviour {
                sends: up,
                closes_first: self.half_close || self.direction == Direction::Up,
                mss: self.mtu - 40,
                offload,
                sack: seed % 7 > 0,
                scaled: seed % 5 > 0,
                rcvbuf: if self.large { 4 << 20 } else { 64 << 10 },
                read_rate: if self.direction == Direction::Down {
                    slow_rate
                } else {
                    0
                },
            },
            peer: Peer {
                rtt: self.rtt,
                sndbuf: if self.large {
                    (87_040, 4 << 20)
                } else {
                    (4608, 16_384)
                },
                rcvbuf: if self.large { 4 << 20 } else { 8192 },
                window: if self.large { 4 << 20 } else { 32 << 10 },
                read_rate: if self.direction == Direction::Down {
                    0
                } else {
                    slow_rate
                },
                sends: down,
                after_fin: self.half_close && self.direction != Direction::Both,
                after_bytes: if self.direction == Direction::Down {
                    up
                } else {
                    0
                },
            },
        }
    }

    /// The longest silence the conditions of this cell explain, µs.
    fn patience(self, sack: bool) -> u64 {
        let calm = 2 * self.rtt + if self.slow { 50_000 } else { 0 } + 60_000;
        match self.loss {
            (0, 0) => calm,
            // Without SACK a guest learns of one loss per round trip, and times whole recoveries.
            _ if !sack => calm + 20_000_000,
            // Two timeouts in a row, after a probe, at the guest's or our end; the guest's round trip includes the
            // time its bytes wait for a small send buffer.
            _ => {
                let waiting = if self.large {
                    0
                } else {
                    self.rtt * (u64::from(self.mtu) + 32_768) / 16_384
                };
                calm + 1_000_000 + 4 * self.rtt + 2 * waiting
            }
        }
    }
}

/// Says which cell it was if the run ends in a panic.
struct Named(Cell, u64);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("in {:?} with SIM_CELL={}", self.0, self.1);
        }
    }
}

fn grid(direction: Direction) -> Vec<Cell> {
    let mut cells = Vec::new();
    for rtt in RTTS {
        for loss in LOSSES
            .iter()
            .flat_map(|a| LOSSES.iter().map(move |b| (*a, *b)))
        {
            for mtu in MTUS {
                for bits in 0..16 {
                    cells.push(Cell {
                        direction,
                        rtt,
                        loss,
                        mtu,
                        reorder: bits & 1 > 0,
                        large: bits & 2 > 0,
                        slow: bits & 4 > 0,
                        half_close: bits & 8 > 0,
                        inbound: false,
                    });
                }
            }
        }
    }
    cells
}

/// Every third cell, begun by the peer.
fn inbound_grid(direction: Direction) -> Vec<Cell> {
    let first = direction as usize;
    let cells = grid(direction).into_iter().skip(first).step_by(3);
    cells
        .map(|cell| Cell {
            inbound: true,
            ..cell
        })
        .collect()
}

fn run_grid(direction: Direction) {
    run_cells(direction, &grid(direction));
}

fn run_cells(direction: Direction, cells: &[Cell]) {
    let mut worst = (Outcome::default(), None);
    let mut timeouts = [0_u64; 2];
    let mut kept = 0;
    let mut calm = 0;
    let mut failures = Vec::new();
    for (n, cell) in cells.iter().enumerate() {
        let seed = n as u64 * 7919 + direction as u64;
        let name = Named(*cell, seed);
        let outcome = World::new(&cell.scenario(seed)).run();
        drop(name);
        if outcome.stall > cell.patience(seed % 7 > 0) {
            failures.push(format!("{cell:?} seed {seed}: {outcome:?}"));
        }
        let lossless = usize::from(cell.loss != (0, 0) || cell.reorder);
        timeouts[lossless] += u64::from(outcome.guest_timeouts);
        if lossless == 0 && outcome.guest_timeouts > 0 {
            failures.push(format!(
                "timeout without loss: {cell:?} seed {seed}: {outcome:?}"
            ));
        }
        if cell.loss == (0, 0) && !cell.reorder && !cell.slow {
            calm = calm.max(outcome.stall.saturating_sub(2 * cell.rtt));
        }
        kept = kept.max(outcome.most_kept);
        if outcome.stall > worst.0.stall {
            worst = (outcome, Some(*cell));
        }
    }
    println!(
        "{direction:?}: {} cells, longest silence {} ms in {:?}, undisturbed at most two round trips and {} µs, guest timeouts {} without and {} with loss, most kept {} KiB",
        cells.len(),
        worst.0.stall / 1000,
        worst.1,
        calm,
        timeouts[0],
        timeouts[1],
        kept >> 10,
    );
    assert!(
        failures.is_empty(),
        "{} stalls:\n{}",
        failures.len(),
        failures
            .iter()
            .take(12)
            .cloned()
            .collect::<Vec<_>>()
            .join("\n")
    );
}

#[test]
fn uploads() {
    run_grid(Direction::Up);
}

#[test]
fn downloads() {
    run_grid(Direction::Down);
}

#[test]
fn both_ways_at_once() {
    run_grid(Direction::Both);
}

/// The same, begun by the peer: every third cell of each direction.
#[test]
fn begun_outside() {
    for direction in [Direction::Up, Direction::Down, Direction::Both] {
        run_cells(direction, &inbound_grid(direction));
    }
}

/// A short connection: who begins, who finishes first, and what each side sends.
fn short(inbound: bool, closes_first: bool, up: u64, down: u64, lost: (u64, u64)) -> Scenario {
    let cell = Cell {
        direction: Direction::Both,
        rtt: 50,
        loss: (0, 0),
        mtu: 1500,
        reorder: false,
        large: true,
        slow: false,
        half_close: closes_first,
        inbound,
    };
    let mut scenario = cell.scenario(1);
    scenario.tap.lost = lost;
    scenario.guest.sends = up;
    scenario.peer.sends = down;
    scenario
}

/// Any two of the frames that begin and end a connection may be lost: it is established, everything arrives, and both
/// sides see a clean end, after no more than the timeouts of both.
#[test]
fn any_two_frames_may_be_lost() {
    const FRAMES: u32 = 6;
    let masks = || {
        let frame = |n: u32| {
            if n < FRAMES {
                (1 << n, 0)
            } else {
                (0, 1 << (n - FRAMES))
            }
        };
        (0..2 * FRAMES).flat_map(move |a| (a..2 * FRAMES).map(move |b| (frame(a), frame(b))))
    };
    let mut worst = (0, None);
    for inbound in [false, true] {
        for closes_first in [false, true] {
            for (up, down) in [(0, 1), (300, 300), (5000, 5000)] {
                for (a, b) in masks() {
                    let lost = (a.0 | b.0, a.1 | b.1);
                    let name = (inbound, closes_first, up, down, lost);
                    let outcome = World::new(&short(inbound, closes_first, up, down, lost)).run();
                    if outcome.took > worst.0 {
                        worst = (outcome.took, Some(name));
                    }
                }
            }
        }
    }
    println!("at most {} ms, with {:?}", worst.0 / 1000, worst.1);
    assert!(worst.0 < 4_000_000, "{worst:?}");
}

/// `SIM_CELL` is the number of a cell, `SIM_DIRECTION` one of up, down, both, and `SIM_INBOUND` may be set: run that
/// one alone.
#[test]
fn one_cell() {
    let Some(number) = std::env::var("SIM_CELL")
        .ok()
        .and_then(|n| n.parse::<u64>().ok())
    else {
        return;
    };
    let direction = match std::env::var("SIM_DIRECTION").as_deref() {
        Ok("down") => Direction::Down,
        Ok("both") => Direction::Both,
        _ => Direction::Up,
    };
    let cells = if std::env::var_os("SIM_INBOUND").is_some() {
        inbound_grid(direction)
    } else {
        grid(direction)
    };
    let cell = cells[(number / 7919) as usize];
    println!("{cell:?}");
    println!("{:?}", World::new(&cell.scenario(number)).run());
}
