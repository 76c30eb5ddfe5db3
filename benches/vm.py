#!/usr/bin/env python3
"""Virtual machines side by side: passt (ours and the established one, over its stream socket and over
vhost-user), qemu's own user-mode network, and a tap on a bridge, all in one run.

    vm.py run    [--root DIR] [--ours PATH]   measure, write JSON and a Markdown table
    vm.py report FILE.json                    the table again

Every contender has a host and a peer namespace of its own, joined by a veth pair of MTU 65520, and a guest
that boots from a kernel package in seconds; all guests are up at the same time, and the measurements go
round: A B C, B C A, C A B.  Load generator, namespaces and accounting are those of compare.py.

Needs root, iproute2, a static C library, and apt (or --kernel, --modules and --busybox).  `--root` is a
directory tree (a debootstrap, say) that qemu and the established passt are installed in.
"""
import argparse, atexit, collections, contextlib, gzip, hashlib, json, lzma, os, re, shutil, signal, socket
import stat, statistics, struct, subprocess, sys, tempfile, time

import compare
from compare import GW4, HOST4, P_IN, PEER4, UID, Proc, Topo, log, m_rr, m_tcp, sh

SLIRP4, SLIRP_GW4 = "10.0.2.15", "10.0.2.2"
GIB = 1 << 30
MODULES = ["virtio_pci", "virtio_console", "virtio_net"]

# --------------------------------------------------------------- the guest

INIT = r"""#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /run
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox --install -s /bin
export PATH=/bin
for m in $(cat /modules/list); do insmod /modules/$m; done
until [ -e /dev/vport1p1 -a -e /dev/vport1p2 ] || [ -e /dev/vport0p1 -a -e /dev/vport0p2 ]; do usleep 10000; done
for p in /sys/class/virtio-ports/*; do
  case $(cat $p/name) in job) J=/dev/${p##*/} ;; kill) K=/dev/${p##*/} ;; esac
done
exec 3<>$J 4<>$K
ip link set lo up
cd /proc/sys/net/ipv4
echo 10000 65535 >ip_local_port_range; echo 1 >tcp_tw_reuse; echo 2000 >tcp_max_tw_buckets
cd /
# The one port has numbered command lines, one at a time; a number on the other ends that command.
echo 0 0 >/run/job
while read -r n <&4; do
  while read -r j p </run/job; [ "${j:-0}" -lt "$n" ]; do usleep 10000; done
  [ "$j" = "$n" ] && kill -9 "$p"
done 2>/dev/null &
echo '#ready' >&3
while read -r n line <&3; do
  sh -c "exec $line" </dev/null >&3 2>&1 3>&- 4>&- &
  echo "$n $!" >/run/job
  wait $!
  echo "#end $?" >&3
done
poweroff -f
"""


class Cpio:
    """An initramfs in the newc format."""

    def __init__(self):
        self.out, self.ino = [], 0

    def add(self, name, mode, data=b"", dev=(0, 0)):
        self.ino += 1
        n = name.encode() + b"\0"
        head = b"070701" + b"".join(b"%08X" % v for v in (
            self.ino, mode, 0, 0, 1, 0, len(data), 0, 0, dev[0], dev[1], len(n), 0))
        self.out += [head, n, b"\0" * (-(len(head) + len(n)) % 4), data, b"\0" * (-len(data) % 4)]

    def bytes(self):
        self.add("TRAILER!!!", 0)
        return b"".join(self.out)


def fetch(package, into):
    """Unpacks a Debian package; nothing is installed."""
    d = tempfile.mkdtemp(dir=into)
    os.chmod(d, 0o755)
    subprocess.run(["apt-get", "download", "-q", package], cwd=d, check=True, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL)
    deb = os.path.join(d, os.listdir(d)[0])
    tree = os.path.join(into, package)
    sh("dpkg-deb", "-x", deb, tree)
    shutil.rmtree(d)
    return tree


