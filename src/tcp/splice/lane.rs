//! One direction of a pair: from the socket that is read to the socket that is written.
//!
//! A lane begins with plain copies through a buffer that all lanes share: a request and its answer cost a read and a
//! write each, and no pipe. A read that fills the buffer is taken as the sign of a bulk transfer; from then on pages are
//! moved through a pipe, until a turn moves so little that copying is cheaper again.
//!
//! **No byte is read that has no place to go.** A lane reads only when nothing is left of what it read before, and only
//! as much as a pipe it already has in hand could keep. Without a pipe (out of descriptors) it peeks instead, writes,
//! and throws away what was taken: the source's receive queue keeps the rest.
//!
//! A lane has a pipe only while there is something in it (a full sink), so a stock of a few serves everybody.
//!
//! While a bulk transfer waits for its sink, what its source goes on receiving is no news: after the first useless edge the
//! source is muted, and stays so until it has been emptied.
//!
//! What ends a wait: `ready` is cleared only by a source that said it has nothing more, and comes back with its next
//! edge; `blocked` is set only after the sink took less than it was offered, and goes with its next edge; a lane that has
//! both to read and to write, but has used up its turn, is queued for another by the engine. An empty source and a full
//! pipe give the same answer to splice(2), so that answer counts only when the pipe is empty.

use super::io::{Io, SocketError};

/// Bytes one lane may move in one turn, about: others want theirs.
const TURN: usize = 1 << 20;
/// Most bytes asked of one splice(2).
const LOAD: usize = 1 << 20;
/// A turn that moves less is none of a bulk transfer...
const SMALL_TURN: usize = 16 << 10;
/// ... but a few of them do not yet end it.
const SMALL_TURNS: u8 = 32;

/// What a turn works with.
pub(super) struct Turn<'a, I> {
    pub(super) io: &'a mut I,
    /// For plain copies.
    pub(super) scratch: &'a mut [u8],
    /// Bytes moved and pieces they moved in, so far.
    pub(super) moved: usize,
    pub(super) pieces: u32,
}

impl<'a, I: Io> Turn<'a, I> {
    pub(super) fn new(io: &'a mut I, scratch: &'a mut [u8]) -> Self {
        Self {
            io,
            scratch,
            moved: 0,
            pieces: 0,
        }
    }

    const fn count(&mut self, bytes: usize) {
        self.moved = self.moved.saturating_add(bytes);
        self.pieces = self.pieces.saturating_add(1);
    }
}

/// See the module text.
#[derive(Debug)]
pub(super) struct Lane<P> {
    pipe: Option<P>,
    /// Bytes in the pipe.
    held: usize,
    /// It was filled to the brim: the source has more.
    brimful: bool,
    /// The sink may hold back part of a segment.
    corked: bool,
    /// The source may have something.
    ready: bool,
    /// The source gives no edges: it counts as ready until it says that it is not.
    muted: bool,
    /// Less than asked for does not mean that there is no more.
    eager: bool,
    /// The sink is full, or not connected yet.
    blocked: bool,
    /// Small turns a bulk transfer may still take; 0: there is none.
    bulk: u8,
    /// The source's FIN has been seen.
    ended: bool,
    /// ... and passed on.
    pub(super) finished: bool,
}

impl<P> Lane<P> {
    pub(super) const fn new(connected: bool) -> Self {
        Self {
            pipe: None,
            held: 0,
            brimful: false,
            corked: false,
            ready: false,
            muted: false,
            eager: false,
            blocked: !connected,
            bulk: 0,
            ended: false,
            finished: false,
        }
    }

    /// The source has news. `eager`: and maybe more than one read shows.
    pub(super) const fn source_ready(&mut self, eager: bool) {
        self.ready = true;
        self.eager |= eager;
    }

    /// Was that an edge of the source for nothing, and would the next one be? Then it is muted from now on.
    pub(super) const fn mutes(&mut self) -> bool {
        let mutes = self.blocked && self.is_bulk() && self.held > 0 && !self.muted;
        self.muted |= mutes;
        mutes
    }

    /// The source is empty and has to say when it is not: does it have to be given its edges back?
    pub(super) const fn unmutes(&mut self) -> bool {
        let unmutes = self.muted && !self.ready;
        self.muted &= !unmutes;
        unmutes
    }

    /// The sink takes bytes again.
    pub(super) const fn sink_ready(&mut self) {
        self.blocked = false;
    }

    /// The sink takes nothing.
    pub(super) const fn block(&mut self) {
        self.blocked = true;
    }

    /// Could more be moved now?
    pub(super) const fn wants_turn(&self) -> bool {
        !self.blocked && (self.held > 0 || (self.ready && !self.ended))
    }

    /// In the middle of a bulk transfer?
    pub(super) const fn is_bulk(&self) -> bool {
        self.bulk > 0
    }

    /// All has been carried but the FIN.
    pub(super) const fn owes_fin(&self) -> bool {
        self.ended && self.held == 0 && !self.finished
    }

    /// Move what can be moved, up to a turn's worth.
    ///
    /// # Errors
    /// Either socket's: the connection is broken.
    pub(super) fn pump<I: Io<Pipe = P>>(
        &mut self,
        turn: &mut Turn<'_, I>,
        source: &I::Socket,
        sink: &I::Socket,
    ) -> Result<(), SocketError> {
        let end = turn.moved.saturating_add(TURN);
        let begin = turn.moved;
        while self.wants_turn() && turn.moved < end {
            if self.held > 0 {
                self.unload(turn, sink)?;
            } else if self.is_bulk() {
                self.load(turn, source, begin)?;
            } else {
                self.copy(turn, source, sink)?;
            }
        }
        if self.held == 0 {
            if let Some(pipe) = self.pipe.take() {
                turn.io.give_back(pipe);
            }
            if self.corked && !self.wants_turn() {
                self.corked = false;
                turn.io.flush(sink);
            }
        }
        Ok(())
    }

