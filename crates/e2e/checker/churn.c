/* Blocks of memory that threads map, fill, discard, move, grow, cut, protect and give to children without pause, as
 * allocators do. Every block is checked before and after every operation. */
#define _GNU_SOURCE
#include "checker.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define THREADS 4
#define BLOCKS 16
#define PAGES_MIN 10
#define PAGES_MAX 400
/* Between two operations of a thread. */
#define PAUSE_US 3000

struct block {
    page_t *pages;
    size_t count;
    uint64_t place;               /* of its first page: blocks move and keep it */
    uint64_t versions[PAGES_MAX]; /* EMPTY: zeros */
    const char *last;             /* operation */
    uint64_t last_number;
    page_t *last_pages;           /* where it was before */
    size_t last_count;
    bool filled;                  /* all of it was written since then */
    bool split;                   /* part of it was mapped over: the kernel may keep several areas, which mremap refuses */
};

static struct mover {
    int number;
    uint64_t random, operations, version;
    int pipe[2];
    struct block blocks[BLOCKS];
} movers[THREADS];

static size_t any(struct mover *mover, size_t from, size_t to)
{
    return from + random_next(&mover->random) % (to - from + 1);
}

/* How many pages are wrong; says so in `text` when there are any. */
static size_t look(const struct mover *mover, const struct block *block, const char *when, char *text, size_t size)
{
    size_t wrong = 0, zeros = 0, first = 0, last = 0;
    for (size_t at = 0; at < block->count; at++) {
        if (page_is(&block->pages[at], block->place + at, block->versions[at]))
            continue;
        if (wrong++ == 0)
            first = at;
        last = at;
        zeros += page_is(&block->pages[at], 0, EMPTY);
    }
    if (wrong == 0)
        return 0;
    char what[TEXT / 3];
    page_describe(&block->pages[first], block->place + first, block->versions[first], what, sizeof what);
    snprintf(text, size,
             "churn, thread %d, block %zd at %p of %zu pages, %s: page %zu at %p: %s; wrong are %zu pages (%zu of them zeros) "
             "between %zu and %zu; the last operation was %s, number %llu of this thread, on %zu pages at %p%s; every check before this one passed",
             mover->number, block - mover->blocks, (void *)block->pages, block->count, when, first,
             (void *)&block->pages[first], what, wrong, zeros, first, last, block->last, (unsigned long long)block->last_number,
             block->last_count, (void *)block->last_pages, block->filled ? ", then all of it was written" : "");
    return wrong;
}

static bool is_right(const struct mover *mover, const struct block *block, const char *when)
{
    char text[TEXT];
    if (look(mover, block, when, text, sizeof text) == 0)
        return true;
    failure("%s", text);
    return false;
}

static void refused(const struct mover *mover, const struct block *block, const char *call)
{
    failure("churn, thread %d, block %zd at %p of %zu pages: %s in %s, number %llu: %s", mover->number, block - mover->blocks,
            (void *)block->pages, block->count, call, block->last, (unsigned long long)block->last_number, strerror(errno));
    give_up();
}

static page_t *map(const struct mover *mover, const struct block *block, size_t count)
{
    page_t *pages = mmap(NULL, count * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED)
        refused(mover, block, "mmap");
    return pages;
}

static void empty(struct block *block, size_t from, size_t count)
{
    for (size_t at = from; at < from + count; at++)
        block->versions[at] = EMPTY;
}

static void fill(struct mover *mover, struct block *block, size_t from, size_t count)
{
    mover->version++;
    for (size_t at = from; at < from + count; at++) {
        block->versions[at] = mover->version;
        page_fill(&block->pages[at], block->place + at, mover->version);
    }
}

static void anew(struct mover *mover, struct block *block)
{
    block->count = any(mover, PAGES_MIN, PAGES_MAX);
    block->pages = map(mover, block, block->count);
    block->split = false;
    block->place = (uint64_t)(mover->number + 1) << 48 | ++mover->version << 16;
    empty(block, 0, block->count);
}

/* A part of the block. */
static size_t part(struct mover *mover, const struct block *block, size_t *from)
{
    *from = any(mover, 0, block->count - 1);
    return any(mover, 1, block->count - *from);
}

/* --- operations --- */

