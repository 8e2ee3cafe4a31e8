/* Asks an OpenAI server, and writes what came and when as one JSON object.
 *
 *     client closed PORT CONNECTIONS TOKENS WARM_UP_MS MEASURE_MS
 *
 * Each connection asks again when its answer is complete; TOKENS 0 asks for a plain answer, else
 * for a stream of so many events at once. What ends within MEASURE_MS behind WARM_UP_MS counts.
 *
 *     client paced PORT STREAMS RAMP_MS EVERY_MS TOKENS SETTLE_MS MEASURE_MS LIMIT_MS
 *
 * Opens STREAMS streams within RAMP_MS, each with TOKENS events, one every EVERY_MS. Measures how
 * late events come that are due within MEASURE_MS behind RAMP_MS and SETTLE_MS.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common.h"
#include "response.h"

#define BATCH 256
#define NUM_READ 65536
#define MAX_REQUEST 2048
#define MAX_ERRORS 10000
#define MAX_STATUS 600
#define CONNECT_AGAIN_NS (20 * MILLISECOND)
#define DRAIN_NS (10 * SECOND)

enum state { IDLE, CONNECTING, WAITING };

/* One connection and its request; owner: the main loop. */
struct connection {
    int fd;
    enum state state;
    uint64_t began; /* its request, or while idle when it may connect */
    struct response response;
};

/* How a request may fail besides an answer that is not 200. */
enum error { CONNECT, CLOSED, INCOMPLETE, MALFORMED_ANSWER, TIMEOUT, NUM_ERRORS };
static const char *const ERROR_NAMES[NUM_ERRORS] = {"connect", "closed", "incomplete", "malformed",
                                                    "timeout"};

static struct {
    bool is_paced;
    long tokens, every_ms;
    uint64_t began, from, until, limit;
    struct sockaddr_in address;
    char request[MAX_REQUEST];
    size_t num_request;
} load;

static struct {
    uint64_t *samples; /* of a closed load durations, of a paced one delays, in nanoseconds */
    size_t num_samples, room;
    long requests, complete, connects, moments;
    long open, most_open;
    long errors[NUM_ERRORS], statuses[MAX_STATUS], num_errors;
} found;

static int poller;
static uint64_t now; /* when the bytes at hand were read */

static void keep_sample(uint64_t nanoseconds)
{
    if (found.num_samples == found.room) {
        found.room = found.room ? 2 * found.room : 4096;
        found.samples = grow(found.samples, found.room * sizeof *found.samples);
    }
    found.samples[found.num_samples++] = nanoseconds;
}

static void note_moment(void *owner, uint64_t moment)
{
    struct connection *one = owner;
    found.moments++;
    if (one->response.num_moments == 1 && ++found.open > found.most_open)
        found.most_open = found.open;
    if (load.is_paced && moment >= load.from && moment < load.until)
        keep_sample(now > moment ? now - moment : 0);
}

/* -- Requests. ---------------------------------------------------------------------------------- */

static void make_request(uint16_t port)
{
    char body[1024];
    int size = snprintf(
        body, sizeof body,
        "{\"model\":\"bench\",\"messages\":[{\"role\":\"system\",\"content\":\"You are a helpful "
        "assistant who answers in few and simple words.\"},{\"role\":\"user\",\"content\":"
        "\"every=%ld Tell me, please, what the quick brown fox does all day long, where it sleeps "
        "at night, and whether the lazy dog over which it jumps has ever said a word about it.\"}],"
        "\"temperature\":0.7,\"max_tokens\":%ld,\"stream\":%s}",
        load.every_ms, load.tokens ? load.tokens : 64, load.tokens ? "true" : "false");
    load.num_request = (size_t)snprintf(
        load.request, sizeof load.request,
        "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:%u\r\nuser-agent: bench\r\n"
        "accept: application/json\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s",
        port, size, body);
    if (size >= (int)sizeof body || load.num_request >= sizeof load.request)
        abort();
}

static void begin_connecting(struct connection *one)
{
    int on = 1;
    one->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (one->fd < 0)
        die("socket");
    setsockopt(one->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    struct epoll_event event = {.events = EPOLLOUT, .data.ptr = one};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, one->fd, &event) < 0)
        die("epoll_ctl");
    /* A failure is told by the poller, too. */
    (void)!connect(one->fd, (struct sockaddr *)&load.address, sizeof load.address);
    one->state = CONNECTING;
    found.connects++;
}

