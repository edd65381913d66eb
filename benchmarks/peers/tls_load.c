/* Closed loops over TLS, every reply compared: `tls_load PORT CONNECTIONS SIZE CA`.
 *
 * Says "ready" once all have shaken hands and warmed up; then, for each line with a number of seconds on standard
 * input, loads for so long and says how many echoes that were and how many seconds they took. */
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>

enum { CHUNK = 65536, EVENTS = 64 };

struct loop {
    SSL *ssl;
    size_t sent, returned;
    int waiting;
};

static struct loop *loops;
static size_t size;
static char *message, back[CHUNK];

static void fail(const char *what) {
    fprintf(stderr, "tls_load: %s\n", what);
    ERR_print_errors_fp(stderr);
    exit(1);
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static void shake_hands(struct loop *loop, SSL_CTX *context, int port, int epoll) {
    struct sockaddr_in peer = {.sin_family = AF_INET, .sin_port = htons(port)};
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.ptr = loop};
    int sock = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    inet_pton(AF_INET, "127.0.0.1", &peer.sin_addr);
    setsockopt(sock, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (connect(sock, (struct sockaddr *)&peer, sizeof peer))
        fail("nobody is there");
    loop->ssl = SSL_new(context);
    SSL_set_fd(loop->ssl, sock);
    SSL_set1_host(loop->ssl, "localhost");
    if (SSL_connect(loop->ssl) != 1)
        fail("no handshake");
    fcntl(sock, F_SETFL, O_NONBLOCK);
    epoll_ctl(epoll, EPOLL_CTL_ADD, sock, &event);
}

/* Both ways at once: a message is larger than all buffers. Returns whether it is back. */
static int go_on(struct loop *loop) {
    for (;;) {
        size_t count;
        while (loop->sent < size && SSL_write_ex(loop->ssl, message + loop->sent, size - loop->sent, &count))
            loop->sent += count;
        if (!SSL_read_ex(loop->ssl, back, CHUNK, &count)) {
            if (SSL_get_error(loop->ssl, 0) != SSL_ERROR_WANT_READ)
                fail("it ended");
            return 0;
        }
        if (loop->returned + count > size || memcmp(back, message + loop->returned, count))
            fail("that is no echo");
        loop->returned += count;
        if (loop->returned == size)
            return 1;
    }
}

/* Says message after message, as long as they come back at once. Returns how many did. */
static long turn(struct loop *loop, double over, int *waiting) {
    long echoes = 0;
    while (loop->waiting && go_on(loop)) {
        echoes++;
        loop->sent = loop->returned = 0;
        if (now() >= over)
            --*waiting, loop->waiting = 0;
    }
    return echoes;
}

static void load(int count, double seconds, int epoll, long *echoes, double *took) {
    struct epoll_event events[EVENTS];
    double start = now(), over = start + seconds;
    int waiting = count;
    *echoes = 0;
    for (int number = 0; number < count; number++)
        loops[number].waiting = 1;
    for (int number = 0; number < count; number++)
        *echoes += turn(&loops[number], over, &waiting);
    while (waiting) {
        int ready = epoll_wait(epoll, events, EVENTS, -1);
        for (int number = 0; number < ready; number++)
            *echoes += turn(events[number].data.ptr, over, &waiting);
    }
    *took = now() - start;
}

int main(int argc, char **argv) {
    if (argc != 5)
        fail("tls_load PORT CONNECTIONS SIZE CA");
    int port = atoi(argv[1]), count = atoi(argv[2]), epoll = epoll_create1(0);
    SSL_CTX *context = SSL_CTX_new(TLS_client_method());
    SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    SSL_CTX_set_verify(context, SSL_VERIFY_PEER, NULL);
    SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION);
    if (SSL_CTX_set_ciphersuites(context, "TLS_AES_128_GCM_SHA256") != 1) /* left to themselves, Go and OpenSSL differ */
        fail("no such cipher");
    if (SSL_CTX_load_verify_locations(context, argv[4], NULL) != 1)
        fail("no such CA");
    size = atol(argv[3]);
    message = malloc(size);
    for (size_t each = 0; each < size; each++)
        message[each] = random();
    loops = calloc(count, sizeof *loops);
    for (int number = 0; number < count; number++)
        shake_hands(&loops[number], context, port, epoll);
    long echoes;
    double took, seconds;
    load(count, 0.1, epoll, &echoes, &took);
    puts("ready");
    fflush(stdout);
    while (scanf("%lf", &seconds) == 1) {
        load(count, seconds, epoll, &echoes, &took);
        printf("%ld %f\n", echoes, took);
        fflush(stdout);
    }
    return 0;
}
