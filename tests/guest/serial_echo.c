/* Echoes the second serial port, all by interrupts and asleep in between, until a full stop comes. */
#include "payload.h"

#define PORT 0x2f8
#define VECTOR FIRST_VECTOR
#define IOAPIC 0xfec00000ull
#define LINE 3

enum { DATA, IER, IIR, LCR, MCR, LSR };

static u8 ring[4096];
static u32 head, tail; /* received and sent */

static void route(void)
{
    outb(0x21, 0xff); /* the PICs are on the line too */
    outb(0xa1, 0xff);
    write32(IOAPIC, 0x10 + 2 * LINE + 1);
    write32(IOAPIC + 0x10, apic_id() << 24);
    write32(IOAPIC, 0x10 + 2 * LINE);
    write32(IOAPIC + 0x10, VECTOR); /* fixed, edge */
}

static void send(void)
{
    for (int n = 0; n < 16 && tail != head; n++)
        outb(PORT + DATA, ring[tail++ % sizeof ring]);
    outb(PORT + IER, tail == head ? 1 : 3);
}

int main(void)
{
    apic_on();
    route();
    outb(PORT + IIR, 0xc1); /* FIFOs on, trigger at 14 */
    outb(PORT + MCR, 0x0b);
    outb(PORT + IER, 1);
    print("READY\n");
    bool stopped = false;
    u32 seen = 0, wakes = 0;
    while (!stopped || tail != head) {
        seen = wait_irq(VECTOR, seen);
        wakes++;
        for (u8 cause; !((cause = inb(PORT + IIR)) & 1);) {
            while (inb(PORT + LSR) & 1) {
                u8 byte = inb(PORT + DATA);
                if (byte == '.') {
                    stopped = true;
                    print("STOP\n");
                }
                check(head - tail < sizeof ring);
                ring[head++ % sizeof ring] = byte;
            }
            if (inb(PORT + LSR) & 0x20)
                send();
        }
    }
    print("WAKES %u\n", wakes);
    return 0;
}
