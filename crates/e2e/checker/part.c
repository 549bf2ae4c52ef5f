/* What all parts have in common: the first failure, threads that stand when every page is to be verified, answers. */
#define _GNU_SOURCE
#include "checker.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static atomic_bool asked;
static int workers, standing;
static char first_failure[TEXT];
static atomic_bool failed;

void failure(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    pthread_mutex_lock(&lock);
    if (!failed) {
        vsnprintf(first_failure, sizeof first_failure, format, arguments);
        for (char *c = first_failure; *c; c++)
            if (*c == '"' || *c == '\\' || *c < ' ')
                *c = '\'';
        fprintf(stderr, "%s\n", first_failure);
        failed = true;
    }
    pthread_mutex_unlock(&lock);
    va_end(arguments);
}

bool has_failed(void)
{
    return failed;
}

void give_up(void)
{
    pthread_mutex_lock(&lock);
    workers--;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
    for (;;)
        pause();
}

void start_worker(void *(*run)(void *), void *argument)
{
    pthread_t thread;
    pthread_mutex_lock(&lock);
    workers++;
    pthread_mutex_unlock(&lock);
    if (pthread_create(&thread, NULL, run, argument) != 0) {
        perror("pthread_create");
        exit(1);
    }
    pthread_detach(thread);
}

void stand_if_asked(void)
{
    if (!asked)
        return;
    pthread_mutex_lock(&lock);
    standing++;
    pthread_cond_broadcast(&changed);
    while (asked)
        pthread_cond_wait(&changed, &lock);
    standing--;
    pthread_mutex_unlock(&lock);
}

static void let_stand(void)
{
    pthread_mutex_lock(&lock);
    asked = true;
    while (standing < workers)
        pthread_cond_wait(&changed, &lock);
    pthread_mutex_unlock(&lock);
}

static void let_go(void)
{
    pthread_mutex_lock(&lock);
    asked = false;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
}

void sleep_us(unsigned us)
{
    struct timespec time = {us / 1000000, us % 1000000 * 1000L};
    nanosleep(&time, NULL);
}

uint64_t random_next(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state * 0x2545f4914f6cdd1du >> 16;
}

void say(int control, void (*count)(char *text, size_t size))
{
    char answer[ANSWER], counts[TEXT / 2] = "";
    count(counts, sizeof counts);
    pthread_mutex_lock(&lock);
    int length = snprintf(answer, sizeof answer, "{\"said\":\"%s\"%s}", failed ? first_failure : "ok", counts);
    pthread_mutex_unlock(&lock);
    if (write(control, answer, length) != length)
        exit(1);
}

static int said_to;

/* The last word of a process that touched what is not there. */
static void die(int signal, siginfo_t *info, void *context)
{
    char text[200];
    greg_t at = ((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
    int length = snprintf(text, sizeof text, "{\"said\":\"signal %d (code %d) for address %p, from instruction %#llx\"}", signal,
                          info->si_code, info->si_addr, (unsigned long long)at);
    (void)!write(said_to, text, length);
    _exit(128 + signal);
}

void serve(int control, void (*verify)(void), void (*count)(char *text, size_t size))
{
    struct sigaction action = {.sa_sigaction = die, .sa_flags = SA_SIGINFO};
    said_to = control;
    for (const int *signal = (const int[]){SIGSEGV, SIGBUS, SIGILL, SIGFPE, 0}; *signal; signal++)
        sigaction(*signal, &action, NULL);
    char word;
    while (read(control, &word, 1) == 1) {
        if (word == 'v') {
            let_stand();
            /* A call that failed half way may have left holes: what was found first is what counts. */
            if (!failed)
                verify();
            say(control, count);
            let_go();
        } else {
            say(control, count);
        }
    }
    exit(1);
}

void call_it(const char *name)
{
    prctl(PR_SET_NAME, name);
}
