# A process tree that holds one of everything, and says after the cut whether it still has it.
import ctypes, fcntl, json, mmap, os, pty, resource, select, signal, socket, struct, sys, threading, time

libc = ctypes.CDLL(None, use_errno=True)
checks = []


def check(name):
    def add(function):
        checks.append((name, function))
        return function
    return add


def equal(a, b):
    assert a == b, "%r is not %r" % (a, b)


# --- memory, shared and not
private = bytearray(os.urandom(1 << 20))
private_sum = sum(private)
shared = mmap.mmap(-1, 3 << 20)
shared[: 1 << 20] = os.urandom(1 << 20); shared[-5:] = b"final"
shared_then = shared[:]
filed = open("/data/mapped", "w+b"); filed.truncate(8192)
file_map = mmap.mmap(filed.fileno(), 8192); file_map[:4] = b"file"
cow = mmap.mmap(filed.fileno(), 8192, flags=mmap.MAP_PRIVATE); cow[4096:4099] = b"cow"
memfd = os.memfd_create("mine"); os.write(memfd, b"in memory")
shm_id = libc.shmget(0, 4096, 0o1600); libc.shmat.restype = ctypes.c_void_p
shm_at = libc.shmat(shm_id, None, 0); ctypes.memmove(shm_at, b"sysv", 4)


@check("memory")
def _():
    equal(sum(private), private_sum)
    assert shared[:] == shared_then
    equal(file_map[:4], b"file"); equal(cow[4096:4099], b"cow"); equal(file_map[4096:4099], b"\0\0\0")
    os.lseek(memfd, 0, 0); equal(os.read(memfd, 20), b"in memory")
    equal(ctypes.string_at(shm_at, 4), b"sysv")


# --- files
with open("/dev/shm/note", "w") as f: f.write("tmpfs")
os.chown("/dev/shm/note", 500, 501)
gone = open("/data/gone", "w+"); gone.write("unlinked"); gone.flush(); os.unlink("/data/gone")
two = open("/data/two-a", "w+"); two.write("two names"); two.flush(); os.link("/data/two-a", "/data/two-b"); os.unlink("/data/two-a")
locked = open("/data/locked", "w"); fcntl.flock(locked, fcntl.LOCK_EX)
ranged = open("/data/ranged", "w"); fcntl.lockf(ranged, fcntl.LOCK_EX, 10, 5)
appended = os.open("/data/log", os.O_CREAT | os.O_WRONLY | os.O_APPEND); os.write(appended, b"before ")


@check("files")
def _():
    equal(open("/dev/shm/note").read(), "tmpfs")
    note = os.stat("/dev/shm/note"); equal((note.st_uid, note.st_gid), (500, 501))
    gone.seek(0); equal(gone.read(), "unlinked"); assert not os.path.exists("/data/gone")
    two.seek(0); equal(two.read(), "two names"); equal(sorted(n for n in os.listdir("/data") if n.startswith(("two", "link_remap"))), ["two-b"])
    os.write(appended, b"after"); equal(open("/data/log").read(), "before after")


@check("locks")
def _():
    r, w = os.pipe()
    child = os.fork()
    if child == 0:
        answer = b""
        try: fcntl.flock(open("/data/locked", "w"), fcntl.LOCK_EX | fcntl.LOCK_NB); answer += b"flock lost "
        except BlockingIOError: pass
        try: fcntl.lockf(open("/data/ranged", "r+"), fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 5); answer += b"range lost"
        except BlockingIOError: pass
        os.write(w, answer or b"held"); os._exit(0)
    os.close(w); equal(os.read(r, 100), b"held"); os.waitpid(child, 0)


# --- pipes, sockets, terminals
pipe_r, pipe_w = os.pipe(); os.write(pipe_w, b"in the pipe")
near, far = socket.socketpair(); far.send(b"in the pair")
listener = socket.socket(socket.AF_UNIX); listener.bind("/tmp/listener"); listener.listen(5)
unix_near = socket.socket(socket.AF_UNIX); unix_near.connect("/tmp/listener"); unix_far, _ = listener.accept(); unix_far.send(b"by name")
tcp = socket.create_server(("127.0.0.1", 0)); tcp_near = socket.create_connection(tcp.getsockname()); tcp_far, _ = tcp.accept()
tcp_far.send(b"unread"); tcp_near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); udp.bind(("127.0.0.1", 0)); udp_port = udp.getsockname()
six = socket.create_server(("::1", 0), family=socket.AF_INET6)
master, slave = pty.openpty(); os.write(slave, b"seen\n"); equal(os.read(master, 100), b"seen\r\n")
# Not what is unread in a terminal: CRIU types it again, and it is echoed and translated a second time.


