/* UDP round trips, one at a time: `roundtrip serve PORT` sends back what it gets, `roundtrip ask ADDRESS PORT COUNT GAP_US`
 * prints how long each took, in nanoseconds, or -1 if no answer came within a second. */
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long now(void)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec * 1000000000L + at.tv_nsec;
}

static int serve(int port)
{
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in own = {.sin_family = AF_INET, .sin_port = htons(port)}, from;
    char text[2048];
    if (bind(fd, (struct sockaddr *)&own, sizeof own))
        return perror("bind"), 1;
    for (;;) {
        socklen_t length = sizeof from;
        ssize_t size = recvfrom(fd, text, sizeof text, 0, (struct sockaddr *)&from, &length);
        if (size >= 0)
            sendto(fd, text, size, 0, (struct sockaddr *)&from, length);
    }
}

static int ask(const char *address, int port, int count, int gap_us)
{
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
    struct timeval patience = {.tv_sec = 1};
    int text[16] = {0}, answer[16];
    inet_pton(AF_INET, address, &to.sin_addr);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    if (connect(fd, (struct sockaddr *)&to, sizeof to))
        return perror("connect"), 1;
    for (int turn = 0; turn < count; turn++) {
        long begun = now();
        ssize_t got;
        text[0] = turn;
        send(fd, text, sizeof text, 0);
        do
            got = recv(fd, answer, sizeof answer, 0);
        while (got > 0 && answer[0] != turn);
        printf("%ld\n", got > 0 ? now() - begun : -1);
        if (gap_us)
            usleep(gap_us);
    }
    return 0;
}

int main(int count, char **words)
{
    if (count == 3 && !strcmp(words[1], "serve"))
        return serve(atoi(words[2]));
    if (count == 6 && !strcmp(words[1], "ask"))
        return ask(words[2], atoi(words[3]), atoi(words[4]), atoi(words[5]));
    fprintf(stderr, "usage: roundtrip serve PORT | ask ADDRESS PORT COUNT GAP_US\n");
    return 2;
}
