/* `count` times: write to the doorbell at 0xd0000000; with `answer=1` then wait for the interrupt (vector 48) that
 * somebody sends for it. Prints "IOS n TICKS t".
 */
#include "payload.h"

#define DOORBELL 0xd0000000

int main(void)
{
    u64 count = arg("count", 100000);
    bool answer = arg("answer", 0);
    apic_on();
    for (int turn = 0; turn < 2; turn++) {
        u64 start = tsc(), n = turn ? count : count / 10;
        for (u64 i = 0; i < n; i++) {
            u32 seen = irq_counts[FIRST_VECTOR];
            write32(DOORBELL, i);
            if (answer)
                wait_irq(FIRST_VECTOR, seen);
        }
        if (turn)
            print("IOS %lu TICKS %lu\n", n, tsc() - start);
    }
    return 0;
}
