/* Never stops printing, and asks the port before each byte, as a driver that polls. */
#include "payload.h"

int main(void)
{
    print("PRINTS\n");
    for (u8 byte = ' ';; byte = byte == '~' ? ' ' : byte + 1) {
        while (!(inb(0x2fd) & 0x20))
            ;
        outb(0x2f8, byte);
    }
}
