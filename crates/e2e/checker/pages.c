/* Pages written at full speed, each checked against what it must be just before it is written anew.
 *
 * A thread writes the pages of a lap in order, all with the lap's number as version. So at any instant the versions form one
 * step: the lap's before the cursor, the one before from there on. A page of another instant is on the wrong side of it.
 * Between threads and processes a token goes round; whoever gets n must have had n - holders last, and writes it into
 * its pages before it sends n + 1. A thread or process of another instant than the rest has lost or repeated a number. */
#define _GNU_SOURCE
#include "checker.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* Pages written between two pauses, and how long one is. */
#define BURST 32
#define PAUSE_US 1000
/* A lap of the pages that are written all the time is this fraction of all; the others are written one for each burst. */
#define HOT_PART 4
/* Tokens that a holder remembers. */
#define TOKENS 64

struct lap {
    const char *name;
    page_t *pages;
    size_t count, cursor;
    uint64_t version;
};

static struct writer {
    int number, in, out;
    struct lap hot, cold;
    page_t *tokens;
    uint64_t rounds; /* tokens so far */
} writers[PAGES_WRITERS];

static const struct ring *ring;

static void check(const struct writer *writer, const char *name, const page_t *pages, size_t count, size_t at,
                  uint64_t version, const char *when)
{
    if (page_is(&pages[at], (uintptr_t)&pages[at], version))
        return;
    char text[TEXT / 2];
    page_describe(&pages[at], (uintptr_t)&pages[at], version, text, sizeof text);
    failure("writer %d, %s page %zu of %zu at %p, %s: %s", writer->number, name, at, count, (void *)&pages[at], when, text);
}

static uint64_t version_at(const struct lap *lap, size_t at)
{
    return at < lap->cursor ? lap->version : lap->version - 1;
}

static void verify_lap(const struct writer *writer, const struct lap *lap)
{
    size_t wrong = 0, first = 0;
    for (size_t at = 0; at < lap->count; at++)
        if (!page_is(&lap->pages[at], (uintptr_t)&lap->pages[at], version_at(lap, at)) && wrong++ == 0)
            first = at;
    if (wrong == 0)
        return;
    char when[120];
    snprintf(when, sizeof when, "verified with the cursor at %zu of lap %llu, %zu pages wrong", lap->cursor,
             (unsigned long long)lap->version, wrong);
    check(writer, lap->name, lap->pages, lap->count, first, version_at(lap, first), when);
    if (!has_failed())
        failure("writer %d, %s page %zu at %p, %s: read again it is right", writer->number, lap->name, first,
                (void *)&lap->pages[first], when);
}

static void write_next(struct writer *writer, struct lap *lap)
{
    check(writer, lap->name, lap->pages, lap->count, lap->cursor, lap->version - 1, "before it was written");
    if (has_failed())
        give_up();
    page_t *page = &lap->pages[lap->cursor];
    page_fill(page, (uintptr_t)page, lap->version);
    if (++lap->cursor == lap->count) {
        lap->cursor = 0;
        lap->version++;
    }
}

/* The token that this holder had in its round: EMPTY before the first one in that slot. */
static uint64_t token_of(const struct writer *writer, uint64_t round)
{
    return round * ring->holders + writer->number;
}

static void check_tokens(const struct writer *writer, const char *when)
{
    for (size_t slot = 0; slot < TOKENS; slot++) {
        uint64_t version = EMPTY;
        if (writer->rounds > slot) {
            uint64_t last = (writer->rounds - 1 - slot) / TOKENS * TOKENS + slot;
            version = token_of(writer, last);
        }
        check(writer, "token", writer->tokens, TOKENS, slot, version, when);
    }
}

static void pass_token(struct writer *writer)
{
    uint64_t token;
    ssize_t got = read(writer->in, &token, sizeof token);
    if (got != sizeof token) {
        if (got >= 0 || (errno != EAGAIN && errno != EINTR))
            failure("writer %d: the pipe of tokens gave %zd bytes: %s", writer->number, got, strerror(errno));
        return;
    }
    if (token != token_of(writer, writer->rounds))
        failure("writer %d got token %llu after %llu: one was lost or repeated, this process is of another instant than "
                "what sent it",
                writer->number, (unsigned long long)token,
                (unsigned long long)token_of(writer, writer->rounds) - ring->holders);
    check_tokens(writer, "before it took the next token");
    if (has_failed())
        give_up();
    page_t *page = &writer->tokens[writer->rounds % TOKENS];
    page_fill(page, (uintptr_t)page, token);
    writer->rounds++;
    token++;
    if (write(writer->out, &token, sizeof token) != sizeof token)
        failure("writer %d: the pipe of tokens cannot be written: %s", writer->number, strerror(errno));
}

static void *run(void *argument)
{
    struct writer *writer = argument;
    for (;;) {
        for (int i = 0; i < BURST; i++) {
            write_next(writer, &writer->hot);
            stand_if_asked();
        }
        write_next(writer, &writer->cold);
        pass_token(writer);
        stand_if_asked();
        sleep_us(PAUSE_US);
    }
    return NULL;
}

static void verify(void)
{
    for (int i = 0; i < PAGES_WRITERS; i++) {
        verify_lap(&writers[i], &writers[i].hot);
        verify_lap(&writers[i], &writers[i].cold);
        check_tokens(&writers[i], "verified");
    }
}

static void count(char *text, size_t size)
{
    snprintf(text, size, ",\"laps\":%llu,\"tokens\":%llu", (unsigned long long)writers[0].hot.version,
             (unsigned long long)writers[0].rounds);
}

static struct lap lap_of(const char *name, page_t *pages, size_t count)
{
    for (size_t at = 0; at < count; at++)
        page_fill(&pages[at], (uintptr_t)&pages[at], 1);
    return (struct lap){name, pages, count, 0, 2};
}

void pages(int control, size_t megabytes, const struct ring *token_ring)
{
    ring = token_ring;
    size_t count_each = (megabytes << 20) / PAGE / PAGES_WRITERS, hot = count_each / HOT_PART;
    for (int i = 0; i < PAGES_WRITERS; i++) {
        page_t *all = mmap(NULL, (count_each + TOKENS) * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (all == MAP_FAILED) {
            perror("mmap");
            exit(1);
        }
        struct writer *writer = &writers[i];
        writer->number = ring->first + i;
        writer->in = ring->pipes[writer->number][0];
        writer->out = ring->pipes[(writer->number + 1) % ring->holders][1];
        writer->hot = lap_of("hot", all, hot);
        writer->cold = lap_of("cold", all + hot, count_each - hot);
        writer->tokens = all + count_each;
    }
    for (int i = 0; i < PAGES_WRITERS; i++)
        start_worker(run, &writers[i]);
    serve(control, verify, count);
}
