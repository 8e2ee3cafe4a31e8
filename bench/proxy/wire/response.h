/* Reads HTTP/1.1 responses byte by byte as they come, and the marked moments in their bodies. */
#ifndef RESPONSE_H
#define RESPONSE_H

#include <stdbool.h>
#include <stddef.h>
#include <strings.h>

#include "common.h"

#define MAX_HEAD 4096
#define NUM_TAIL 64

enum part { HEAD, FIXED, CHUNK_SIZE, CHUNK_DATA, CHUNK_END, TRAILER, COMPLETE, MALFORMED };

/* One response while it is read. */
struct response {
    enum part part;
    int status;
    bool closes; /* the server ends the connection behind it */
    size_t num_head;
    char head[MAX_HEAD + 1]; /* later a chunk's size, or the trailer's line */
    uint64_t left;           /* bytes of the body, or of the chunk */
    int num_digits;          /* of the mark that is being read; -1: of none */
    uint64_t moment;
    long num_moments;
    char tail[NUM_TAIL + 1]; /* the end of the body, as far as it has come */
};

/* Called with each moment that a body holds. */
typedef void on_moment(void *owner, uint64_t moment);

static inline void begin_response(struct response *it)
{
    it->part = HEAD;
    it->status = 0;
    it->closes = false;
    it->num_head = 0;
    it->num_digits = -1;
    it->num_moments = 0;
    it->tail[0] = '\0';
}

static inline void keep_tail(struct response *it, const char *data, size_t size)
{
    size_t kept = strlen(it->tail);
    if (size >= NUM_TAIL) {
        data += size - NUM_TAIL;
        size = NUM_TAIL;
    }
    if (kept + size > NUM_TAIL) {
        memmove(it->tail, it->tail + kept + size - NUM_TAIL, NUM_TAIL - size);
        kept = NUM_TAIL - size;
    }
    memcpy(it->tail + kept, data, size);
    it->tail[kept + size] = '\0';
}

static inline void read_moments(struct response *it, const char *data, size_t size,
                                on_moment *tell, void *owner)
{
    const char *end = data + size;
    while (data < end) {
        if (it->num_digits < 0) {
            data = memchr(data, MARK, (size_t)(end - data));
            if (data == NULL)
                return;
            data++;
            it->num_digits = 0;
            it->moment = 0;
        } else if (*data < '0' || *data > '9') {
            it->num_digits = -1;
        } else {
            it->moment = it->moment * 10 + (uint64_t)(*data++ - '0');
            if (++it->num_digits == MARK_DIGITS) {
                it->num_digits = -1;
                it->num_moments++;
                tell(owner, it->moment);
            }
        }
    }
}

/* The value of a header in a head whose lines end with \r\n, or NULL. */
static inline const char *value_of(const char *head, const char *name)
{
    size_t size = strlen(name);
    for (const char *line = strstr(head, "\r\n"); line != NULL; line = strstr(line, "\r\n")) {
        line += 2;
        if (strncasecmp(line, name, size) == 0 && line[size] == ':')
            return line + size + 1 + strspn(line + size + 1, " ");
    }
    return NULL;
}

static inline void take_head(struct response *it)
{
    const char *length = value_of(it->head, "content-length");
    const char *encoding = value_of(it->head, "transfer-encoding");
    const char *connection = value_of(it->head, "connection");
    it->closes = connection != NULL && strncasecmp(connection, "close", 5) == 0;
    it->num_head = 0;
    if (sscanf(it->head, "HTTP/1.%*1[01] %d", &it->status) != 1)
        it->part = MALFORMED;
    else if (encoding != NULL && strncasecmp(encoding, "chunked", 7) == 0)
        it->part = CHUNK_SIZE;
    else if (length != NULL && (it->left = strtoull(length, NULL, 10)) > 0)
        it->part = FIXED;
    else
        it->part = length != NULL ? COMPLETE : MALFORMED;
}

static inline void take_line(struct response *it)
{
    bool is_empty = it->num_head == 2;
    char *end = it->head;
    if (it->part == CHUNK_SIZE) {
        it->left = strtoull(it->head, &end, 16);
        it->part = end == it->head ? MALFORMED : it->left > 0 ? CHUNK_DATA : TRAILER;
    } else if (it->part == CHUNK_END) {
        it->part = is_empty ? CHUNK_SIZE : MALFORMED;
    } else if (is_empty) {
        it->part = COMPLETE;
    }
    it->num_head = 0;
}

/* Take a byte of a head or of a line between chunks. */
static inline void take_byte(struct response *it, char byte)
{
    it->head[it->num_head++] = byte;
    it->head[it->num_head] = '\0';
    bool is_line = it->num_head >= 2 && memcmp(it->head + it->num_head - 2, "\r\n", 2) == 0;
    if (it->part == HEAD) {
        if (it->num_head >= 4 && memcmp(it->head + it->num_head - 4, "\r\n\r\n", 4) == 0)
            take_head(it);
    } else if (is_line) {
        take_line(it);
    }
    if (it->num_head == MAX_HEAD)
        it->part = MALFORMED;
}

/* Read what has come. Bytes behind a complete response are an error: nothing else was asked. */
static inline void read_response(struct response *it, const char *data, size_t size,
                                 on_moment *tell, void *owner)
{
    while (size > 0) {
        size_t taken = 1;
        if (it->part == FIXED || it->part == CHUNK_DATA) {
            taken = size < it->left ? size : it->left;
            read_moments(it, data, taken, tell, owner);
            keep_tail(it, data, taken);
            it->left -= taken;
            if (it->left == 0)
                it->part = it->part == FIXED ? COMPLETE : CHUNK_END;
        } else if (it->part == COMPLETE || it->part == MALFORMED) {
            it->part = MALFORMED;
            return;
        } else {
            take_byte(it, *data);
        }
        data += taken;
        size -= taken;
    }
}

#endif
