/* For each CPU feature of the table that CPUID names: executes an instruction of it, checks the result, and says
 * "HAS name". Ring 3; what needs the operating system's consent first (AVX, FSGSBASE, ...) is not in the table.
 * The values are worked out by hand from the instructions' definitions (SDM volume 2).
 */
#include "payload.h"

static bool cmov(void)
{
    u64 value = 1;
    asm volatile("cmp %%eax, %%eax; cmove %1, %0" : "+r"(value) : "r"(7ul) : "cc");
    return value == 7;
}

static bool cx8(void)
{
    u64 cell = 0x100000002;
    u32 low = 2, high = 1;
    asm volatile("lock cmpxchg8b %0" : "+m"(cell), "+a"(low), "+d"(high) : "b"(4), "c"(3) : "cc");
    return cell == 0x300000004;
}

static bool cx16(void)
{
    u64 cell[2] __attribute__((aligned(16))) = {2, 1}, low = 2, high = 1;
    asm volatile("lock cmpxchg16b %0" : "+m"(cell), "+a"(low), "+d"(high) : "b"(4ul), "c"(3ul) : "cc");
    return cell[0] == 4 && cell[1] == 3;
}

static bool time_stamp(void)
{
    u64 before = tsc();
    return tsc() > before;
}

static bool rdtscp(void)
{
    u32 low, high, cpu;
    u64 before = tsc();
    asm volatile("rdtscp" : "=a"(low), "=d"(high), "=c"(cpu));
    return ((u64)high << 32 | low) > before;
}

static bool clflush(void)
{
    static volatile u32 line = 5;
    asm volatile("clflush %0; mfence" : "+m"(line));
    return line == 5;
}

static bool fxsave(void)
{
    static u8 area[512] __attribute__((aligned(16)));
    u32 mxcsr;
    asm volatile("fxsave %0; stmxcsr %1" : "=m"(area), "=m"(mxcsr));
    return !memcmp(area + 24, &mxcsr, 4);
}

static bool mmx(void)
{
    u64 sum;
    asm volatile("movq %1, %%mm0; movq %2, %%mm1; paddw %%mm1, %%mm0; movq %%mm0, %0; emms"
                 : "=r"(sum) : "r"(0x0001000200030004ul), "r"(0x0010002000300040ul) : "mm0", "mm1");
    return sum == 0x0011002200330044;
}

static bool fpu(void)
{
    int root;
    asm volatile("fildl %1; fsqrt; fistpl %0" : "=m"(root) : "m"((int){1764}));
    return root == 42;
}

/* SSE: two numbers in, one out, all in an xmm register's low half. */
#define XMM(name, instruction, a, b, result)                                                                \
    static bool name(void)                                                                                  \
    {                                                                                                       \
        u64 out;                                                                                            \
        asm volatile("movq %1, %%xmm0; movq %2, %%xmm1; " instruction "; movq %%xmm0, %0"                   \
                     : "=r"(out) : "r"((u64)(a)), "r"((u64)(b)) : "xmm0", "xmm1");                          \
        return out == (result);                                                                             \
    }
XMM(sse, "addss %%xmm1, %%xmm0", 0x40000000, 0x40400000, 0x40a00000) /* 2.0 + 3.0 = 5.0 */
XMM(sse2, "addsd %%xmm1, %%xmm0", 0x4000000000000000, 0x4008000000000000, 0x4014000000000000)
XMM(sse3, "haddps %%xmm1, %%xmm0", 0x4040000040000000, 0, 0x40a00000) /* (3.0, 2.0): low is their sum */
XMM(ssse3, "pabsw %%xmm1, %%xmm0", 0, 0xfffffffefffd0004, 0x0001000200030004)
XMM(sse41, "pmulld %%xmm1, %%xmm0", 0x0000000300010000, 0x0000000500000007, 0x0000000f00070000)
XMM(sse42, "pcmpgtq %%xmm1, %%xmm0", 1, -1, ~0ul)
XMM(pclmul, "pclmulqdq $0, %%xmm1, %%xmm0", 5, 3, 15) /* (x^2 + 1)(x + 1) */
XMM(aes, "aesimc %%xmm1, %%xmm0", 0, 0x0101010101010101, 0x0101010101010101) /* 0e^0b^0d^09 = 1 */
XMM(sha, "sha1msg2 %%xmm1, %%xmm0", 0x0000000100000001, 2, 0x0000000600000002)
XMM(gfni, "gf2p8mulb %%xmm1, %%xmm0", 0x02, 0x80, 0x1b) /* reduced by x^8 + x^4 + x^3 + x + 1 */

