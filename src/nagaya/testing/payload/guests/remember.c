/* Writes its number into each page of a part of memory, then reads all of them again after each pause, and
 * says so. For tests that move its memory. */
#include "payload.h"

#define FIRST 0x1000000ul /* above the payload and its tables */
#define LAST 0x3000000ul
#define PAGE 4096ul
#define PAUSE (1ul << 32) /* ticks; a second or two */

int main(void)
{
    for (u64 page = FIRST; page < LAST; page += PAGE)
        *(volatile u64 *)page = ~page;
    print("READY\n");
    for (u64 n = 1;; n++) {
        for (u64 begin = tsc(); tsc() - begin < PAUSE;)
            pause();
        for (u64 page = FIRST; page < LAST; page += PAGE)
            check(*(volatile u64 *)page == ~page);
        print("ROUND %lu\n", n);
    }
}
