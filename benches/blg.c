// blg - load generator, namespace holder and launcher for bench.py.
// Built by bench.py with: cc -O2 -Wall -o blg blg.c
//
//   blg run  [-n NETNS_PATH] [-r ROOT] [-u UID] [-N NOFILE] [-T] -- CMD ARGS...
//            enter a network namespace, pivot_root into ROOT (so that the
//            program is not "chrooted": user namespaces stay usable),
//            become UID, exec.  -T: fork, and report start and run time.
//   blg hold new user+network namespace, prints "ready", waits for stdin EOF
//   blg tcp-recv  -l ADDR -p PORT -n STREAMS -t SECS -w WARMUP [-m trunc]
//   blg tcp-send  -c ADDR -p PORT -n STREAMS -t MAXSECS [-s SRC] [-R BYTES/S] [-S SNDBUF]
//   blg udp-recv  -l ADDR -p PORT -t SECS -w WARMUP
//   blg udp-send  -c ADDR -p PORT -z SIZE -t SECS [-R PPS] [-s SRC]
//   blg echo      -l ADDR -p PORT            TCP and UDP echo server
//   blg rr        -c ADDR -p PORT -t SECS -m tcp|crr|udp [-n CONC] [-s SRC]
//   blg hold-srv  -l ADDR -p PORT            accept and keep connections
//   blg hold-cli  -c ADDR -p PORT -n CONNS -t MAXSECS [-s SRC]
//   blg wait-conn -c ADDR -p PORT -t MAXSECS   retry connect() every 0.5 ms
//
// Receivers print "ready", "start", then one line of JSON.  Every command
// ends by itself: on its time limit, on stdin EOF (-e), or with its parent.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <grp.h>
#include <time.h>
#include <unistd.h>

#define HARD_LIMIT 300		/* seconds: nothing outlives this */

static void die(const char *fmt, ...)
{
	va_list ap;
	int e = errno;

	va_start(ap, fmt);
	fprintf(stderr, "blg: ");
	vfprintf(stderr, fmt, ap);
	fprintf(stderr, ": %s\n", strerror(e));
	va_end(ap);
	exit(1);
}

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec * 1e-9;
}

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000ull + ts.tv_nsec;
}

static void say(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	putchar('\n');
	fflush(stdout);
}

/* options shared by all the subcommands */
static const char *o_addr, *o_src, *o_mode = "tcp";
static int o_port, o_n = 1, o_size = 1400, o_buf = 128 * 1024;
static int o_sndbuf;
static double o_t = 10, o_w = 0.3, o_rate;

static socklen_t mkaddr(const char *a, int port, struct sockaddr_storage *ss)
{
	struct sockaddr_in6 *a6 = (void *)ss;
	struct sockaddr_in *a4 = (void *)ss;

	memset(ss, 0, sizeof(*ss));
	if (strchr(a, ':')) {
		a6->sin6_family = AF_INET6;
		a6->sin6_port = htons(port);
		if (inet_pton(AF_INET6, a, &a6->sin6_addr) != 1)
			die("bad address %s", a);
		return sizeof(*a6);
	}
	a4->sin_family = AF_INET;
	a4->sin_port = htons(port);
	if (inet_pton(AF_INET, a, &a4->sin_addr) != 1)
		die("bad address %s", a);
	return sizeof(*a4);
}

static int sock(int type, int listener)
{
	struct sockaddr_storage ss;
	socklen_t sl = mkaddr(o_addr, o_port, &ss);
	int s = socket(ss.ss_family, type | SOCK_CLOEXEC, 0), y = 1;

	if (s < 0)
		die("socket");
	if (type == SOCK_DGRAM) {
		int b = 4 << 20;

		setsockopt(s, SOL_SOCKET, SO_RCVBUFFORCE, &b, sizeof(b));
		setsockopt(s, SOL_SOCKET, SO_SNDBUFFORCE, &b, sizeof(b));
	} else {
		setsockopt(s, IPPROTO_TCP, TCP_NODELAY, &y, sizeof(y));
	}
	if (listener) {
		setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &y, sizeof(y));
		if (ss.ss_family == AF_INET6)
			setsockopt(s, IPPROTO_IPV6, IPV6_V6ONLY, &y, sizeof(y));
		if (bind(s, (void *)&ss, sl))
			die("bind %s:%d", o_addr, o_port);
		if (type == SOCK_STREAM && listen(s, 4096))
			die("listen");
	} else if (o_src) {
		sl = mkaddr(o_src, 0, &ss);
		if (type == SOCK_STREAM)
			setsockopt(s, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &y, sizeof(y));
		if (bind(s, (void *)&ss, sl))
			die("bind source %s", o_src);
	}
	return s;
}

