/* Three loops that need no operating system while they run: `workload integer|memory|sha256`.
 * Prints the seconds that one run took, by the monotonic clock. Built static, so host and guest run the same bytes. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

/* A chain of dependent multiplications and shifts: xorshift64* (Marsaglia 2003, Vigna 2016). */
static uint64_t integer(void) {
    uint64_t x = 88172645463325252u;
    for (long i = 0; i < 300000000; i++) {
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        x *= 2685821657736338717u;
    }
    return x;
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

/* SHA-256 (FIPS 180-4) compression over a fixed block. */
static uint32_t rotate(uint32_t x, int n) { return x >> n | x << (32 - n); }

static uint32_t constants[64];

static void prepare_sha256(void) { /* fractional parts of the cube roots of the first 64 primes, in integers only */
    int found = 0;
    for (unsigned prime = 2; found < 64; prime++) {
        int composite = 0;
        for (unsigned d = 2; d * d <= prime; d++)
            composite |= prime % d == 0;
        if (composite)
            continue;
        __uint128_t low = 0, high = (__uint128_t)8 << 32; /* largest r with r^3 <= prime * 2^96 */
        while (high - low > 1) {
            __uint128_t middle = (low + high) / 2;
            if (middle * middle * middle <= (__uint128_t)prime << 96)
                low = middle;
            else
                high = middle;
        }
        constants[found++] = (uint32_t)low;
    }
}

static uint64_t sha256(void) {
    uint32_t state[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    uint32_t w[64];
    for (int block = 0; block < 1500000; block++) {
        for (int i = 0; i < 16; i++)
            w[i] = state[i & 7] + i;
        for (int i = 16; i < 64; i++) {
            uint32_t s0 = rotate(w[i - 15], 7) ^ rotate(w[i - 15], 18) ^ w[i - 15] >> 3;
            uint32_t s1 = rotate(w[i - 2], 17) ^ rotate(w[i - 2], 19) ^ w[i - 2] >> 10;
            w[i] = w[i - 16] + s0 + w[i - 7] + s1;
        }
        uint32_t v[8];
        memcpy(v, state, sizeof v);
        for (int i = 0; i < 64; i++) {
            uint32_t s1 = rotate(v[4], 6) ^ rotate(v[4], 11) ^ rotate(v[4], 25);
            uint32_t t1 = v[7] + s1 + ((v[4] & v[5]) ^ (~v[4] & v[6])) + constants[i] + w[i];
            uint32_t s0 = rotate(v[0], 2) ^ rotate(v[0], 13) ^ rotate(v[0], 22);
            uint32_t t2 = s0 + ((v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]));
            memmove(v + 1, v, 7 * sizeof *v);
            v[4] += t1;
            v[0] = t1 + t2;
        }
        for (int i = 0; i < 8; i++)
            state[i] += v[i];
    }
    return state[0];
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
