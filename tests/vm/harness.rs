//! Runner: one isolated process per group, its cases reported one by one in the words of libtest.
//!
//! As in the namespace suite, the runner starts itself again for each group (stage one), which unshares and has its
//! ids mapped, and then once more (stage two) as the first process of a new process namespace: its end ends
//! qemu and everything else. Stage two says on its standard output, one line per case, how it went.

use std::any::Any;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::{Uid, getgid, getuid};

use crate::differences;
use crate::exec::poll_until;
use crate::image::{self, Image};
use crate::lab::Lab;
use crate::options::Options;

/// One case: its name within its group, and what it does with the group's guest.
pub type Case = (&'static str, fn(&mut Lab));

/// Cases that share a guest, and how that guest comes up.
#[derive(Clone, Copy, Debug)]
pub struct Group {
    pub name: &'static str,
    pub cases: &'static [&'static [Case]],
    pub start: fn() -> Lab,
}

/// Scratch directory of a group (a tmpfs of its own), and where the program under test is found.
pub const DIR: &str = "/run/t";
pub const PASTA: &str = "/run/t/bin/passt";

/// Groups at a time: as many guests.
const THREADS: usize = 2;
const STAGE: &str = "VM_SUITE_STAGE";
/// The bound of a whole group: on a busy machine with emulation, three times what it takes alone.
const LIMIT: Duration = Duration::from_secs(600);
/// Where stage two finds what image.rs says, as file descriptors that survive its mounts.
const IMAGE: &str = "VM_SUITE_IMAGE";

struct Skip(String);

/// Ends the case: the machine lacks something it needs.
pub fn skip(why: &str) -> ! {
    std::panic::panic_any(Skip(why.to_owned()))
}

/// The cases of a group that are to run.
fn chosen(options: &Options, group: &Group) -> Vec<(String, Case)> {
    group
        .cases
        .iter()
        .flat_map(|c| c.iter())
        .map(|c| (format!("{}::{}", group.name, c.0), *c))
        .filter(|(n, _)| options.wants(n))
        .collect()
}

/// Runs the suite, or, in a process the suite started, one stage of one group.
pub fn main(groups: &[Group]) -> ExitCode {
    if let Ok(stage) = std::env::var(STAGE) {
        let (stage, name) = stage.split_once(' ').unwrap_or_default();
        let group = groups
            .iter()
            .find(|g| g.name == name)
            .expect("a known group");
        return if stage == "1" {
            isolate(name)
        } else {
            perform(group, &Options::parse(THREADS))
        };
    }
    let options = Options::parse(THREADS);
    if options.list {
        for (name, _) in groups.iter().flat_map(|g| chosen(&options, g)) {
            println!("{name}: test");
        }
        return ExitCode::SUCCESS;
    }
    run_all(groups, &options)
}

/// How many cases ended which way, and what is to be said about it at the end.
#[derive(Default, Debug)]
struct Tally {
    passed: usize,
    failed: Vec<(String, String)>,
    skipped: Vec<(String, String)>,
}

fn run_all(groups: &[Group], options: &Options) -> ExitCode {
    let chosen: Vec<(&Group, Vec<(String, Case)>)> = groups
        .iter()
        .map(|g| (g, chosen(options, g)))
        .filter(|(_, c)| !c.is_empty())
        .collect();
    let known: usize = groups.iter().flat_map(|g| g.cases).map(|c| c.len()).sum();
    let count: usize = chosen.iter().map(|(_, c)| c.len()).sum();
    println!("\nrunning {count} tests");
    let start = Instant::now();
    let tally = Mutex::new(Tally::default());
    let image = if count == 0 {
        Err("no test was chosen".to_owned())
    } else {
        Image::build()
    };
    match &image {
        Err(why) => {
            let mut tally = tally.lock().expect("nobody else is there");
            for (name, _) in chosen.iter().flat_map(|(_, c)| c) {
                println!("test {name} ... ignored, {why}");
                tally.skipped.push((name.clone(), why.clone()));
            }
        }
        Ok(image) => {
            let next = AtomicUsize::new(0);
            std::thread::scope(|s| {
                for _ in 0..options.threads.max(1) {
                    s.spawn(|| {
                        while let Some((group, cases)) =
                            chosen.get(next.fetch_add(1, Ordering::Relaxed))
                        {
                            run_group(group, cases, image, &tally);
                        }
                    });
                }
            });
        }
    }
    let tally = tally.into_inner().expect("threads have ended");
    report(&tally, known.saturating_sub(count), start.elapsed())
}

