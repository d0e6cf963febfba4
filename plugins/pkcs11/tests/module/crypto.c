// The functions that use keys, those that need none, and the list of all functions.
#include "module.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

// ---- The beginning of an operation with a key ---------------------------------------------------------------------

typedef CK_RV (*init_function)(CK_SESSION_HANDLE, CK_MECHANISM *, CK_OBJECT_HANDLE);

static bool needs_private_key(enum function function) {
    return function == F_C_SignInit || function == F_C_DecryptInit || function == F_C_SignRecoverInit;
}

static CK_RV check_key(const struct call *call, const CK_MECHANISM *mechanism, CK_OBJECT_HANDLE *key) {
    if (mechanism != NULL && is_hidden(mechanism->mechanism)) return CKR_MECHANISM_INVALID;
    if (call->token->login_lost && needs_private_key(call->function)) return CKR_USER_NOT_LOGGED_IN;
    return real_object(call, *key, key);
}

static CK_RV begin_operation(CK_SESSION_HANDLE session, enum function function, init_function init,
                             CK_MECHANISM *mechanism, CK_OBJECT_HANDLE key) {
    struct call call = { 0 };
    CK_RV rv = enter_session(&call, function, session);
    if (rv != CKR_OK) return leave(&call, rv);
    pthread_mutex_lock(&state);
    rv = check_key(&call, mechanism, &key);
    pthread_mutex_unlock(&state);
    if (rv == CKR_OK) rv = init(call.real, mechanism, key);
    if (rv == CKR_OK)
        call.session->unproven = settings.always_authenticate == ALL_KEYS && needs_private_key(function);
    if (rv == CKR_OBJECT_HANDLE_INVALID) rv = call.token->stale;
    return leave(&call, rv);
}

