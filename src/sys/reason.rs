//! Why the kernel refused something, as a user reads it.

use std::io;

use nix::errno::Errno;

/// The kernel's reason in the words of strerror(3), without the number Rust adds.
#[derive(Debug)]
pub struct Reason(String);

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<Errno> for Reason {
    fn from(errno: Errno) -> Self {
        let text = match errno {
            // nix has the words of another system here.
            Errno::EBADF => "Bad file descriptor",
            _ => errno.desc(),
        };
        Self(text.to_owned())
    }
}

impl From<io::Error> for Reason {
    fn from(e: io::Error) -> Self {
        Self::from(&e)
    }
}

impl From<&io::Error> for Reason {
    fn from(e: &io::Error) -> Self {
        match e.raw_os_error() {
            Some(number) => Errno::from_raw(number).into(),
            None => Self(e.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_number_is_added() {
        let reason = |e: io::Error| Reason::from(e).to_string();
        assert_eq!(
            reason(io::Error::from_raw_os_error(libc::EPERM)),
            "Operation not permitted"
        );
        assert_eq!(reason(io::Error::other("own words")), "own words");
    }
}
