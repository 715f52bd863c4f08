/* The payload's C runtime. */
#include "payload.h"

#define SERIAL 0x3f8
#define RING0_ONLY __attribute__((target("general-regs-only")))

struct gate {
    u16 offset_low, selector;
    u8 ist, type;
    u16 offset_middle;
    u32 offset_high, zero;
};

struct frame {
    u64 rdi, rsi, rdx, rcx, rbx, rax, vector, error, rip, cs, rflags, rsp, ss;
};

extern struct gate idt[256];
extern u8 io_bitmap[8193];
extern char exceptions[], interrupts[], _end[];
extern u64 pml4[512];

u32 boot_kind, boot_info;
volatile u32 irq_counts[256];

static u64 heap;

static void set_gate(int vector, u64 handler)
{
    idt[vector] = (struct gate){(u16)handler, KERNEL_CS, 0, 0x8e, (u16)(handler >> 16), handler >> 32, 0};
}

void start(void)
{
    heap = (u64)_end;
    io_bitmap[8192] = 0xff;
    for (int i = 0; i < 32; i++)
        set_gate(i, (u64)exceptions + 16 * i);
    for (int i = 32; i < 256; i++)
        set_gate(i, (u64)interrupts + 32 * (i - 32));
    stop(main());
}

RING0_ONLY void putch(char c)
{
    while (!(inb(SERIAL + 5) & 0x20))
        ;
    outb(SERIAL, c);
}

static RING0_ONLY void put_number(u64 value, unsigned base)
{
    char digits[20];
    int n = 0;
    do {
        digits[n++] = "0123456789abcdef"[value % base];
        value /= base;
    } while (value);
    while (n)
        putch(digits[--n]);
}

static RING0_ONLY void vprint(const char *format, va_list args)
{
    for (; *format; format++) {
        if (*format != '%') {
            putch(*format);
            continue;
        }
        bool wide = *++format == 'l';
        if (wide)
            format++;
        switch (*format) {
        case 's':
            for (const char *text = va_arg(args, const char *); *text; text++)
                putch(*text);
            break;
        case 'c':
            putch(va_arg(args, int));
            break;
        case 'd': {
            int64_t value = wide ? va_arg(args, int64_t) : va_arg(args, int);
            if (value < 0)
                putch('-');
            put_number(value < 0 ? -(u64)value : (u64)value, 10);
            break;
        }
        default:
            put_number(wide ? va_arg(args, u64) : va_arg(args, u32), *format == 'x' ? 16 : 10);
        }
    }
}

RING0_ONLY void print(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vprint(format, args);
    va_end(args);
}

RING0_ONLY void stop(int status)
{
    print("EXIT %d\n", status);
    outl(0xf4, status);
    outb(0x600, 0x20 | 5 << 2); /* sleep control: SLP_EN, SLP_TYP 5 (ACPI 6.5, 4.8.3.7) */
    memset(idt, 0, 256 * sizeof *idt);
    asm volatile("ud2");
    __builtin_unreachable();
}

RING0_ONLY void fail(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    print("FAILED ");
    vprint(format, args);
    print("\n");
    stop(1);
}

RING0_ONLY void fault(struct frame *frame, u64 cr2)
{
    print("FAULT vector %lu error %lx at %lx:%lx, flags %lx, cr2 %lx\n", frame->vector, frame->error, frame->cs, frame->rip,
          frame->rflags, cr2);
    stop(2);
}

const char *cmdline(void)
{
    u64 address = boot_kind == BOOT_PVH ? read64(boot_info + 24) : read32(boot_info + 0x228);
    return address ? (const char *)address : "";
}

u64 arg(const char *name, u64 otherwise)
{
    size_t length = strlen(name);
    for (const char *at = cmdline(); *at; at++) {
        if ((at != cmdline() && at[-1] != ' ') || memcmp(at, name, length) || at[length] != '=')
            continue;
        u64 value = 0;
        for (at += length + 1; *at >= '0' && *at <= '9'; at++)
            value = value * 10 + *at - '0';
        return value;
    }
    return otherwise;
}