/* General registers: one source, one result. */
#define GENERAL(name, instruction, a, result)                                                               \
    static bool name(void)                                                                                  \
    {                                                                                                       \
        u64 out = 0;                                                                                        \
        asm volatile(instruction : "+r"(out) : "r"((u64)(a)) : "cc");                                       \
        return out == (result);                                                                             \
    }
GENERAL(popcnt, "popcnt %1, %0", 0xf0f1, 9)
GENERAL(lzcnt, "lzcnt %1, %0", 0x10, 59)
GENERAL(bmi1, "blsr %1, %0", 0b101100, 0b101000)
GENERAL(bmi2, "rorx $8, %1, %0", 0x1122334455667788, 0x8811223344556677)
GENERAL(crc32, "crc32q %1, %0", 0x0123456789abcdef, 0xe9986aa9) /* polynomial 0x1edc6f41, reflected */
GENERAL(adx, "clc; adcx %1, %0", 41, 41)

static bool movbe(void)
{
    u32 in = 0x11223344, out;
    asm volatile("movbe %1, %0" : "=r"(out) : "m"(in));
    return out == 0x44332211;
}

static bool lahf(void)
{
    u64 flags;
    asm volatile("xor %%eax, %%eax; lahf" : "=a"(flags) : : "cc"); /* zero and parity are set, bit 1 always */
    return (flags >> 8 & 0xff) == 0x46;
}

#define RANDOM(name, instruction)                                                                           \
    static bool name(void)                                                                                  \
    {                                                                                                       \
        u64 one = 0, two = 0;                                                                               \
        u8 given = 0;                                                                                       \
        for (int i = 0; i < 100000 && (!given || one == two); i++) {                                        \
            two = one;                                                                                      \
            asm volatile(instruction " %0; setc %1" : "=r"(one), "=qm"(given) : : "cc");                    \
        }                                                                                                   \
        return given && one != two;                                                                         \
    }
RANDOM(rdrand, "rdrand")
RANDOM(rdseed, "rdseed")

enum { EAX, EBX, ECX, EDX };
static const struct {
    const char *name;
    u32 leaf;
    u8 word, bit;
    bool (*works)(void);
} features[] = {
    {"FPU", 1, EDX, 0, fpu},
    {"TSC", 1, EDX, 4, time_stamp},
    {"CX8", 1, EDX, 8, cx8},
    {"CMOV", 1, EDX, 15, cmov},
    {"CLFSH", 1, EDX, 19, clflush},
    {"MMX", 1, EDX, 23, mmx},
    {"FXSR", 1, EDX, 24, fxsave},
    {"SSE", 1, EDX, 25, sse},
    {"SSE2", 1, EDX, 26, sse2},
    {"SSE3", 1, ECX, 0, sse3},
    {"PCLMULQDQ", 1, ECX, 1, pclmul},
    {"SSSE3", 1, ECX, 9, ssse3},
    {"CX16", 1, ECX, 13, cx16},
    {"SSE4_1", 1, ECX, 19, sse41},
    {"SSE4_2", 1, ECX, 20, sse42},
    {"SSE4_2", 1, ECX, 20, crc32},
    {"MOVBE", 1, ECX, 22, movbe},
    {"POPCNT", 1, ECX, 23, popcnt},
    {"AES", 1, ECX, 25, aes},
    {"RDRAND", 1, ECX, 30, rdrand},
    {"BMI1", 7, EBX, 3, bmi1},
    {"BMI2", 7, EBX, 8, bmi2},
    {"RDSEED", 7, EBX, 18, rdseed},
    {"ADX", 7, EBX, 19, adx},
    {"SHA", 7, EBX, 29, sha},
    {"GFNI", 7, ECX, 8, gfni},
    {"LAHF_LM", 0x80000001, ECX, 0, lahf},
    {"ABM", 0x80000001, ECX, 5, lzcnt},
    {"RDTSCP", 0x80000001, EDX, 27, rdtscp},
};

int main(void)
{
    for (size_t i = 0; i < sizeof features / sizeof *features; i++) {
        u32 words[4];
        asm volatile("cpuid"
                     : "=a"(words[EAX]), "=b"(words[EBX]), "=c"(words[ECX]), "=d"(words[EDX])
                     : "a"(features[i].leaf), "c"(0));
        if (!(words[features[i].word] >> features[i].bit & 1))
            continue;
        print("TRIES %s\n", features[i].name); /* so that a fault has a name */
        if (!features[i].works())
            fail("%s: a wrong result", features[i].name);
        print("HAS %s\n", features[i].name);
    }
    return 0;
}
