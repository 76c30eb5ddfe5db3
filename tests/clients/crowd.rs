//! Many containers at a time, each with an instance of pasta, and what many of them cost.

use std::fs;
use std::time::Instant;

use crate::differences;
use crate::harness::tests;
use crate::lifecycle::{ANSWER, answers, expect_instances, run, run_line};
use crate::machine::Machine;
use crate::world::{HOST4, HOST6};

tests![; root: thirty, churn, restart_all];

/// As many as one user may reasonably start at once on two cores.
const MANY: u16 = 30;
/// Memory that each instance may have for itself, in kB: all its processes.
const MEMORY: u64 = 6 << 10;

/// All at once: started, found, stopped, started by one command, removed.
fn thirty() {
    let m = Machine::with_image();
    let start: String = (1..=MANY)
        .map(|i| {
            format!(
                "{} & ",
                run_line(&format!("c{i}"), &format!("-p {}:80", 8000 + i))
            )
        })
        .collect();
    let begun = Instant::now();
    m.user(&format!("{start} wait"));
    let started = begun.elapsed();
    let found = |address| {
        for i in 1..=MANY {
            answers(&m.world.peer, (address, 8000 + i), &format!("c{i}"));
        }
    };
    found(HOST4);
    found(HOST6);
    expect_instances(&m, usize::from(MANY));
    let each = private_memory(&m) / u64::from(MANY);
    println!("{MANY} started in {started:?}; each has {each} kB for itself");
    if !differences::established() {
        assert!(each <= MEMORY, "each instance has {each} kB for itself");
    }
    m.user("podman stop -t 0 -a");
    m.clean();
    m.user("podman start --all");
    found(HOST4);
    expect_instances(&m, usize::from(MANY));
    let remove: String = (1..=MANY)
        .map(|i| format!("podman rm -f -t 0 c{i} & "))
        .collect();
    m.user(&format!("{remove} wait"));
    m.clean();
}

/// Memory no other process shares, of all processes of the program under test, in kB.
fn private_memory(m: &Machine) -> u64 {
    let of = |pid: i32| {
        let all = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        let private = all.lines().filter(|l| l.starts_with("Private_"));
        private
            .filter_map(|l| l.split_whitespace().nth(1)?.parse::<u64>().ok())
            .sum::<u64>()
    };
    m.pastas().into_iter().map(of).sum()
}

/// One after the other and beside each other, short ones.
fn churn() {
    let m = Machine::with_image();
    let one = "for i in $(seq 8); do podman run --rm $IMAGE curl -sS http://a.name/who >/dev/null || echo bad; done";
    let all = m.start(&format!("for j in 1 2 3 4; do ({one}) & done; wait"));
    assert_eq!(all.finish(ANSWER * 2).both(), "");
    m.clean();
}

/// One command that restarts many: the ports of each are free when it is its turn.
fn restart_all() {
    let m = Machine::with_image();
    for i in 1..=8_u16 {
        run(
            &m,
            &format!("c{i}"),
            &format!("-p {}:80 -p {}:80", 8000 + i, 9000 + i),
        );
    }
    for _ in 0..3 {
        m.user("podman restart -t 0 -a");
        for i in 1..=8 {
            answers(&m.world.peer, (HOST4, 8000 + i), &format!("c{i}"));
            answers(&m.world.host, ("::1", 9000 + i), &format!("c{i}"));
        }
        expect_instances(&m, 8);
    }
    m.user("podman rm -f -t 0 -a");
    m.clean();
}
