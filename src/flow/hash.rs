//! A keyed hash for everything a guest can choose: lookup positions and initial sequence numbers.
//!
//! SipHash-1-3 with a secret drawn at start-up. Without the secret a guest (or a remote peer) cannot aim many
//! keys at one bucket, and cannot predict sequence numbers (RFC 6528 asks for exactly this shape:
//! `ISN = clock + F(connection, secret)`).

use std::hash::{Hash, Hasher};

use siphasher::sip::SipHasher13;

/// A secret, and the hash function it keys.
#[derive(Clone, Copy)]
pub struct Keyed {
    seed: [u8; 16],
}

impl std::fmt::Debug for Keyed {
    /// Never shows the secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keyed")
    }
}

impl Keyed {
    /// Key the hash with 16 random bytes.
    #[must_use]
    pub const fn new(seed: [u8; 16]) -> Self {
        Self { seed }
    }

    /// 64 bits that are unpredictable without the secret.
    pub fn hash(&self, value: &impl Hash) -> u64 {
        let mut hasher = SipHasher13::new_with_key(&self.seed);
        value.hash(&mut hasher);
        hasher.finish()
    }
}
