/* An OpenAI server that computes nothing: plain answers, streams at once, streams by a schedule.
 *
 * It prints its port as JSON and serves until its standard input ends. A request says what it gets:
 * `stream` and `max_tokens` (events with text) as in OpenAI's API, and `every=MS` in its prompt,
 * the milliseconds from one event to the next. The n-th event is due n * MS after the request has
 * come, however late the one before it was; its text is the moment at which it was due.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "common.h"

#define MAX_REQUEST 8192
#define MAX_TOKENS 100000
#define MAX_EVENT 512
#define MAX_HEAD 256
#define BATCH 256
#define NOT_SCHEDULED ((size_t)-1)

/* One client; owner of its buffers. `left` counts a stream's events that are not sent yet. */
struct connection {
    int fd;
    bool waits_for_room;
    size_t num_in;
    char in[MAX_REQUEST + 1];
    char *out;
    size_t out_begin, out_end, out_size;
    uint64_t due, every;
    long left;
    bool is_first;
    size_t place;
};

static int poller;
static const char MODELS[] =
    "{\"object\":\"list\",\"data\":[{\"id\":\"bench\",\"object\":\"model\",\"created\":1700000000,"
    "\"owned_by\":\"bench\"}]}";
static const char ANSWER[] =
    "{\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion\",\"created\":1700000000,"
    "\"model\":\"bench\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":"
    "\"The quick brown fox jumps over the lazy dog, and the dog does not mind at all.\","
    "\"refusal\":null},\"logprobs\":null,\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":"
    "64,\"completion_tokens\":20,\"total_tokens\":84}}";
static const char STREAM_HEAD[] =
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    "cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n";

/* -- The schedule: a heap of the connections whose next event is due at some time. -------------- */

static struct connection **heap;
static size_t num_scheduled, heap_size;

static void put(size_t place, struct connection *one)
{
    heap[place] = one;
    one->place = place;
}

static void rise(size_t place)
{
    struct connection *one = heap[place];
    for (; place > 0 && heap[(place - 1) / 2]->due > one->due; place = (place - 1) / 2)
        put(place, heap[(place - 1) / 2]);
    put(place, one);
}

static void sink(size_t place)
{
    struct connection *one = heap[place];
    for (;;) {
        size_t child = 2 * place + 1;
        if (child + 1 < num_scheduled && heap[child + 1]->due < heap[child]->due)
            child++;
        if (child >= num_scheduled || heap[child]->due >= one->due)
            break;
        put(place, heap[child]);
        place = child;
    }
    put(place, one);
}

static void schedule(struct connection *one)
{
    if (num_scheduled == heap_size) {
        heap_size = heap_size ? 2 * heap_size : 64;
        heap = grow(heap, heap_size * sizeof *heap);
    }
    put(num_scheduled, one);
    rise(num_scheduled++);
}

static void unschedule(struct connection *one)
{
    size_t place = one->place;
    if (place == NOT_SCHEDULED)
        return;
    one->place = NOT_SCHEDULED;
    struct connection *last = heap[--num_scheduled];
    if (last == one)
        return;
    put(place, last);
    rise(place);
    sink(last->place);
}

/* -- Connections. ------------------------------------------------------------------------------- */

static void watch(int operation, int fd, uint32_t events, void *owner)
{
    struct epoll_event event = {.events = events, .data.ptr = owner};
    if (epoll_ctl(poller, operation, fd, &event) < 0)
        die("epoll_ctl");
}

static void hang_up(struct connection *one)
{
    unschedule(one);
    close(one->fd);
    free(one->out);
    free(one);
}

static void add(struct connection *one, const char *data, size_t size)
{
    if (one->out_end + size > one->out_size) {
        one->out_size = 2 * (one->out_end + size);
        one->out = grow(one->out, one->out_size);
    }
    memcpy(one->out + one->out_end, data, size);
    one->out_end += size;
}

