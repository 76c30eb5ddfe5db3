#!/usr/bin/env python3
"""Side-by-side benchmark of pasta-like tools: ours, the established ones, and plain veth, in one run.

    compare.py run     --peer-root DIR [--tool NAME=PATH ...]   all figures
    compare.py profile --peer-root DIR [--tool NAME=PATH ...]   syscalls, perf
    compare.py report  FILE.json                                table again

Needs root, iproute2, a C compiler.  Standard library only.
"""
import argparse, atexit, contextlib, datetime, fcntl, json, os, platform, re
import resource, select, shutil, signal, socket, statistics, subprocess, sys, tempfile, time

HERE = os.path.dirname(os.path.abspath(__file__))
HOST4, GW4, PEER4 = "198.51.100.1", "198.51.100.2", "203.0.113.9"
HOST6, GW6, PEER6 = "2001:db8:51::1", "2001:db8:51::2", "2001:db8:99::9"
P_IN, P_OUT, P_PEER = 5201, 5202, 5203   # host->ns forward, ns->host forward, peer
CLK = os.sysconf("SC_CLK_TCK")
UID = 4242                               # tools run unprivileged
CC = "cubic"                             # TCP congestion control, --cc
TUNED = "4096 4194304 4194304"           # tcp_wmem of the host in "tuned" cases
NO_FORWARDS = False                      # --no-forwards: outbound only
LIVE = []                                # every process we started

# ------------------------------------------------------------- processes


def sh(*argv, check=True):
    r = subprocess.run([str(a) for a in argv], capture_output=True, text=True)
    if check and r.returncode:
        raise RuntimeError("%s: %s" % (" ".join(map(str, argv)), r.stderr.strip()))
    return r.stdout


class Proc:
    """A child with line-wise output; always killed in the end."""

    def __init__(self, argv, stderr=None):
        self.p = subprocess.Popen([str(a) for a in argv], stdin=subprocess.PIPE,
                                  stdout=subprocess.PIPE, stderr=stderr or subprocess.DEVNULL)
        self.pid = self.p.pid
        self.buf = b""
        LIVE.append(self)

    def line(self, timeout):
        end = time.monotonic() + timeout
        while b"\n" not in self.buf:
            left = end - time.monotonic()
            if left <= 0 or not select.select([self.p.stdout], [], [], left)[0]:
                raise TimeoutError
            d = os.read(self.p.stdout.fileno(), 65536)
            if not d:
                raise EOFError
            self.buf += d
        l, self.buf = self.buf.split(b"\n", 1)
        return l.decode()

    def expect(self, word, timeout=10):
        l = self.line(timeout)
        if l != word:
            raise RuntimeError("expected %r, got %r" % (word, l))

    def json(self, timeout):
        return json.loads(self.line(timeout))

    def kill(self, sig=signal.SIGKILL, wait=5):
        if self.p.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self.p.send_signal(sig)
            try:
                self.p.wait(wait)
            except subprocess.TimeoutExpired:
                self.p.kill()
                self.p.wait()
        for f in (self.p.stdin, self.p.stdout):
            f.close()
        if self in LIVE:
            LIVE.remove(self)


@atexit.register
def _cleanup():
    for p in list(LIVE):
        with contextlib.suppress(Exception):
            p.kill()
    for t in list(Topo.all):
        with contextlib.suppress(Exception):
            t.close()


# -------------------------------------------------------------- contenders


class Tool:
    """kind: 'pasta' (pasta's CLI), 'slirp4netns', or 'veth' (no tool)."""

    def __init__(self, name, kind, path="", root="", args=()):
        self.name, self.kind, self.path, self.root, self.args = name, kind, path, root, list(args)

    def launch(self, netns, *argv, timed=False):
        cmd = [BLG, "run", "-n", netns, "-u", UID, "-N", 262144]
        if self.root:
            cmd += ["-r", self.root]
        if timed:
            cmd += ["-T"]
        return cmd + ["--", self.path] + list(argv)

    def version(self):
        if self.kind == "veth":
            return "kernel " + platform.release()
        cmd = [BLG, "run"] + (["-r", self.root] if self.root else []) + ["--", self.path, "--version"]
        r = subprocess.run(cmd, capture_output=True, text=True)
        return (r.stdout + r.stderr).strip().split("\n")[0]


