/* An open-loop load over TCP, every reply compared: `paced_load PORT CONNECTIONS SIZE`.
 *
 * Prints "ready" once all connections have echoed a message. Then, for each line "RATE SECONDS" on standard input,
 * it sends RATE messages a second in all, message I on connection I modulo CONNECTIONS, each at its due time whether
 * or not earlier ones are back, and prints: messages, seconds, then in nanoseconds the 50th and 99th percentile of the
 * latency from the due time and of the lag (how late the load itself sent). It never sleeps, so that its timer is as
 * exact as the clock; it needs a core of its own. */
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

enum { CHUNK = 65536, EVENTS = 64, PATTERN = 65521 }; /* a prime: no message size is a multiple of it */

struct connection {
    int sock;
    uint64_t wanted, sent, returned; /* bytes that are due, that the kernel took, that came back */
    size_t next; /* the message whose last byte comes next */
};

static struct connection *connections;
static size_t count, size;
static int epoll;
static char pattern[2 * PATTERN + CHUNK], buffer[CHUNK];
static int64_t *due, *latencies, *lags; /* per message of a run */

static void fail(const char *what) {
    fprintf(stderr, "paced_load: %s (%s)\n", what, strerror(errno));
    exit(1);
}

static int64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static void send_some(struct connection *each) {
    while (each->sent < each->wanted) {
        uint64_t left = each->wanted - each->sent;
        ssize_t taken = send(each->sock, pattern + each->sent % PATTERN, left < CHUNK ? left : CHUNK, MSG_NOSIGNAL);
        if (taken < 0) {
            if (errno == EAGAIN)
                return; /* the edge that says "writable" comes with a later event */
            fail("a connection broke");
        }
        each->sent += taken;
    }
}

/* Returns how many messages came back whole. */
static size_t receive_some(struct connection *each, uint64_t base) {
    size_t whole = 0;
    for (;;) {
        ssize_t got = recv(each->sock, buffer, CHUNK, 0);
        if (got < 0 && errno == EAGAIN)
            return whole;
        if (got <= 0)
            fail("a connection ended");
        if (each->returned + got > each->sent || memcmp(buffer, pattern + each->returned % PATTERN, got))
            fail("that is no echo");
        each->returned += got;
        int64_t at = now();
        while (each->returned - base >= (uint64_t)(each->next / count + 1) * size) {
            latencies[each->next] = at - due[each->next];
            each->next += count;
            whole++;
        }
        if (got < CHUNK)
            return whole;
    }
}

static int by_value(const void *one, const void *two) {
    int64_t first = *(const int64_t *)one, second = *(const int64_t *)two;
    return (first > second) - (first < second);
}

static int64_t percentile(int64_t *values, size_t number, int percent) { /* nearest rank; sorts */
    qsort(values, number, sizeof *values, by_value);
    return values[(number * percent - 1) / 100];
}

static void run(double rate, double seconds, int report) {
    size_t messages = (size_t)(rate * seconds), begun = 0, back = 0;
    if (!messages)
        messages = 1;
    due = realloc(due, messages * sizeof *due);
    latencies = realloc(latencies, messages * sizeof *latencies);
    lags = realloc(lags, messages * sizeof *lags);
    uint64_t *base = malloc(count * sizeof *base);
    for (size_t number = 0; number < count; number++) {
        connections[number].next = number;
        base[number] = connections[number].returned;
    }
    int64_t start = now() + 1000000;
    struct epoll_event events[EVENTS];
    while (back < messages) {
        int64_t at = now();
        while (begun < messages && at >= (due[begun] = start + (int64_t)(begun * 1e9 / rate))) {
            struct connection *each = &connections[begun % count];
            lags[begun] = at - due[begun];
            each->wanted += size;
            send_some(each);
            begun++;
            at = now();
        }
        int ready = epoll_wait(epoll, events, EVENTS, 0);
        for (int number = 0; number < ready; number++) {
            size_t which = events[number].data.u64;
            if (events[number].events & EPOLLOUT)
                send_some(&connections[which]);
            back += receive_some(&connections[which], base[which]);
        }
        if (at > start + (int64_t)((seconds + 20) * 1e9))
            fail("replies are missing after 20 s");
    }
    double took = (now() - start) / 1e9;
    free(base);
    if (report)
        printf("%zu %.6f %lld %lld %lld %lld\n", messages, took, (long long)percentile(latencies, messages, 50),
               (long long)percentile(latencies, messages, 99), (long long)percentile(lags, messages, 50),
               (long long)percentile(lags, messages, 99));
}

int main(int argc, char **argv) {
    if (argc != 4)
        fail("paced_load PORT CONNECTIONS SIZE");
    count = atol(argv[2]), size = atol(argv[3]), epoll = epoll_create1(0);
    for (size_t each = 0; each < sizeof pattern; each++)
        pattern[each] = each < PATTERN ? (char)random() : pattern[each - PATTERN];
    connections = calloc(count, sizeof *connections);
    struct sockaddr_in peer = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1]))};
    inet_pton(AF_INET, "127.0.0.1", &peer.sin_addr);
    for (size_t number = 0; number < count; number++) {
        struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.u64 = number};
        int sock = connections[number].sock = socket(AF_INET, SOCK_STREAM, 0), on = 1;
        setsockopt(sock, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        if (connect(sock, (struct sockaddr *)&peer, sizeof peer))
            fail("nothing listens");
        fcntl(sock, F_SETFL, O_NONBLOCK);
        epoll_ctl(epoll, EPOLL_CTL_ADD, sock, &event);
    }
    run(1e6, count / 1e6 + 1e-9, 0);
    puts("ready");
    fflush(stdout);
    double rate, seconds;
    while (scanf("%lf %lf", &rate, &seconds) == 2) {
        run(rate, seconds, 1);
        fflush(stdout);
    }
    return 0;
}