static void remap(struct mover *mover, struct block *block)
{
    if (munmap(block->pages, block->count * PAGE) != 0)
        refused(mover, block, "munmap");
    anew(mover, block);
}

static void discard(struct mover *mover, struct block *block)
{
    size_t from, count = part(mover, block, &from);
    if (madvise(&block->pages[from], count * PAGE, MADV_DONTNEED) != 0)
        refused(mover, block, "madvise");
    empty(block, from, count);
}

static void map_over(struct mover *mover, struct block *block)
{
    size_t from, count = part(mover, block, &from);
    if (mmap(&block->pages[from], count * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) ==
        MAP_FAILED)
        refused(mover, block, "mmap over it");
    block->split = true;
    empty(block, from, count);
}

static void cut_tail(struct mover *mover, struct block *block)
{
    size_t keep = any(mover, 1, block->count);
    if (keep < block->count && munmap(&block->pages[keep], (block->count - keep) * PAGE) != 0)
        refused(mover, block, "munmap");
    block->count = keep;
}

static void move(struct mover *mover, struct block *block)
{
    page_t *to = map(mover, block, block->count);
    if (mremap(block->pages, block->count * PAGE, block->count * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to) == MAP_FAILED)
        refused(mover, block, "mremap");
    block->pages = to;
}

static void resize(struct mover *mover, struct block *block, size_t count)
{
    page_t *to = mremap(block->pages, block->count * PAGE, count * PAGE, MREMAP_MAYMOVE);
    if (to == MAP_FAILED)
        refused(mover, block, "mremap");
    block->pages = to;
    if (count > block->count)
        empty(block, block->count, count - block->count);
    block->count = count;
}

static void grow(struct mover *mover, struct block *block)
{
    resize(mover, block, any(mover, block->count, PAGES_MAX));
}

static void shrink(struct mover *mover, struct block *block)
{
    resize(mover, block, any(mover, 1, block->count));
}

static void protect(struct mover *mover, struct block *block)
{
    size_t from, count = part(mover, block, &from);
    if (mprotect(&block->pages[from], count * PAGE, PROT_READ) != 0)
        refused(mover, block, "mprotect");
    bool right = is_right(mover, block, "while it is read-only");
    if (mprotect(&block->pages[from], count * PAGE, PROT_READ | PROT_WRITE) != 0)
        refused(mover, block, "mprotect back");
    if (!right)
        give_up();
}

static void fork_child(struct mover *mover, struct block *block)
{
    int told[2];
    char text[TEXT] = "";
    if (pipe(told) != 0)
        refused(mover, block, "pipe");
    pid_t child = fork();
    if (child < 0)
        refused(mover, block, "fork");
    if (child == 0) {
        call_it("brief");
        size_t wrong = look(mover, block, "in a child", text, sizeof text);
        _exit(wrong != 0 && write(told[1], text, strlen(text)) < 0);
    }
    close(told[1]);
    size_t length = 0;
    ssize_t got;
    while ((got = read(told[0], text + length, sizeof text - 1 - length)) > 0)
        length += got;
    close(told[0]);
    int status = 0;
    while (waitpid(child, &status, 0) < 0 && errno == EINTR)
        ;
    text[length] = 0;
    if (length > 0)
        failure("%s", text);
    else if (status != 0)
        failure("churn, thread %d: a child that looked at block %zd ended with wait status %#x", mover->number,
                block - mover->blocks, status);
}

/* The kernel writes: through a pipe, a page at a time. */
static void read_into(struct mover *mover, struct block *block)
{
    size_t from, count = part(mover, block, &from);
    mover->version++;
    for (size_t at = from; at < from + count; at++) {
        page_t page;
        page_fill(&page, block->place + at, mover->version);
        if (write(mover->pipe[1], page, PAGE) != PAGE)
            refused(mover, block, "write to a pipe");
        for (size_t done = 0; done < PAGE;) {
            ssize_t got = read(mover->pipe[0], (char *)&block->pages[at] + done, PAGE - done);
            if (got <= 0)
                refused(mover, block, "read from a pipe");
            done += got;
        }
        block->versions[at] = mover->version;
    }
}

static void rewrite(struct mover *mover, struct block *block)
{
    size_t from, count = part(mover, block, &from);
    fill(mover, block, from, count);
}