class Topo:
    """guest namespace -- tool -- host namespace == veth == peer namespace.

    One per contender, so that contenders share no address, port or socket.
    For 'veth' the guest is wired straight to the peer, and the loopback
    cases are plain loopback inside the host namespace.
    """
    all = []
    seq = 0

    def __init__(self, tool, mtu, start=True, wmem=None):
        Topo.seq += 1
        Topo.all.append(self)
        self.tool, self.mtu, self.proc, self.hold = tool, mtu, None, None
        tag = "bb%d_%d" % (os.getpid() % 100000, Topo.seq)
        self.hns, self.pns = tag + "h", tag + "p"
        self.host, self.peer = "/run/netns/" + self.hns, "/run/netns/" + self.pns
        for ns in (self.hns, self.pns):
            sh("ip", "netns", "add", ns)
            sh("ip", "-n", ns, "link", "set", "lo", "up")
            self.sysctl("/run/netns/" + ns)
        if wmem:         # before the tool starts: it may open sockets early
            sh(BLG, "run", "-n", self.host, "--", "sh", "-c",
               "echo %s > /proc/sys/net/ipv4/tcp_wmem" % wmem)
        self.hold = Proc([BLG, "run", "-n", self.host, "-u", UID, "--", BLG, "hold"],
                         stderr=sys.stderr)
        self.hold.expect("ready")
        self.guest = "/proc/%d/ns/net" % self.hold.pid
        self.sysctl(self.guest)
        self.in_guest("ip", "link", "set", "lo", "up")
        if tool.kind == "veth":
            self.wire(self.hold.pid, mtu)
        else:
            self.wire(self.hns, 65520)
            if start:
                self.start()

    def in_guest(self, *argv, **kw):
        return sh(BLG, "run", "-n", self.guest, "--", *argv, **kw)

    def sysctl(self, ns):
        script = ("cd /proc/sys/net; echo 10000 65535 > ipv4/ip_local_port_range; "
                  "echo 1 > ipv4/tcp_tw_reuse; echo 2000 > ipv4/tcp_max_tw_buckets || exit 1; echo %s > ipv4/tcp_congestion_control || exit 1; echo 65535 > core/somaxconn; "
                  "echo '0 2147483647' > ipv4/ping_group_range; "
                  "for i in all default; do echo 0 > ipv6/conf/$i/accept_dad; done") % CC
        sh(BLG, "run", "-n", ns, "--", "sh", "-c", script)

    def wire(self, near, mtu):
        p = "ip -n %s " % self.pns
        n = "ip -n %s " % near if near == self.hns else "%s run -n %s -- ip " % (BLG, self.guest)
        sh("ip", "link", "add", "bh0", "mtu", mtu, "netns", near, "type", "veth",
           "peer", "name", "bp0", "mtu", mtu, "netns", self.pns)
        for cmd in (n + "addr add %s/24 dev bh0" % HOST4,
                    n + "addr add %s/64 dev bh0 nodad" % HOST6,
                    p + "addr add %s/24 dev bp0" % GW4,
                    p + "addr add %s/64 dev bp0 nodad" % GW6,
                    p + "addr add %s/32 dev lo" % PEER4,
                    p + "addr add %s/128 dev lo nodad" % PEER6,
                    n + "link set bh0 up", p + "link set bp0 up",
                    n + "route add default via " + GW4, n + "-6 route add default via " + GW6,
                    p + "route add default via " + HOST4, p + "-6 route add default via " + HOST6):
            sh(*cmd.split())

    def start_cmd(self, timed=False):
        t = self.tool
        if t.kind == "pasta":
            forwards = ["-t", P_IN, "-u", P_IN, "-T", P_OUT, "-U", P_OUT]
            if NO_FORWARDS:
                forwards = ["-t", "none", "-u", "none", "-T", "none", "-U", "none"]
            return t.launch(self.host, "-f", "-q", "--config-net", "-m", self.mtu,
                            *forwards, *t.args, self.hold.pid, timed=timed)
        self.api = "/tmp/%s.sock" % self.hns      # inside the tool's root
        return t.launch(self.host, "--configure", "--mtu=%d" % self.mtu, "--enable-ipv6",
                        "--disable-host-loopback", "--api-socket=" + self.api,
                        "--userns-path=/proc/%d/ns/user" % self.hold.pid,
                        *t.args, self.hold.pid, "tap0", timed=timed)

    def start(self):
        self.log = tempfile.TemporaryFile()
        self.proc = Proc(self.start_cmd(), stderr=self.log)
        self.wait_up()
        if self.tool.kind == "slirp4netns":
            for proto in ("tcp", "udp"):
                self.slirp_api(execute="add_hostfwd", arguments=dict(
                    proto=proto, host_addr="0.0.0.0", host_port=P_IN,
                    guest_addr="10.0.2.100", guest_port=P_IN))

    def wait_up(self):
        """Until a TCP connection from the guest reaches the peer."""
        srv = self.spawn("peer", "echo", "-l", PEER4, "-p", P_PEER)
        srv.expect("ready")
        cli = self.spawn("guest", "wait-conn", "-c", PEER4, "-p", P_PEER, "-t", 10)
        cli.expect("ready")
        r = cli.json(12)
        cli.kill()
        srv.kill()
        if not r["mono"]:
            self.log.seek(0)
            raise RuntimeError("%s: no connectivity\n%s" % (self.tool.name, self.log.read().decode()))
        return r["mono"]

    def slirp_api(self, **req):
        s = socket.socket(socket.AF_UNIX)
        s.settimeout(5)
        s.connect((self.tool.root or "") + self.api)
        s.sendall(json.dumps(req).encode())
        s.shutdown(socket.SHUT_WR)
        r = json.loads(s.recv(4096))
        s.close()
        if "error" in r:
            raise RuntimeError("slirp4netns: %s" % r)

    def spawn(self, where, *args):
        return Proc([BLG, "run", "-n", getattr(self, where), "--", BLG] + list(args))

    def pids(self):
        """The tool's process and all its descendants."""
        if not self.proc:
            return []
        kids = {}
        for d in os.listdir("/proc"):
            if d.isdigit():
                with contextlib.suppress(OSError):
                    with open("/proc/%s/stat" % d) as f:
                        ppid = int(f.read().rsplit(")", 1)[1].split()[1])
                    kids.setdefault(ppid, []).append(int(d))
        out, todo = [], [self.proc.pid]
        while todo:
            p = todo.pop()
            out.append(p)
            todo += kids.get(p, [])
        return out

    def cpu(self):
        """(user, system) CPU seconds of the tool so far."""
        u = s = 0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                with open("/proc/%d/stat" % pid) as f:
                    v = f.read().rsplit(")", 1)[1].split()
                u += int(v[11])
                s += int(v[12])
        return u / CLK, s / CLK

    def memory(self):
        rss = pss = 0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                with open("/proc/%d/smaps_rollup" % pid) as f:
                    t = f.read()
                rss += int(re.search(r"^Rss:\s+(\d+)", t, re.M).group(1))
                pss += int(re.search(r"^Pss:\s+(\d+)", t, re.M).group(1))
        return dict(rss_mib=rss / 1024, pss_mib=pss / 1024)

    def frames(self):
        """Frames (from guest, to guest) counted on the guest's interface."""
        t = self.in_guest("cat", "/proc/net/dev")
        rx = tx = 0
        for l in t.split("\n")[2:]:
            if ":" in l and not l.strip().startswith("lo:"):
                v = l.split(":")[1].split()
                rx += int(v[1])
                tx += int(v[9])
        return tx, rx

    def close(self):
        if self in Topo.all:
            Topo.all.remove(self)
        for p in (self.proc, self.hold):
            if p:
                p.kill(signal.SIGTERM)
        for ns in (self.hns, self.pns):
            sh("ip", "netns", "del", ns, check=False)