fn report(tally: &Tally, filtered: usize, took: Duration) -> ExitCode {
    for (name, output) in &tally.failed {
        println!("\n---- {name} ----\n{output}");
    }
    for (name, why) in &tally.skipped {
        println!("skipped: {name}: {why}");
    }
    if !tally.failed.is_empty() {
        println!("\nfailures:");
        tally.failed.iter().for_each(|(n, _)| println!("    {n}"));
    }
    let good = tally.failed.is_empty();
    println!(
        "\ntest result: {}. {} passed; {} failed; {} ignored; 0 measured; {filtered} filtered out; finished in {:.2}s\n",
        if good { "ok" } else { "FAILED" },
        tally.passed,
        tally.failed.len(),
        tally.skipped.len(),
        took.as_secs_f64()
    );
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Runs one group in its own process, and notes what it says about each case; a case it says nothing about failed.
fn run_group(group: &Group, cases: &[(String, Case)], image: &Image, tally: &Mutex<Tally>) {
    let mut open: Vec<&str> = cases.iter().map(|(n, _)| n.as_str()).collect();
    let note = |line: &str, open: &mut Vec<&str>| {
        let mut part = line.splitn(4, ' ');
        let (Some(word), Some(name), Some(took)) = (part.next(), part.next(), part.next()) else {
            return;
        };
        open.retain(|n| *n != name);
        let text = part.next().unwrap_or_default().replace("\\n", "\n");
        let mut tally = tally.lock().expect("no panic while reporting");
        match word {
            "@ok" => {
                println!("test {name} ... ok ({took}s)");
                tally.passed += 1;
            }
            "@skip" => {
                println!("test {name} ... ignored, {text}");
                tally.skipped.push((name.to_owned(), text));
            }
            _ => {
                println!("test {name} ... FAILED ({took}s)");
                tally.failed.push((name.to_owned(), text));
            }
        }
    };
    let end = supervise(group.name, image, |line| note(line, &mut open));
    let why = end.unwrap_or_else(|e| format!("the group's process could not be run: {e}"));
    for name in open.clone() {
        note(
            &format!(
                "@fail {name} 0 the group ended before this case: {}",
                why.replace('\n', "\\n")
            ),
            &mut open,
        );
    }
}

/// Starts stage one and reads what stage two says, to the end; returns what it left on standard error.
fn supervise(name: &str, image: &Image, mut each: impl FnMut(&str)) -> std::io::Result<String> {
    let mut errors = image.scratch()?;
    let mut child = Command::new(std::env::current_exe()?)
        .args(std::env::args().skip(1))
        .env(STAGE, format!("1 {name}"))
        .env(IMAGE, image.describe())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(errors.try_clone()?)
        .spawn()?;
    let mut lines = BufReader::new(child.stdout.take().expect("piped"));
    let mut first = String::new();
    lines.read_line(&mut first)?;
    let mapped = map_ids(&mut child);
    let id = child.id();
    let over = Mutex::new(false);
    std::thread::scope(|s| {
        let watch = s.spawn(|| {
            if !poll_until(LIMIT, || *over.lock().expect("one writer")) {
                nix::sys::signal::kill(
                    nix::unistd::Pid::from_raw(i32::try_from(id).expect("a process id")),
                    Signal::SIGKILL,
                )
                .ok();
            }
        });
        for line in lines.lines().map_while(Result::ok) {
            each(&line);
        }
        *over.lock().expect("one writer") = true;
        watch.join().expect("it only waits");
    });
    let status = child.wait()?;
    let mut bytes = Vec::new();
    errors.rewind()?;
    errors.read_to_end(&mut bytes)?;
    let mut text = format!("{}[{status}]", String::from_utf8_lossy(&bytes));
    if let Err(e) = mapped {
        write!(text, " no user namespace: {e}").expect("memory");
    }
    Ok(text)
}

/// Stage one has unshared: writes its id maps, everybody when we are root, else ourselves.
fn map_ids(child: &mut Child) -> std::io::Result<()> {
    let proc = PathBuf::from(format!("/proc/{}", child.id()));
    if Uid::effective().is_root() {
        fs::write(proc.join("uid_map"), "0 0 65536\n")?;
        fs::write(proc.join("gid_map"), "0 0 65536\n")?;
    } else {
        fs::write(proc.join("setgroups"), "deny")?;
        fs::write(proc.join("uid_map"), format!("0 {} 1\n", getuid()))?;
        fs::write(proc.join("gid_map"), format!("0 {} 1\n", getgid()))?;
    }
    child.stdin.take().expect("piped").write_all(b"go\n")
}

/// Stage one: leave the machine's namespaces, become the parent of a new process namespace.
fn isolate(name: &str) -> ExitCode {
    set_pdeathsig(Signal::SIGKILL).expect("prctl");
    unshare(CloneFlags::CLONE_NEWUSER).expect("a user namespace");
    println!("unshared");
    let mut line = String::new();
    std::io::stdin()
        .read_line(&mut line)
        .expect("the runner answers");
    let flags = CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWPID;
    unshare(flags).expect("unshare");
    let status = Command::new("/proc/self/exe")
        .args(std::env::args().skip(1))
        .env(STAGE, format!("2 {name}"))
        .stdin(Stdio::null())
        .status()
        .expect("start stage two");
    ExitCode::from(
        status
            .code()
            .and_then(|c| u8::try_from(c).ok())
            .unwrap_or(1),
    )
}

/// Stage two: the group itself, as process 1.
fn perform(group: &Group, options: &Options) -> ExitCode {
    set_pdeathsig(Signal::SIGKILL).expect("prctl");
    prepare_files().unwrap_or_else(|e| panic!("preparing the group's mounts: {e}"));
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("up to the hard limit");
    }
    static SAID: Mutex<String> = Mutex::new(String::new());
    std::panic::set_hook(Box::new(|info| {
        if info.payload().downcast_ref::<Skip>().is_none() {
            if let Ok(mut said) = SAID.lock() {
                writeln!(said, "{info}").ok();
            }
        }
    }));
    let said = || std::mem::take(&mut *SAID.lock().expect("it only writes"));
    let mut lab = None;
    let mut hopeless = None;
    for (name, (_, run)) in chosen(options, group) {
        if let Some(why) = differences::skip_reason(&name) {
            println!("@skip {name} 0 {why}");
            continue;
        }
        let begun = Instant::now();
        let outcome = match &hopeless {
            Some(known) => Err(<(&str, String)>::clone(known)),
            None => catch_unwind(AssertUnwindSafe(|| {
                let lab = lab.get_or_insert_with(group.start);
                run(lab);
                lab.check();
            }))
            .map_err(|payload| verdict(payload.as_ref(), &said())),
        };
        let took = begun.elapsed().as_secs_f64();
        let Err((word, text)) = outcome else {
            println!("@ok {name} {took:.1}");
            continue;
        };
        println!("{word} {name} {took:.1} {text}");
        lab.as_ref().inspect(|l| l.tidy());
        // Without a guest, or with one that is lost, there is nothing to go on with.
        if lab.as_ref().is_none_or(|l: &Lab| !l.usable()) {
            let text = if word == "@skip" {
                text
            } else {
                format!("no guest since {name}")
            };
            hopeless = Some((word, text));
        }
    }
    // As process 1 we take everything along; nothing has to be put away.
    std::process::exit(0)
}

