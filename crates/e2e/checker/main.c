/* `checker`: starts the parts and answers HTTP.
 *
 * Environment: PEER (`host:port`) or PEER_PORT for the exchange with another node.
 * `GET /verify` has every part verify every page and answers what they say; `GET /state` answers what they know.
 * Both: {"boot":...,"big":{"said":"ok",...},"small":...,"churn":...,"exchange":...}. */
#define _GNU_SOURCE
#include "checker.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#define HTTP_PORT 8080
#define BIG_MIB 64
#define SMALL_MIB 8
/* A part that does not answer in this time hangs. */
#define ANSWER_MAX_MS 60000

enum { BIG, SMALL, CHURN, EXCHANGE, PARTS };

static struct part {
    const char *name;
    pid_t pid;
    int control;
} parts[PARTS] = {{.name = "big"}, {.name = "small"}, {.name = "churn"}, {.name = "exchange"}};

static int pipes[2 * PAGES_WRITERS][2];
static struct ring ring = {.holders = 2 * PAGES_WRITERS, .pipes = pipes};

static void run_part(int number, int control)
{
    call_it(parts[number].name);
    switch (number) {
    case BIG:
    case SMALL:
        ring.first = number == BIG ? 0 : PAGES_WRITERS;
        pages(control, number == BIG ? BIG_MIB : SMALL_MIB, &ring);
    case CHURN:
        churn(control);
    default:
        exchange(control, getenv("PEER"), getenv("PEER_PORT"));
    }
}

static void start_part(int number)
{
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) != 0) {
        perror("socketpair");
        exit(1);
    }
    parts[number].pid = fork();
    if (parts[number].pid == 0) {
        close(pair[0]);
        run_part(number, pair[1]);
    }
    close(pair[1]);
    parts[number].control = pair[0];
}

static void start_ring(void)
{
    for (int k = 0; k < ring.holders; k++)
        if (pipe2(pipes[k], O_NONBLOCK) != 0) {
            perror("pipe");
            exit(1);
        }
    uint64_t token = 0;
    if (write(pipes[0][1], &token, sizeof token) != sizeof token)
        exit(1);
}

/* What a part says, or what became of it: a part that dies may leave a word (see serve). */
static void ask(struct part *part, char word, char *answer, size_t size)
{
    struct pollfd waits = {part->control, POLLIN, 0};
    size_t length = 0;
    (void)!write(part->control, &word, 1);
    do {
        int there;
        while ((there = poll(&waits, 1, ANSWER_MAX_MS)) < 0 && errno == EINTR)
            ;
        if (there == 0) {
            snprintf(answer, size, "{\"said\":\"gives no answer\"}");
            return;
        }
        ssize_t got = read(part->control, answer + length, size - 1 - length);
        if (got <= 0) {
            int status = 0;
            waitpid(part->pid, &status, 0);
            snprintf(answer, size, "{\"said\":\"has ended, with wait status %#x\"}", status);
            return;
        }
        length += got;
    } while (answer[length - 1] != '}');
    answer[length] = 0;
}

static void answer(int client, const char *boot)
{
    char request[2000] = "", body[PARTS * (ANSWER + 20) + 100], answer[ANSWER], head[200];
    size_t length = 0;
    while (length < sizeof request - 1 && !strstr(request, "\r\n\r\n")) {
        ssize_t got = read(client, request + length, sizeof request - 1 - length);
        if (got <= 0)
            return;
        length += got;
        request[length] = 0;
    }
    char word = strncmp(request, "GET /verify", 11) == 0 ? 'v' : 's';
    length = snprintf(body, sizeof body, "{\"boot\":\"%s\"", boot);
    for (int i = 0; i < PARTS; i++) {
        ask(&parts[i], word, answer, sizeof answer);
        length += snprintf(body + length, sizeof body - length, ",\"%s\":%s", parts[i].name, answer);
    }
    length += snprintf(body + length, sizeof body - length, "}");
    snprintf(head, sizeof head,
             "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %zu\r\nConnection: close\r\n\r\n", length);
    if (write(client, head, strlen(head)) > 0)
        (void)!write(client, body, length);
}

int main(void)
{
    signal(SIGPIPE, SIG_IGN);
    uint64_t random;
    char boot[20];
    if (getrandom(&random, sizeof random, 0) != sizeof random)
        return 1;
    snprintf(boot, sizeof boot, "%016llx", (unsigned long long)random);
    start_ring();
    for (int i = 0; i < PARTS; i++)
        start_part(i);
    int one = 1, listening = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(HTTP_PORT)};
    setsockopt(listening, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listening, (struct sockaddr *)&address, sizeof address) != 0 || listen(listening, 16) != 0) {
        perror("listen");
        return 1;
    }
    for (;;) {
        int client = accept(listening, NULL, NULL);
        if (client < 0)
            continue;
        struct timeval bound = {5, 0};
        setsockopt(client, SOL_SOCKET, SO_RCVTIMEO, &bound, sizeof bound);
        setsockopt(client, SOL_SOCKET, SO_SNDTIMEO, &bound, sizeof bound);
        answer(client, boot);
        close(client);
    }
}