# ------------------------------------------------------------ measurements


def ends(topo, path, v6=False):
    """-> server place, listen address, client place, address, source, port"""
    any_, lo = ("::", "::1") if v6 else ("0.0.0.0", "127.0.0.1")
    peer, host = (PEER6, HOST6) if v6 else (PEER4, HOST4)
    ref = topo.tool.kind == "veth"
    if path in ("tap-out", "tap-down"):
        return "peer", peer, "guest", peer, None, P_PEER
    if path == "tap-in":
        return "guest", any_, "peer", host, peer, P_IN
    if path == "lo-in":      # host loopback -> guest
        return "host" if ref else "guest", any_, "host", lo, None, P_IN
    if path == "lo-out":     # guest loopback -> host loopback
        return "host", lo, "host" if ref else "guest", lo, None, P_OUT
    raise ValueError(path)


def applies(topo, path, v6=False):
    if NO_FORWARDS and path not in ("tap-out", "tap-down"):
        return False
    if topo.tool.kind == "slirp4netns":
        return path != "lo-out" and not (v6 and path != "tap-out")
    return True


def busy():
    with open("/proc/stat") as f:
        v = list(map(int, f.readline().split()[1:9]))
    return (sum(v) - v[3] - v[4]) / CLK


class Meter:
    """CPU of the tool and of the whole machine over a window."""

    def __init__(self, topo):
        self.topo = topo
        self.c0, self.b0, self.t0 = topo.cpu(), busy(), time.monotonic()

    def end(self):
        c1, t = self.topo.cpu(), time.monotonic() - self.t0
        u, s = c1[0] - self.c0[0], c1[1] - self.c0[1]
        return dict(user_s=u, sys_s=s, cpu=(u + s) / t, busy=(busy() - self.b0) / t, wall=t)


def src_arg(src):
    return ["-s", src] if src else []


def m_tcp(topo, path, v6=False, streams=1, secs=1.5, during=None, trunc=False, pace=0, sndbuf=0):
    sp, la, cp, ca, src, port = ends(topo, path, v6)
    if path == "tap-down":
        return m_tcp_down(topo, v6, streams, secs, pace, sndbuf, during)
    srv = topo.spawn(sp, "tcp-recv", "-l", la, "-p", port, "-n", streams, "-t", secs, "-w", 0.4,
                     *(["-m", "trunc"] if trunc else []))
    try:
        srv.expect("ready")
        cli = topo.spawn(cp, "tcp-send", "-c", ca, "-p", port, "-n", streams,
                         "-t", secs + 5, "-R", pace, "-S", sndbuf, *src_arg(src))
        srv.expect("start", 12)
        m = Meter(topo)
        r = srv.json(secs + 10) if not during else during(lambda: srv.json(secs + 10))
        r.update(m.end())
        cli.kill()
    finally:
        srv.kill()
    gb = r["bytes"] / 1e9
    r["cpu_s_per_gb"] = (r["user_s"] + r["sys_s"]) / gb if gb else None
    r["busy_s_per_gb"] = r["busy"] * r["wall"] / gb if gb else None
    return r


def m_tcp_down(topo, v6, streams, secs, pace, sndbuf, during=None):
    """A download that the guest starts: it connects to the peer, which sends."""
    peer = PEER6 if v6 else PEER4
    snd = topo.spawn("peer", "tcp-serve", "-l", peer, "-p", P_PEER, "-n", streams, "-t", secs + 5,
                     "-R", pace, "-S", sndbuf)
    try:
        snd.expect("ready")
        rcv = topo.spawn("guest", "tcp-pull", "-c", peer, "-p", P_PEER, "-n", streams, "-t", secs, "-w", 0.4)
        rcv.expect("ready")
        rcv.expect("start", 12)
        m = Meter(topo)
        r = rcv.json(secs + 10) if not during else during(lambda: rcv.json(secs + 10))
        r.update(m.end())
        rcv.kill()
    finally:
        snd.kill()
    gb = r["bytes"] / 1e9
    r["cpu_s_per_gb"] = (r["user_s"] + r["sys_s"]) / gb if gb else None
    r["busy_s_per_gb"] = r["busy"] * r["wall"] / gb if gb else None
    return r