    /// From the pipe to the sink.
    fn unload<I: Io<Pipe = P>>(
        &mut self,
        turn: &mut Turn<'_, I>,
        sink: &I::Socket,
    ) -> Result<(), SocketError> {
        let Some(pipe) = &self.pipe else {
            // Cannot be: nothing is held without a pipe.
            self.held = 0;
            return Ok(());
        };
        match turn.io.splice_out(pipe, sink, self.held, self.brimful) {
            Ok(n) => {
                self.corked = self.brimful;
                self.held = self.held.saturating_sub(n);
                turn.count(n);
                // What is held and cannot go is a miscount: better an end than a loop.
                if n == 0 {
                    return Err(SocketError::Other);
                }
            }
            Err(SocketError::WouldBlock) => self.blocked = true,
            Err(e) => return Err(e),
        }
        Ok(())
    }

    /// From the source to the empty pipe. `begin`: where the count of the turn began for this lane.
    fn load<I: Io<Pipe = P>>(
        &mut self,
        turn: &mut Turn<'_, I>,
        source: &I::Socket,
        begin: usize,
    ) -> Result<(), SocketError> {
        if self.pipe.is_none() {
            self.pipe = turn.io.pipe();
        }
        let Some(pipe) = &self.pipe else {
            self.bulk = 0;
            return Ok(());
        };
        match turn.io.splice_in(source, pipe, LOAD) {
            // The end, or urgent data, which splice(2) does not move: a plain read tells.
            Ok(0) => self.bulk = 0,
            Ok(n) => {
                self.held = n;
                self.brimful = n >= turn.io.pipe_size(pipe);
            }
            Err(SocketError::WouldBlock) if self.eager => self.bulk = 0,
            Err(SocketError::WouldBlock) => {
                self.drained();
                self.bulk = if turn.moved.saturating_sub(begin) < SMALL_TURN {
                    self.bulk.saturating_sub(1)
                } else {
                    SMALL_TURNS
                };
            }
            Err(e) => return Err(e),
        }
        Ok(())
    }

    /// From the source to the sink through the scratch buffer. What the sink does not take goes into a pipe; without one
    /// it stays in the source.
    fn copy<I: Io<Pipe = P>>(
        &mut self,
        turn: &mut Turn<'_, I>,
        source: &I::Socket,
        sink: &I::Socket,
    ) -> Result<(), SocketError> {
        let spare = self.pipe.take().or_else(|| turn.io.pipe());
        let most = spare
            .as_ref()
            .map_or(turn.scratch.len(), |p| turn.io.pipe_size(p))
            .min(turn.scratch.len());
        let buf = turn.scratch.get_mut(..most).unwrap_or_default();
        let read = match &spare {
            Some(_) => turn.io.read(source, buf),
            None => turn.io.peek(source, buf),
        };
        let n = match read {
            Ok(n) if n > 0 => n,
            other => {
                if let Some(pipe) = spare {
                    turn.io.give_back(pipe);
                }
                match other {
                    Ok(_) => self.ended = true,
                    Err(SocketError::WouldBlock) => self.drained(),
                    Err(e) => return Err(e),
                }
                return Ok(());
            }
        };
        let wrote = turn.io.write(sink, buf.get(..n).unwrap_or_default());
        let taken = match wrote {
            Ok(taken) => taken.min(n),
            Err(SocketError::WouldBlock) => 0,
            // What was read dies with the connection, and so does the pipe, which is empty.
            Err(e) => {
                if let Some(pipe) = spare {
                    turn.io.give_back(pipe);
                }
                return Err(e);
            }
        };
        if taken > 0 {
            turn.count(taken);
        }
        self.blocked = taken < n;
        if n == most {
            if spare.is_some() && n == turn.scratch.len() {
                self.bulk = SMALL_TURNS;
            }
        } else if !self.eager && !self.muted && (taken == n || spare.is_some()) {
            self.ready = false;
        }
        match spare {
            Some(pipe) if taken < n => self.keep(turn, pipe, taken, n)?,
            Some(pipe) => turn.io.give_back(pipe),
            None => turn.io.discard(source, taken),
        }
        Ok(())
    }

    /// Put what the sink has not taken of the scratch buffer into the pipe.
    fn keep<I: Io<Pipe = P>>(
        &mut self,
        turn: &mut Turn<'_, I>,
        pipe: P,
        taken: usize,
        n: usize,
    ) -> Result<(), SocketError> {
        let rest = turn.scratch.get(taken..n).unwrap_or_default();
        let kept = turn.io.put(&pipe, rest);
        self.pipe = Some(pipe);
        self.held = kept;
        self.brimful = false;
        if kept < rest.len() {
            // The kernel broke its word: better an end than a gap.
            return Err(SocketError::Other);
        }
        Ok(())
    }

    const fn drained(&mut self) {
        self.ready = false;
        self.eager = false;
    }

    /// The pipe, to be closed with what is in it, and whether it is empty.
    pub(super) fn dismantle(&mut self) -> Option<(P, bool)> {
        Some((self.pipe.take()?, self.held == 0))
    }
}
