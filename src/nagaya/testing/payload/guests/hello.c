/* Says hello, tells how it was booted, and ends with status 0: the least that boots. */
#include "payload.h"

int main(void)
{
    print("HELLO from %s, cmdline '%s'\n", boot_kind == BOOT_PVH ? "PVH" : "Linux", cmdline());
    return 0;
}
