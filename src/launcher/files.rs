//! Files the command line names, opened before any change of user and before anything is confined.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::error::LaunchError;
use crate::cli::Options;
use crate::log::LogFile;

/// A PID file that is removed again unless the start succeeds.
#[derive(Debug)]
pub(super) struct PidFile {
    file: Option<File>,
    path: PathBuf,
    existed: bool,
}

impl PidFile {
    /// Open or create `path`, mode 0600, not through a symbolic link. What an existing file says stays until
    /// the start has succeeded. A FIFO nobody reads is an error, not a reason to wait.
    pub(super) fn create(path: &Path) -> Result<Self, LaunchError> {
        let existed = path.symlink_metadata().is_ok();
        let opened = writable()
            .truncate(false)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(path);
        let file = opened.map_err(|e| LaunchError::PidFile {
            path: path.to_owned(),
            reason: e.into(),
        })?;
        // The removal may happen in another directory than the start.
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        Ok(Self {
            file: Some(file),
            path,
            existed,
        })
    }

    /// The file to write to. Whoever waits for the start keeps the duty to remove it.
    pub(super) fn take(&mut self) -> Option<File> {
        self.file.take()
    }

    /// The start has failed: leave nothing behind that was not there before.
    pub(super) fn remove(&self) {
        if !self.existed {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn writable() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).create(true).mode(0o600);
    options
}

/// `-l`.
pub(super) fn log_file(options: &Options) -> Result<Option<LogFile>, LaunchError> {
    let Some(path) = &options.log_file else {
        return Ok(None);
    };
    let header = format!(
        "{} {}: {} ({})",
        options.program,
        env!("CARGO_PKG_VERSION"),
        path.display(),
        std::process::id()
    );
    LogFile::create(path, options.log_size, &header)
        .map(Some)
        .map_err(|e| LaunchError::LogFile {
            path: path.clone(),
            reason: e.into(),
        })
}

/// `-p`.
pub(super) fn capture_file(options: &Options) -> Result<Option<File>, LaunchError> {
    let Some(path) = &options.pcap else {
        return Ok(None);
    };
    writable()
        .truncate(true)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
        .map(Some)
        .map_err(|e| LaunchError::CaptureFile {
            path: path.clone(),
            reason: e.into(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_file_goes_again_unless_it_was_there() {
        let path = std::env::temp_dir().join(format!("passt-pid-test-{}", std::process::id()));
        let ours = PidFile::create(&path).expect("create");
        ours.remove();
        assert!(!path.exists());
        std::fs::write(&path, "1").expect("write");
        let theirs = PidFile::create(&path).expect("create");
        theirs.remove();
        assert_eq!(std::fs::read_to_string(&path).expect("still there"), "1");
        std::fs::remove_file(&path).expect("remove");
    }

    #[test]
    fn neither_a_link_nor_a_fifo_is_waited_for_or_followed() {
        let name = |what| {
            let name = format!("passt-pid-{what}-test-{}", std::process::id());
            std::env::temp_dir().join(name)
        };
        let (link, fifo) = (name("link"), name("fifo"));
        std::os::unix::fs::symlink(&fifo, &link).expect("symlink");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("mkfifo");
        assert!(PidFile::create(&link).is_err());
        let e = PidFile::create(&fifo).expect_err("nobody reads it");
        std::fs::remove_file(&link).expect("remove");
        std::fs::remove_file(&fifo).expect("remove");
        assert!(e.to_string().ends_with(": No such device or address"));
    }

    #[test]
    fn the_message_names_path_and_reason() {
        let e = PidFile::create(Path::new("/nonexistent/x")).expect_err("no directory");
        assert_eq!(
            e.to_string(),
            "Couldn't open PID file /nonexistent/x: No such file or directory"
        );
    }
}
