/* What both ends of the load share: the clock, the mark of a moment, an end with a reason. */
#ifndef COMMON_H
#define COMMON_H

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* An event's text: MARK and the moment at which it was due, in nanoseconds, MARK_DIGITS digits. */
#define MARK '@'
#define MARK_DIGITS 20
#define MILLISECOND 1000000ull
#define SECOND 1000000000ull

/* Nanoseconds of the clock that all processes of a machine share. */
static inline uint64_t now_ns(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * SECOND + (uint64_t)time.tv_nsec;
}

_Noreturn static inline void die(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

static inline void *grow(void *memory, size_t size)
{
    void *larger = realloc(memory, size);
    if (larger == NULL)
        die("memory");
    return larger;
}

/* A whole number on the command line, from `least` on. */
static inline uint64_t number_of(const char *text, uint64_t least)
{
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (errno || *text == '\0' || *end != '\0' || value < least || value > 1000000000ull) {
        fprintf(stderr, "not a number that fits: %s\n", text);
        exit(2);
    }
    return value;
}

#endif
