# Fills memory with a pattern, waits for /tmp/go, then does to it whatever a program may do, and checks it all the while.
import ctypes, mmap, os, random, struct, sys, threading, time

MIB = 1 << 20
SIZE = int(sys.argv[1]) * MIB
PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS


def say(*words):
    print(*words, flush=True)


def page(base, index):
    return struct.pack("<QQ", base, index) * 256


def filled(base, size):
    memory = mmap.mmap(-1, size, flags=PRIVATE)
    for index in range(size // 4096):
        memory[index * 4096:(index + 1) * 4096] = page(base, index)
    return memory


def check(what, memory, base, start=0, end=None, step=1, shift=0):
    for index in range(start, len(memory) // 4096 if end is None else end, step):
        if memory[index * 4096:(index + 1) * 4096] != page(base, index + shift):
            say("bad", what, index, memory[index * 4096:index * 4096 + 16])
            os._exit(1)


def zeros(what, memory, start, end):
    if any(memory[start * 4096:end * 4096]):
        say("bad zeros", what)
        os._exit(1)


def child(what, work):
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException as e:
            say("bad", what, repr(e))
            os._exit(1)
        os._exit(0)
    if os.waitpid(pid, 0)[1] != 0:
        say("bad child", what)
        os._exit(1)


big = filled(1, SIZE)
holes = filled(2, 8 * MIB)
grows = filled(3, 4 * MIB)
goes = filled(4, 4 * MIB)
kernel = filled(5, 8 * MIB)
shared = filled(6, 16 * MIB)
twice = filled(7, 8 * MIB)
closed = filled(8, 4 * MIB)


def protect(memory, how):
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(address), ctypes.c_size_t(len(memory)), how) == 0


protect(closed, 0)
with open("/tmp/file", "wb") as file:
    for index in range(256):
        file.write(page(99, index))
pages = len(big) // 4096


def wander():
    # every reader its own way through the memory
    for index in range(0, pages, 61):
        at = (index * 7919) % pages
        check("wander", big, 1, at, at + 1)


class Region:
    """Memory with a note of what each page must be: a pattern, or None for zeros."""

    def __init__(self, base, pages):
        self.base = base
        self.memory = filled(base, pages * 4096)
        self.expected = [page(base, index) for index in range(pages)]

    def check(self, what):
        for index, expected in enumerate(self.expected):
            found = self.memory[index * 4096:(index + 1) * 4096]
            if found != (expected or bytes(4096)):
                say("bad", what, self.base, index, found[:16], (expected or b"")[:16])
                os._exit(1)

    def give_up(self, start, end):
        self.memory.madvise(mmap.MADV_DONTNEED, start * 4096, (end - start) * 4096)
        self.expected[start:end] = [None] * (end - start)

    def write(self, index):
        self.expected[index] = page(self.base + 1000000, index)
        self.memory[index * 4096:(index + 1) * 4096] = self.expected[index]

    def resize(self, pages):
        self.memory.resize(pages * 4096)
        self.expected = (self.expected + [None] * pages)[:pages]


def play(regions, rounds, deep):
    """Does random things to memory of which each is noted."""
    for _ in range(rounds):
        region = random.choice(regions)
        start, end = sorted(random.sample(range(len(region.expected) + 1), 2))
        what = random.randrange(12)
        if what < 4:
            region.check("play")
        elif what < 6:
            region.give_up(start, end)
        elif what < 8:
            region.write(start)
        elif what < 10:
            region.resize(random.randrange(1, 600))
        elif what == 10 and len(regions) > 4:
            regions.remove(region)
            region.memory.close()
        elif what == 11 and deep:
            child("play", lambda: play(regions, 20, deep - 1))
    for region in regions:
        region.check("end of play")


# Without the interpreter's lock while they run, unlike what mmap has.
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = libc.mremap.restype = ctypes.c_size_t
libc.mmap.argtypes = [ctypes.c_size_t, ctypes.c_size_t] + 3 * [ctypes.c_int] + [ctypes.c_size_t]
libc.munmap.argtypes = [ctypes.c_size_t] * 2
libc.mremap.argtypes = [ctypes.c_size_t] * 3 + [ctypes.c_int, ctypes.c_size_t]
BLOCK = 16 * 4096


def block(base):
    address = libc.mmap(0, BLOCK, mmap.PROT_READ | mmap.PROT_WRITE, PRIVATE, -1, 0)
    for index in range(16):
        ctypes.memmove(address + index * 4096, page(base, index), 4096)
    return base, address


def shuffle(blocks):
    """Moves blocks to places that another thread has just left, uses them, and checks each in the end."""
    while blocks:
        base, address = blocks.pop(random.randrange(len(blocks)))
        what = random.randrange(8)
        if what == 0:
            libc.munmap(address, BLOCK)
        elif what < 6:
            # the kernel chooses the place: what another thread has just left
            hole = libc.mmap(0, BLOCK, 0, PRIVATE, -1, 0)
            address = libc.mremap(address, BLOCK, BLOCK, 3, hole)
            blocks.append((base, address))
            index = random.randrange(16)
            if ctypes.string_at(address + index * 4096, 4096) != page(base, index):
                say("bad block", base, index)
                os._exit(1)
        else:
            found = ctypes.string_at(address, BLOCK)
            if found != b"".join(page(base, index) for index in range(16)):
                say("bad block", base, hex(address), found[:16])
                os._exit(1)
            libc.munmap(address, BLOCK)


blocks = [block(5000 + number) for number in range(400)] if "threads" in sys.argv else []
regions = [Region(100 + number, 256) for number in range(96)] if "random" in sys.argv else []
# Somebody in the middle of its program, and somebody asleep, when all of it is cut.
stop = False


def spin():
    while not stop:
        pass


threads = [threading.Thread(target=spin, daemon=True), threading.Thread(target=time.sleep, args=(1000,), daemon=True)]
for thread in threads:
    thread.start()
# A child that shares memory with its parent and lives through the cut.
other = None if "alone" in sys.argv else os.fork()
if other == 0:
    while not os.path.exists("/tmp/go"):
        time.sleep(0.002)
    check("the other process", shared, 6)
    check("the other process", big, 1, 0, pages, 17)
    say("other ok")
    while True:
        time.sleep(1000)
say("ready")
while not os.path.exists("/tmp/go"):
    time.sleep(0.002)
stop = True
say("first")

if "forever" in sys.argv:
    # until somebody ends it
    while True:
        check("on and on", big, 1)
        say("round")

if blocks:
    random.seed()
    shufflers = [threading.Thread(target=shuffle, args=(blocks[part::4],)) for part in range(4)]
    for thread in shufflers:
        thread.start()
    for thread in shufflers:
        thread.join()
    say("all ok")
    time.sleep(1000)

if regions:
    random.seed()
    play(regions, 80, 2)
    say("all ok")
    time.sleep(1000)

walkers = [threading.Thread(target=wander) for _ in range(2)]
for thread in walkers:
    thread.start()
# The kernel itself reads and writes missing pages.
with open("/tmp/file", "rb", buffering=0) as file:
    assert file.readinto(memoryview(kernel)[MIB + 1:2 * MIB + 1]) == MIB
assert kernel[MIB + 1:2 * MIB + 1] == open("/tmp/file", "rb").read()
check("before what read(2) wrote", kernel, 5, 0, 256)
check("behind what read(2) wrote", kernel, 5, 513)
with open("/tmp/out", "wb", buffering=0) as file:
    assert file.write(memoryview(kernel)[4 * MIB:5 * MIB]) == MIB
out = open("/tmp/out", "rb").read()
assert all(out[i * 4096:(i + 1) * 4096] == page(5, i + 1024) for i in range(256)), "bad write(2)"
# Given up: zeros, and nothing comes back.
holes.madvise(mmap.MADV_DONTNEED, MIB, MIB)
zeros("given up", holes, 256, 512)
holes[MIB + 8192:MIB + 8193] = b"x"
holes.madvise(mmap.MADV_DONTNEED, 6 * MIB, MIB)
# A child sees what its parent had, both go on by themselves.
def young():
    check("child", twice, 7)
    zeros("child, given up", holes, 6 * 256, 7 * 256)
    check("child", holes, 2, 7 * 256)
    twice.madvise(mmap.MADV_DONTNEED)
    zeros("child, given up by itself", twice, 0, 2048)
    grows.resize(8 * MIB)
    check("child, moved", grows, 3, 0, 1024)
    child("grandchild", lambda: check("grandchild", shared, 6))


child("child", young)
check("after the child", twice, 7)
# Moved, with more behind it.
grows.resize(16 * MIB)
check("moved", grows, 3, 0, 1024)
zeros("new", grows, 1024, 4096)
protect(closed, mmap.PROT_READ)
check("closed", closed, 8, 0, 512)
protect(closed, mmap.PROT_READ | mmap.PROT_WRITE)
check("opened", closed, 8)
goes.close()
fresh = mmap.mmap(-1, 4 * MIB, flags=PRIVATE)
zeros("fresh", fresh, 0, 1024)
child("exec", lambda: os.execv("/bin/busybox", ["true"]))
for thread in walkers:
    thread.join()
check("all", big, 1)
check("all", holes, 2, 0, 256)
check("all", holes, 2, 512, 6 * 256)
zeros("still", holes, 6 * 256, 7 * 256)
assert holes[MIB + 8192:MIB + 8194] == b"x\0"
check("all", holes, 2, 7 * 256)
check("all", shared, 6)
say("all ok")
while True:
    time.sleep(0.01)
    check("later", big, 1, 0, 64)
