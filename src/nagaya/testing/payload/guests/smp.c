/* Starts the other CPUs (cpus=2); each adds its share, takes an interrupt from its own timer, and says so. */
#include "payload.h"

static volatile u32 sum, woken;

static void other(int cpu)
{
    apic_on();
    check((int)apic_id() == cpu);
    u32 seen = irq_counts[FIRST_VECTOR + cpu];
    apic_timer(FIRST_VECTOR + cpu, 1000000, false);
    wait_irq(FIRST_VECTOR + cpu, seen);
    __atomic_fetch_add(&woken, 1, __ATOMIC_SEQ_CST);
    for (int i = 0; i < 100000; i++)
        __atomic_fetch_add(&sum, cpu, __ATOMIC_SEQ_CST);
    __atomic_fetch_add(&woken, 1u << 16, __ATOMIC_SEQ_CST);
}

int main(void)
{
    u32 cpus = arg("cpus", 2), expected = 0;
    apic_on();
    smp_start(cpus, other);
    while (woken >> 16 != cpus - 1)
        pause();
    for (u32 cpu = 1; cpu < cpus; cpu++)
        expected += 100000 * cpu;
    check(sum == expected && (woken & 0xffff) == cpus - 1);
    print("CPUS %u\n", cpus);
    return 0;
}
