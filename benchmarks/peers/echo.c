/* An echo server in C: one thread, level-triggered epoll, read what there is, write it back.
 *
 * What the kernel does not take is kept, and that connection is not read until it is gone. Prints
 * tcp://127.0.0.1:PORT once it accepts. Compiled with -DWAIT=0, it polls without blocking, and never sleeps.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define CHUNK (256 * 1024)
#define EVENTS 1024
#define ACCEPTS 64
#ifndef WAIT
#define WAIT -1
#endif

struct peer {
    int fd;
    char *pending; /* what the kernel did not take, `left` bytes of it from `at` on */
    size_t at, left;
};

static char chunk[CHUNK];
static int epoll;

static void watch(struct peer *peer, int op, unsigned events) {
    struct epoll_event event = {.events = events, .data.ptr = peer};
    if (epoll_ctl(epoll, op, peer->fd, &event) < 0)
        perror("epoll_ctl");
}

static void drop(struct peer *peer) {
    close(peer->fd);
    free(peer->pending);
    free(peer);
}

static void take_in(struct peer *listener) {
    for (int i = 0; i < ACCEPTS; i++) {
        int fd = accept4(listener->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0)
            return;

        int on = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        struct peer *peer = calloc(1, sizeof *peer);
        peer->fd = fd;
        watch(peer, EPOLL_CTL_ADD, EPOLLIN);
    }
}

static void echo(struct peer *peer) {
    ssize_t count = read(peer->fd, chunk, CHUNK);
    if (count <= 0) {
        if (count == 0 || errno != EAGAIN)
            drop(peer);
        return;
    }

#ifdef SOCKPERF /* The size of its messages: it takes no reply in which this bit is set, which says "from a client". */
    for (ssize_t message = 0; message + 9 < count; message += SOCKPERF)
        chunk[message + 9] &= ~1;
#endif
    ssize_t sent = write(peer->fd, chunk, count);
    if (sent < 0 && errno != EAGAIN) {
        drop(peer);
        return;
    }
    if (sent < 0)
        sent = 0;
    if (sent < count) {
        peer->at = 0;
        peer->left = count - sent;
        peer->pending = malloc(peer->left);
        memcpy(peer->pending, chunk + sent, peer->left);
        watch(peer, EPOLL_CTL_MOD, EPOLLOUT);
    }
}

static void flush(struct peer *peer) {
    ssize_t sent = write(peer->fd, peer->pending + peer->at, peer->left);
    if (sent < 0) {
        if (errno != EAGAIN)
            drop(peer);
        return;
    }

    peer->at += sent;
    peer->left -= sent;
    if (!peer->left) {
        free(peer->pending);
        peer->pending = NULL;
        watch(peer, EPOLL_CTL_MOD, EPOLLIN);
    }
}

int main(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    struct peer listener = {.fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0)};
    if (bind(listener.fd, (struct sockaddr *)&address, length) < 0 || listen(listener.fd, 4096) < 0) {
        perror("listen");
        return 1;
    }

    epoll = epoll_create1(0);
    watch(&listener, EPOLL_CTL_ADD, EPOLLIN);
    getsockname(listener.fd, (struct sockaddr *)&address, &length);
    printf("tcp://127.0.0.1:%d\n", ntohs(address.sin_port));
    fflush(stdout);

    struct epoll_event events[EVENTS];
    for (;;) {
        int count = epoll_wait(epoll, events, EVENTS, WAIT);
        for (int i = 0; i < count; i++) {
            struct peer *peer = events[i].data.ptr;
            if (peer == &listener)
                take_in(peer);
            else if (peer->pending)
                flush(peer);
            else
                echo(peer);
        }
    }
}
