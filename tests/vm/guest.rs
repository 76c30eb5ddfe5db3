//! A running guest: qemu's process, and the agent inside it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use crate::agent;
use crate::exec::{Output, poll_until};
use crate::harness::{DIR, skip};
use crate::image::{BUILT, SCRATCH};

/// The bound of what is quick in the guest: emulated, and on a busy machine, that may be a while.
pub const SOON: Duration = Duration::from_secs(30);

/// Seconds under emulation, more where others want the processors too.
const BOOT: Duration = Duration::from_secs(240);

/// Which qemu.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qemu {
    /// Debian 12's, 7.2. Its `vhost-user` does not survive emulation.
    Stable,
    /// The newest that could be had.
    Newest,
}

impl Qemu {
    /// The command: this qemu, in its own tree.
    pub fn command(self) -> Command {
        self.inside("/usr/bin/qemu-system-x86_64")
    }

    /// A program in this qemu's tree. The tree is the root of a mount namespace: whoever is in a
    /// chroot may not make user namespaces, which a program that qemu starts wants to.
    pub fn inside(self, program: &str) -> Command {
        let enter = "cd \"$0\" && pivot_root . old && cd / && exec \"$@\"";
        let mut command = Command::new("unshare");
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command.args(["--mount", "sh", "-c", enter, &self.tree(), program]);
        command
    }

    pub fn tree(self) -> String {
        let name = match self {
            Qemu::Stable => "qemu-stable",
            Qemu::Newest => "qemu-newest",
        };
        let tree = format!("{BUILT}/{name}");
        if !Path::new(&tree).exists() {
            skip(&format!("{name} could not be had"));
        }
        tree
    }
}

/// What a guest is made of, but for its network card.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    pub processors: u32,
    /// MiB.
    pub memory: u32,
    /// Share the memory, as vhost-user needs it.
    pub shared: bool,
}

impl Machine {
    /// Arguments of this machine, number `n` of the group.
    fn arguments(self, n: u32) -> Vec<String> {
        let memory = self.memory;
        let mut machine = "q35".to_owned();
        let mut all = Vec::new();
        if self.shared {
            machine.push_str(",memory-backend=mem");
            all.extend([
                "-object".to_owned(),
                format!("memory-backend-memfd,id=mem,size={memory}M,share=on"),
            ]);
        }
        let (accelerator, cpu) = if kvm() {
            ("kvm", "host")
        } else {
            ("tcg", "max")
        };
        let port = format!("socket,id=agent,path={DIR}/agent{n},server=on,wait=off");
        let control = format!("unix:{DIR}/control{n},server=on,wait=off");
        let rest = [
            "-M",
            &machine,
            "-accel",
            accelerator,
            "-cpu",
            cpu,
            "-m",
            &memory.to_string(),
            "-smp",
            &self.processors.to_string(),
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-kernel",
            &format!("{BUILT}/vmlinux"),
            "-initrd",
            &format!("{SCRATCH}/initrd.img"),
            "-append",
            "console=ttyS0 quiet panic=1 rdinit=/init mitigations=off nokaslr tsc=reliable no_timer_check random.trust_cpu=on net.ifnames=0",
            "-serial",
            &format!("file:{DIR}/guest{n}.console"),
            "-qmp",
            &control,
            "-device",
            "virtio-serial-pci",
            "-chardev",
            &port,
            "-device",
            "virtserialport,chardev=agent,name=agent",
        ];
        all.extend(rest.map(str::to_owned));
        all
    }
}

/// Is there an accelerator that runs a stock guest? A /dev/kvm on a machine that is itself a guest without
/// nested virtualisation can be there and not be of use.
pub fn kvm() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let flags = info
            .lines()
            .find(|l| l.starts_with("flags"))
            .unwrap_or_default();
        flags.split_whitespace().any(|f| f == "vmx" || f == "svm")
            && File::options()
                .read(true)
                .write(true)
                .open("/dev/kvm")
                .is_ok()
    })
}

type Waiting = Arc<Mutex<BTreeMap<u32, Sender<Output>>>>;

/// A guest. Dropped, it is switched off the hard way.
#[derive(Debug)]
pub struct Guest {
    qemu: Child,
    n: u32,
    to: Mutex<UnixStream>,
    waiting: Waiting,
    up: Receiver<Output>,
    next: AtomicU32,
}

impl Guest {
    /// Starts qemu (or, through `wrap`, whatever starts qemu) and waits for the agent.
    #[track_caller]
    pub fn boot(mut command: Command, machine: Machine, network: &[String]) -> Guest {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let errors = format!("{DIR}/qemu{n}.log");
        command
            .args(machine.arguments(n))
            .args(network)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(File::create(&errors).expect("tmpfs"))
            .stderr(File::options().append(true).open(&errors).expect("tmpfs"));
        let mut qemu = command
            .spawn()
            .unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let mut socket = None;
        poll_until(SOON, || {
            socket = UnixStream::connect(format!("{DIR}/agent{n}")).ok();
            socket.is_some() || qemu.try_wait().is_ok_and(|s| s.is_some())
        });
        let Some(socket) = socket else {
            let text = fs::read_to_string(&errors).unwrap_or_default();
            qemu.kill().ok();
            panic!("qemu did not start: {command:?}\n{text}");
        };
        let (hello, up) = channel();
        let waiting = Waiting::default();
        waiting.lock().expect("new").insert(0, hello);
        let (from, table) = (socket.try_clone().expect("dup"), Arc::clone(&waiting));
        std::thread::spawn(move || listen(from, &table));
        let to = Mutex::new(socket);
        let mut guest = Guest {
            qemu,
            n,
            to,
            waiting,
            up,
            next: AtomicU32::new(1),
        };
        let mut up = false;
        poll_until(BOOT, || {
            up = guest.up.try_recv().is_ok();
            up || guest.ended()
        });
        let said = || fs::read_to_string(&errors).unwrap_or_default();
        assert!(up, "no guest within {BOOT:?}: {command:?}\n{}", said());
        guest
    }