def vmlinux(image):
    """The ELF kernel inside a bzImage: qemu starts it directly (PVH), without the decompressor, which
    takes seconds under emulation.  Linux, Documentation/arch/x86/boot.rst: payload_offset, setup_sects."""
    with open(image, "rb") as f:
        d = f.read()
    if d[:4] == b"\x7fELF":
        return d
    off, length = struct.unpack("<II", d[0x248:0x250])
    start = ((d[0x1F1] or 4) + 1) * 512 + off
    p = d[start:start + length]

    def tool(*cmd):
        return subprocess.run(cmd, input=p[:-4], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
    if p[:6] == b"\xfd7zXZ\0":
        v = lzma.LZMADecompressor().decompress(p)
    elif p[:2] == b"\x1f\x8b":
        v = gzip.decompress(p[:-4])
    elif p[:4] == b"\x02\x21\x4c\x18":
        v = tool("lz4", "-dc")
    elif p[:4] == b"\x28\xb5\x2f\xfd":
        v = tool("zstd", "-dc")
    else:
        v = b""
    if v[:4] != b"\x7fELF":
        sys.exit("vm.py: cannot unpack the kernel %s" % image)
    return v


def modules(tree):
    """[(file name, contents)] of MODULES and what they depend on, in loading order."""
    found = {}
    for d, _, names in os.walk(tree):
        for n in names:
            if ".ko" in n:
                found[n.split(".ko")[0].replace("-", "_")] = os.path.join(d, n)
    done = collections.OrderedDict()

    def load(name):
        if name in done or name not in found:      # not found: built in
            return
        with open(found[name], "rb") as f:
            data = f.read()
        if found[name].endswith(".xz"):
            data = lzma.decompress(data)
        elif found[name].endswith(".zst"):
            data = subprocess.run(["zstd", "-dc"], input=data, stdout=subprocess.PIPE, check=True).stdout
        m = re.search(rb"\0depends=([^\0]*)\0", data)
        for d in (m.group(1).decode().split(",") if m else []):
            load(d.replace("-", "_"))
        done[name] = data
    for m in MODULES:
        load(m)
    return [(n + ".ko", d) for n, d in done.items()]


def guest(a, cache):
    """(kernel, initramfs) as files in the cache directory."""
    os.makedirs(cache, exist_ok=True)
    kernel, tree, busybox = a.kernel, a.modules, a.busybox
    if not kernel:
        t = subprocess.run(["apt-cache", "depends", "linux-image-cloud-amd64"], stdout=subprocess.PIPE, text=True).stdout
        m = re.search(r"Depends: (linux-image-\S+)", t)
        if not m:
            sys.exit("vm.py: apt knows no linux-image-cloud-amd64: give --kernel and --modules")
        tree = os.path.join(cache, m.group(1))
        if not os.path.isdir(tree):
            fetch(m.group(1), cache)
        boot = os.path.join(tree, "boot")
        kernel = os.path.join(boot, next(n for n in os.listdir(boot) if n.startswith("vmlinuz")))
    if not busybox:
        d = os.path.join(cache, "busybox-static")
        if not os.path.isdir(d):
            fetch("busybox-static", cache)
        busybox = next(p for p in (d + "/bin/busybox", d + "/usr/bin/busybox") if os.path.exists(p))
    c = Cpio()
    for d in ("bin", "modules", "dev", "proc", "sys", "run"):
        c.add(d, stat.S_IFDIR | 0o755)
    c.add("dev/console", stat.S_IFCHR | 0o600, dev=(5, 1))
    for name, path in (("bin/busybox", busybox), ("bin/blg", compare.BLG)):
        with open(path, "rb") as f:
            c.add(name, stat.S_IFREG | 0o755, f.read())
    mods = modules(tree)
    for n, data in mods:
        c.add("modules/" + n, stat.S_IFREG | 0o644, data)
    c.add("modules/list", stat.S_IFREG | 0o644, "\n".join(n for n, _ in mods).encode() + b"\n")
    c.add("init", stat.S_IFREG | 0o755, INIT.encode())
    image = os.path.join(cache, "vmlinux-" + hashlib.sha256(kernel.encode()).hexdigest()[:12])
    if not os.path.exists(image):
        with open(image + ".tmp", "wb") as f:
            f.write(vmlinux(kernel))
        os.rename(image + ".tmp", image)
    return image, c.bytes()


class GuestProc:
    """A command in the guest, in the manner of compare.Proc."""

    def __init__(self, vm, argv):
        self.vm = vm
        self.over = False
        vm.jobs += 1
        self.number = vm.jobs
        vm.job.sendall(("%d %s\n" % (self.number, " ".join(map(str, argv)))).encode())

    def line(self, timeout):
        if self.over:
            raise EOFError
        l = self.vm.line(timeout)
        if l.startswith("#end"):
            self.over = True
            raise EOFError
        return l

    expect, json = Proc.expect, Proc.json

    def kill(self, *_):
        if not self.over:
            self.vm.stop.sendall(b"%d\n" % self.number)
            with contextlib.suppress(EOFError):
                while True:
                    self.line(20)


class Guest:
    """qemu with the two virtio-serial ports the guest's init talks on."""

    def __init__(self, a, launch, outside, inside, name, mtu, net, vhost):
        self.buf, self.jobs = b"", 0
        self.job, self.stop = None, None
        b = inside + "/" + name
        accel = "kvm" if kvm() else "tcg"
        argv = [a.qemu, "-M", "q35" + (",memory-backend=mem" if vhost else ""), "-accel", accel,
                "-cpu", "host" if accel == "kvm" else "max", "-m", str(a.mem), "-smp", str(a.smp), "-nodefaults",
                "-no-user-config", "-display", "none", "-kernel", inside + "/vmlinux", "-initrd", inside + "/initrd",
                "-append", "console=ttyS0 quiet panic=1 mitigations=off nokaslr tsc=reliable no_timer_check net.ifnames=0",
                "-serial", "file:%s.console" % b, "-device", "virtio-serial-pci"]
        for port in ("job", "kill"):
            argv += ["-chardev", "socket,id=%s,path=%s.%s,server=on,wait=off" % (port, b, port),
                     "-device", "virtserialport,chardev=%s,name=%s" % (port, port)]
        if vhost:
            argv += ["-object", "memory-backend-memfd,id=mem,size=%dM,share=on" % a.mem]
        argv += net + ["-device", "virtio-net-pci,netdev=n,mac=52:54:00:12:34:56" +
                       (",host_mtu=%d" % mtu if mtu > 1500 else "")]
        self.log = tempfile.TemporaryFile()
        self.console = outside + "/" + name + ".console"
        self.proc = Proc(launch + argv, stderr=self.log)
        self.job = self.port(outside + "/" + name + ".job")
        self.stop = self.port(outside + "/" + name + ".kill")
        if self.line(120) != "#ready":
            raise RuntimeError("the guest does not come up: " + self.words())

    def port(self, path):
        end = time.monotonic() + 20
        while time.monotonic() < end and self.proc.p.poll() is None:
            s = socket.socket(socket.AF_UNIX)
            with contextlib.suppress(OSError):
                s.connect(path)
                return s
            s.close()
            time.sleep(0.02)
        raise RuntimeError("qemu did not start: " + self.words())

    def words(self):
        self.log.seek(0)
        t = self.log.read().decode(errors="replace")
        with contextlib.suppress(OSError), open(self.console, errors="replace") as f:
            t += f.read()[-500:]
        return t.strip()

    def line(self, timeout):
        end = time.monotonic() + timeout
        while b"\n" not in self.buf:
            self.job.settimeout(max(0.01, end - time.monotonic()))
            try:
                d = self.job.recv(65536)
            except socket.timeout:
                raise TimeoutError("no word from the guest") from None
            if not d:
                raise RuntimeError("qemu is gone: " + self.words())
            self.buf += d
        l, self.buf = self.buf.split(b"\n", 1)
        return l.decode(errors="replace").rstrip("\r")

    def run(self, *argv):
        p = GuestProc(self, argv)
        out = []
        with contextlib.suppress(EOFError):
            while True:
                out.append(p.line(20))
        return "\n".join(out)

    def close(self):
        for s in (self.job, self.stop):
            if s:
                s.close()
        self.proc.kill()
        self.log.close()


def kvm():
    """/dev/kvm may be there and not run an ordinary guest: without vmx or svm it is a paravirtual one."""
    with open("/proc/cpuinfo") as f:
        flags = set(f.read().split())
    return os.path.exists("/dev/kvm") and bool(flags & {"vmx", "svm"})


# -------------------------------------------------------------- contenders


class Contender:
    """kind: 'stream', 'vhost-user' (both passt), 'user' (qemu's own), or 'tap'."""

    def __init__(self, name, kind, path="", root="", args=()):
        self.name, self.kind, self.path, self.root, self.args = name, kind, path, root, list(args)

    def version(self):
        if not self.path:
            return ""
        r = subprocess.run(launcher(self.root) + [self.path, "--version"], capture_output=True, text=True)
        return (r.stdout + r.stderr).strip().split("\n")[0]


def spent(pid):
    """CPU seconds of a process, all of its threads (proc(5), Documentation/scheduler/sched-stats.rst)."""
    ns = 0
    with contextlib.suppress(OSError):
        for t in os.listdir("/proc/%d/task" % pid):
            with contextlib.suppress(OSError), open("/proc/%d/task/%s/schedstat" % (pid, t)) as f:
                ns += int(f.read().split()[0])
    return ns / 1e9


def launcher(root, netns=None, uid=None):
    cmd = [compare.BLG, "run"] + (["-n", netns] if netns else []) + (["-r", root] if root else [])
    return cmd + (["-u", str(uid), "-N", "65536"] if uid else []) + ["--"]


class VmTopo(Topo):
    """guest -- contender -- host namespace == veth == peer namespace.

    Speaks the interface that the measurements of compare.py use: spawn(), cpu(), pids(), memory().
    """

    def __init__(self, a, tool, mtu):
        self.vm, self.args = None, a
        super().__init__(tool, mtu, start=False)
        try:
            self.bring_up()
        except Exception:
            self.close()
            raise

    def bring_up(self):
        a, kind, name = self.args, self.tool.kind, self.hns
        inside, outside = a.inside, a.outside
        addr, gw, net = HOST4, GW4, ["-netdev", "user,id=n" + "".join(
            ",hostfwd=%s::%d-:%d" % (p, P_IN, P_IN) for p in ("tcp", "udp"))]
        if self.passt():
            self.log = tempfile.TemporaryFile()
            sock = (inside if self.tool.root else outside) + "/" + name + ".socket"
            argv = ["-f", "-q", "-s", sock, "-m", self.mtu, "-t", P_IN, "-u", P_IN, *self.tool.args]
            if kind == "vhost-user":
                argv.append("--vhost-user")
            self.proc = Proc(launcher(self.tool.root, self.host, UID) + [self.tool.path] + argv, stderr=self.log)
            self.listening(outside + "/" + name + ".socket")
            sock = inside + "/" + name + ".socket"
            net = ["-netdev", "stream,id=n,server=off,addr.type=unix,addr.path=" + sock]
            if kind == "vhost-user":
                net = ["-chardev", "socket,id=vu,path=" + sock, "-netdev", "vhost-user,id=n,chardev=vu"]
        elif kind == "tap":
            self.bridge()
            net = ["-netdev", "tap,id=n,ifname=bt0,script=no,downscript=no,vhost=off"]
        else:
            addr, gw = SLIRP4, SLIRP_GW4
        self.vm = Guest(a, launcher(a.root, self.host), outside, inside, name, self.mtu, net, kind == "vhost-user")
        for cmd in ("link set eth0 mtu %d up" % self.mtu, "addr add %s/24 dev eth0" % addr, "route add default via " + gw):
            t = self.vm.run("ip", *cmd.split())
            if t:
                raise RuntimeError("guest: ip %s: %s" % (cmd, t))
        self.wait_up()

    def passt(self):
        return self.tool.kind in ("stream", "vhost-user")

    def listening(self, path):
        end = time.monotonic() + 10
        while not os.path.exists(path):
            if self.proc.p.poll() is not None or time.monotonic() > end:
                self.log.seek(0)
                raise RuntimeError("passt does not start: " + self.log.read().decode().strip()[-300:])
            time.sleep(0.01)

    def bridge(self):
        """The host's end of the veth pair, and a tap, on a bridge without address."""
        ip = ("ip", "-n", self.hns)
        for cmd in ("addr flush dev bh0", "link add bb0 type bridge", "tuntap add bt0 mode tap vnet_hdr",
                    "link set bt0 mtu %d" % self.mtu, "link set bh0 master bb0", "link set bt0 master bb0",
                    "link set bt0 up", "link set bb0 mtu 65520 up"):
            sh(*ip, *cmd.split())

    def spawn(self, where, *args):
        if where == "guest":
            return GuestProc(self.vm, ("blg",) + args)
        return super().spawn(where, *args)

    def cpu(self):
        """(user, system) CPU seconds of passt, all of its processes.

        The kernel splits by clock tick but adds up in nanoseconds: a short run needs the latter."""
        user, system = super().cpu()
        total = sum(spent(pid) for pid in self.pids())
        part = user / (user + system) if user + system else 0
        return total * part, total * (1 - part)

    def memory(self):
        """Resident and proportional size, and what is anonymous: shared guest memory is not passt's own."""
        r = super().memory()
        r["anon_mib"] = 0
        for pid in self.pids():
            with contextlib.suppress(OSError), open("/proc/%d/smaps_rollup" % pid) as f:
                r["anon_mib"] += int(re.search(r"^Anonymous:\s+(\d+)", f.read(), re.M).group(1)) / 1024
        return r

    def close(self):
        if self.vm:
            self.vm.close()
            self.vm = None
        super().close()


# ------------------------------------------------------------ measurements


def cases(a):
    """[(name, main metric, function(topo, during))]"""
    def tcp(path):
        return lambda t, d: m_tcp(t, path, streams=a.streams, secs=a.secs, during=d)

    def rr(mode):
        return lambda t, d: m_rr(t, "tap-out", mode, secs=a.secs, during=d)
    all_ = [("out", "mbps", tcp("tap-out")), ("in", "mbps", tcp("tap-in")), ("down", "mbps", tcp("tap-down")),
            ("rr", "tps", rr("tcp")), ("crr", "tps", rr("crr")), ("udp-rr", "tps", rr("udp")),
            ("idle", "rss_mib", idle)]
    want = a.cases.split(",")
    return [c for c in all_ if c[0] in want]


def idle(topo, during):
    """Memory, and CPU, of a guest that does nothing."""
    m = compare.Meter(topo)
    r = during(lambda: (time.sleep(1.0), {})[1])
    r.update(topo.memory() if topo.passt() else {})
    r["idle_cpu_pct"] = m.end()["cpu"] * 100
    return r


def measure(topo, fn):
    """One measurement, with qemu's CPU time over the same window."""
    def during(wait):
        q = spent(topo.vm.proc.pid)
        r = wait()
        r["qemu_s"] = spent(topo.vm.proc.pid) - q
        return r
    r = fn(topo, during)
    if topo.passt() and topo.proc.p.poll() is not None:
        raise RuntimeError("passt is gone, status %d" % topo.proc.p.returncode)
    if r.get("bytes"):
        gib = r["bytes"] / GIB
        r["mbps"] = r["gbps"] * 1000
        r["qemu_s_per_gib"] = r["qemu_s"] / gib
        if topo.passt():
            r["passt_s_per_gib"] = (r["user_s"] + r["sys_s"]) / gib
    if not topo.passt():
        r.pop("cpu_us_per_tx", None)
    return r


def run(a, tools):
    res = dict(meta=meta(a, tools), rows=[])
    if res["meta"]["load"] > 0.5:
        log("the machine is busy (load %.1f): nothing measured now means much" % res["meta"]["load"])

    def save():
        with open(a.json + ".tmp", "w") as f:
            json.dump(res, f, indent=1)
        os.rename(a.json + ".tmp", a.json)
        with open(a.md, "w") as f:
            f.write(table(res))

    for mtu in [int(m) for m in a.mtu.split(",")]:
        topos = []
        for t in tools:
            try:
                topos.append(VmTopo(a, t, mtu))
                log("mtu %d: %s is up" % (mtu, t.name))
            except Exception as e:      # noted, and the others go on
                log("mtu %d: %s is left out: %s" % (mtu, t.name, e))
                res["meta"]["left_out"].append("%s, MTU %d: %s" % (t.name, mtu, e))
        for case, metric, fn in cases(a):
            row = dict(case=case, mtu=mtu, metric=metric, runs={t.tool.name: [] for t in topos})
            res["rows"].append(row)
            for rep in range(a.reps):
                k = rep % max(1, len(topos))
                for t in topos[k:] + topos[:k]:
                    try:
                        row["runs"][t.tool.name].append(measure(t, fn))
                    except Exception as e:
                        row["runs"][t.tool.name].append(dict(error="%s: %s" % (type(e).__name__, e)))
                        log(t.tool.name, case, row["runs"][t.tool.name][-1]["error"])
            log("mtu %d %s:" % (mtu, case), " ".join("%s=%s" % (n, cell(rs, metric)) for n, rs in row["runs"].items()))
            save()
        for t in topos:
            t.close()
    save()
    print(table(res))


# ------------------------------------------------------------------ report

COLUMNS = [("guest->peer Mbit/s", "out", "mbps", 0), ("peer->guest Mbit/s", "in", "mbps", 0),
           ("guest pulls Mbit/s", "down", "mbps", 0),
           ("passt CPU s/GiB out", "out", "passt_s_per_gib", 2), ("passt CPU s/GiB in", "in", "passt_s_per_gib", 2),
           ("passt CPU s/GiB pull", "down", "passt_s_per_gib", 2),
           ("qemu CPU s/GiB out", "out", "qemu_s_per_gib", 2), ("qemu CPU s/GiB in", "in", "qemu_s_per_gib", 2),
           ("TCP RR /s", "rr", "tps", 0), ("p50 us", "rr", "p50_us", 0), ("p99 us", "rr", "p99_us", 0),
           ("passt us/RR", "rr", "cpu_us_per_tx", 1), ("TCP CRR /s", "crr", "tps", 0),
           ("passt us/CRR", "crr", "cpu_us_per_tx", 1), ("UDP RR /s", "udp-rr", "tps", 0),
           ("RSS MiB idle", "idle", "rss_mib", 1), ("anonymous MiB idle", "idle", "anon_mib", 1)]


def values(runs, key):
    return [r[key] for r in runs if r.get(key) is not None]


def cell(runs, key, digits=0, spread=True):
    v = values(runs, key)
    if not v:
        return "failed" if any("error" in r for r in runs) else "-"
    t = "%.*f" % (digits, statistics.median(v))
    if spread and len(v) > 1:
        t += " (%.*f-%.*f)" % (digits, min(v), digits, max(v))
    bad = len([r for r in runs if "error" in r])
    return t + (" %d failed" % bad if bad else "")


def table(res):
    m, out = res["meta"], []
    out.append("%s, kernel %s, %s x%d; %s, %s, %d vCPU; %d repetitions of %g s; median (min-max), "
               "ratio to the established one in the same mode; load average before: %.1f\n" % (
                   m["date"], m["kernel"], m["cpu"], m["cores"], m["qemu"], m["accel"], m["smp"], m["reps"], m["secs"],
                   m["load"]))
    out += ["* %s: %s" % (t["name"], t["version"]) for t in m["tools"] if t["version"]]
    out += ["* left out: " + t for t in m["left_out"]]
    by = {(r["mtu"], r["case"]): r["runs"] for r in res["rows"]}
    for mtu in sorted({r["mtu"] for r in res["rows"]}):
        cols = [c for c in COLUMNS if (mtu, c[1]) in by]
        names = [t["name"] for t in m["tools"] if any(t["name"] in v for k, v in by.items() if k[0] == mtu)]
        out += ["", "MTU %d" % mtu, "", "| path | " + " | ".join(c[0] for c in cols) + " |", "|" + "---|" * (len(cols) + 1)]
        for n in names:
            row = []
            for _, case, key, digits in cols:
                runs = by[mtu, case].get(n, [])
                t = cell(runs, key, digits, spread=key in ("mbps", "tps", "passt_s_per_gib"))
                base = values(by[mtu, case].get(n.replace("ours", "upstream"), []), key)
                mine = values(runs, key)
                if n.startswith("ours") and base and mine and statistics.median(base):
                    t += " **x%.2f**" % (statistics.median(mine) / statistics.median(base))
                row.append(t)
            out.append("| " + " | ".join([n] + row) + " |")
    return "\n".join(out) + "\n"


def meta(a, tools):
    with open("/proc/cpuinfo") as f:
        cpu = re.search(r"model name\s*:\s*(.*)", f.read())
    q = subprocess.run(launcher(a.root) + [a.qemu, "--version"], capture_output=True, text=True).stdout
    return dict(date=time.strftime("%Y-%m-%d %H:%M"), kernel=os.uname().release, cpu=cpu.group(1) if cpu else "",
                cores=os.cpu_count(), qemu=q.split("\n")[0], accel="kvm" if kvm() else "tcg", smp=a.smp, reps=a.reps,
                secs=a.secs, streams=a.streams, argv=sys.argv[1:], left_out=[], load=os.getloadavg()[0],
                tools=[dict(name=t.name, kind=t.kind, version=t.version()) for t in tools])


# -------------------------------------------------------------------- main


def contenders(a):
    tools = []
    if a.ours:
        p = os.path.join(a.outside, "ours")
        os.mkdir(p, 0o755)
        shutil.copy(a.ours, p + "/passt")       # where the unprivileged user can reach it
        tools += [Contender("ours " + k, k, p + "/passt") for k in ("stream", "vhost-user")]
    if a.upstream and os.path.exists((a.root or "") + a.upstream):
        tools += [Contender("upstream " + k, k, a.upstream, a.root) for k in ("stream", "vhost-user")]
    tools += [Contender("qemu user", "user"), Contender("tap+bridge", "tap")]
    return [t for t in tools if re.search(a.only, t.name)]


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = os.path.dirname(os.path.abspath(__file__))
    built = os.path.join(here, "../target/release/passt")
    ap.add_argument("cmd", choices=["run", "report"])
    ap.add_argument("file", nargs="?")
    ap.add_argument("--root", default=os.environ.get("PEER_ROOT", ""),
                    help="tree that qemu and the established passt are installed in (default: this system)")
    ap.add_argument("--qemu", default="/usr/bin/qemu-system-x86_64", help="inside --root")
    ap.add_argument("--upstream", default="/usr/bin/passt.avx2", help="the established passt, inside --root; '' for none")
    ap.add_argument("--ours", default=built if os.path.exists(built) else "", help="our passt (default: %(default)s)")
    ap.add_argument("--only", default="", help="regular expression on the contender's name")
    ap.add_argument("--cases", default="out,in,rr,crr,udp-rr,idle", help="of out, in, down, rr, crr, udp-rr, idle")
    ap.add_argument("--mtu", default="1500,65520")
    ap.add_argument("--streams", type=int, default=1, help="TCP streams in out, in and down")
    ap.add_argument("--reps", type=int, default=5)
    ap.add_argument("--secs", type=float, default=3)
    ap.add_argument("--smp", type=int, default=1)
    ap.add_argument("--mem", type=int, default=384, help="MiB of each guest")
    ap.add_argument("--kernel", help="bzImage or vmlinux (default: Debian's cloud kernel, downloaded)")
    ap.add_argument("--modules", help="directory with its modules")
    ap.add_argument("--busybox", help="a static busybox (default: Debian's, downloaded)")
    ap.add_argument("--json", default="vm.json")
    ap.add_argument("--md", default="vm.md")
    a = ap.parse_args()
    if a.cmd == "report":
        with open(a.file or a.json) as f:
            print(table(json.load(f)))
        return
    if os.geteuid():
        sys.exit("vm.py: needs root (it creates network namespaces)")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    # One directory that both roots see: inside is its name for what runs in --root.
    a.outside = tempfile.mkdtemp(prefix="vmbench-", dir=(a.root or "") + "/tmp")
    a.inside = a.outside[len(a.root):] if a.root else a.outside
    atexit.register(shutil.rmtree, a.outside, ignore_errors=True)
    os.chmod(a.outside, 0o777)
    compare.BLG = os.path.join(a.outside, "blg")
    sh(os.environ.get("CC", "cc"), "-O2", "-Wall", "-static", "-o", compare.BLG, os.path.join(here, "blg.c"))
    cache = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "passt-vm-bench")
    kernel, initrd = guest(a, cache)
    shutil.copy(kernel, a.outside + "/vmlinux")
    with open(a.outside + "/initrd", "wb") as f:
        f.write(initrd)
    run(a, contenders(a))


if __name__ == "__main__":
    main()
