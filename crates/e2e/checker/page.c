/* What a page says. Word 0 is the place, word 1 the version, the rest follows from both. */
#include "checker.h"

#include <string.h>

/* Cheap, so that a processor compares a page in a fraction of a microsecond: the rest is base + i * STEP. */
#define STEP 0x9e3779b97f4a7c15u

static uint64_t base_of(uint64_t place, uint64_t version)
{
    uint64_t x = (place ^ version * STEP) * 0xff51afd7ed558ccdu;
    return x ^ x >> 32;
}

void page_fill(page_t *page, uint64_t place, uint64_t version)
{
    uint64_t *words = *page, base = base_of(place, version);
    words[0] = place;
    words[1] = version;
    for (size_t i = 2; i < WORDS; i++)
        words[i] = base + i * STEP;
}

/* Words that are not as they should be. */
static size_t wrong_words(const page_t *page, uint64_t place, uint64_t version, size_t *first)
{
    const uint64_t *words = *page;
    uint64_t base = version == EMPTY ? 0 : base_of(place, version), step = version == EMPTY ? 0 : STEP;
    size_t wrong = 0;
    for (size_t i = 0; i < WORDS; i++) {
        uint64_t right = base + i * step;
        if (i < 2 && version != EMPTY)
            right = i == 0 ? place : version;
        if (words[i] != right && wrong++ == 0)
            *first = i;
    }
    return wrong;
}

bool page_is(const page_t *page, uint64_t place, uint64_t version)
{
    const uint64_t *words = *page;
    bool empty = version == EMPTY;
    uint64_t base = empty ? 0 : base_of(place, version), step = empty ? 0 : STEP;
    uint64_t wrong = (words[0] ^ (empty ? 0 : place)) | (words[1] ^ (empty ? 0 : version));
    for (size_t i = 2; i < WORDS; i++)
        wrong |= words[i] ^ (base + i * step);
    return wrong == 0;
}

static const char *version_text(uint64_t version, char *text, size_t size)
{
    if (version == EMPTY)
        snprintf(text, size, "zeros");
    else
        snprintf(text, size, "version %llu", (unsigned long long)version);
    return text;
}

void page_describe(const page_t *page, uint64_t place, uint64_t version, char *text, size_t size)
{
    char expected[40], found[40];
    page_t copy;
    size_t first = 0;
    /* It may change while we look: judge one state of it. */
    memcpy(copy, *page, PAGE);
    version_text(version, expected, sizeof expected);
    if (wrong_words(&copy, place, version, &first) == 0) {
        snprintf(text, size, "expected %s, and read again it is that", expected);
    } else if (wrong_words(&copy, 0, EMPTY, &first) == 0) {
        snprintf(text, size, "expected %s, found zeros", expected);
    } else if (wrong_words(&copy, copy[0], copy[1], &first) == 0) {
        version_text(copy[1], found, sizeof found);
        if (copy[0] == place)
            snprintf(text, size, "expected %s, found %s of this page", expected, found);
        else
            snprintf(text, size, "expected %s of place %#llx, found %s of place %#llx", expected,
                     (unsigned long long)place, found, (unsigned long long)copy[0]);
    } else {
        size_t wrong = wrong_words(&copy, place, version, &first);
        snprintf(text, size,
                 "expected %s of place %#llx, found a mixture: %zu of %zu words are wrong, the first is word %zu; "
                 "its head says place %#llx version %llu",
                 expected, (unsigned long long)place, wrong, (size_t)WORDS, first, (unsigned long long)copy[0],
                 (unsigned long long)copy[1]);
    }
}