def m_udp(topo, path, size=1400, secs=1.0, rate=0, during=None):
    sp, la, cp, ca, src, port = ends(topo, path)
    srv = topo.spawn(sp, "udp-recv", "-l", la, "-p", port, "-t", secs, "-w", 0.2)
    try:
        srv.expect("ready")
        cli = topo.spawn(cp, "udp-send", "-c", ca, "-p", port, "-z", size,
                         "-t", secs + 0.6, "-R", rate, *src_arg(src))
        srv.expect("start", 8)
        m = Meter(topo)
        r = srv.json(secs + 8) if not during else during(lambda: srv.json(secs + 8))
        r.update(m.end())
        r["offered_pps"] = cli.json(5)["pps"]
        cli.kill()
    finally:
        srv.kill()
    gb = r["bytes"] / 1e9
    r["cpu_s_per_gb"] = (r["user_s"] + r["sys_s"]) / gb if gb else None
    r["cpu_us_per_pkt"] = (r["user_s"] + r["sys_s"]) * 1e6 / r["pkts"] if r["pkts"] else None
    return r


def m_lossless(topo, path, size, secs=0.5, steps=7, limit=0.001):
    """Highest paced rate with at most 0.1 % loss, by bisection (log scale)."""
    lo, hi, best = 5e3, 1.5e6, dict(pps=0.0, gbps=0.0)
    for _ in range(steps):
        mid = (lo * hi) ** 0.5
        try:
            r = m_udp(topo, path, size, secs, rate=mid)
            ok = r["loss"] <= limit and r["pps"] >= 0.93 * mid
        except (TimeoutError, EOFError):
            ok = False
        if ok:
            lo = mid
            if r["pps"] > best["pps"]:
                best = r
        else:
            hi = mid
    return best


def m_rr(topo, path, mode, conc=1, secs=1.0, during=None):
    sp, la, cp, ca, src, port = ends(topo, path)
    srv = topo.spawn(sp, "echo", "-l", la, "-p", port)
    try:
        srv.expect("ready")
        cli = topo.spawn(cp, "rr", "-c", ca, "-p", port, "-m", mode, "-n", conc,
                         "-t", secs, "-w", 0.3, *src_arg(src))
        cli.expect("start", 8)
        m = Meter(topo)
        r = cli.json(secs + 8) if not during else during(lambda: cli.json(secs + 8))
        r.update(m.end())
        r["cpu_us_per_tx"] = (r["user_s"] + r["sys_s"]) * 1e6 / r["n"] if r["n"] else None
        cli.kill()
    finally:
        srv.kill()
    return r


def m_conns(tool, levels, limit_s=20):
    """Memory, and CPU while idle, with many open TCP connections (tap-out)."""
    topo, out, held, have = Topo(tool, 65520), {}, [], 0
    srv = topo.spawn("peer", "hold-srv", "-l", PEER4, "-p", P_PEER)
    try:
        srv.expect("ready")
        time.sleep(0.3)
        for n in levels:
            r = {}
            if n > have:
                cli = topo.spawn("guest", "hold-cli", "-c", PEER4, "-p", P_PEER,
                                 "-n", n - have, "-t", limit_s)
                held.append(cli)
                cli.expect("start")
                m = Meter(topo)
                r = cli.json(limit_s + 10)
                e = m.end()
                r["cpu_us_per_conn"] = (e["user_s"] + e["sys_s"]) * 1e6 / max(1, r["up"])
                if r["up"] < n - have:
                    r["incomplete"] = True
                have = n
            time.sleep(0.5)
            m = Meter(topo)
            time.sleep(1.5)
            r["idle_cpu_pct"] = m.end()["cpu"] * 100
            r.update(topo.memory())
            if topo.proc.p.poll() is not None:      # it did not survive this
                r = dict(error="the tool exited with status %d" % topo.proc.p.returncode)
            out[n] = r
            if r.get("incomplete") or "error" in r:
                break
    finally:
        for p in held + [srv]:
            p.kill()
        topo.close()
    return out


def m_spawn(tool):
    """`pasta --config-net -- true`: milliseconds until it has exited."""
    topo = Topo(tool, 65520, start=False)
    try:
        p = Proc(tool.launch(topo.host, "-q", "--config-net", "--", "true", timed=True))
        p.line(10)
        r = p.json(10)
        p.kill()
        if r["rc"]:
            raise RuntimeError("rc %d" % r["rc"])
        return dict(ms=r["secs"] * 1e3)
    finally:
        topo.close()


def m_attach(tool):
    """exec of the tool to the first TCP connection from the guest, ms."""
    topo = Topo(tool, 65520, start=False)
    try:
        srv = topo.spawn("peer", "echo", "-l", PEER4, "-p", P_PEER)
        srv.expect("ready")
        cli = topo.spawn("guest", "wait-conn", "-c", PEER4, "-p", P_PEER, "-t", 10)
        cli.expect("ready")
        topo.proc = Proc(topo.start_cmd(timed=True))
        t0 = topo.proc.json(10)["start"]
        t1 = cli.json(12)["mono"]
        for pid in topo.pids()[::-1]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        srv.kill()
        cli.kill()
        return dict(ms=(t1 - t0) * 1e3)
    finally:
        topo.close()


