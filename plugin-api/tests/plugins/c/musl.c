// What ends the process when it is loaded, which a library that is refused by its headers never is.
#include <stdlib.h>

__attribute__((constructor)) static void end(void) {
    abort();
}
