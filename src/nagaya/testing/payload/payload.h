/* What a payload guest may use. `int main(void)` runs in ring 3 with I/O privilege, all memory mapped at its
 * physical address and accessible, interrupts off. Its result is the payload's exit status.
 */
#pragma once
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "layout.h"

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

int main(void);

/* I/O ports and memory-mapped registers. */
#define PORT_ACCESS(type, letter, reg)                                                                      \
    static inline void out##letter(u16 port, type value)                                                    \
    {                                                                                                       \
        asm volatile("out" #letter " %" reg "0, %1" : : "a"(value), "Nd"(port) : "memory");                 \
    }                                                                                                       \
    static inline type in##letter(u16 port)                                                                 \
    {                                                                                                       \
        type value;                                                                                         \
        asm volatile("in" #letter " %1, %" reg "0" : "=a"(value) : "Nd"(port) : "memory");                  \
        return value;                                                                                       \
    }
PORT_ACCESS(u8, b, "b")
PORT_ACCESS(u16, w, "w")
PORT_ACCESS(u32, l, "k")

/* One plain `mov` each: every VMM's emulator knows it. */
#define MMIO_ACCESS(bits, letter, reg)                                                                      \
    static inline void write##bits(u64 address, u##bits value)                                              \
    {                                                                                                       \
        asm volatile("mov" #letter " %" reg "1, (%0)" : : "r"(address), "r"(value) : "memory");             \
    }                                                                                                       \
    static inline u##bits read##bits(u64 address)                                                           \
    {                                                                                                       \
        u##bits value;                                                                                      \
        asm volatile("mov" #letter " (%1), %" reg "0" : "=r"(value) : "r"(address) : "memory");             \
        return value;                                                                                       \
    }
MMIO_ACCESS(8, b, "b")
MMIO_ACCESS(16, w, "w")
MMIO_ACCESS(32, l, "k")
MMIO_ACCESS(64, q, "q")

#define barrier() asm volatile("" ::: "memory")
#define full_barrier() asm volatile("lock orl $0, (%%rsp)" ::: "memory")
static inline void pause(void) { asm volatile("pause"); }

static inline u64 tsc(void)
{
    u32 low, high;
    asm volatile("lfence; rdtsc" : "=a"(low), "=d"(high) : : "memory");
    return (u64)high << 32 | low;
}

/* Output goes to the first serial port. print: %s %c %d %u %x, with l for 64 bits. */
void putch(char c);
void print(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Print "EXIT status" and end the machine: isa-debug-exit at 0xf4, else ACPI power off, else a triple fault. */
void stop(int status) __attribute__((noreturn));
/* End with a message unless it is true. */
void fail(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));
#define check(condition)                                                                                    \
    do {                                                                                                    \
        if (!(condition))                                                                                   \
            fail("%s:%d: %s", __FILE_NAME__, __LINE__, #condition);                                         \
    } while (0)

/* How it was booted, and the words NAME=NUMBER of the command line. */
extern u32 boot_kind; /* BOOT_LINUX or BOOT_PVH */
extern u32 boot_info; /* physical address of boot_params or hvm_start_info */
const char *cmdline(void);
u64 arg(const char *name, u64 otherwise);

/* Call a function in ring 0. Slow on some hosts: for what only ring 0 can do. */
u64 ring0(u64 (*function)(u64), u64 argument);

/* Interrupts 32 to 255 are counted. The first free vector is FIRST_VECTOR; each CPU has its own APIC id. */
#define FIRST_VECTOR 48
extern volatile u32 irq_counts[256];
static inline void irq_on(void) { asm volatile("sti" ::: "memory"); }
static inline void irq_off(void) { asm volatile("cli" ::: "memory"); }
/* Sleep until an interrupt; with interrupts off no wake-up is lost. They are off again behind it. */
static inline void halt(void) { asm volatile("hlt" ::: "memory"); }
/* Sleep until the count of `vector` is no longer `seen`; the new count. */
u32 wait_irq(u8 vector, u32 seen);

/* The local APIC: on for interrupts, this CPU's id, one-shot timer (in its ticks of 1 ns under KVM). */
void apic_on(void);
u32 apic_id(void);
void apic_timer(u8 vector, u32 ticks, bool periodic);

/* Memory: zeroed, aligned to `align`, never freed; map what is above 4 GiB before it is touched. */
void *alloc(size_t size, size_t align);
void map(u64 physical, u64 size);

/* Start CPUs 1 to `count` - 1 (their APIC ids); each runs function(cpu) in ring 3, and halts behind it. */
void smp_start(int count, void (*function)(int cpu));

void *memset(void *to, int byte, size_t size);
void *memcpy(void *to, const void *from, size_t size);
void *memmove(void *to, const void *from, size_t size);
int memcmp(const void *a, const void *b, size_t size);
size_t strlen(const char *text);
