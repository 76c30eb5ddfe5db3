//! What is to be run: the command line as it was given, or with a network of ours in the place of its own.

use std::ffi::{OsStr, OsString};

use super::QrapError;

/// The descriptor qemu is told of when its command line is ours to change.
const NUMBER: i32 = 5;
/// Options with a value that make a network.
const NETWORKS: [&str; 3] = ["net", "netdev", "nic"];
/// Devices that would be on it.
const DEVICES: [&str; 5] = [
    "virtio-net-pci",
    "virtio-net-ccw",
    "e1000",
    "e1000e",
    "rtl8139",
];

/// A program to run, and how.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct Plan {
    /// The number of the connection's descriptor.
    pub(super) number: i32,
    /// The first of these that exists.
    pub(super) programs: Vec<OsString>,
    /// The caller has named it.
    pub(super) explicit: bool,
    /// Its arguments.
    pub(super) arguments: Vec<OsString>,
}

/// `[FDNUM QEMU_CMD] [ARG]...`
pub(super) fn plan(arguments: &[OsString]) -> Result<Plan, QrapError> {
    let number = arguments.first().and_then(|first| first.to_str());
    let number = number.filter(|text| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()));
    if let (Some(text), [_, program, rest @ ..]) = (number, arguments) {
        // The standard ones are the machine's own.
        let number = text.parse().ok().filter(|number| *number > 2);
        return Ok(Plan {
            number: number.ok_or_else(|| QrapError::Number(text.to_owned()))?,
            programs: vec![program.clone()],
            explicit: true,
            arguments: rest.to_vec(),
        });
    }
    let mut kept = without_networks(arguments);
    let ccw = arguments
        .iter()
        .any(|argument| argument.to_string_lossy().contains("s390"));
    let device = if ccw {
        "virtio-net-ccw"
    } else {
        "virtio-net-pci"
    };
    kept.extend(
        [
            "-netdev",
            &format!("socket,fd={NUMBER},id=hostnet0"),
            "-device",
            &format!("{device},netdev=hostnet0"),
        ]
        .map(OsString::from),
    );
    let native = format!("qemu-system-{}", std::env::consts::ARCH);
    Ok(Plan {
        number: NUMBER,
        programs: ["qemu-kvm", "kvm", "qemu", &native]
            .map(OsString::from)
            .to_vec(),
        explicit: false,
        arguments: kept,
    })
}

/// Everything but networks and what would be connected to them.
fn without_networks(arguments: &[OsString]) -> Vec<OsString> {
    let mut kept = Vec::with_capacity(arguments.len());
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match option(argument) {
            Some(name) if NETWORKS.contains(&name) => drop(rest.next()),
            Some("device") => {
                let device = rest.next();
                if !device.is_some_and(|device| is_network(device)) {
                    kept.push(argument.clone());
                    kept.extend(device.cloned());
                }
            }
            _ => kept.push(argument.clone()),
        }
    }
    kept
}

/// The name of an option: qemu takes one dash or two.
fn option(argument: &OsStr) -> Option<&str> {
    let name = argument.to_str()?.strip_prefix('-')?;
    Some(name.strip_prefix('-').unwrap_or(name))
}

fn is_network(device: &OsStr) -> bool {
    let device = device.to_string_lossy();
    DEVICES.contains(&device.split(',').next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(line: &str) -> Result<Plan, QrapError> {
        let words: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
        plan(&words)
    }

    fn arguments(line: &str) -> String {
        let plan = planned(line).expect("a plan");
        let words: Vec<_> = plan.arguments.iter().map(|a| a.to_string_lossy()).collect();
        words.join(" ")
    }

    #[test]
    fn a_number_and_a_command_are_run_as_they_are() {
        let plan = planned("7 kvm disk -net socket,fd=7 -net nic,model=virtio").expect("a plan");
        assert_eq!((plan.number, plan.explicit), (7, true));
        assert_eq!(plan.programs, ["kvm"]);
        assert_eq!(
            arguments("7 kvm disk -net socket,fd=7 -net nic"),
            "disk -net socket,fd=7 -net nic"
        );
        for bad in ["2 kvm", "0 kvm disk", "99999999999 kvm"] {
            assert!(matches!(planned(bad), Err(QrapError::Number(_))), "{bad}");
        }
        // Without a command it is the name of an image.
        assert!(!planned("5").expect("a plan").explicit);
    }

    #[test]
    fn networks_give_way_to_ours() {
        let ours = "-netdev socket,fd=5,id=hostnet0 -device virtio-net-pci,netdev=hostnet0";
        for (line, kept) in [
            ("", ""),
            ("disk -m 512", "disk -m 512 "),
            ("-net user -net nic disk", "disk "),
            ("--netdev user,id=a -nic user -device e1000,netdev=a", ""),
            ("-device rtl8139 -device usb-tablet", "-device usb-tablet "),
            ("-device virtio-net-pci,netdev=a,mac=2:0:0:0:0:1 -S", "-S "),
            (
                "-device e1000-82545em,netdev=a",
                "-device e1000-82545em,netdev=a ",
            ),
            ("disk -netdev", "disk "),
            ("disk -device", "disk -device "),
        ] {
            assert_eq!(arguments(line), format!("{kept}{ours}"), "{line}");
        }
        let s390 = arguments("-machine s390-ccw-virtio -device virtio-net-ccw,netdev=a");
        assert_eq!(
            s390,
            "-machine s390-ccw-virtio -netdev socket,fd=5,id=hostnet0 -device virtio-net-ccw,netdev=hostnet0"
        );
    }
}
