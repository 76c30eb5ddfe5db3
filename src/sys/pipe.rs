//! Pipes as a place for bytes on their way between two sockets: splice(2) moves pages, it does not copy.
//!
//! A pipe holds a number of *pieces*, each a part of a page or of what a socket has received, not a number of
//! bytes. So it may refuse more (`WouldBlock`) while it holds less than its size, and may hold more
//! bytes than its size when the pieces are large. What it never refuses is `size` bytes in one [`Pipe::put`]
//! while it is empty.
//!
//! The kernel charges the slots of all pipes to the user: above `fs.pipe-user-pages-soft` pipes can no longer
//! be enlarged, and new ones are small (pipe(7)). Nobody here relies on a size.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::unistd::{pipe2, write};

use super::stream::uninterrupted;

/// Moving pages, not waiting.
const FLAGS: SpliceFFlags = SpliceFFlags::SPLICE_F_MOVE.union(SpliceFFlags::SPLICE_F_NONBLOCK);

/// Both ends of a pipe, non-blocking and close-on-exec.
#[derive(Debug)]
pub struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    size: usize,
}

impl Pipe {
    /// A pipe of `size` bytes if that can be had, else of whatever size the kernel gives.
    ///
    /// # Errors
    /// pipe2(2): EMFILE and ENFILE when out of descriptors or of pipe pages.
    pub fn new(size: usize) -> io::Result<Self> {
        let (read, write) = pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC)?;
        let want = i32::try_from(size).unwrap_or(i32::MAX);
        let size = fcntl(&write, FcntlArg::F_SETPIPE_SZ(want))
            .or_else(|_| fcntl(&write, FcntlArg::F_GETPIPE_SZ))?;
        Ok(Self {
            read,
            write,
            size: usize::try_from(size).unwrap_or(0),
        })
    }

    /// Bytes that fit for certain while the pipe is empty.
    #[must_use]
    pub const fn size(&self) -> usize {
        self.size
    }

    /// Move up to `max` received bytes of a socket into the pipe. 0: the peer has ended its stream.
    ///
    /// # Errors
    /// As splice(2) and recv(2); `WouldBlock` when the socket has nothing *or* the pipe has no room for a piece.
    pub fn fill(&self, socket: impl AsFd, max: usize) -> io::Result<usize> {
        let socket = socket.as_fd();
        uninterrupted(|| Ok(splice(socket, None, &self.write, None, max, FLAGS)?))
    }

    /// Move up to `max` bytes from the pipe into a socket. Ask for no more than there are: the kernel would hold
    /// back the last piece for those to come. With `more` it does so on purpose, up to a segment (SPLICE_F_MORE).
    ///
    /// # Errors
    /// As splice(2) and send(2); `WouldBlock` when the socket's buffer is full or the pipe empty. SIGPIPE comes with
    /// EPIPE and has to be ignored by the process.
    pub fn drain(&self, socket: impl AsFd, max: usize, more: bool) -> io::Result<usize> {
        let socket = socket.as_fd();
        let mut flags = FLAGS;
        flags.set(SpliceFFlags::SPLICE_F_MORE, more);
        uninterrupted(|| Ok(splice(&self.read, None, socket, None, max, flags)?))
    }

    /// Copy `data` into the pipe.
    ///
    /// # Errors
    /// As write(2); `WouldBlock` when it is full. Up to [`Pipe::size`] bytes fit at once when it is empty.
    pub fn put(&self, data: &[u8]) -> io::Result<usize> {
        uninterrupted(|| Ok(write(&self.write, data)?))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpListener, TcpStream};

    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let l = TcpListener::bind("127.0.0.1:0").unwrap();
        let a = TcpStream::connect(l.local_addr().unwrap()).unwrap();
        let (b, _) = l.accept().unwrap();
        (a, b)
    }

    #[test]
    fn bytes_go_from_socket_to_socket_and_the_end_is_seen() {
        let (mut a, b) = pair();
        let (c, mut d) = pair();
        let pipe = Pipe::new(1 << 16).unwrap();
        a.write_all(b"through the pipe").unwrap();
        a.shutdown(Shutdown::Write).unwrap();
        let mut held = 0;
        loop {
            // The socket blocks, so there is no WouldBlock for want of data.
            match pipe.fill(&b, 1 << 16).unwrap() {
                0 => break,
                n => held += n,
            }
        }
        assert_eq!(held, 16);
        assert_eq!(pipe.drain(&c, held, false).unwrap(), 16);
        drop(c);
        let mut got = String::new();
        d.read_to_string(&mut got).unwrap();
        assert_eq!(got, "through the pipe");
    }

    #[test]
    fn an_empty_pipe_takes_its_size_at_once_and_no_more() {
        let pipe = Pipe::new(1 << 16).unwrap();
        let data = vec![1; pipe.size() + 1];
        assert_eq!(pipe.put(&data).unwrap(), pipe.size());
        let e = pipe.put(&data).unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn an_empty_socket_and_an_empty_pipe_would_block() {
        let (a, b) = pair();
        b.set_nonblocking(true).unwrap();
        let pipe = Pipe::new(1 << 16).unwrap();
        for e in [pipe.fill(&b, 10), pipe.drain(&b, 10, false)] {
            assert_eq!(e.unwrap_err().kind(), io::ErrorKind::WouldBlock);
        }
        drop(a);
    }
}