static void hang_up(struct connection *one, uint64_t connect_at)
{
    close(one->fd);
    one->state = IDLE;
    one->began = connect_at;
}

static void end_stream(struct connection *one)
{
    found.open -= one->response.num_moments > 0;
    one->response.num_moments = 0;
}

/* Count a failed request; a closed load asks again after a while. */
static void fail(struct connection *one, enum error error)
{
    found.errors[error]++;
    found.num_errors++;
    end_stream(one);
    hang_up(one, load.is_paced ? UINT64_MAX : now + CONNECT_AGAIN_NS);
}

static void ask(struct connection *one)
{
    begin_response(&one->response);
    one->state = WAITING;
    one->began = now_ns();
    found.requests++;
    ssize_t sent = send(one->fd, load.request, load.num_request, MSG_NOSIGNAL);
    if (sent != (ssize_t)load.num_request)
        fail(one, CLOSED);
}

static void become_connected(struct connection *one)
{
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(one->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error != 0) {
        fail(one, CONNECT);
        return;
    }
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = one};
    if (epoll_ctl(poller, EPOLL_CTL_MOD, one->fd, &event) < 0)
        die("epoll_ctl");
    ask(one);
}

/* Count an answer that has come to its end, and go on. */
static void take_answer(struct connection *one)
{
    struct response *response = &one->response;
    int status = response->status;
    if (status != 200) {
        found.statuses[status > 0 && status < MAX_STATUS ? status : 0]++;
        found.num_errors++;
    } else if (load.tokens && (response->num_moments != load.tokens ||
                               strstr(response->tail, "data: [DONE]") == NULL)) {
        fail(one, INCOMPLETE);
        return;
    } else if (load.is_paced || (now >= load.from && now < load.until)) {
        found.complete++;
        if (!load.is_paced)
            keep_sample(now - one->began);
    }
    end_stream(one);
    bool goes_on = !load.is_paced && now < load.until;
    if (!goes_on)
        hang_up(one, UINT64_MAX);
    else if (response->closes)
        hang_up(one, now);
    else
        ask(one);
}

static void read_answer(struct connection *one)
{
    static char data[NUM_READ];
    ssize_t size = recv(one->fd, data, sizeof data, 0);
    if (size < 0 && errno == EAGAIN)
        return;
    now = now_ns();
    if (size <= 0) {
        fail(one, CLOSED);
        return;
    }
    read_response(&one->response, data, (size_t)size, note_moment, one);
    if (one->response.part == MALFORMED)
        fail(one, MALFORMED_ANSWER);
    else if (one->response.part == COMPLETE)
        take_answer(one);
}

/* -- The load. ---------------------------------------------------------------------------------- */

/* Connect what is to connect by now; return how many milliseconds to wait, -1: all is over. */
static int connect_due(struct connection *connections, long count)
{
    uint64_t next = load.limit;
    bool is_over = true;
    now = now_ns();
    bool may_connect = load.is_paced || now < load.until;
    for (long at = 0; at < count; at++) {
        struct connection *one = connections + at;
        if (one->state == IDLE && one->began <= now && may_connect)
            begin_connecting(one);
        bool waits = one->state == IDLE && one->began != UINT64_MAX && may_connect;
        if (waits && one->began < next)
            next = one->began;
        is_over = is_over && one->state == IDLE && !waits;
    }
    if (is_over || now >= load.limit || found.num_errors > MAX_ERRORS)
        return -1;
    return (int)((next - now + MILLISECOND - 1) / MILLISECOND);
}

static void run(struct connection *connections, long count)
{
    int wait = connect_due(connections, count);
    uint64_t looked_at = now;
    while (wait >= 0) {
        struct epoll_event events[BATCH];
        int num_events = epoll_wait(poller, events, BATCH, wait);
        if (num_events < 0 && errno != EINTR)
            die("epoll_wait");
        for (int at = 0; at < num_events; at++) {
            struct connection *one = events[at].data.ptr;
            if (one->state == CONNECTING)
                become_connected(one);
            else if (one->state == WAITING)
                read_answer(one);
        }
        /* Looking through all connections costs: once a millisecond is enough. */
        if (now_ns() - looked_at >= MILLISECOND) {
            wait = connect_due(connections, count);
            looked_at = now;
        } else {
            wait = 1;
        }
    }
    for (long at = 0; at < count; at++)
        if (connections[at].state != IDLE || (load.is_paced && connections[at].began != UINT64_MAX)) {
            found.errors[TIMEOUT]++;
            found.num_errors++;
        }
}