/* Send what the kernel takes, and wait for room for the rest; false: the connection is gone. */
static bool flush(struct connection *one)
{
    while (one->out_begin < one->out_end) {
        size_t size = one->out_end - one->out_begin;
        ssize_t sent = send(one->fd, one->out + one->out_begin, size, MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN)
            return false;
        if (sent < 0)
            break;
        one->out_begin += (size_t)sent;
    }
    bool waits = one->out_begin < one->out_end;
    if (!waits)
        one->out_begin = one->out_end = 0;
    if (waits != one->waits_for_room)
        watch(EPOLL_CTL_MOD, one->fd, EPOLLIN | (waits ? EPOLLOUT : 0), one);
    one->waits_for_room = waits;
    return true;
}

/* -- Answers. ----------------------------------------------------------------------------------- */

static void add_whole(struct connection *one, const char *status, const char *body)
{
    char head[MAX_HEAD];
    int size = snprintf(head, sizeof head,
                        "HTTP/1.1 %s\r\ncontent-type: application/json\r\n"
                        "content-length: %zu\r\n\r\n",
                        status, strlen(body));
    add(one, head, (size_t)size);
    add(one, body, strlen(body));
}

/* Add an event as one HTTP chunk. */
static void add_event(struct connection *one, const char *format, ...)
{
    char event[MAX_EVENT], head[16];
    va_list values;
    va_start(values, format);
    int size = vsnprintf(event, sizeof event, format, values);
    va_end(values);
    if (size >= (int)sizeof event)
        abort();
    int head_size = snprintf(head, sizeof head, "%x\r\n", (unsigned)size);
    add(one, head, (size_t)head_size);
    add(one, event, (size_t)size);
    add(one, "\r\n", 2);
}

#define CHUNK                                                                                      \
    "data: {\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion.chunk\",\"created\":"            \
    "1700000000,\"model\":\"bench\",\"choices\":[{\"index\":0,\"delta\":{%s},\"logprobs\":null,"    \
    "\"finish_reason\":%s}]}\n\n"

/* Add the event that is due; behind the last one, what ends a stream. */
static void add_due(struct connection *one)
{
    char delta[96];
    const char *role = one->is_first ? "\"role\":\"assistant\"," : "";
    snprintf(delta, sizeof delta, "%s\"content\":\"%c%0*llu\"", role, MARK, MARK_DIGITS,
             (unsigned long long)one->due);
    add_event(one, CHUNK, delta, "null");
    one->is_first = false;
    one->due += one->every;
    if (--one->left == 0) {
        add_event(one, CHUNK, "", "\"stop\"");
        add_event(one, "data: [DONE]\n\n");
        add(one, "0\r\n\r\n", 5);
    }
}

/* The number behind a key in a request, or what holds without it. */
static long number_behind(const char *text, const char *key, long otherwise)
{
    const char *found = strstr(text, key);
    return found == NULL ? otherwise : strtol(found + strlen(key), NULL, 10);
}

static void begin_stream(struct connection *one, const char *body)
{
    long tokens = number_behind(body, "\"max_tokens\":", 1);
    long every = number_behind(body, "every=", 0);
    one->left = tokens < 1 ? 1 : tokens > MAX_TOKENS ? MAX_TOKENS : tokens;
    one->every = every < 0 ? 0 : (uint64_t)every * MILLISECOND;
    one->due = now_ns();
    one->is_first = true;
    add(one, STREAM_HEAD, strlen(STREAM_HEAD));
    do
        add_due(one);
    while (one->left > 0 && one->every == 0);
    if (one->left > 0)
        schedule(one);
}

static bool asks_for_stream(const char *body)
{
    const char *found = strstr(body, "\"stream\":");
    return found != NULL && found[9 + strspn(found + 9, " ")] == 't';
}

/* Answer the request at the start of the buffer, if all of it has come; false: not yet. */
static bool answer_next(struct connection *one)
{
    one->in[one->num_in] = '\0';
    char *end = strstr(one->in, "\r\n\r\n");
    if (end == NULL || one->left > 0)
        return false;
    *end = '\0'; /* names of headers are looked for in the head only */
    char *body = end + 4;
    const char *length = strcasestr(one->in, "\r\ncontent-length:");
    size_t num_body = length == NULL ? 0 : strtoul(length + 17, NULL, 10);
    bool is_get = strncmp(one->in, "GET ", 4) == 0;
    *end = '\r';
    if (num_body > (size_t)(one->in + one->num_in - body))
        return false;
    char next = body[num_body];
    body[num_body] = '\0';
    if (is_get)
        add_whole(one, "200 OK", MODELS);
    else if (asks_for_stream(body))
        begin_stream(one, body);
    else
        add_whole(one, "200 OK", ANSWER);
    body[num_body] = next;
    one->num_in -= (size_t)(body + num_body - one->in);
    memmove(one->in, body + num_body, one->num_in);
    return true;
}

