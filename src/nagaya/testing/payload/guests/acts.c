/* Does what the word do=N of its command line says: ends, faults, storms, waits; with wait=1 only
 * after the power button. For tests of machines. */
#include "payload.h"

#define GED 0xfea00000ull
#define PVPANIC 0x505
#define I8042 0x64
#define NOWHERE 0xd0000000ull /* between RAM and the end of PCI's window: nobody is there */

enum { IDLE, END, TRIPLE_FAULT, BAD_INSTRUCTION, EXIT_STORM, PRINT, PANIC, RESET, LOOK_NOWHERE, SPIN, BUTTON, ECHO };

static u64 fault(u64 unused)
{
    struct __attribute__((packed)) { u16 limit; u64 base; } none = {0, 0};
    asm volatile("lidt %0; int3" : : "m"(none));
    return unused;
}

static void __attribute__((noreturn)) idle(void)
{
    for (;;)
        halt();
}

static void wait_button(void)
{
    while (!(read32(GED) & 1))
        for (int n = 0; n < 100000; n++)
            pause();
    print("PRESSED\n");
}

int main(void)
{
    print("READY\n");
    if (arg("wait", 0))
        wait_button();
    switch (arg("do", IDLE)) {
    case IDLE:
        idle();
    case END:
        return 0;
    case TRIPLE_FAULT:
        ring0(fault, 0);
        return 1;
    case BAD_INSTRUCTION: /* at an address where it must be emulated, and no emulator knows it */
        asm volatile("addps (%0), %%xmm0" : : "r"(NOWHERE));
        return 1;
    case EXIT_STORM:
        for (;;)
            inb(0x80);
    case PRINT:
        for (u64 n = 0;; n++)
            print("line %lu of very many\n", n);
    case PANIC:
        outb(PVPANIC, 1);
        idle();
    case RESET:
        outb(I8042, 0xfe);
        idle();
    case LOOK_NOWHERE:
        check(read32(NOWHERE) == 0xffffffff && inb(0x80) == 0xff && inl(0x9000) == 0xffffffff);
        write64(NOWHERE, 1);
        outw(0x9000, 1);
        return 0;
    case SPIN:
        for (;;)
            pause();
    case BUTTON:
        wait_button();
        return 0;
    case ECHO:
        for (;;) {
            while (!(inb(0x3f8 + 5) & 1))
                for (int n = 0; n < 10000; n++)
                    pause();
            putch(inb(0x3f8));
        }
    }
    return 1;
}