/// The first word, and the last, of the line for a case that did not simply pass.
fn verdict(payload: &(dyn Any + Send), said: &str) -> (&'static str, String) {
    if let Some(Skip(why)) = payload.downcast_ref::<Skip>() {
        return ("@skip", why.clone());
    }
    let mut text = said.to_owned();
    for entry in fs::read_dir(DIR).into_iter().flatten().flatten() {
        if [".log", ".console"]
            .iter()
            .any(|e| entry.file_name().to_string_lossy().ends_with(e))
        {
            let log = fs::read(entry.path()).unwrap_or_default();
            let log = String::from_utf8_lossy(&log);
            let tail: Vec<&str> = log.lines().rev().take(25).collect();
            writeln!(text, "-- {}", entry.path().display()).expect("memory");
            tail.iter()
                .rev()
                .for_each(|l| writeln!(text, "{l}").expect("memory"));
        }
    }
    ("@fail", text.trim_end().replace('\n', "\\n"))
}

const NONE: Option<&str> = None;

/// Shows what a descriptor was opened on at `at`, whatever has been mounted over its path since.
fn bind(from: &File, at: &str) -> nix::Result<()> {
    fs::create_dir_all(at).expect("tmpfs");
    let source = format!("/proc/self/fd/{}", from.as_raw_fd());
    mount(
        Some(source.as_str()),
        at,
        NONE,
        MsFlags::MS_BIND | MsFlags::MS_REC,
        NONE,
    )
}

