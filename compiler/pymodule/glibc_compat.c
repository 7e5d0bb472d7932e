/* glibc functions that LLVM's objects call and that glibc 2.35 does not have, so that the wheel is manylinux_2_35.
   Linked only into the extension, and hidden in it: nothing else in the process sees these. */

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <errno.h>
#include <sys/random.h>

/* Since glibc 2.36. LLVM draws names of temporary files from it. */
__attribute__((visibility("hidden"))) uint32_t arc4random(void) {
    uint32_t value;
    size_t filled = 0;
    while (filled < sizeof value) {
        ssize_t got = getrandom((char *)&value + filled, sizeof value - filled, 0);
        if (got > 0) {
            filled += (size_t)got;
        } else if (errno != EINTR) {
            abort(); /* no entropy to be had: the original ends the process too */
        }
    }
    return value;
}
