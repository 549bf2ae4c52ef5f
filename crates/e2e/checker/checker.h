/* A program that proves, for every page of its memory, that nothing was lost, torn, mixed up or taken at another instant.
 *
 * One node runs `checker`: the main process answers HTTP and asks its *parts*, processes of their own (pages.c, churn.c,
 * exchange.c), what they found. A part that finds something wrong keeps the first of it and stops the thread that found it. */
#ifndef CHECKER_H
#define CHECKER_H

#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define PAGE 4096
#define WORDS (PAGE / sizeof(uint64_t))
/* Longest text about one failure, bytes. */
#define TEXT 1000
/* Longest answer of a part, bytes. */
#define ANSWER 2000

typedef uint64_t page_t[WORDS];

/* --- page.c: what a page says --- */

/* A page that nobody wrote since it was mapped or discarded: zeros. */
#define EMPTY UINT64_MAX

/* Fills a page: every word depends on the place (which page it is) and its version. */
void page_fill(page_t *page, uint64_t place, uint64_t version);
/* Whether a page is just that; EMPTY asks for zeros. */
bool page_is(const page_t *page, uint64_t place, uint64_t version);
/* What is in a page, for people: zeros, another version, another page, or a mixture. */
void page_describe(const page_t *page, uint64_t place, uint64_t version, char *text, size_t size);

/* --- part.c: what all parts have in common --- */

/* Keeps the first failure of this process, for whoever asks. */
void failure(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Whether there was one. */
bool has_failed(void);
/* For a thread whose memory is wrong: it does nothing any more, so that the memory stays as it was found. */
void give_up(void) __attribute__((noreturn));
/* Starts a thread that stands when it is asked to. */
void start_worker(void *(*run)(void *), void *argument);
/* Workers call this when all their pages are whole; returns when they may go on. */
void stand_if_asked(void);
/* Sleeps. */
void sleep_us(unsigned us);
/* A random number, of its own sequence. */
uint64_t random_next(uint64_t *state);
/* Answers `v` (verify every page now) and `s` (say what is known) on `control` until its end; `verify` runs while all workers
 * stand, `count` writes `"name":number` pairs that begin with a comma. */
void serve(int control, void (*verify)(void), void (*count)(char *text, size_t size)) __attribute__((noreturn));
/* Writes the answer of a part: {"said":"ok" or the failure, ...}. */
void say(int control, void (*count)(char *text, size_t size));
/* The process's name in lists. */
void call_it(const char *name);

/* --- the parts --- */

/* Writers of a ring of tokens over all `pages` processes of the node; they have PAGES_WRITERS threads each. */
#define PAGES_WRITERS 2
struct ring {
    int holders;               /* threads in the ring */
    int first;                 /* which of them is the first one here */
    int (*pipes)[2];           /* holder k reads from pipes[k] and writes to pipes[(k + 1) % holders] */
};
void pages(int control, size_t megabytes, const struct ring *ring) __attribute__((noreturn));
void churn(int control) __attribute__((noreturn));
/* `peer` is `host:port` to connect to, or NULL: listen at `port`. */
void exchange(int control, const char *peer, const char *port) __attribute__((noreturn));

#endif
