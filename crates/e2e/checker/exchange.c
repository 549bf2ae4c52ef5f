/* Sequence numbers over one TCP connection, in both directions, as fast as the other side lets: whoever receives n must have
 * received n - 1 last. Both sides keep what they sent and received in pages. */
#define _GNU_SOURCE
#include "checker.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

/* Numbers that may be on their way at a time; the tests know it. */
#define WINDOW 256
/* Time between two looks when there is nothing to do, and after a batch: the machine has other work too. */
#define PAUSE_US 300
/* Numbers that a side remembers. */
#define KEPT 64

/* A number, and the last one that was received; number 0 says only that. */
struct message {
    uint64_t number, received;
};

/* Numbers of one direction: the last one, and the pages of the last KEPT. */
struct numbers {
    const char *name;
    page_t *pages;
    uint64_t last;
};

static struct numbers sent = {.name = "sent"}, received = {.name = "received"};
static uint64_t acknowledged, told, connects;

static void note(struct numbers *numbers, uint64_t number)
{
    page_t *page = &numbers->pages[number % KEPT];
    uint64_t before = number >= KEPT ? number - KEPT : EMPTY;
    /* 0 is never sent: numbers begin with 1. */
    if (before == 0)
        before = EMPTY;
    if (!page_is(page, (uintptr_t)page, before)) {
        char text[TEXT / 2];
        page_describe(page, (uintptr_t)page, before, text, sizeof text);
        failure("exchange, page of %s number %llu at %p: %s", numbers->name, (unsigned long long)number, (void *)page, text);
    }
    page_fill(page, (uintptr_t)page, number);
    numbers->last = number;
}

static void verify(const struct numbers *numbers)
{
    for (uint64_t back = 0; back < KEPT && back < numbers->last; back++) {
        uint64_t number = numbers->last - back;
        page_t *page = &numbers->pages[number % KEPT];
        if (!page_is(page, (uintptr_t)page, number)) {
            char text[TEXT / 2];
            page_describe(page, (uintptr_t)page, number, text, sizeof text);
            failure("exchange, page of %s number %llu at %p (the last is %llu): %s", numbers->name,
                    (unsigned long long)number, (void *)page, (unsigned long long)numbers->last, text);
        }
    }
}

static void count(char *text, size_t size)
{
    snprintf(text, size, ",\"sent\":%llu,\"received\":%llu,\"connects\":%llu", (unsigned long long)sent.last,
             (unsigned long long)received.last, (unsigned long long)connects);
}

static void answer(int control)
{
    char word;
    if (read(control, &word, 1) != 1)
        exit(1);
    if (word == 'v') {
        verify(&sent);
        verify(&received);
    }
    say(control, count);
}

/* Answers while there is no connection; returns after a moment. */
static void wait_a_moment(int control)
{
    struct pollfd waits = {control, POLLIN, 0};
    if (poll(&waits, 1, 50) > 0)
        answer(control);
}

static int open_socket(const char *host, const char *port)
{
    struct addrinfo hints = {.ai_family = AF_INET, .ai_socktype = SOCK_STREAM, .ai_flags = host ? 0 : AI_PASSIVE}, *found;
    if (getaddrinfo(host, port, &hints, &found) != 0)
        return -1;
    int one = 1, fd = socket(found->ai_family, SOCK_STREAM, 0);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    int done = host ? connect(fd, found->ai_addr, found->ai_addrlen) : bind(fd, found->ai_addr, found->ai_addrlen);
    freeaddrinfo(found);
    if (done == 0)
        return fd;
    close(fd);
    return -1;
}