# -------------------------------------------------------------------- plan
# (group, case id, label, unit-metric, better, function(topo) , mtu, path, v6)


def plan(a):
    s = a.secs
    for mtu in (65520, 1500):
        for v6 in (False, True):
            for path in ("tap-out", "tap-down", "tap-in"):
                for n in (1, 8):
                    yield ("tcp-tap", "tcp %s v%d mtu%d x%d" % (path, 6 if v6 else 4, mtu, n), "gbps",
                           (lambda t, path=path, v6=v6, n=n: m_tcp(t, path, v6, n, s)), mtu, path, v6)
        # little data in flight: what a tool does without its queues overflowing
        yield ("tcp-tap", "tcp tap-out v4 mtu%d x1 sndbuf 128K" % mtu, "gbps",
               (lambda t: m_tcp(t, "tap-out", False, 1, s, sndbuf=131072)), mtu, "tap-out", False)
        # paced by the sender below what the tools manage: compare cost
        for path, gbps in (("tap-out", 4 if mtu > 9000 else 1), ("tap-in", 4 if mtu > 9000 else 1)):
            yield ("tcp-tap", "tcp %s v4 mtu%d x1 paced to %dG" % (path, mtu, gbps), "gbps",
                   (lambda t, path=path, g=gbps: m_tcp(t, path, False, 1, s, pace=int(g * 1e9 / 8))), mtu, path, False)
    for path in ("lo-in", "lo-out"):
        for n in (1, 8):
            yield ("tcp-splice", "tcp %s v4 x%d" % (path, n), "gbps",
                   (lambda t, path=path, n=n: m_tcp(t, path, False, n, s)), 65520, path, False)
    for path in ("tap-out", "tap-in"):
        for z in (64, 1400, 8192):
            yield ("udp-tap", "udp %s %dB blast" % (path, z), "pps",
                   (lambda t, path=path, z=z: m_udp(t, path, z, 0.8)), 65520, path, False)
    for path in ("lo-in", "lo-out"):
        for z in (1400, 8192, 65507):
            yield ("udp-splice", "udp %s %dB blast" % (path, z), "pps",
                   (lambda t, path=path, z=z: m_udp(t, path, z, 0.8)), 65520, path, False)
    for path, z in (("tap-out", 1400), ("tap-in", 1400), ("lo-in", 1400), ("lo-in", 8192), ("lo-in", 65507)):
        yield ("udp-lossless", "udp %s %dB lossless" % (path, z), "pps",
               (lambda t, path=path, z=z: m_lossless(t, path, z)), 65520, path, False)
    for path in ("tap-out", "tap-in", "lo-in", "lo-out"):
        yield ("latency", "tcp-rr %s" % path, "tps",
               (lambda t, path=path: m_rr(t, path, "tcp")), 65520, path, False)
        yield ("latency", "udp-rr %s" % path, "tps",
               (lambda t, path=path: m_rr(t, path, "udp")), 65520, path, False)
        yield ("latency", "tcp-crr %s" % path, "tps",
               (lambda t, path=path: m_rr(t, path, "crr")), 65520, path, False)
        yield ("latency", "tcp-crr %s x16" % path, "tps",
               (lambda t, path=path: m_rr(t, path, "crr", 16)), 65520, path, False)


def allow_cc():
    """Namespaces may only use congestion controls the machine allows."""
    p = "/proc/sys/net/ipv4/tcp_allowed_congestion_control"
    old = open(p).read().strip()
    if CC not in old.split():
        open(p, "w").write(old + " " + CC)
        atexit.register(lambda: open(p, "w").write(old))


class Lock:
    """Hold the machine-wide benchmark lock around a measured section."""

    def __init__(self, path):
        self.f = open(path, "w") if path else None

    def __enter__(self):
        if self.f:
            fcntl.flock(self.f, fcntl.LOCK_EX)
            time.sleep(0.1)

    def __exit__(self, *_):
        if self.f:
            fcntl.flock(self.f, fcntl.LOCK_UN)


def log(*x):
    print(time.strftime("%H:%M:%S"), *x, file=sys.stderr, flush=True)


