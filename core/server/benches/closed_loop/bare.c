// A caller that does nothing but sign, in as many threads as it has sessions: what a module takes by itself.
//
// bare MODULE LABEL PIN SESSIONS MILLISECONDS prints how many signatures the key made, and the processor time of one, µs.
#include <dlfcn.h>
#include <p11-kit/pkcs11.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MOST 64

static CK_FUNCTION_LIST *module;
static CK_OBJECT_HANDLE key;
static double until;

static double seconds(clockid_t clock) {
    struct timespec time;
    clock_gettime(clock, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static void *sign(void *argument) {
    CK_SESSION_HANDLE session = *(CK_SESSION_HANDLE *)argument;
    CK_MECHANISM mechanism = { .mechanism = CKM_ECDSA };
    CK_BYTE digest[32] = { 1 }, signature[64];
    unsigned long made = 0;
    while (seconds(CLOCK_MONOTONIC) < until) {
        CK_ULONG length = sizeof signature;
        if (module->C_SignInit(session, &mechanism, key) != CKR_OK) abort();
        if (module->C_Sign(session, digest, sizeof digest, signature, &length) != CKR_OK) abort();
        made++;
    }
    return (void *)made;
}

static int load(const char *path) {
    void *library = dlopen(path, RTLD_NOW);
    CK_C_GetFunctionList get;
    *(void **)&get = library == NULL ? NULL : dlsym(library, "C_GetFunctionList");
    CK_C_INITIALIZE_ARGS initialise = { .flags = CKF_OS_LOCKING_OK };
    return get != NULL && get(&module) == CKR_OK && module->C_Initialize(&initialise) == CKR_OK;
}

static int find(CK_SESSION_HANDLE session, char *label) {
    CK_OBJECT_CLASS private = CKO_PRIVATE_KEY;
    CK_ATTRIBUTE template[] = { { CKA_CLASS, &private, sizeof private }, { CKA_LABEL, label, strlen(label) } };
    CK_ULONG found = 0;
    if (module->C_FindObjectsInit(session, template, 2) != CKR_OK) return 0;
    if (module->C_FindObjects(session, &key, 1, &found) != CKR_OK) return 0;
    return module->C_FindObjectsFinal(session) == CKR_OK && found == 1;
}

int main(int count, char **arguments) {
    CK_SLOT_ID slots[8];
    CK_ULONG slot_count = 8;
    CK_SESSION_HANDLE sessions[MOST];
    pthread_t threads[MOST];
    int number = count == 6 ? atoi(arguments[4]) : 0;
    if (number < 1 || number > MOST || !load(arguments[1])) return 1;
    if (module->C_GetSlotList(CK_TRUE, slots, &slot_count) != CKR_OK || slot_count == 0) return 2;
    for (int each = 0; each < number; each++)
        if (module->C_OpenSession(slots[0], CKF_SERIAL_SESSION, NULL, NULL, &sessions[each]) != CKR_OK) return 3;
    if (module->C_Login(*sessions, CKU_USER, (CK_BYTE *)arguments[3], strlen(arguments[3])) != CKR_OK) return 4;
    if (!find(*sessions, arguments[2])) return 5;

    double spent = seconds(CLOCK_PROCESS_CPUTIME_ID);
    unsigned long all = 0;
    until = seconds(CLOCK_MONOTONIC) + atof(arguments[5]) / 1e3;
    for (int each = 0; each < number; each++)
        if (pthread_create(&threads[each], NULL, sign, &sessions[each]) != 0) return 6;
    for (int each = 0; each < number; each++) {
        void *made;
        pthread_join(threads[each], &made);
        all += (unsigned long)made;
    }
    spent = seconds(CLOCK_PROCESS_CPUTIME_ID) - spent;
    printf("%lu %.2f\n", all, spent * 1e6 / (double)all);
    return 0;
}