static int connected(int control, const char *peer, const char *port)
{
    char host[200] = "";
    int fd = -1;
    if (peer) {
        snprintf(host, sizeof host, "%s", peer);
        char *colon = strrchr(host, ':');
        if (!colon)
            exit(2);
        *colon = 0;
        while ((fd = open_socket(host, colon + 1)) < 0)
            wait_a_moment(control);
    } else {
        int listening = open_socket(NULL, port);
        if (listening < 0 || listen(listening, 1) != 0) {
            perror("listen");
            exit(1);
        }
        fcntl(listening, F_SETFL, O_NONBLOCK);
        while ((fd = accept(listening, NULL, NULL)) < 0)
            wait_a_moment(control);
        close(listening);
    }
    fcntl(fd, F_SETFL, O_NONBLOCK);
    connects++;
    return fd;
}

static void receive(struct message message)
{
    if (message.number != 0 && message.number != received.last + 1)
        failure("exchange received %llu after %llu", (unsigned long long)message.number, (unsigned long long)received.last);
    if (message.received > sent.last || message.received < acknowledged || sent.last - message.received > WINDOW)
        failure("exchange: the other side received %llu, sent was %llu, acknowledged %llu",
                (unsigned long long)message.received, (unsigned long long)sent.last, (unsigned long long)acknowledged);
    acknowledged = message.received;
    if (message.number != 0)
        note(&received, message.number);
}

static void lost(const char *how, ssize_t result)
{
    failure("the connection of the exchange ended: %s: %s, with %llu sent and %llu received", how,
            result == 0 ? "end of stream" : strerror(errno), (unsigned long long)sent.last,
            (unsigned long long)received.last);
}

/* Reads what is there. */
static void read_some(int fd, char *buffer, size_t *filled)
{
    ssize_t got = read(fd, buffer + *filled, sizeof(struct message) * 64 - *filled);
    if (got <= 0) {
        if (got == 0 || (errno != EAGAIN && errno != EINTR))
            lost("read", got);
        return;
    }
    *filled += got;
    size_t at = 0;
    for (; *filled - at >= sizeof(struct message); at += sizeof(struct message)) {
        struct message message;
        memcpy(&message, buffer + at, sizeof message);
        receive(message);
    }
    memmove(buffer, buffer + at, *filled - at);
    *filled -= at;
}

static void append(char *buffer, size_t *filled, uint64_t number)
{
    struct message message = {number, received.last};
    memcpy(buffer + *filled, &message, sizeof message);
    *filled += sizeof message;
    told = received.last;
}

/* Writes what the window allows; messages that did not fit wait in the buffer. */
static void write_some(int fd, char *buffer, size_t *filled)
{
    for (int i = 0; i < 32 && *filled < sizeof(struct message) * 63 && sent.last - acknowledged < WINDOW; i++) {
        note(&sent, sent.last + 1);
        append(buffer, filled, sent.last);
    }
    /* Both windows may be full at once: then nothing but this opens them. */
    if (told != received.last && *filled < sizeof(struct message) * 63)
        append(buffer, filled, 0);
    if (*filled == 0)
        return;
    ssize_t put = write(fd, buffer, *filled);
    if (put < 0) {
        if (errno != EAGAIN && errno != EINTR)
            lost("write", put);
        return;
    }
    memmove(buffer, buffer + put, *filled - put);
    *filled -= put;
}

void exchange(int control, const char *peer, const char *port)
{
    page_t *kept = mmap(NULL, 2 * KEPT * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (kept == MAP_FAILED) {
        perror("mmap");
        exit(1);
    }
    sent.pages = kept;
    received.pages = kept + KEPT;
    int fd = connected(control, peer, port);
    static char in[sizeof(struct message) * 64], out[sizeof(struct message) * 64];
    size_t in_filled = 0, out_filled = 0;
    for (;;) {
        bool live = !has_failed();
        struct pollfd waits[2] = {{control, POLLIN, 0}, {live ? fd : -1, POLLIN, 0}};
        poll(waits, 2, live ? 100 : -1);
        if (waits[0].revents)
            answer(control);
        if (!live)
            continue;
        read_some(fd, in, &in_filled);
        write_some(fd, out, &out_filled);
        sleep_us(PAUSE_US);
    }
}
