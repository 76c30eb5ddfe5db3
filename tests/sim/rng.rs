//! A small deterministic generator and the bytes that are transferred.

/// xorshift64*: good enough for losing frames, and the same on every machine.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 11) % n
    }

    /// True with probability `per_10k` / 10,000.
    pub fn chance(&mut self, per_10k: u32) -> bool {
        per_10k > 0 && self.below(10_000) < u64::from(per_10k)
    }
}

/// The byte stream of one direction: position determines the byte, with a period that is no power of two.
#[derive(Debug)]
pub struct Pattern(Vec<u8>);

const PERIOD: usize = 65_521;
const MOST: usize = 1 << 18;

impl Pattern {
    pub fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let one: Vec<u8> = (0..PERIOD).map(|_| rng.next().to_le_bytes()[5]).collect();
        Self(one.into_iter().cycle().take(PERIOD + MOST).collect())
    }

    /// `len` bytes at position `at`.
    pub fn at(&self, at: u64, len: usize) -> &[u8] {
        let start = (at % PERIOD as u64) as usize;
        &self.0[start..start + len]
    }

    /// Are these the bytes at `at`?
    pub fn check(&self, at: u64, data: &[u8]) -> bool {
        data.chunks(MOST)
            .enumerate()
            .all(|(n, part)| self.at(at + (n * MOST) as u64, part.len()) == part)
    }
}
