// The way of a call in and out: counted and watched, then what its function is told to do, then what its token and
// session allow, and only then into SoftHSM2.
#include "module.h"

static void lock_softhsm(struct call *call) {
    if (call->exclusive) pthread_rwlock_wrlock(&softhsm_lock);
    else pthread_rwlock_rdlock(&softhsm_lock);
    call->locked = true;
}

CK_RV enter(struct call *call, enum function function) {
    begin(call, function);
    CK_RV rv = obey(call);
    if (call->told) return rv;
    lock_softhsm(call);
    return initialised ? CKR_OK : CKR_CRYPTOKI_NOT_INITIALIZED;
}

CK_RV enter_slot(struct call *call, enum function function, CK_SLOT_ID slot) {
    CK_RV rv = enter(call, function);
    if (rv == CKR_OK) rv = token_in(slot, &call->token);
    if (rv != CKR_OK) return rv;
    return call->token->presence == PRESENT ? CKR_OK : call->token->code;
}

// Sees what the caller does wrong, and keeps the session: what it is worth is asked in `admit`.
static void watch(struct call *call, CK_SESSION_HANDLE handle) {
    bool former;
    const char *name = name_of(call->function);
    pthread_mutex_lock(&state);
    call->session = session_with(handle, &former);
    bool crowded = call->session != NULL && call->session->inside++ > 0;
    pthread_mutex_unlock(&state);
    if (former) violation("%s: a session of a former life", name);
    if (crowded) violation("%s: two calls at once on one session", name);
    if (call->function == F_C_Logout) violation("%s: logs everybody out", name);
}

CK_RV enter_session(struct call *call, enum function function, CK_SESSION_HANDLE session) {
    begin(call, function);
    watch(call, session);
    CK_RV rv = obey(call);
    return call->told ? rv : admit(call);
}

static CK_RV judge(struct call *call) {
    if (!initialised) return CKR_CRYPTOKI_NOT_INITIALIZED;
    if (call->session == NULL) return CKR_SESSION_HANDLE_INVALID;
    lose_idle_sessions(call);
    call->token = call->session->token;
    call->real = call->session->real;
    if (call->token->presence != PRESENT) return call->token->code;
    return is_good(call->session) ? CKR_OK : CKR_SESSION_HANDLE_INVALID;
}

CK_RV admit(struct call *call) {
    lock_softhsm(call);
    pthread_mutex_lock(&state);
    CK_RV rv = judge(call);
    pthread_mutex_unlock(&state);
    return rv;
}

CK_RV leave(struct call *call, CK_RV rv) {
    if (call->locked) pthread_rwlock_unlock(&softhsm_lock);
    end(call);
    if (call->session != NULL) {
        pthread_mutex_lock(&state);
        call->session->inside--;
        call->session->last_used = now();
        pthread_mutex_unlock(&state);
    }
    return rv;
}
