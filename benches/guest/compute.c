/* The loops of loops.h in a payload: loop=0 integer, loop=1 SHA-256. Prints "IOS 1 TICKS t RESULT x". */
#include "payload.h"

#include "loops.h"

int main(void)
{
    bool sha = arg("loop", 0);
    if (sha)
        prepare_sha256();
    u64 start = tsc(), result = sha ? sha256() : integer(), spent = tsc() - start;
    print("IOS 1 TICKS %lu RESULT %lx\n", spent, result);
    return 0;
}
