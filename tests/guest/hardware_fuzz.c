/* Touches all of a machine's hardware at random: configuration space by both ways, whatever BARs come to lie
 * where, I/O ports. Ports that end a machine are left out; everything else is fair.
 *
 *     seed=1 rounds=20000
 */
#include "pci.h"

static u64 state;

static u64 any(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static u64 below(u64 end) { return any() % end; }

/* Values that mean something more often than random ones do. */
static u64 value(void)
{
    static const u64 likely[] = {0, 1, 2, 6, 7, 0xf, 0xff, 0x8000, 0xc000, 0xffff, 0xffffffff, ~0ull,
                                 PCI_WINDOW, PCI_WINDOW + 0x4000, ECAM, LAPIC, 0x100000000ull};
    return below(2) ? likely[below(sizeof likely / sizeof *likely)] : any();
}

static void memory(u64 at)
{
    u64 word = value();
    switch (below(8)) {
    case 0: write8(at, word); break;
    case 1: write16(at, word); break;
    case 2: write32(at, word); break;
    case 3: write64(at, word); break;
    case 4: read8(at); break;
    case 5: read16(at); break;
    case 6: read32(at); break;
    default: read64(at);
    }
}

static void port(u16 at)
{
    u64 word = value();
    switch (below(6)) {
    case 0: outb(at, word); break;
    case 1: outw(at, word); break;
    case 2: outl(at, word); break;
    case 3: inb(at); break;
    case 4: inw(at); break;
    default: inl(at);
    }
}

/* Where a function of bus 0 or behind a port has its registers. */
static u64 config(void) { return ECAM + (below(8) << 20 | below(8) << 15) + (below(2) ? below(0x100) : below(0x1000)); }

int main(void)
{
    static const u16 ports[] = {0x70, 0x71, 0x3f9, 0x3fa, 0x3fc, 0x3fd, 0x3fe, 0x3ff, 0x60, 0x64, 0x601};
    state = arg("seed", 1) * 0x9e3779b97f4a7c15ull | 1;
    map(PCI_WINDOW, 0x4000000);
    map(ECAM, 0x800000);
    u64 rounds = arg("rounds", 20000);
    for (u64 round = 0; round < rounds; round++) {
        switch (below(8)) {
        case 0: case 1: case 2:
            memory(config());
            break;
        case 3: /* few addresses, so that BARs meet, and decode */
            write32((config() & ~0xfffull) + 0x10 + 4 * below(6), PCI_WINDOW + 0x2000 * below(8));
            write16((config() & ~0xfffull) + 4, 6);
            break;
        case 4: case 5:
            memory(PCI_WINDOW + (below(2) ? below(0x10000) : below(0x4000000)));
            break;
        case 6:
            outl(0xcf8, value() | 1u << 31);
            port(0xcfc + below(4));
            break;
        default: {
            u16 at = ports[below(sizeof ports / sizeof *ports)];
            if (at == 0x64)
                outb(at, below(0xfe));
            else
                port(at);
        }
        }
    }
    outb(0x3fb, 0);
    outb(0x3f9, 0);
    outb(0x3fc, 0);
    return 0;
}