static bool serve(struct connection *one)
{
    while (answer_next(one))
        ;
    return flush(one);
}

/* Read what has come and answer it; false: the connection is of no more use. */
static bool read_requests(struct connection *one)
{
    size_t room = MAX_REQUEST - one->num_in;
    if (room == 0)
        return false; /* longer than what the client of this benchmark ever sends */
    ssize_t size = recv(one->fd, one->in + one->num_in, room, 0);
    if (size < 0 && errno == EAGAIN)
        return true;
    if (size <= 0)
        return false;
    one->num_in += (size_t)size;
    return serve(one);
}

static void send_due(void)
{
    while (num_scheduled > 0 && heap[0]->due <= now_ns()) {
        struct connection *one = heap[0];
        add_due(one);
        if (one->left > 0)
            sink(0);
        else
            unschedule(one);
        if (!(one->left > 0 ? flush(one) : serve(one)))
            hang_up(one);
    }
}

/* -- The server. -------------------------------------------------------------------------------- */

static int open_listener(void)
{
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, size) < 0 ||
        listen(listener, 4096) < 0 || getsockname(listener, (struct sockaddr *)&address, &size) < 0)
        die("listen");
    printf("{\"port\":%d}\n", ntohs(address.sin_port));
    fflush(stdout);
    return listener;
}

static void accept_all(int listener)
{
    int fd;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        int on = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        struct connection *one = calloc(1, sizeof *one);
        if (one == NULL)
            die("memory");
        one->fd = fd;
        one->place = NOT_SCHEDULED;
        watch(EPOLL_CTL_ADD, fd, EPOLLIN, one);
    }
    if (errno != EAGAIN && errno != ECONNABORTED)
        die("accept");
}

static void set_alarm(int timer)
{
    static uint64_t set_to;
    uint64_t due = num_scheduled > 0 ? heap[0]->due : 0;
    if (due == set_to)
        return;
    struct itimerspec when = {.it_value = {(time_t)(due / SECOND), (long)(due % SECOND)}};
    if (timerfd_settime(timer, TFD_TIMER_ABSTIME, &when, NULL) < 0)
        die("timerfd_settime");
    set_to = due;
}

int main(void)
{
    static char on_listener, on_input, on_timer; /* their addresses tell events apart */
    poller = epoll_create1(0);
    int listener = open_listener();
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    watch(EPOLL_CTL_ADD, listener, EPOLLIN, &on_listener);
    watch(EPOLL_CTL_ADD, STDIN_FILENO, EPOLLIN, &on_input);
    watch(EPOLL_CTL_ADD, timer, EPOLLIN, &on_timer);
    for (;;) {
        struct epoll_event events[BATCH];
        set_alarm(timer);
        int count = epoll_wait(poller, events, BATCH, -1);
        if (count < 0 && errno != EINTR)
            die("epoll_wait");
        for (int at = 0; at < count; at++) {
            void *owner = events[at].data.ptr;
            uint64_t ignored;
            if (owner == &on_listener)
                accept_all(listener);
            else if (owner == &on_input && read(STDIN_FILENO, &ignored, sizeof ignored) <= 0)
                return 0;
            else if (owner == &on_timer)
                (void)!read(timer, &ignored, sizeof ignored);
            else if (owner != &on_input) {
                struct connection *one = owner;
                bool is_open = events[at].events & EPOLLOUT ? flush(one) : true;
                if (is_open && events[at].events & ~(uint32_t)EPOLLOUT)
                    is_open = read_requests(one);
                if (!is_open)
                    hang_up(one);
            }
        }
        send_due();
    }
}