fn open(path: &Path) -> File {
    File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// A private mount tree: /proc of the new process namespace, empty /run and /tmp, the program under test under its
/// name, what the guest boots from, a resolv.conf of our own, and each qemu's tree with all of these in it.
fn prepare_files() -> nix::Result<()> {
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), flags, NONE)?;
    let (tool, _) = under_test();
    let name = tool.file_name().expect("a file").to_owned();
    // Whatever lies beside the program comes along; any of these may be below /run or /tmp.
    let beside = open(tool.parent().unwrap_or(Path::new(".")));
    let described = std::env::var(IMAGE).expect("stage one hands it on");
    let (built, scratch) = image::directories(&described);
    let (built, scratch) = (open(built), open(scratch));
    let resolv = fs::read_link("/etc/resolv.conf").map_or_else(
        |_| PathBuf::from("/etc/resolv.conf"),
        |l| Path::new("/etc").join(l),
    );
    for dir in ["/run", "/tmp"] {
        mount(
            Some("none"),
            dir,
            Some("tmpfs"),
            MsFlags::empty(),
            Some("mode=1777"),
        )?;
    }
    for dir in [DIR, "/run/t/bin", "/run/netns"] {
        fs::create_dir_all(dir).expect("tmpfs");
    }
    bind(&beside, "/run/t/built")?;
    symlink(Path::new("/run/t/built").join(name), PASTA).expect("tmpfs");
    bind(&built, image::BUILT)?;
    bind(&scratch, image::SCRATCH)?;
    fs::write(
        "/run/t/resolv.conf",
        "nameserver 203.0.113.53\nnameserver 2001:db8:99::53\nsearch example.org test.example\n",
    )
    .expect("tmpfs");
    if resolv.starts_with("/run") {
        fs::create_dir_all(resolv.parent().expect("a file in /run")).expect("tmpfs");
        fs::write(&resolv, "").expect("tmpfs");
    }
    mount(
        Some("/run/t/resolv.conf"),
        "/etc/resolv.conf",
        NONE,
        MsFlags::MS_BIND,
        NONE,
    )?;
    for tree in ["qemu-stable", "qemu-newest"] {
        let tree = Path::new(image::BUILT).join(tree);
        if tree.exists() {
            // A mount of its own, to be made the root of a namespace, and a place for the old root.
            fs::create_dir_all(tree.join("old")).expect("the tree is ours");
            bind(&open(&tree), &tree.to_string_lossy())?;
            for dir in ["dev", "proc", "sys", "run", "tmp"] {
                bind(
                    &open(&Path::new("/").join(dir)),
                    &tree.join(dir).to_string_lossy(),
                )?;
            }
        }
    }
    Ok(())
}

/// The program under test, and whether it is not the one cargo built.
pub fn under_test() -> (PathBuf, bool) {
    match std::env::var_os("PASST_UNDER_TEST") {
        Some(path) => (PathBuf::from(path), true),
        None => (PathBuf::from(env!("CARGO_BIN_EXE_passt")), false),
    }
}