/* -- The report. -------------------------------------------------------------------------------- */

static int in_order(const void *left, const void *right)
{
    uint64_t one = *(const uint64_t *)left, other = *(const uint64_t *)right;
    return (one > other) - (one < other);
}

static double percentile(double percent)
{
    if (found.num_samples == 0)
        return 0;
    size_t place = (size_t)((double)(found.num_samples - 1) * percent / 100 + 0.5);
    return (double)found.samples[place] / MILLISECOND;
}

static void report(void)
{
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    qsort(found.samples, found.num_samples, sizeof *found.samples, in_order);
    printf("{\"requests\":%ld,\"complete\":%ld,\"seconds\":%.6f,\"elapsed_seconds\":%.6f,",
           found.requests, found.complete, (double)(load.until - load.from) / SECOND,
           (double)(now_ns() - load.began) / SECOND);
    printf("\"samples\":%zu,\"p50_ms\":%.4f,\"p90_ms\":%.4f,\"p99_ms\":%.4f,\"max_ms\":%.4f,",
           found.num_samples, percentile(50), percentile(90), percentile(99), percentile(100));
    printf("\"events\":%ld,\"connects\":%ld,\"most_open\":%ld,\"cpu_seconds\":%.6f,\"errors\":{",
           found.moments, found.connects, found.most_open,
           (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
               (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6);
    const char *comma = "";
    for (int at = 0; at < NUM_ERRORS; at++)
        if (found.errors[at]) {
            printf("%s\"%s\":%ld", comma, ERROR_NAMES[at], found.errors[at]);
            comma = ",";
        }
    for (int at = 0; at < MAX_STATUS; at++)
        if (found.statuses[at]) {
            printf("%s\"HTTP %d\":%ld", comma, at, found.statuses[at]);
            comma = ",";
        }
    printf("}}\n");
}

static void usage(void)
{
    fprintf(stderr, "usage: client closed PORT CONNECTIONS TOKENS WARM_UP_MS MEASURE_MS\n"
                    "       client paced PORT STREAMS RAMP_MS EVERY_MS TOKENS SETTLE_MS MEASURE_MS "
                    "LIMIT_MS\n");
    exit(2);
}

int main(int count, char **arguments)
{
    uint64_t given[8] = {0};
    load.is_paced = count == 10 && strcmp(arguments[1], "paced") == 0;
    if (!load.is_paced && !(count == 7 && strcmp(arguments[1], "closed") == 0))
        usage();
    for (int at = 2; at < count; at++)
        given[at - 2] = number_of(arguments[at], 0);
    long num_connections = (long)given[1];
    uint64_t ramp = load.is_paced ? given[2] * MILLISECOND : 0;
    load.every_ms = load.is_paced ? (long)given[3] : 0;
    load.tokens = (long)given[load.is_paced ? 4 : 2];
    make_request((uint16_t)given[0]);
    load.address = (struct sockaddr_in){.sin_family = AF_INET,
                                        .sin_port = htons((uint16_t)given[0]),
                                        .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    poller = epoll_create1(0);
    load.began = now_ns();
    load.from = load.began + ramp + given[load.is_paced ? 5 : 3] * MILLISECOND;
    load.until = load.from + given[load.is_paced ? 6 : 4] * MILLISECOND;
    load.limit = load.is_paced ? load.began + given[7] * MILLISECOND : load.until + DRAIN_NS;
    struct connection *connections = calloc((size_t)num_connections, sizeof *connections);
    if (connections == NULL || num_connections < 1)
        die("connections");
    for (long at = 0; at < num_connections; at++)
        connections[at].began = load.began + ramp * (uint64_t)at / (uint64_t)num_connections;
    run(connections, num_connections);
    report();
    return 0;
}