def run(a, tools):
    lock, res = Lock(a.lock), dict(meta=meta(tools, a), cases=[])
    old = {}
    if a.merge and os.path.exists(a.json):
        with open(a.json) as f:
            old = {c["case"]: c for c in json.load(f)["cases"]}
    order = [c[1] for c in plan(a)]
    want = a.groups.split(",") if a.groups else None
    sel = [c for c in plan(a) if (not want or c[0] in want) and (not a.only or re.search(a.only, c[1]))]

    def save():
        if old:
            new = {c["case"]: c for c in res["cases"]}
            res["cases"] = sorted({**old, **new}.values(), key=lambda c: order.index(c["case"])
                                  if c["case"] in order else len(order))
        os.makedirs(os.path.dirname(os.path.abspath(a.json)), exist_ok=True)
        with open(a.json + ".tmp", "w") as f:
            json.dump(res, f, indent=1)
        os.replace(a.json + ".tmp", a.json)
        with open(a.md, "w") as f:
            f.write(table(res))

    def rounds(group, cid, metric, fns, reps):
        """fns: {tool name: function}; interleaved A B C A B C ..."""
        case = dict(group=group, case=cid, metric=metric, runs={n: [] for n in fns})
        for _ in range(reps):
            with lock:
                for name, fn in fns.items():
                    try:
                        case["runs"][name].append(fn())
                    except Exception as e:      # noted, never fatal
                        case["runs"][name].append(dict(error="%s: %s" % (type(e).__name__, e)))
        res["cases"] = [c for c in res["cases"] if c["case"] != cid] + [case]
        log(cid, " ".join("%s=%s" % (n, fmt(mid(case["runs"][n], metric)[0])) for n in fns))
        save()

    for mtu in sorted({c[4] for c in sel}, reverse=True):
        with lock:
            topos = [Topo(t, mtu) for t in tools]
        for group, cid, metric, fn, m, path, v6 in sel:
            if m == mtu:
                reps = 2 if group == "udp-lossless" else a.reps
                rounds(group, cid, metric,
                       {t.tool.name: (lambda t=t: fn(t)) for t in topos if applies(t, path, v6)}, reps)
        for t in topos:
            t.close()
    procs = [t for t in tools if t.kind != "veth"]
    if not want or "startup" in want:
        rounds("startup", "startup: --config-net -- true", "ms",
               {t.name: (lambda t=t: m_spawn(t)) for t in procs if t.kind == "pasta"}, a.reps * 3)
        rounds("startup", "startup: exec to first TCP connect", "ms",
               {t.name: (lambda t=t: m_attach(t)) for t in procs}, a.reps * 2)
    if not want or "conns" in want:
        levels = [0] + [int(x) for x in a.conns.split(",")]
        with lock:
            got = {}
            for t in procs:
                try:
                    got[t.name] = m_conns(t, levels)
                except Exception as e:
                    log("conns", t.name, "%s: %s" % (type(e).__name__, e))
                    got[t.name] = {}
        for n in levels:
            cid = "%d connections" % n
            res["cases"] = [c for c in res["cases"] if c["case"] != cid]
            res["cases"].append(dict(group="conns", case="%d connections" % n, metric="rss_mib",
                                     runs={t: [g[n]] for t, g in got.items() if n in g}))
    res["meta"]["finished"] = datetime.datetime.now().isoformat(timespec="seconds")
    save()
    print(table(res))


# ------------------------------------------------------------------ report


def mid(runs, metric):
    v = [r[metric] for r in runs if r.get(metric) is not None]
    return (statistics.median(v), min(v), max(v)) if v else (None, None, None)


def fmt(x):
    if x is None:
        return "-"
    if abs(x) >= 100000:
        return "%.0fk" % (x / 1000)
    return "%.0f" % x if abs(x) >= 1000 else "%.3g" % x


UNITS = dict(gbps="Gbit/s", pps="packets/s at the receiver", tps="transactions/s", ms="milliseconds",
             rss_mib="MiB resident")
EXTRA = {
    "tcp-tap": [("tool CPU s/GB", "cpu_s_per_gb"), ("tool cores", "cpu")],
    "tcp-splice": [("tool CPU s/GB", "cpu_s_per_gb"), ("tool cores", "cpu")],
    "udp-tap": [("Gbit/s", "gbps"), ("loss", "loss"), ("tool us/pkt", "cpu_us_per_pkt")],
    "udp-splice": [("Gbit/s", "gbps"), ("loss", "loss"), ("tool us/pkt", "cpu_us_per_pkt")],
    "udp-lossless": [("Gbit/s", "gbps"), ("tool us/pkt", "cpu_us_per_pkt")],
    "latency": [("p50 us", "p50_us"), ("p99 us", "p99_us"), ("tool us/tx", "cpu_us_per_tx")],
    "startup": [],
    "conns": [("PSS MiB", "pss_mib"), ("conns/s", "cps"), ("tool us/conn", "cpu_us_per_conn"),
              ("idle CPU %", "idle_cpu_pct")],
}


def table(res):
    meta, out = res["meta"], []
    names = [t["name"] for t in meta["tools"]]
    base = meta["base"]
    for g in EXTRA:
        cases = [c for c in res["cases"] if c["group"] == g]
        if not cases:
            continue
        cols = [n for n in names if any(n in c["runs"] for c in cases)]
        out += ["", "### %s (%s; median [min-max], then ratio to %s)" %
                (g, UNITS[cases[0]["metric"]], base), ""]
        head = ["case"] + cols
        out += ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        for c in cases:
            b = mid(c["runs"].get(base, []), c["metric"])[0]
            row = [c["case"]]
            for n in cols:
                rs = c["runs"].get(n, [])
                m, lo, hi = mid(rs, c["metric"])
                if m is None:
                    row.append("failed" if rs else "")
                    continue
                cell = "**%s**" % fmt(m)
                if len(rs) > 1:
                    cell += " [%s-%s]" % (fmt(lo), fmt(hi))
                if b and n != base:
                    cell += " x%.2f" % (m / b)
                ex = [(l, mid(rs, k)[0]) for l, k in EXTRA[g]]
                ex = ["%s %s" % (l, "%.2f%%" % (v * 100) if l == "loss" else fmt(v)) for l, v in ex
                      if v is not None and not (n == "veth" and l.startswith("tool"))]
                bad = sum("error" in r or "incomplete" in r for r in rs)
                if bad:
                    ex.append("%d of %d failed" % (bad, len(rs)))
                row.append(cell + ("<br>" + "; ".join(ex) if ex else ""))
            out.append("| " + " | ".join(row) + " |")
    return "\n".join(out) + "\n"