static int conn(int s)
{
	struct sockaddr_storage ss;
	socklen_t sl = mkaddr(o_addr, o_port, &ss);

	return connect(s, (void *)&ss, sl);
}

static void nonblock(int s)
{
	fcntl(s, F_SETFL, fcntl(s, F_GETFL) | O_NONBLOCK);
}

/* ------------------------------------------------------------ launcher */

static int do_run(int argc, char **argv)
{
	const char *net = NULL, *root = NULL;
	int uid = -1, c, fd;
	long nofile = 0;
	int timed = 0;

	while ((c = getopt(argc, argv, "+n:r:u:N:T")) != -1) {
		if (c == 'n') net = optarg;
		else if (c == 'r') root = optarg;
		else if (c == 'u') uid = atoi(optarg);
		else if (c == 'N') nofile = atol(optarg);
		else if (c == 'T') timed = 1;
		else return 2;
	}
	if (net) {
		if ((fd = open(net, O_RDONLY | O_CLOEXEC)) < 0 || setns(fd, CLONE_NEWNET))
			die("netns %s", net);
	}
	if (root && *root) {
		if (unshare(CLONE_NEWNS) ||
		    mount("", "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
		    mount(root, root, NULL, MS_BIND | MS_REC, NULL) ||
		    chdir(root) || syscall(SYS_pivot_root, ".", ".") ||
		    umount2(".", MNT_DETACH) || chdir("/"))
			die("root %s", root);
	}
	if (nofile) {
		struct rlimit rl = { nofile, nofile };

		setrlimit(RLIMIT_NOFILE, &rl);
	}
	if (uid > 0) {
		if (setgroups(0, NULL) || setresgid(uid, uid, uid) || setresuid(uid, uid, uid))
			die("uid %d", uid);
		prctl(PR_SET_DUMPABLE, 1);
	}
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (timed) {		/* report when CMD was started and how long it ran */
		double t0 = now();
		int st, pid;

		say("{\"start\": %.9f}", t0);
		if ((pid = fork()) > 0) {
			waitpid(pid, &st, 0);
			say("{\"secs\": %.9f, \"rc\": %d}", now() - t0,
			    WIFEXITED(st) ? WEXITSTATUS(st) : 128 + WTERMSIG(st));
			return 0;
		}
		prctl(PR_SET_PDEATHSIG, SIGKILL);
	}
	execvp(argv[optind], argv + optind);
	die("exec %s", argv[optind]);
	return 1;
}

static void put(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);

	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		die("%s", path);
	close(fd);
}

static int do_hold(void)
{
	int uid = getuid(), gid = getgid();
	char b[64];

	if (unshare(CLONE_NEWUSER | CLONE_NEWNET))
		die("unshare");
	put("/proc/self/setgroups", "deny");
	snprintf(b, sizeof(b), "0 %d 1", uid);
	put("/proc/self/uid_map", b);
	snprintf(b, sizeof(b), "0 %d 1", gid);
	put("/proc/self/gid_map", b);
	say("ready");
	while (read(0, b, sizeof(b)) > 0)
		;
	return 0;
}

/* ---------------------------------------------------------- throughput */