u64 ring0(u64 (*function)(u64), u64 argument)
{
    u64 result = RING0_CALL;
    asm volatile("ud2"
                 : "+a"(result), "+D"(function), "+S"(argument)
                 :
                 : "rcx", "rdx", "r8", "r9", "r10", "r11", "memory", "cc");
    return result;
}

u32 wait_irq(u8 vector, u32 seen)
{
    irq_off();
    while (irq_counts[vector] == seen)
        halt();
    return irq_counts[vector];
}

void apic_on(void) { write32(LAPIC + 0xf0, 0x1ff); }

u32 apic_id(void) { return read32(LAPIC + 0x20) >> 24; }

void apic_timer(u8 vector, u32 ticks, bool periodic)
{
    write32(LAPIC + 0x3e0, 0xb); /* divide by 1 */
    write32(LAPIC + 0x320, vector | (periodic ? 1 << 17 : 0));
    write32(LAPIC + 0x380, ticks);
}

void *alloc(size_t size, size_t align)
{
    heap = (heap + align - 1) & -(u64)align;
    void *at = (void *)heap;
    heap += size;
    memset(at, 0, size);
    return at;
}

static u64 *table(u64 *entry)
{
    if (!*entry)
        *entry = (u64)alloc(4096, 4096) | 7;
    return (u64 *)(*entry & ~0xfffull);
}

void map(u64 physical, u64 size)
{
    for (u64 at = physical & ~0x1fffffull; at < physical + size; at += 0x200000) {
        u64 *directory = table(&table(&pml4[at >> 39 & 511])[at >> 30 & 511]);
        u64 *entry = &directory[at >> 21 & 511];
        if (!*entry)
            *entry = at | 0x87;
    }
}

/* INIT, SIPI (Intel SDM 3A, 9.4.4.1); one CPU at a time, for they share the trampoline's stack. */
extern char trampoline[], trampoline_end[];
static volatile int running;
static void (*ap_function)(int);
volatile u32 ap_cpu;
volatile u64 ap_stack, ap_ring0_stack;

void ap_start(int cpu)
{
    running = cpu;
    ap_function(cpu);
    for (;;)
        halt();
}

static void send_ipi(u32 cpu, u32 command)
{
    write32(LAPIC + 0x310, cpu << 24);
    write32(LAPIC + 0x300, command);
    while (read32(LAPIC + 0x300) & 0x1000)
        pause();
}

void smp_start(int count, void (*function)(int))
{
    memcpy((void *)TRAMPOLINE, trampoline, trampoline_end - trampoline);
    ap_function = function;
    for (int cpu = 1; cpu < count; cpu++) {
        ap_cpu = cpu;
        ap_stack = (u64)alloc(65536, 16) + 65536 - 8;
        ap_ring0_stack = (u64)alloc(4096, 16) + 4096;
        send_ipi(cpu, 0x4500);
        send_ipi(cpu, 0x4600 | TRAMPOLINE >> 12);
        while (running != cpu)
            pause();
    }
}

RING0_ONLY void *memset(void *to, int byte, size_t size)
{
    void *at = to;
    asm volatile("rep stosb" : "+D"(at), "+c"(size) : "a"(byte) : "memory");
    return to;
}

void *memcpy(void *to, const void *from, size_t size)
{
    void *at = to;
    asm volatile("rep movsb" : "+D"(at), "+S"(from), "+c"(size) : : "memory");
    return to;
}

void *memmove(void *to, const void *from, size_t size)
{
    u8 *a = to;
    const u8 *b = from;
    if (a <= b)
        return memcpy(to, from, size);
    while (size--)
        a[size] = b[size];
    return to;
}

int memcmp(const void *a, const void *b, size_t size)
{
    const u8 *x = a, *y = b;
    for (; size; x++, y++, size--)
        if (*x != *y)
            return *x - *y;
    return 0;
}

size_t strlen(const char *text)
{
    size_t n = 0;
    while (text[n])
        n++;
    return n;
}
