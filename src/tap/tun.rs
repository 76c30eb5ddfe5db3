//! The kernel tap device, as opened by the launcher's side with IFF_VNET_HDR and its offloads on.
//!
//! Every read and write carries a 10-byte virtio-net header (linux/virtio_net.h, native byte order,
//! Documentation/networking/tuntap.rst). A read returns one frame, up to 64 KiB of TCP payload
//! whatever the MTU is; the kernel segments what we write if it has to.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::unistd;

use super::batch::{BYTE_BUDGET, Inbound, MAX_FRAMES, Meta};
use super::frame::FrameBuf;
use super::{Gone, Offloads, Received};
use crate::wire::virtio_net::{self, Gso};

/// Where frames come one at a time (request and response), asking for a second one is a wasted call: after a
/// batch of one, so many reads stop at one frame. epoll will report the tap again (it is watched
/// level-triggered) if there are more after all.
const TRUSTED_SINGLES: u8 = 7;

/// An open tap queue.
#[derive(Debug)]
pub struct Tun {
    fd: OwnedFd,
    offloads: Offloads,
    /// How many more batches of one frame to expect.
    singles: u8,
}

impl Tun {
    /// Take over a non-blocking tap descriptor whose offloads are already set.
    #[must_use]
    pub fn new(fd: OwnedFd, offloads: Offloads) -> Self {
        Self {
            fd,
            offloads,
            singles: 0,
        }
    }

    pub(super) fn offloads(&self) -> Offloads {
        self.offloads
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(super) fn receive(&mut self, batch: &mut Inbound) -> Result<Received, Gone> {
        let received = |odd| Received { odd, more: false };
        let (mut bytes, mut odd) = (0_usize, 0_usize);
        while bytes < BYTE_BUDGET {
            if self.singles > 0 && !batch.is_empty() {
                self.singles = self.singles.saturating_sub(1);
                return Ok(received(odd));
            }
            let Some(room) = batch.room() else { break };
            let n = match unistd::read(&self.fd, room) {
                Ok(0) => return Err(Gone::Closed),
                Ok(n) => n,
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => continue,
                // One frame the driver could not describe in a virtio-net header; it is gone. Of such the guest
                // may send as many as it likes: that is no reason to end.
                Err(Errno::EINVAL) => {
                    odd = odd.saturating_add(1);
                    if odd >= MAX_FRAMES {
                        break;
                    }
                    continue;
                }
                Err(e) => return Err(e.into()),
            };
            bytes = bytes.saturating_add(n);
            // The kernel writes the header; anything shorter cannot come from it.
            let Ok((header, _)) = virtio_net::Header::parse(room.get(..n).unwrap_or_default())
            else {
                continue;
            };
            let meta = Meta {
                checksum_settled: header.checksum_settled(),
                gso_size: (header.gso != Gso::None).then_some(header.gso_size),
            };
            batch.commit(
                virtio_net::HEADER_LEN,
                n.saturating_sub(virtio_net::HEADER_LEN),
                meta,
            );
        }
        self.singles = if batch.len() == 1 { TRUSTED_SINGLES } else { 0 };
        Ok(received(odd))
    }

    pub(super) fn send(&mut self, frame: &FrameBuf) -> io::Result<()> {
        loop {
            match unistd::write(&self.fd, frame.with_header()) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::epoll::{Epoll, EpollCreateFlags};

    use super::*;

    /// What the driver cannot describe is skipped, however much of it comes.
    #[test]
    fn odd_frames_are_counted_and_never_the_end() {
        // Reading from it fails as it does for such frames.
        let odd = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap().0;
        let mut tun = Tun::new(odd, Offloads::default());
        let mut batch = Inbound::new();
        for _ in 0..3 {
            assert_eq!(tun.receive(&mut batch).unwrap().odd, MAX_FRAMES);
            assert!(batch.is_empty());
        }
    }
}