static int do_tcp_recv(int dial)
{
	int l = dial ? -1 : sock(SOCK_STREAM, 1), ep = epoll_create1(0), n = 0, started = 0;
	unsigned long long total = 0, base = 0, reads = 0;
	double t0 = 0, t1 = 0, limit = now() + o_t + o_w + 20;
	int trunc = !strcmp(o_mode, "trunc") ? MSG_TRUNC : 0;	/* discard: no copy */
	char *buf = malloc(o_buf);

	say("ready");
	while (n < o_n) {
		struct epoll_event ev = { .events = EPOLLIN };
		int s = dial ? sock(SOCK_STREAM, 0) : accept4(l, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

		if (s < 0 || (dial && conn(s)))
			die("accept");
		if (dial)
			nonblock(s);
		ev.data.fd = s;
		epoll_ctl(ep, EPOLL_CTL_ADD, s, &ev);
		n++;
	}
	t0 = now() + o_w;
	while (n) {
		struct epoll_event evs[16];
		int i, k = epoll_wait(ep, evs, 16, 100);
		double t = now();

		if (!started && t >= t0) {
			started = 1;
			t0 = t;
			base = total;
			reads = 0;
			say("start");
		}
		if ((started && t >= t0 + o_t) || t > limit)
			break;
		for (i = 0; i < k; i++) {
			ssize_t r = recv(evs[i].data.fd, buf, o_buf, trunc);

			if (r > 0) {
				total += r;
				reads++;
			} else if (!r || errno != EAGAIN) {
				close(evs[i].data.fd);
				n--;
			}
		}
	}
	t1 = now();
	say("{\"bytes\": %llu, \"secs\": %.6f, \"gbps\": %.4f, \"reads\": %llu, \"left\": %d}",
	    total - base, t1 - t0, (total - base) * 8e-9 / (t1 - t0), reads, n);
	return 0;
}

static int do_tcp_send(int serve)
{
	int l = serve ? sock(SOCK_STREAM, 1) : -1, ep = epoll_create1(0), i, open_n = 0;
	char *buf = malloc(o_buf);
	double end = now() + o_t;

	memset(buf, 'x', o_buf);
	for (i = 0; i < o_n; i++) {
		int s = -1;
		struct epoll_event ev = { .events = EPOLLOUT };

		if (serve && !i)
			say("ready");
		s = serve ? accept4(l, NULL, NULL, SOCK_CLOEXEC) : sock(SOCK_STREAM, 0);
		ev.data.fd = s;

		if (o_sndbuf)
			setsockopt(s, SOL_SOCKET, SO_SNDBUF, &o_sndbuf, sizeof(o_sndbuf));
		if (o_rate > 0) {
			unsigned long r = o_rate;

			setsockopt(s, SOL_SOCKET, SO_MAX_PACING_RATE, &r, sizeof(r));
		}
		if (!serve && conn(s))
			die("connect %s:%d", o_addr, o_port);
		nonblock(s);
		epoll_ctl(ep, EPOLL_CTL_ADD, s, &ev);
		open_n++;
	}
	while (open_n && now() < end) {
		struct epoll_event evs[16];
		int k = epoll_wait(ep, evs, 16, 100);

		for (i = 0; i < k; i++) {
			ssize_t r = write(evs[i].data.fd, buf, o_buf);

			if (r < 0 && errno != EAGAIN) {
				close(evs[i].data.fd);
				open_n--;
			}
		}
	}
	return 0;
}

#define BATCH 64

static int do_udp_recv(void)
{
	static struct mmsghdr mm[BATCH];
	static struct iovec iov[BATCH];
	unsigned long long n = 0, bytes = 0, first = 0, last = 0, base_n = 0, base_b = 0;
	int s = sock(SOCK_DGRAM, 1), i, started = 0;
	struct timeval tv = { 0, 50000 };
	double t0 = 0, tlast = 0, limit;

	setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv));
	for (i = 0; i < BATCH; i++) {
		iov[i].iov_base = malloc(65536);
		iov[i].iov_len = 65536;
		mm[i].msg_hdr.msg_iov = iov + i;
		mm[i].msg_hdr.msg_iovlen = 1;
	}
	say("ready");
	limit = now() + o_t + o_w + 5;
	for (;;) {
		int k = recvmmsg(s, mm, BATCH, MSG_WAITFORONE, NULL);
		double t = now();

		if (k > 0) {
			uint64_t seq;

			for (i = 0; i < k; i++) {
				memcpy(&seq, iov[i].iov_base, 8);
				if (seq > last)
					last = seq;
				bytes += mm[i].msg_len;
			}
			n += k;
			tlast = t;
			if (!t0)
				t0 = t + o_w;
			if (!started && t >= t0) {
				started = 1;
				t0 = t;
				first = last;
				base_n = n;
				base_b = bytes;
				say("start");
			}
		}
		if ((started && t >= t0 + o_t) || t > limit)
			break;
	}
	n -= base_n;
	bytes -= base_b;
	tlast -= t0;
	if (!started || tlast <= 0)
		tlast = 1e9;
	say("{\"pkts\": %llu, \"bytes\": %llu, \"secs\": %.6f, \"pps\": %.1f, "
	    "\"gbps\": %.5f, \"sent\": %llu, \"loss\": %.6f}", n, bytes, tlast,
	    n / tlast, bytes * 8e-9 / tlast, last - first,
	    last > first && n < last - first ? 1 - (double)n / (last - first) : 0.0);
	return 0;
}