def meta(tools, a):
    cpu = re.search(r"model name\s*:\s*(.*)", open("/proc/cpuinfo").read())
    return dict(date=datetime.datetime.now().isoformat(timespec="seconds"), kernel=platform.release(),
                cpu=cpu.group(1) if cpu else platform.machine(), cores=os.cpu_count(), reps=a.reps,
                nofile=resource.getrlimit(resource.RLIMIT_NOFILE)[1],
                secs=a.secs, base=a.base, cc=a.cc, argv=sys.argv[1:],
                tools=[dict(name=t.name, kind=t.kind, path=t.path, version=t.version()) for t in tools])


# ----------------------------------------------------------------- profile

CLASSES = [
    ("copy", r"copy_(to|from|user|iter|page)|_copy_|rep_movs|memcpy|memmove|skb_copy|csum_and_copy|iov_iter|clear_user"),
    ("checksum", r"csum|checksum"),
    ("alloc/free", r"alloc|kfree|kmem|slab|skb_release|free_|page_frag|put_page|folio|build_skb|rmqueue|clear_page"),
    ("syscall entry/exit", r"entry_SYSCALL|syscall|do_syscall|__fdget|fput|sockfd|fdget|pvm|switcher|retint|irqentry"),
    ("epoll/wakeup/sched", r"epoll|ep_|wake|sched|poll|futex|pick_next|switch|dequeue_|enqueue_|update_curr|try_to|select_task|rq_|_raw_spin"),
    ("tun/tap driver", r"\btun_|tap_|netif_rx|netif_receive|__netif|eth_"),
    ("TCP/IP stack", r"tcp|ip_|ip6|inet|udp|sock_|skb|net_|fib|neigh|dev_|veth|qdisc|pfifo|napi|gro|validate|nf_|sk_"),
]


def profile(a, tools):
    """Syscall counts (strace -c) and CPU profile (perf, cpu-clock) per case."""
    lock, out = Lock(a.lock), []
    # outbound, in forms that do not stall: several streams, or paced
    cases = [("tcp tap-out mtu65520 x8", 65520, lambda t, d: m_tcp(t, "tap-out", streams=8, secs=a.secs, during=d)),
             ("tcp tap-out mtu1500 paced to 1G", 1500,
              lambda t, d: m_tcp(t, "tap-out", secs=a.secs, pace=125000000, during=d))]
    cases += [("tcp tap-in mtu%d" % m, m, lambda t, d: m_tcp(t, "tap-in", secs=a.secs, during=d)) for m in (65520, 1500)]
    cases += [("tcp lo-in", 65520, lambda t, d: m_tcp(t, "lo-in", secs=a.secs, during=d)),
              ("udp tap-out 1400B", 65520, lambda t, d: m_udp(t, "tap-out", 1400, a.secs, during=d)),
              ("udp tap-in 1400B", 65520, lambda t, d: m_udp(t, "tap-in", 1400, a.secs, during=d)),
              ("udp lo-in 1400B", 65520, lambda t, d: m_udp(t, "lo-in", 1400, a.secs, during=d)),
              ("tcp-rr tap-out", 65520, lambda t, d: m_rr(t, "tap-out", "tcp", during=d)),
              ("tcp-crr tap-out", 65520, lambda t, d: m_rr(t, "tap-out", "crr", during=d))]
    for tool in tools:
        if tool.kind == "veth":
            continue
        for cid, mtu, fn in cases:
            if a.only and not re.search(a.only, cid):
                continue
            if tool.kind == "slirp4netns" and "lo-" in cid:
                continue
            with lock:
                topo = Topo(tool, mtu)
                try:
                    out.append(profile_case(tool, cid, topo, fn))
                except Exception as e:
                    out.append("\n#### %s: %s\nfailed: %s %s" % (tool.name, cid, type(e).__name__, e))
                topo.close()
            log("profile", tool.name, cid)
            with open(a.md, "w") as f:
                f.write("\n".join(out) + "\n")
    print("\n".join(out))


