/* Three loops that need no operating system while they run: `workload integer|memory|sha256`.
 * Prints the seconds that one run took, by the monotonic clock. Built static, so host and guest run the same bytes. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "loops.h"

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

/* Stream triad over 96 MiB, more than a last-level cache share holds. */
enum { WORDS = 4 << 20 };

static uint64_t *arrays;

static void prepare_memory(void) {
    arrays = malloc(3ul * WORDS * sizeof *arrays);
    if (!arrays) {
        perror("malloc");
        exit(1);
    }
    for (long i = 0; i < 3l * WORDS; i++) /* touched before the clock starts: page faults are another bench */
        arrays[i] = i;
}

static uint64_t memory(void) {
    uint64_t *a = arrays, *b = a + WORDS, *c = b + WORDS;
    for (int round = 0; round < 96; round++)
        for (long i = 0; i < WORDS; i++)
            a[i] = b[i] + 3 * c[i] + round;
    return a[WORDS / 2];
}

int main(int argc, char **argv) {
    static const struct {
        const char *name;
        void (*prepare)(void);
        uint64_t (*run)(void);
    } loops[] = {{"integer", NULL, integer}, {"memory", prepare_memory, memory}, {"sha256", prepare_sha256, sha256}};
    for (unsigned i = 0; argc == 2 && i < sizeof loops / sizeof *loops; i++) {
        if (strcmp(argv[1], loops[i].name))
            continue;
        if (loops[i].prepare)
            loops[i].prepare();
        double start = now();
        uint64_t result = loops[i].run();
        printf("%.6f %llx\n", now() - start, (unsigned long long)result);
        return 0;
    }
    fprintf(stderr, "usage: workload integer|memory|sha256\n");
    return 2;
}