static int do_udp_send(void)
{
	static struct mmsghdr mm[BATCH];
	static struct iovec iov[BATCH];
	int s = sock(SOCK_DGRAM, 0), i;
	uint64_t seq = 1, refused = 0, nobufs = 0;
	double t0, end;

	prctl(PR_SET_TIMERSLACK, 1);
	if (conn(s))
		die("connect");
	for (i = 0; i < BATCH; i++) {
		iov[i].iov_base = calloc(1, 65536);
		iov[i].iov_len = o_size;
		mm[i].msg_hdr.msg_iov = iov + i;
		mm[i].msg_hdr.msg_iovlen = 1;
	}
	t0 = now();
	end = t0 + o_t;
	for (;;) {
		double t = now();
		int want = BATCH, k;

		if (t >= end)
			break;
		if (o_rate > 0) {
			double due = (t - t0) * o_rate - (seq - 1);

			if (due < 1) {
				struct timespec ts = { 0, 100000 };

				nanosleep(&ts, NULL);
				continue;
			}
			if (due > o_rate * 0.01) {	/* fell behind 10 ms: no burst */
				t0 += (due - o_rate * 0.01) / o_rate;
				due = o_rate * 0.01;
			}
			if (due < want)
				want = due;
		}
		for (i = 0; i < want; i++) {
			uint64_t q = seq + i;

			memcpy(iov[i].iov_base, &q, 8);
		}
		k = sendmmsg(s, mm, want, 0);
		if (k > 0)
			seq += k;
		else if (errno == ECONNREFUSED)
			refused++;
		else if (errno == ENOBUFS || errno == EAGAIN)
			nobufs++;
		else
			die("sendmmsg");
	}
	say("{\"sent\": %llu, \"refused\": %llu, \"nobufs\": %llu, \"secs\": %.6f, \"pps\": %.1f}",
	    (unsigned long long)(seq - 1), (unsigned long long)refused,
	    (unsigned long long)nobufs, now() - t0, (seq - 1) / (now() - t0));
	return 0;
}

/* ------------------------------------------------------------- latency */