def profile_case(tool, cid, topo, fn):
    pid, tmp, out = topo.proc.pid, tempfile.mkdtemp(), ["\n#### %s: %s\n" % (tool.name, cid)]
    # 1. undisturbed: rate, and frames as counted by the guest's interface
    f = {}

    def count(wait):
        f0 = topo.frames()
        r = wait()
        f["n"] = [y - x for x, y in zip(f0, topo.frames())]
        return r
    r = fn(topo, count)
    keys = [k for k in ("gbps", "pps", "loss", "tps", "p50_us", "cpu", "cpu_s_per_gb", "cpu_us_per_pkt",
                        "cpu_us_per_tx", "busy") if r.get(k) is not None]
    out.append("undisturbed: " + ", ".join("%s %s" % (k, fmt(r[k])) for k in keys) +
               "; frames from guest %d, to guest %d" % tuple(f["n"]))
    # 2. perf, software clock

    def perf(wait):
        p = subprocess.Popen(["perf", "record", "-q", "-e", "cpu-clock", "-F", "4000", "-p", str(pid),
                              "-o", tmp + "/perf.data"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        r = wait()
        p.send_signal(signal.SIGINT)
        p.wait()
        return r
    if shutil.which("perf"):
        fn(topo, perf)
        t = sh("perf", "report", "-i", tmp + "/perf.data", "--no-children", "--stdio", "-q",
               "--sort", "symbol", "-g", "none", check=False)
        rows = re.findall(r"^\s*([\d.]+)%\s+\[([k.])\]\s+(\S+)", t, re.M)
        acc = {}
        for pct, where, sym in rows:
            cl = "user space" if where == "." else next((n for n, rx in CLASSES if re.search(rx, sym)), "other kernel")
            acc[cl] = acc.get(cl, 0) + float(pct)
        out.append("CPU: " + ", ".join("%s %.0f%%" % kv for kv in sorted(acc.items(), key=lambda x: -x[1])))
        out.append("top: " + ", ".join("%s%s %s%%" % (s, "" if w == "k" else " (user)", p) for p, w, s in rows[:14]))
    # 3. syscall counts: strace slows the tool, ratios per frame still hold

    def strace(wait):
        f0 = topo.frames()
        p = subprocess.Popen(["strace", "-f", "-c", "-U", "name,calls,errors", "-o", tmp + "/st", "-p", str(pid)],
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        r = wait()
        p.send_signal(signal.SIGINT)
        p.wait()
        f["n"] = [y - x for x, y in zip(f0, topo.frames())]
        return r
    if shutil.which("strace"):
        r = fn(topo, strace)
        calls = {m[0]: (int(m[1]), int(m[2] or 0)) for m in
                 re.findall(r"^\s*(\w+)\s+(\d+)\s+(\d+)?\s*$", open(tmp + "/st").read(), re.M) if m[0] != "total"}
        tot = sum(c for c, _ in calls.values())
        out.append("syscalls (strace): " + ", ".join(
            "%s %d%s" % (k, c, " (%d err)" % e if e else "") for k, (c, e) in
            sorted(calls.items(), key=lambda x: -x[1][0])[:9]))
        unit = ("%.0f syscalls/GB" % (tot / (r["bytes"] / 1e9)) if r.get("bytes") else
                "%.1f syscalls/transaction" % (tot / max(1, r.get("n", 1))))
        out.append("%s; frames from guest %d, to guest %d; %.3f syscalls per frame" %
                   (unit, *f["n"], tot / max(1, sum(f["n"]))))
    shutil.rmtree(tmp)
    return "\n".join(out)


# -------------------------------------------------------------------- main


def main():
    global BLG, CC
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("cmd", choices=["run", "profile", "report"])
    ap.add_argument("file", nargs="?")
    ap.add_argument("--peer-root", default=os.environ.get("PEER_ROOT", ""),
                    help="root directory the peers are installed in (default: this system)")
    ap.add_argument("--pasta", default="/usr/bin/pasta.avx2", help="upstream pasta, inside --peer-root")
    ap.add_argument("--slirp4netns", default="/usr/bin/slirp4netns", help="slirp4netns, inside --peer-root")
    ap.add_argument("--tool", action="append", default=[], metavar="NAME=PATH[,ARG...]",
                    help="a further contender with pasta's command line")
    ap.add_argument("--contenders", default="", help="comma list: only these")
    ap.add_argument("--base", default="pasta", help="ratios are relative to this contender")
    ap.add_argument("--groups", default="", help="comma list of: " + ", ".join(EXTRA))
    ap.add_argument("--only", default="", help="regular expression on the case name")
    ap.add_argument("--reps", type=int, default=3)
    ap.add_argument("--secs", type=float, default=1.5, help="length of a TCP throughput run")
    ap.add_argument("--cc", default=CC, help="TCP congestion control in all the namespaces")
    ap.add_argument("--conns", default="1000,5000,9500,19000",
                    help="levels; the fd limit of the generator (and of the tool) bounds them")
    ap.add_argument("--json", default="bench.json")
    ap.add_argument("--md", default="bench.md")
    ap.add_argument("--no-forwards", action="store_true", help="no port forwarding: outbound cases only")
    ap.add_argument("--merge", action="store_true", help="keep the cases already in --json, replace those re-run")
    ap.add_argument("--lock", default=os.environ.get("BENCH_LOCK", ""), help="flock() this file while measuring")
    a = ap.parse_args()
    global NO_FORWARDS
    NO_FORWARDS = a.no_forwards
    CC = a.cc
    if a.cmd == "report":
        print(table(json.load(open(a.file or a.json))))
        return
    if os.geteuid():
        sys.exit("bench.py: needs root (it creates network namespaces)")
    tools = []
    for spec in a.tool:
        name, path = spec.split("=", 1)
        path, *args = path.split(",")
        tools.append(Tool(name, "pasta", os.path.abspath(path), "", args))
    tools = [Tool("pasta", "pasta", a.pasta, a.peer_root)] + tools + [
        Tool("slirp4netns", "slirp4netns", a.slirp4netns, a.peer_root), Tool("veth", "veth")]
    if a.contenders:
        tools = [t for t in tools if t.name in a.contenders.split(",")]
    d = tempfile.mkdtemp(prefix="bench-")
    os.chmod(d, 0o755)
    atexit.register(shutil.rmtree, d, ignore_errors=True)
    BLG = os.path.join(d, "blg")
    sh(os.environ.get("CC", "cc"), "-O2", "-Wall", "-o", BLG, os.path.join(HERE, "blg.c"))
    allow_cc()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    (run if a.cmd == "run" else profile)(a, tools)


if __name__ == "__main__":
    main()