@check("channels")
def _():
    equal(os.read(pipe_r, 100), b"in the pipe"); os.write(pipe_w, b"x"); equal(os.read(pipe_r, 1), b"x")
    equal(near.recv(100), b"in the pair"); near.send(b"y"); equal(far.recv(1), b"y")
    equal(unix_near.recv(100), b"by name")
    again = socket.socket(socket.AF_UNIX); again.connect("/tmp/listener"); listener.accept()[0].close()
    equal(tcp_near.recv(100), b"unread"); tcp_near.send(b"back"); equal(tcp_far.recv(10), b"back")
    equal(tcp_near.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY), 1)
    socket.create_connection(tcp.getsockname()).close()
    udp.sendto(b"self", udp_port); equal(udp.recv(10), b"self")
    socket.create_connection(six.getsockname()[:2]).close()
    os.write(slave, b"shown\n"); equal(os.read(master, 100), b"shown\r\n")
    os.write(master, b"typed\n"); equal(os.read(slave, 100), b"typed\n")


# --- events and time
event = os.eventfd(7)
poll = select.epoll(); poll.register(event, select.EPOLLIN)
inotify = libc.inotify_init1(0); watch = libc.inotify_add_watch(inotify, b"/data", 0x100)
timer = libc.timerfd_create(1, 0); libc.timerfd_settime(timer, 0, struct.pack("4q", 0, 50000000, 0, 50000000), None)
ticks = 0
def tick(*_):
    global ticks
    ticks += 1
signal.signal(signal.SIGALRM, tick); signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1]); os.kill(os.getpid(), signal.SIGUSR1)
aio = ctypes.c_ulong(0); equal(libc.syscall(206, 8, ctypes.byref(aio)), 0)
started = time.monotonic()


@check("events")
def _():
    equal(poll.poll(1)[0][0], event); equal(os.eventfd_read(event), 7); equal(poll.poll(0), [])
    open("/data/watched", "w").close()
    assert b"watched" in os.read(inotify, 4096)
    assert struct.unpack("q", os.read(timer, 8))[0] >= 1
    before = ticks; time.sleep(0.2); assert ticks > before, "no alarms"
    assert signal.SIGUSR1 in signal.sigpending()
    assert time.monotonic() >= started, "the clock went back"
    equal(libc.syscall(207, aio), 0)


# --- threads, children, users, limits
counts = [0, 0, 0]
def count(i):
    while True:
        counts[i] += 1; time.sleep(0.001)
for i in range(3): threading.Thread(target=count, args=(i,), daemon=True).start()
os.umask(0o027); os.chdir("/data")
resource.setrlimit(resource.RLIMIT_NOFILE, (512, 600)); os.setpriority(os.PRIO_PROCESS, 0, 5)
children = []
for uid, gid, groups in [(500, 501, [501, 502]), (501, 501, []), (65534, 65534, [7])]:
    to_child, from_parent = os.pipe(); from_child, to_parent = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.setitimer(signal.ITIMER_REAL, 0)
        os.setsid(); os.setgroups(groups); os.setresgid(gid, gid, gid); os.setresuid(uid, uid, uid)
        own = open("/tmp/own-%d" % uid, "w+"); own.write("mine"); own.flush()
        if os.fork() == 0:
            os.write(to_parent, b"?")
            while True: time.sleep(100)
        while os.read(to_child, 1):
            own.seek(0)
            answer = [os.getresuid(), os.getresgid(), sorted(os.getgroups()), own.read(), os.getsid(0) == os.getpid(), os.fstat(own.fileno()).st_uid]
            try: open("/data/root-only"); answer.append("read root's file")
            except PermissionError: answer.append("refused")
            os.write(to_parent, json.dumps(answer).encode())
        os._exit(0)
    os.read(from_child, 1)
    children.append((from_parent, from_child, uid, gid, groups))
with open("/data/root-only", "w") as f: os.fchmod(f.fileno(), 0o600)
zombie = os.fork()
if zombie == 0: os._exit(42)
os.waitid(os.P_PID, zombie, os.WEXITED | os.WNOWAIT)


@check("threads")
def _():
    before = list(counts); time.sleep(0.1)
    assert all(a > b for a, b in zip(counts, before)), (before, counts)


@check("processes")
def _():
    for to, of, uid, gid, groups in children:
        os.write(to, b"!")
        equal(json.loads(os.read(of, 4096)), [[uid] * 3, [gid] * 3, sorted(groups), "mine", True, uid, "refused"])
    equal(os.waitpid(zombie, 0)[1], 42 << 8)
    equal(resource.getrlimit(resource.RLIMIT_NOFILE), (512, 600)); equal(os.getpriority(os.PRIO_PROCESS, 0), 5)
    equal(os.getcwd(), "/data"); equal(os.umask(0), 0o027); equal(os.getpid(), 1)
    equal(socket.gethostname(), "node")


print("ready", flush=True)
while not os.path.exists("/data/check"): time.sleep(0.01)
failures = []
for name, function in checks:
    try: function()
    except BaseException as error: failures.append("%s: %s %r" % (name, type(error).__name__, error))
print("failures: %s" % failures, flush=True)
with open("/data/result.new", "w") as f: json.dump(failures, f)
os.rename("/data/result.new", "/data/result")
while True: time.sleep(100)
