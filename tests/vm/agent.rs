//! The agent in the guest: runs shell scripts for the test, several at a time.
//!
//! Over the virtio serial port go messages of a 32-bit id, a 32-bit length (both big-endian) and a script; a length of
//! all ones ends the script of that id instead. The answer is the id, the exit status, and standard output and
//! error, each behind its length. An answer to id 0, which nobody asked, says that the agent has come up.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// The length that ends a script.
pub const END: u32 = u32::MAX;

/// Descriptors for what a script may open.
const FILES: u64 = 100_000;

type Children = Arc<Mutex<BTreeMap<u32, i32>>>;

/// Serves the port until the machine is switched off.
pub fn main(port: &str) -> ExitCode {
    setrlimit(Resource::RLIMIT_NOFILE, FILES, FILES).ok();
    match serve(port) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{port}: {e}");
            ExitCode::FAILURE
        }
    }
}

fn serve(port: &str) -> io::Result<()> {
    let mut from = File::options().read(true).write(true).open(port)?;
    let to = Arc::new(Mutex::new(from.try_clone()?));
    let children = Children::default();
    answer(&to, 0, 0, &[], &[])?;
    loop {
        let (id, length) = (number(&mut from)?, number(&mut from)?);
        if length == END {
            let child = children
                .lock()
                .expect("no panic holds it")
                .get(&id)
                .copied();
            if let Some(child) = child {
                killpg(Pid::from_raw(child), Signal::SIGKILL).ok();
            }
            continue;
        }
        let mut script = vec![0; usize::try_from(length).unwrap_or_default()];
        fill(&mut from, &mut script)?;
        let (to, children) = (Arc::clone(&to), Arc::clone(&children));
        std::thread::spawn(move || {
            let (code, out, err) = perform(id, &script, &children)
                .unwrap_or_else(|e| (-1, vec![], e.to_string().into_bytes()));
            answer(&to, id, code, &out, &err).ok();
        });
    }
}

fn perform(id: u32, script: &[u8], children: &Children) -> io::Result<(i32, Vec<u8>, Vec<u8>)> {
    let script = String::from_utf8_lossy(script);
    let child = Command::new("sh")
        .args(["-c", &script])
        .current_dir("/run/t")
        .env("PATH", "/agent/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let group = i32::try_from(child.id()).unwrap_or_default();
    children
        .lock()
        .expect("no panic holds it")
        .insert(id, group);
    let output = child.wait_with_output();
    children.lock().expect("no panic holds it").remove(&id);
    let output = output?;
    let code = output
        .status
        .code()
        .or(output.status.signal().map(|s| 128 + s));
    Ok((code.unwrap_or(-1), output.stdout, output.stderr))
}

fn answer(to: &Mutex<File>, id: u32, code: i32, out: &[u8], err: &[u8]) -> io::Result<()> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend(code.to_be_bytes());
    for text in [out, err] {
        message.extend(
            u32::try_from(text.len())
                .map_err(io::Error::other)?
                .to_be_bytes(),
        );
        message.extend(text);
    }
    to.lock().expect("no panic holds it").write_all(&message)
}

/// Reads exactly; a port that nobody has connected to on the other side reads as if at its end.
fn fill(from: &mut File, mut into: &mut [u8]) -> io::Result<()> {
    while !into.is_empty() {
        match from.read(into)? {
            0 => std::thread::sleep(Duration::from_millis(20)),
            n => into = into.get_mut(n..).unwrap_or_default(),
        }
    }
    Ok(())
}

fn number(from: &mut File) -> io::Result<u32> {
    let mut bytes = [0; 4];
    fill(from, &mut bytes)?;
    Ok(u32::from_be_bytes(bytes))
}
