//! What a guest boots from: the cached guest of `tests/vm/build`, and this very program as its agent.
//!
//! The agent is added to the initramfs as a second archive behind the first, which the kernel unpacks over it.
//! It brings the C library of the machine it was built on: the guest's own may be older.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::exec::run;

/// Where a group finds the guest's kernel and the qemus, and the directory with its initramfs.
pub const BUILT: &str = "/run/t/guest";
pub const SCRATCH: &str = "/run/t/boot";

/// How long the packages may take to come.
const LIMIT: std::time::Duration = std::time::Duration::from_secs(900);

/// The guest, complete. Dropped, it takes its initramfs away again.
#[derive(Debug)]
pub struct Image {
    built: PathBuf,
    scratch: PathBuf,
}

impl Image {
    /// Makes the guest, or finds it made; says why not.
    pub fn build() -> Result<Image, String> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vm/build");
        let output = run(Command::new(script), LIMIT);
        if output.code != 0 {
            let last = output.err.lines().last().unwrap_or_default();
            return Err(format!("no guest could be built: {last}"));
        }
        let built = PathBuf::from(output.out.trim());
        let scratch =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("vm-{}", std::process::id()));
        fs::create_dir_all(&scratch).map_err(|e| format!("{}: {e}", scratch.display()))?;
        let image = Image { built, scratch };
        image
            .add_agent()
            .map_err(|e| format!("the guest's agent could not be packed: {e}"))?;
        Ok(image)
    }

    /// For the environment of a stage.
    pub fn describe(&self) -> String {
        format!("{}\n{}", self.built.display(), self.scratch.display())
    }

    /// A nameless file.
    pub fn scratch(&self) -> io::Result<File> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = self.scratch.join(format!("errors-{n}"));
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)?;
        fs::remove_file(path)?;
        Ok(file)
    }

    fn add_agent(&self) -> io::Result<()> {
        let root = self.scratch.join("root");
        let (lib, bin) = (root.join("agent/lib"), root.join("agent/bin"));
        fs::create_dir_all(&lib)?;
        fs::create_dir_all(&bin)?;
        let own = std::env::current_exe()?;
        let agent = root.join("agent/agent");
        fs::copy(&own, &agent)?;
        // Symbols and debugging information are most of it, and the guest's memory holds it all.
        Command::new("strip").arg(&agent).status()?;
        for line in tool(Command::new("ldd").arg(&own))?.lines() {
            let Some(path) = line.split_whitespace().find(|w| w.starts_with('/')) else {
                continue; // the vDSO
            };
            let name = Path::new(path).file_name().unwrap_or_default();
            let name = if name.to_string_lossy().starts_with("ld-") {
                "ld.so".as_ref()
            } else {
                name
            };
            fs::copy(path, lib.join(name))?;
        }
        fs::write(
            bin.join("t"),
            "#!/bin/sh\nexec /agent/lib/ld.so --library-path /agent/lib /agent/agent --tool \"$@\"\n",
        )?;
        make_executable(&bin.join("t"))?;
        fs::copy(
            self.built.join("initrd.img"),
            self.scratch.join("initrd.img"),
        )?;
        let mut archive = File::options()
            .append(true)
            .open(self.scratch.join("initrd.img"))?;
        let names = [
            "agent",
            "agent/agent",
            "agent/bin",
            "agent/bin/t",
            "agent/lib",
        ];
        let mut names: Vec<String> = names.map(str::to_owned).to_vec();
        for entry in fs::read_dir(&lib)? {
            names.push(format!(
                "agent/lib/{}",
                entry?.file_name().to_string_lossy()
            ));
        }
        for name in &names {
            let path = root.join(name);
            if path.is_dir() {
                entry(&mut archive, name, 0o40755, &[])?;
            } else {
                entry(&mut archive, name, 0o100_755, &fs::read(path)?)?;
            }
        }
        entry(&mut archive, "TRAILER!!!", 0, &[])?;
        fs::remove_dir_all(root)
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.scratch).ok();
    }
}

/// The directories that [`Image::describe`] named: what was built, and scratch.
pub fn directories(described: &str) -> (&Path, &Path) {
    let (built, scratch) = described.split_once('\n').expect("two lines");
    (Path::new(built), Path::new(scratch))
}

fn make_executable(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
}

fn tool(command: &mut Command) -> io::Result<String> {
    let output = command.output()?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// One member of a "newc" archive (Documentation/driver-api/early-userspace/buffer-format.rst): thirteen numbers
/// of eight hexadecimal digits, the name, the data, each padded to four bytes.
fn entry(to: &mut impl Write, name: &str, mode: u32, data: &[u8]) -> io::Result<()> {
    let number = |n: usize| u32::try_from(n).map_err(io::Error::other);
    let (size, length) = (number(data.len())?, number(name.len() + 1)?);
    // Inode 0 for all: nothing here has two names.
    let fields = [0, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, length, 0];
    let mut header = b"070701".to_vec();
    for field in fields {
        write!(header, "{field:08X}")?;
    }
    header.extend(name.as_bytes());
    header.push(0);
    header.resize(header.len().next_multiple_of(4), 0);
    to.write_all(&header)?;
    to.write_all(data)?;
    to.write_all(&[0; 3][..data.len().next_multiple_of(4) - data.len()])
}
