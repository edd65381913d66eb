/* Both ends of a UDP echo, as little as they can be: `datagrams serve`, `datagrams load PORT SOCKETS SECONDS`. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>

enum { SIZE = 64, EVENTS = 64 };
static char buffer[65536], message[SIZE];

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + now.tv_nsec / 1e9;
}

static void serve(struct sockaddr_in here) {
    socklen_t length = sizeof here;
    int sock = socket(AF_INET, SOCK_DGRAM, 0);
    bind(sock, (struct sockaddr *)&here, length);
    getsockname(sock, (struct sockaddr *)&here, &length);
    printf("udp://127.0.0.1:%d\n", ntohs(here.sin_port));
    fflush(stdout);
    for (;;) {
        struct sockaddr_in peer;
        length = sizeof peer;
        ssize_t size = recvfrom(sock, buffer, sizeof buffer, 0, (struct sockaddr *)&peer, &length);
        if (size >= 0) sendto(sock, buffer, size, 0, (struct sockaddr *)&peer, length);
    }
}

/* Ping-pong on every socket; prints how many came back, and how many of them were no echo. */
static void load(struct sockaddr_in there, int sockets, double lasting) {
    struct epoll_event events[EVENTS];
    long made = 0, wrong = 0;
    int epoll = epoll_create1(0);
    for (int i = 0; i < sockets; i++) {
        int sock = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
        struct epoll_event wanted = {.events = EPOLLIN, .data.fd = sock};
        connect(sock, (struct sockaddr *)&there, sizeof there);
        epoll_ctl(epoll, EPOLL_CTL_ADD, sock, &wanted);
        send(sock, message, SIZE, 0);
    }
    for (double end = seconds() + lasting; seconds() < end;) {
        int count = epoll_wait(epoll, events, EVENTS, 100);
        for (int i = 0; i < count; i++) {
            int sock = events[i].data.fd;
            wrong += recv(sock, buffer, sizeof buffer, 0) != SIZE || memcmp(buffer, message, SIZE);
            made++;
            send(sock, message, SIZE, 0);
        }
    }
    printf("%ld %ld\n", made, wrong);
}

int main(int count, char **words) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    for (int i = 0; i < SIZE; i++) message[i] = i;
    if (count == 2) serve(address);
    address.sin_port = htons(atoi(words[2]));
    load(address, atoi(words[3]), atof(words[4]));
    return 0;
}