#define OPERATION(NAME)                                                                             \
    CK_RV NAME(CK_SESSION_HANDLE session, CK_MECHANISM *mechanism, CK_OBJECT_HANDLE key) {          \
        return begin_operation(session, F_##NAME, softhsm->NAME, mechanism, key);                   \
    }

OPERATION(C_SignInit)
OPERATION(C_SignRecoverInit)
OPERATION(C_VerifyInit)
OPERATION(C_VerifyRecoverInit)
OPERATION(C_EncryptInit)
OPERATION(C_DecryptInit)

// ---- Private keys at work -----------------------------------------------------------------------------------------

typedef CK_RV (*work_function)(CK_SESSION_HANDLE, CK_BYTE *, CK_ULONG, CK_BYTE *, CK_ULONG *);

// An operation ends with any error but that of a short buffer (PKCS#11 v3.1 section 5.2), so SoftHSM2's has to.
static void abandon(struct call *call, work_function work) {
    CK_BYTE input[1] = { 0 }, output[4096];
    CK_ULONG length = sizeof output;
    if (call->locked || admit(call) == CKR_OK) work(call->real, input, sizeof input, output, &length);
}

static CK_RV work(CK_SESSION_HANDLE session, enum function function, work_function single, CK_BYTE *input,
                  CK_ULONG input_len, CK_BYTE *output, CK_ULONG *output_len) {
    struct call call = { .query = output == NULL };
    CK_RV rv = enter_session(&call, function, session);
    if (rv == CKR_OK && call.session->unproven) rv = CKR_USER_NOT_LOGGED_IN;
    if (rv == CKR_OK) return leave(&call, single(call.real, input, input_len, output, output_len));
    if (call.told || rv == CKR_USER_NOT_LOGGED_IN) abandon(&call, single);
    return leave(&call, rv);
}

#define WORK(NAME)                                                                                              \
    CK_RV NAME(CK_SESSION_HANDLE session, CK_BYTE *input, CK_ULONG input_len, CK_BYTE *output,                  \
               CK_ULONG *output_len) {                                                                          \
        return work(session, F_##NAME, softhsm->NAME, input, input_len, output, output_len);                    \
    }

WORK(C_Sign)
WORK(C_Decrypt)

// In parts, an operation has to be proven just as well.
static CK_RV enter_part(struct call *call, enum function function, CK_SESSION_HANDLE session) {
    CK_RV rv = enter_session(call, function, session);
    return rv == CKR_OK && call->session->unproven ? CKR_USER_NOT_LOGGED_IN : rv;
}

// ---- What is handed on as it is -----------------------------------------------------------------------------------

#define FORWARD_BY(ENTER, NAME, PARAMETERS, ...)                        \
    CK_RV NAME PARAMETERS {                                             \
        struct call call = { 0 };                                       \
        CK_RV rv = ENTER(&call, F_##NAME, session);                     \
        if (rv == CKR_OK) rv = softhsm->NAME(call.real, __VA_ARGS__);   \
        return leave(&call, rv);                                        \
    }
#define FORWARD(NAME, PARAMETERS, ...) FORWARD_BY(enter_session, NAME, PARAMETERS, __VA_ARGS__)

// What goes in, and room for what comes out.
#define IN CK_BYTE *in, CK_ULONG in_len
#define OUT CK_BYTE *out, CK_ULONG *out_len

FORWARD_BY(enter_part, C_SignUpdate, (CK_SESSION_HANDLE session, IN), in, in_len)
FORWARD_BY(enter_part, C_SignFinal, (CK_SESSION_HANDLE session, OUT), out, out_len)
FORWARD_BY(enter_part, C_DecryptUpdate, (CK_SESSION_HANDLE session, IN, OUT), in, in_len, out, out_len)
FORWARD_BY(enter_part, C_DecryptFinal, (CK_SESSION_HANDLE session, OUT), out, out_len)
FORWARD_BY(enter_part, C_SignRecover, (CK_SESSION_HANDLE session, IN, OUT), in, in_len, out, out_len)
FORWARD(C_Verify, (CK_SESSION_HANDLE session, IN, CK_BYTE *signature, CK_ULONG length), in, in_len, signature, length)
FORWARD(C_VerifyUpdate, (CK_SESSION_HANDLE session, IN), in, in_len)
FORWARD(C_VerifyFinal, (CK_SESSION_HANDLE session, IN), in, in_len)
FORWARD(C_VerifyRecover, (CK_SESSION_HANDLE session, IN, OUT), in, in_len, out, out_len)
FORWARD(C_Encrypt, (CK_SESSION_HANDLE session, IN, OUT), in, in_len, out, out_len)
FORWARD(C_EncryptUpdate, (CK_SESSION_HANDLE session, IN, OUT), in, in_len, out, out_len)
FORWARD(C_EncryptFinal, (CK_SESSION_HANDLE session, OUT), out, out_len)
FORWARD(C_DigestInit, (CK_SESSION_HANDLE session, CK_MECHANISM *mechanism), mechanism)
FORWARD(C_Digest, (CK_SESSION_HANDLE session, IN, OUT), in, in_len, out, out_len)
FORWARD(C_DigestUpdate, (CK_SESSION_HANDLE session, IN), in, in_len)
FORWARD(C_DigestFinal, (CK_SESSION_HANDLE session, OUT), out, out_len)
FORWARD(C_DigestEncryptUpdate, (CK_SESSION_HANDLE session, IN, OUT), in, in_len, out, out_len)
FORWARD(C_DecryptDigestUpdate, (CK_SESSION_HANDLE session, IN, OUT), in, in_len, out, out_len)
FORWARD(C_SignEncryptUpdate, (CK_SESSION_HANDLE session, IN, OUT), in, in_len, out, out_len)
FORWARD(C_DecryptVerifyUpdate, (CK_SESSION_HANDLE session, IN, OUT), in, in_len, out, out_len)
FORWARD(C_SeedRandom, (CK_SESSION_HANDLE session, IN), in, in_len)
FORWARD(C_GenerateRandom, (CK_SESSION_HANDLE session, IN), in, in_len)
FORWARD(C_GetOperationState, (CK_SESSION_HANDLE session, OUT), out, out_len)

// Of no use for signatures, and with handles of objects that would have to be seen to.
#define REFUSE(NAME, PARAMETERS, ...)                                                   \
    CK_RV NAME PARAMETERS {                                                             \
        struct call call = { 0 };                                                       \
        __VA_ARGS__;                                                                    \
        CK_RV rv = enter_session(&call, F_##NAME, session);                             \
        return leave(&call, rv == CKR_OK ? CKR_FUNCTION_NOT_SUPPORTED : rv);            \
    }

REFUSE(C_SetOperationState, (CK_SESSION_HANDLE session, IN, CK_OBJECT_HANDLE encryption, CK_OBJECT_HANDLE other),
       (void)in, (void)in_len, (void)encryption, (void)other)
REFUSE(C_DigestKey, (CK_SESSION_HANDLE session, CK_OBJECT_HANDLE key), (void)key)
REFUSE(C_WrapKey,
       (CK_SESSION_HANDLE session, CK_MECHANISM *mechanism, CK_OBJECT_HANDLE wrapping, CK_OBJECT_HANDLE key, OUT),
       (void)mechanism, (void)wrapping, (void)key, (void)out, (void)out_len)
REFUSE(C_UnwrapKey,
       (CK_SESSION_HANDLE session, CK_MECHANISM *mechanism, CK_OBJECT_HANDLE unwrapping, IN, CK_ATTRIBUTE *template,
        CK_ULONG count, CK_OBJECT_HANDLE *key),
       (void)mechanism, (void)unwrapping, (void)in, (void)in_len, (void)template, (void)count, (void)key)
REFUSE(C_DeriveKey,
       (CK_SESSION_HANDLE session, CK_MECHANISM *mechanism, CK_OBJECT_HANDLE base, CK_ATTRIBUTE *template,
        CK_ULONG count, CK_OBJECT_HANDLE *key),
       (void)mechanism, (void)base, (void)template, (void)count, (void)key)

CK_RV C_GetFunctionStatus(CK_SESSION_HANDLE session) {
    (void)session;
    return CKR_FUNCTION_NOT_PARALLEL;
}

CK_RV C_CancelFunction(CK_SESSION_HANDLE session) {
    (void)session;
    return CKR_FUNCTION_NOT_PARALLEL;
}

// ---- The list -----------------------------------------------------------------------------------------------------

static CK_FUNCTION_LIST list = {
    .version = { 2, 40 },
#define FUNCTION(name) .name = name,
#include "functions.h"
#undef FUNCTION
};

static CK_RV load_softhsm(void) {
    void *library = dlopen(SOFTHSM, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        fprintf(stderr, "the module for tests: %s\n", dlerror());
        return CKR_GENERAL_ERROR;
    }
    CK_C_GetFunctionList get;
    *(void **)&get = dlsym(library, "C_GetFunctionList");
    return get == NULL ? CKR_GENERAL_ERROR : get(&softhsm);
}

static CK_RV loaded;

static void load(void) {
    loaded = load_softhsm();
    if (loaded == CKR_OK && !connect_control()) loaded = CKR_GENERAL_ERROR;
}

__attribute__((visibility("default"))) CK_RV C_GetFunctionList(CK_FUNCTION_LIST **functions) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, load);
    *functions = &list;
    return loaded;
}