    /// Waits until the agent has come up (again).
    #[track_caller]
    pub fn wait_up(&self) {
        if self.up.recv_timeout(BOOT).is_err() {
            panic!("the guest does not come up within {BOOT:?}");
        }
    }

    /// Starts a shell script in the guest.
    pub fn start(&self, script: &str) -> Job<'_> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (to, answer) = channel();
        self.waiting
            .lock()
            .expect("no panic holds it")
            .insert(id, to);
        let length = u32::try_from(script.len()).expect("a short script");
        let message = [&id.to_be_bytes(), &length.to_be_bytes(), script.as_bytes()].concat();
        self.say(&message);
        Job {
            guest: self,
            id,
            answer,
            script: script.to_owned(),
        }
    }

    fn say(&self, message: &[u8]) {
        let mut to = self.to.lock().expect("no panic holds it");
        to.write_all(message)
            .unwrap_or_else(|e| panic!("the guest is gone: {e}"));
    }

    /// Runs a script to its end, however it ends.
    #[track_caller]
    pub fn try_sh(&self, script: &str) -> Output {
        self.start(script).finish(Duration::from_secs(60))
    }

    /// Runs a script, which must succeed; returns its output.
    #[track_caller]
    pub fn sh(&self, script: &str) -> String {
        let output = self.try_sh(script);
        assert_eq!(
            output.code, 0,
            "in the guest: {script}\n{}\n{}",
            output.out, output.err
        );
        output.out
    }

    /// Does the agent still answer?
    pub fn answers(&self) -> bool {
        let job = self.start("true");
        job.answer.recv_timeout(SOON).is_ok()
    }

    /// Has qemu do something, over its control socket.
    #[track_caller]
    fn command(&self, what: &str) {
        let path = format!("{DIR}/control{}", self.n);
        let mut control = UnixStream::connect(path).expect("qemu listens");
        control.set_read_timeout(Some(SOON)).expect("a timeout");
        let both = format!("{{\"execute\":\"qmp_capabilities\"}}\n{{\"execute\":\"{what}\"}}\n");
        control.write_all(both.as_bytes()).expect("qemu reads");
        let (mut text, mut buffer) = (String::new(), [0; 4096]);
        let end = Instant::now() + SOON;
        while text.matches("\"return\"").count() < 2 {
            let n = control.read(&mut buffer).expect("qemu answers");
            assert!(
                n > 0 && Instant::now() < end,
                "qemu does not {what}: {text}"
            );
            text.push_str(&String::from_utf8_lossy(
                buffer.get(..n).unwrap_or_default(),
            ));
        }
    }

    /// Presses the reset button, and waits for the guest to come up again. What ran in it never answers.
    #[track_caller]
    pub fn reset(&self) {
        self.command("system_reset");
        self.wait_up();
    }

    /// Ends qemu in good order.
    #[track_caller]
    pub fn quit(mut self) {
        self.command("quit");
        assert!(poll_until(SOON, || self.ended()), "qemu does not quit");
    }

    /// Ends qemu without a chance to say anything.
    pub fn kill(&mut self) {
        self.qemu.kill().ok();
        self.qemu.wait().ok();
    }

    /// Has qemu ended? With which status?
    pub fn ended(&mut self) -> bool {
        self.qemu.try_wait().is_ok_and(|s| s.is_some())
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A script that runs in the guest.
#[derive(Debug)]
pub struct Job<'a> {
    guest: &'a Guest,
    id: u32,
    answer: Receiver<Output>,
    script: String,
}

impl Job<'_> {
    /// Waits for its end.
    #[track_caller]
    pub fn finish(self, limit: Duration) -> Output {
        let Ok(output) = self.answer.recv_timeout(limit) else {
            self.stop();
            let left = self.answer.recv_timeout(Duration::from_secs(3));
            panic!(
                "in the guest: {} did not end within {limit:?}: {left:?}",
                self.script
            );
        };
        output
    }

    /// Ends it, with all that it started.
    pub fn stop(&self) {
        let message = [self.id.to_be_bytes(), agent::END.to_be_bytes()].concat();
        self.guest.say(&message);
    }
}

/// Hands answers to whoever waits for them, until qemu closes the port.
fn listen(mut from: UnixStream, waiting: &Waiting) {
    while let Ok((id, output)) = read_answer(&mut from) {
        let waiting = waiting.lock().expect("no panic holds it");
        if let Some(to) = waiting.get(&id) {
            to.send(output).ok();
        }
    }
}

fn read_answer(from: &mut UnixStream) -> io::Result<(u32, Output)> {
    let id = read_number(from)?;
    let code = i32::from_be_bytes(read_number(from)?.to_be_bytes());
    let (out, err) = (read_text(from)?, read_text(from)?);
    Ok((id, Output { code, out, err }))
}

fn read_number(from: &mut UnixStream) -> io::Result<u32> {
    let mut bytes = [0; 4];
    from.read_exact(&mut bytes)?;
    Ok(u32::from_be_bytes(bytes))
}

fn read_text(from: &mut UnixStream) -> io::Result<String> {
    let mut bytes = vec![0; usize::try_from(read_number(from)?).map_err(io::Error::other)?];
    from.read_exact(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
