/* The loops that need neither memory to speak of nor an operating system: for programs and for bare payloads. */
#pragma once
#include <stdint.h>

/* The same machine code everywhere: a payload's compiler may not make calls of memmove from loops. */
#pragma GCC optimize("no-tree-loop-distribute-patterns")

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
        for (int i = 0; i < 8; i++) /* by hand: a payload has no library's memcpy */
            v[i] = state[i];
        for (int i = 0; i < 64; i++) {
            uint32_t s1 = rotate(v[4], 6) ^ rotate(v[4], 11) ^ rotate(v[4], 25);
            uint32_t t1 = v[7] + s1 + ((v[4] & v[5]) ^ (~v[4] & v[6])) + constants[i] + w[i];
            uint32_t s0 = rotate(v[0], 2) ^ rotate(v[0], 13) ^ rotate(v[0], 22);
            uint32_t t2 = s0 + ((v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]));
            for (int n = 7; n > 0; n--)
                v[n] = v[n - 1];
            v[4] += t1;
            v[0] = t1 + t2;
        }
        for (int i = 0; i < 8; i++)
            state[i] += v[i];
    }
    return state[0];
}