static const struct operation {
    const char *name;
    void (*run)(struct mover *mover, struct block *block);
    size_t pages_min; /* blocks with fewer are mapped anew instead */
    bool one_area;    /* and blocks that are split */
} operations[] = {
    {"munmap and mmap", remap, 1, false},
    {"madvise(MADV_DONTNEED)", discard, 1, false},
    {"mmap(MAP_FIXED) over a part", map_over, 1, false},
    {"munmap of the tail", cut_tail, PAGES_MIN, false},
    {"mremap(MREMAP_FIXED)", move, 1, true},
    {"mremap(MREMAP_FIXED), again", move, 1, true},
    {"mremap to grow", grow, 1, true},
    {"mremap to shrink", shrink, PAGES_MIN, true},
    {"mprotect and back", protect, 1, false},
    {"fork", fork_child, 1, false},
    {"read(2) from a pipe", read_into, 1, false},
    {"write", rewrite, 1, false},
    {"write, again", rewrite, 1, false},
};

static void operate(struct mover *mover, struct block *block)
{
    const struct operation *operation = &operations[any(mover, 0, sizeof operations / sizeof *operations - 1)];
    if (block->count < operation->pages_min || (operation->one_area && block->split))
        operation = &operations[0];
    if (!is_right(mover, block, "before the next operation"))
        give_up();
    block->last = operation->name;
    block->last_number = ++mover->operations;
    block->last_pages = block->pages;
    block->last_count = block->count;
    block->filled = false;
    operation->run(mover, block);
    if (has_failed() || !is_right(mover, block, "after the operation"))
        give_up();
}

static void *run(void *argument)
{
    struct mover *mover = argument;
    for (;;) {
        struct block *block = &mover->blocks[any(mover, 0, BLOCKS - 1)];
        operate(mover, block);
        /* Most blocks are full most of the time. */
        if (any(mover, 0, 1) == 0) {
            fill(mover, block, 0, block->count);
            block->filled = true;
        }
        stand_if_asked();
        sleep_us(PAUSE_US);
    }
    return NULL;
}

/* A thread of a moment, with a stack and a mapping of its own. */
static void *moment(void *argument)
{
    struct mover *mover = argument;
    struct block block = {.last = "a short-lived thread", .last_number = ++mover->operations};
    anew(mover, &block);
    fill(mover, &block, 0, block.count);
    char text[TEXT];
    if (look(mover, &block, "in a thread of a moment", text, sizeof text) != 0)
        failure("%s", text);
    munmap(block.pages, block.count * PAGE);
    return NULL;
}

static void *run_moments(void *argument)
{
    for (;;) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, moment, argument) != 0)
            failure("churn: a thread cannot be made: %s", strerror(errno));
        else
            pthread_join(thread, NULL);
        if (has_failed())
            give_up();
        stand_if_asked();
        sleep_us(PAUSE_US);
    }
    return NULL;
}

static void verify(void)
{
    for (int t = 0; t < THREADS; t++)
        for (int b = 0; b < BLOCKS; b++)
            if (!is_right(&movers[t], &movers[t].blocks[b], "verified"))
                return;
}

static void count(char *text, size_t size)
{
    uint64_t all = 0;
    for (int t = 0; t < THREADS; t++)
        all += movers[t].operations;
    snprintf(text, size, ",\"operations\":%llu", (unsigned long long)all);
}

void churn(int control)
{
    static struct mover moments = {.number = THREADS, .random = 1};
    for (int t = 0; t < THREADS; t++) {
        struct mover *mover = &movers[t];
        mover->number = t;
        mover->random = 0x9e3779b97f4a7c15u * (t + 1) ^ (uint64_t)getpid();
        if (pipe(mover->pipe) != 0)
            exit(1);
        for (int b = 0; b < BLOCKS; b++) {
            mover->blocks[b].last = "the first mmap";
            anew(mover, &mover->blocks[b]);
            fill(mover, &mover->blocks[b], 0, mover->blocks[b].count);
        }
    }
    for (int t = 0; t < THREADS; t++)
        start_worker(run, &movers[t]);
    start_worker(run_moments, &moments);
    serve(control, verify, count);
}
