/* A tiny HTTP/1.1 server for benchmarks: Linux, one thread, epoll, keep-alive, loopback only.
 *
 *     server BODY
 *
 * GET /partneraccess/...  is answered with the bytes of the file BODY
 * GET /count              with the number of those answers so far
 *
 * It prints its port, and ends when its standard input is closed. It does only what well-behaved clients need: a
 * request ends with an empty line, and a request that is sent before the last response waits.
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define EVENTS 512
#define LONGEST_REQUEST 16384

typedef struct {
    int socket;
    size_t received, left;    /* bytes of requests not yet answered; bytes of the answer not yet sent */
    const char *next;         /* the first of those */
    char request[LONGEST_REQUEST];
    char count[256];          /* room for an answer to /count */
} Connection;

typedef struct {
    char *bytes;
    size_t length;
} Answer;

static Answer answer;
static unsigned long answered;
static int poller;

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void read_body(const char *path) {
    FILE *file = fopen(path, "rb");
    struct stat about;
    if (!file || fstat(fileno(file), &about)) die(path);
    char date[64];
    time_t now = time(NULL);
    strftime(date, sizeof date, "%a, %d %b %Y %H:%M:%S GMT", gmtime(&now));
    size_t size = (size_t)about.st_size;
    answer.bytes = malloc(size + 512);
    answer.length = (size_t)sprintf(answer.bytes,
        "HTTP/1.1 200 OK\r\nServer: benchmark\r\nDate: %s\r\nContent-Type: application/json; charset=utf-8\r\n"
        "Content-Length: %zu\r\nConnection: keep-alive\r\n\r\n", date, size);
    if (fread(answer.bytes + answer.length, 1, size, file) != size) die(path);
    answer.length += size;
    fclose(file);
}

static void choose_answer(Connection *c) {
    if (!strncmp(c->request, "GET /partneraccess/", 19)) {
        answered++;
        c->next = answer.bytes;
        c->left = answer.length;
        return;
    }
    char text[32] = "";
    int found = !strncmp(c->request, "GET /count ", 11);
    if (found) sprintf(text, "%lu", answered);
    c->next = c->count;
    c->left = (size_t)sprintf(c->count, "HTTP/1.1 %s\r\nContent-Length: %zu\r\n\r\n%s",
        found ? "200 OK" : "404 Not Found", strlen(text), text);
}

/* Sends what it can; asks to be told when there is room for the rest. Returns 0 when the connection is dead. */
static int send_rest(Connection *c) {
    while (c->left) {
        ssize_t sent = send(c->socket, c->next, c->left, MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno != EAGAIN) return 0;
            struct epoll_event event = {.events = EPOLLOUT, .data.ptr = c};
            return !epoll_ctl(poller, EPOLL_CTL_MOD, c->socket, &event);
        }
        c->next += sent;
        c->left -= (size_t)sent;
    }
    return 1;
}

static int answer_requests(Connection *c) {
    char *end;
    while (!c->left && (end = memmem(c->request, c->received, "\r\n\r\n", 4))) {
        choose_answer(c);
        c->received -= (size_t)(end + 4 - c->request);
        memmove(c->request, end + 4, c->received);
        if (!send_rest(c)) return 0;
    }
    return 1;
}

static int serve(Connection *c, unsigned what) {
    if (what & EPOLLOUT) {
        if (!send_rest(c)) return 0;
        if (c->left) return 1;
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
        if (epoll_ctl(poller, EPOLL_CTL_MOD, c->socket, &event)) return 0;
        return answer_requests(c);
    }
    ssize_t got = recv(c->socket, c->request + c->received, LONGEST_REQUEST - c->received, 0);
    if (got <= 0) return got < 0 && errno == EAGAIN;
    c->received += (size_t)got;
    return answer_requests(c);
}

static void let_in(int listener) {
    int fd, on = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        Connection *c = calloc(1, sizeof *c);
        if (!c) die("calloc");
        c->socket = fd;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
        if (epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event)) die("epoll_ctl");
    }
}

int main(int count, char **arguments) {
    if (count != 2) return fprintf(stderr, "usage: server BODY\n"), 2;
    read_body(arguments[1]);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, size) || listen(listener, 1024) ||
        getsockname(listener, (struct sockaddr *)&address, &size))
        die("listen");
    poller = epoll_create1(0);
    struct epoll_event events[EVENTS];
    struct epoll_event on_listener = {.events = EPOLLIN, .data.ptr = NULL};
    struct epoll_event on_stdin = {.events = EPOLLIN, .data.ptr = &answer};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, listener, &on_listener) || epoll_ctl(poller, EPOLL_CTL_ADD, 0, &on_stdin))
        die("epoll_ctl");
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    for (;;) {
        int ready = epoll_wait(poller, events, EVENTS, -1);
        for (int i = 0; i < ready; i++) {
            Connection *c = events[i].data.ptr;
            if (!c) let_in(listener);
            else if ((void *)c == (void *)&answer) return 0;
            else if (!serve(c, events[i].events)) {
                close(c->socket);
                free(c);
            }
        }
    }
}