static void do_echo(void)
{
	int l = sock(SOCK_STREAM, 1), u = sock(SOCK_DGRAM, 1), ep = epoll_create1(0);
	struct epoll_event ev = { .events = EPOLLIN };
	char buf[2048];

	nonblock(l);
	nonblock(u);
	ev.data.fd = l;
	epoll_ctl(ep, EPOLL_CTL_ADD, l, &ev);
	ev.data.fd = u;
	epoll_ctl(ep, EPOLL_CTL_ADD, u, &ev);
	say("ready");
	for (;;) {
		struct epoll_event evs[64];
		int i, k = epoll_wait(ep, evs, 64, -1);

		for (i = 0; i < k; i++) {
			int fd = evs[i].data.fd;

			if (fd == l) {
				int s, y = 1;

				while ((s = accept4(l, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
					setsockopt(s, IPPROTO_TCP, TCP_NODELAY, &y, sizeof(y));
					ev.data.fd = s;
					epoll_ctl(ep, EPOLL_CTL_ADD, s, &ev);
				}
			} else if (fd == u) {
				struct sockaddr_storage ss;
				socklen_t sl = sizeof(ss);
				ssize_t r = recvfrom(u, buf, sizeof(buf), 0, (void *)&ss, &sl);

				if (r >= 0)
					sendto(u, buf, r, 0, (void *)&ss, sl);
			} else {
				ssize_t r = read(fd, buf, sizeof(buf));

				if (r > 0)
					r = write(fd, buf, r);
				else if (!r || errno != EAGAIN)
					close(fd);
			}
		}
	}
}

static int cmp32(const void *a, const void *b)
{
	uint32_t x = *(uint32_t *)a, y = *(uint32_t *)b;

	return x < y ? -1 : x > y;
}

static int do_rr(void)
{
	uint32_t *lat = malloc(4 * 20000000);
	int udp = !strcmp(o_mode, "udp"), crr = !strcmp(o_mode, "crr");
	int ep = epoll_create1(0), i, started = 0;
	unsigned long long n = 0, errs = 0;
	static uint64_t begun[65536];
	double t0 = now() + o_w, end = t0 + o_t;
	char c = 'x';

	for (i = 0; i < o_n; i++) {
		int s = sock(udp ? SOCK_DGRAM : SOCK_STREAM, 0);
		struct epoll_event ev = { .events = EPOLLIN | (crr ? EPOLLOUT : 0), .data.fd = s };

		begun[s] = now_ns();
		if (crr)
			nonblock(s);
		if (conn(s) && errno != EINPROGRESS)
			die("connect");
		nonblock(s);
		epoll_ctl(ep, EPOLL_CTL_ADD, s, &ev);
		if (!crr) {
			begun[s] = now_ns();
			if (write(s, &c, 1) != 1)
				die("write");
		}
	}
	for (;;) {
		struct epoll_event evs[64];
		int k = epoll_wait(ep, evs, 64, 200);
		double t = now();

		if (!started && t >= t0) {
			started = 1;
			t0 = t;
			n = errs = 0;
			say("start");
		}
		if (t >= end)
			break;
		if (!k && udp) {		/* a lost datagram: send again */
			errs++;
			for (i = 3; i < 3 + o_n + 8 && i < 65536; i++)
				if (begun[i]) {
					begun[i] = now_ns();
					if (write(i, &c, 1) < 0)
						errs++;
				}
		}
		for (i = 0; i < k; i++) {
			int s = evs[i].data.fd;

			if (evs[i].events & EPOLLOUT) {		/* crr: connected */
				struct epoll_event ev = { .events = EPOLLIN, .data.fd = s };

				epoll_ctl(ep, EPOLL_CTL_MOD, s, &ev);
				if (write(s, &c, 1) != 1)
					goto bad;
				continue;
			}
			if (read(s, &c, 1) != 1) {
				if (errno == EAGAIN)
					continue;
				goto bad;
			}
			if (n < 20000000) {
				uint64_t d = now_ns() - begun[s];

				lat[n++] = d > 0xffffffff ? 0xffffffff : d;
			}
			if (!crr) {
				begun[s] = now_ns();
				if (write(s, &c, 1) != 1)
					goto bad;
				continue;
			}
			goto again;
bad:
			errs++;
			if (errs > 10000)
				die("too many errors");
again:
			close(s);
			s = sock(udp ? SOCK_DGRAM : SOCK_STREAM, 0);
			struct epoll_event ev = { .events = EPOLLIN | EPOLLOUT, .data.fd = s };

			begun[s] = now_ns();
			nonblock(s);
			if (conn(s) && errno != EINPROGRESS)
				die("connect");
			epoll_ctl(ep, EPOLL_CTL_ADD, s, &ev);
		}
	}
	double secs = now() - t0, sum = 0;

	qsort(lat, n, 4, cmp32);
	for (i = 0; i < (int)n; i++)
		sum += lat[i];
	say("{\"n\": %llu, \"tps\": %.1f, \"mean_us\": %.2f, \"p50_us\": %.2f, "
	    "\"p99_us\": %.2f, \"max_us\": %.1f, \"errors\": %llu}", n, n / secs,
	    n ? sum / n / 1e3 : 0, n ? lat[n / 2] / 1e3 : 0,
	    n ? lat[(unsigned long long)(n * .99)] / 1e3 : 0, n ? lat[n - 1] / 1e3 : 0, errs);
	return 0;
}

/* --------------------------------------------------- many connections */

static int do_hold_srv(void)
{
	int l = sock(SOCK_STREAM, 1);

	say("ready");
	while (accept4(l, NULL, NULL, SOCK_CLOEXEC) >= 0 || errno == ECONNABORTED)
		;
	die("accept");
	return 1;
}

static int do_hold_cli(void)
{
	int ep = epoll_create1(0), up = 0, started = 0, pending = 0, failed = 0;
	double t0 = now(), end = t0 + o_t, t;
	char b[8];

	say("start");
	while (up + failed < o_n && now() < end) {
		struct epoll_event evs[64];
		int i, k;

		while (pending < 64 && started < o_n) {
			int s = sock(SOCK_STREAM, 0);
			struct epoll_event ev = { .events = EPOLLOUT | EPOLLONESHOT, .data.fd = s };

			nonblock(s);
			if (conn(s) && errno != EINPROGRESS)
				die("connect");
			epoll_ctl(ep, EPOLL_CTL_ADD, s, &ev);
			started++;
			pending++;
		}
		k = epoll_wait(ep, evs, 64, 100);
		for (i = 0; i < k; i++) {
			int e = 0;
			socklen_t sl = sizeof(e);

			getsockopt(evs[i].data.fd, SOL_SOCKET, SO_ERROR, &e, &sl);
			pending--;
			if (e)
				failed++;
			else
				up++;
		}
	}
	t = now() - t0;
	say("{\"up\": %d, \"failed\": %d, \"secs\": %.4f, \"cps\": %.1f}", up, failed, t, up / t);
	while (read(0, b, sizeof(b)) > 0)	/* hold until stdin closes */
		;
	return 0;
}

static int do_wait_conn(void)
{
	double t0 = now();
	int tries = 0;

	prctl(PR_SET_TIMERSLACK, 1);
	say("ready");
	while (now() < t0 + o_t) {
		int s = sock(SOCK_STREAM, 0), done = 0, i;
		struct timespec ts = { 0, 500000 };

		tries++;
		nonblock(s);
		if (!conn(s)) {
			done = 1;
		} else if (errno == EINPROGRESS) {
			/* a SYN lost at start would cost 1 s: try anew every 5 ms */
			for (i = 0; i < 10 && !done; i++) {
				int e = 0;
				socklen_t sl = sizeof(e);
				struct tcp_info ti;

				nanosleep(&ts, NULL);
				sl = sizeof(ti);
				if (getsockopt(s, IPPROTO_TCP, TCP_INFO, &ti, &sl))
					break;
				if (ti.tcpi_state == 1)
					done = 1;
				sl = sizeof(e);
				if (getsockopt(s, SOL_SOCKET, SO_ERROR, &e, &sl) || e)
					break;
			}
		} else {
			nanosleep(&ts, NULL);
		}
		if (done) {
			struct timespec rt;

			clock_gettime(CLOCK_MONOTONIC, &rt);
			say("{\"mono\": %ld.%09ld, \"tries\": %d}", rt.tv_sec, rt.tv_nsec, tries);
			return 0;
		}
		close(s);
	}
	say("{\"mono\": 0, \"tries\": %d}", tries);
	return 1;
}

int main(int argc, char **argv)
{
	const char *cmd = argc > 1 ? argv[1] : "";
	struct rlimit rl;
	int c;

	argv++;
	argc--;
	if (!strcmp(cmd, "run"))
		return do_run(argc, argv);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	signal(SIGPIPE, SIG_IGN);
	if (!strcmp(cmd, "hold"))
		return do_hold();
	alarm(HARD_LIMIT);
	rl.rlim_cur = rl.rlim_max = 200000;
	setrlimit(RLIMIT_NOFILE, &rl);
	while ((c = getopt(argc, argv, "l:c:s:p:n:t:w:z:R:m:b:S:")) != -1) {
		switch (c) {
		case 'l': case 'c': o_addr = optarg; break;
		case 's': o_src = optarg; break;
		case 'p': o_port = atoi(optarg); break;
		case 'n': o_n = atoi(optarg); break;
		case 't': o_t = atof(optarg); break;
		case 'w': o_w = atof(optarg); break;
		case 'z': o_size = atoi(optarg); break;
		case 'R': o_rate = atof(optarg); break;
		case 'm': o_mode = optarg; break;
		case 'S': o_sndbuf = atoi(optarg); break;
		case 'b': o_buf = atoi(optarg); break;
		default: return 2;
		}
	}
	if (!strcmp(cmd, "tcp-recv")) return do_tcp_recv(0);
	if (!strcmp(cmd, "tcp-pull")) return do_tcp_recv(1);	/* connect, then receive */
	if (!strcmp(cmd, "tcp-serve")) return do_tcp_send(1);	/* accept, then send */
	if (!strcmp(cmd, "tcp-send")) return do_tcp_send(0);
	if (!strcmp(cmd, "udp-recv")) return do_udp_recv();
	if (!strcmp(cmd, "udp-send")) return do_udp_send();
	if (!strcmp(cmd, "echo")) do_echo();
	if (!strcmp(cmd, "rr")) return do_rr();
	if (!strcmp(cmd, "hold-srv")) return do_hold_srv();
	if (!strcmp(cmd, "hold-cli")) return do_hold_cli();
	if (!strcmp(cmd, "wait-conn")) return do_wait_conn();
	fprintf(stderr, "blg: unknown command '%s'\n", cmd);
	return 2;
}
