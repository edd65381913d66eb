/* A closed-loop load over TCP, every reply compared: `closed_load PORT CONNECTIONS SIZE SECONDS [NANOSECONDS]`.
 *
 * It has the shape of the load engine of anyecho: level-triggered epoll, the same number of different messages; per
 * message one recv, one comparison, two stamps and one send, after the replies of all ready connections are read;
 * every latency kept. It busy-waits for NANOSECONDS per message. After a fifth of a second of warm-up it prints:
 * messages, seconds, then microseconds of its own CPU time per message, and in nanoseconds the 50th and 99th
 * percentile of the latency. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

enum { CHUNK = 262144, EVENTS = 128, BYTES = 4 << 20, MESSAGES = 1024, STRIDE = 7 };

struct connection {
    int sock;
    uint64_t offset, sent, returned;
    int64_t sent_at;
};

static size_t size, period;
static char *pattern, buffer[CHUNK];

static void fail(const char *what) {
    fprintf(stderr, "closed_load: %s (%s)\n", what, strerror(errno));
    exit(1);
}

static int64_t now(clockid_t clock) {
    struct timespec time;
    clock_gettime(clock, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static void make_pattern(void) {
    size_t number = 2;
    while (number < MESSAGES && 2 * number * size <= BYTES)
        number *= 2;
    period = number * size;
    pattern = malloc(period + CHUNK);
    for (size_t each = 0; each < period + CHUNK; each++)
        pattern[each] = each < period ? (char)random() : pattern[each - period];
}

static void begin(struct connection *each) {
    each->sent_at = now(CLOCK_MONOTONIC);
    if (send(each->sock, pattern + (each->offset + each->sent) % period, size, MSG_NOSIGNAL) != (ssize_t)size)
        fail("a message was not accepted whole");
    each->sent += size;
}

static int by_value(const void *one, const void *two) {
    int64_t first = *(const int64_t *)one, second = *(const int64_t *)two;
    return (first > second) - (first < second);
}

int main(int argc, char **argv) {
    if (argc < 5)
        fail("closed_load PORT CONNECTIONS SIZE SECONDS [NANOSECONDS]");
    size_t count = atol(argv[2]), done = 0, room = 1 << 20, busy = count;
    int64_t extra = argc > 5 ? atol(argv[5]) : 0;
    size = atol(argv[3]);
    int epoll = epoll_create1(0);
    int64_t *latencies = malloc(room * sizeof *latencies);
    make_pattern();
    struct connection *connections = calloc(count, sizeof *connections);
    struct sockaddr_in peer = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1]))};
    inet_pton(AF_INET, "127.0.0.1", &peer.sin_addr);
    for (size_t number = 0; number < count; number++) {
        struct epoll_event event = {.events = EPOLLIN, .data.u64 = number};
        int sock = connections[number].sock = socket(AF_INET, SOCK_STREAM, 0), on = 1;
        setsockopt(sock, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        if (connect(sock, (struct sockaddr *)&peer, sizeof peer))
            fail("nothing listens");
        connections[number].offset = number * STRIDE * size;
        fcntl(sock, F_SETFL, O_NONBLOCK);
        epoll_ctl(epoll, EPOLL_CTL_ADD, sock, &event);
    }
    int64_t start = now(CLOCK_MONOTONIC) + 200000000, end = start + (int64_t)(atof(argv[4]) * 1e9);
    int64_t cpu = 0, at = 0;
    for (size_t number = 0; number < count; number++)
        begin(&connections[number]);
    struct epoll_event events[EVENTS];
    struct connection *idle[EVENTS];
    while (busy) {
        int ready = epoll_wait(epoll, events, EVENTS, -1), begun = 0;
        for (int number = 0; number < ready; number++) {
            struct connection *each = &connections[events[number].data.u64];
            ssize_t got = recv(each->sock, buffer, CHUNK, 0);
            at = now(CLOCK_MONOTONIC);
            if (got <= 0)
                fail("a connection ended");
            if (each->returned + got > each->sent || memcmp(buffer, pattern + (each->offset + each->returned) % period, got))
                fail("that is no echo");
            each->returned += got;
            if (each->returned % size)
                continue;
            if (!cpu && at >= start)
                cpu = now(CLOCK_PROCESS_CPUTIME_ID);
            if (each->sent_at >= start) {
                if (done == room)
                    latencies = realloc(latencies, (room *= 2) * sizeof *latencies);
                latencies[done++] = at - each->sent_at;
            }
            if (at < end)
                idle[begun++] = each;
            else
                busy--;
            while (extra && now(CLOCK_MONOTONIC) < at + extra)
                ;
        }
        for (int number = 0; number < begun; number++)
            begin(idle[number]);
    }
    cpu = now(CLOCK_PROCESS_CPUTIME_ID) - cpu;
    qsort(latencies, done, sizeof *latencies, by_value);
    printf("%zu %.6f %.3f %lld %lld\n", done, (at - start) / 1e9, cpu / 1e3 / done,
           (long long)latencies[(done * 50 - 1) / 100], (long long)latencies[(done * 99 - 1) / 100]);
    return 0;
}
