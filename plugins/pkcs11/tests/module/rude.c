// A caller that uses one session in two threads at once, which Rust's binding doesn't allow.
#include <dlfcn.h>
#include <p11-kit/pkcs11.h>
#include <pthread.h>
#include <stdio.h>

static CK_FUNCTION_LIST *module;
static CK_SESSION_HANDLE session;

static void *call(void *unused) {
    CK_BYTE byte;
    module->C_GenerateRandom(session, &byte, sizeof byte);
    return unused;
}

int main(int count, char **arguments) {
    void *library = count == 2 ? dlopen(arguments[1], RTLD_NOW) : NULL;
    CK_C_GetFunctionList get;
    *(void **)&get = library == NULL ? NULL : dlsym(library, "C_GetFunctionList");
    CK_C_INITIALIZE_ARGS initialise = { .flags = CKF_OS_LOCKING_OK };
    CK_SLOT_ID slots[8];
    CK_ULONG slot_count = 8;
    if (get == NULL || get(&module) != CKR_OK || module->C_Initialize(&initialise) != CKR_OK) return 1;
    if (module->C_GetSlotList(CK_TRUE, slots, &slot_count) != CKR_OK || slot_count == 0) return 2;
    if (module->C_OpenSession(slots[0], CKF_SERIAL_SESSION, NULL, NULL, &session) != CKR_OK) return 3;
    pthread_t other;
    if (pthread_create(&other, NULL, call, NULL) != 0) return 4;
    call(NULL);
    pthread_join(other, NULL);
    return 0;
}
