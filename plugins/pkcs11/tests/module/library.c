// The functions on the library, its slots and tokens, sessions and logins.
#include "module.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// Puts a text into a field that is padded with blanks, where there is one to put.
static void show(CK_UTF8CHAR *field, size_t size, const char *text) {
    size_t length = strlen(text);
    if (length == 0) return;
    memset(field, ' ', size);
    memcpy(field, text, length < size ? length : size);
}

// ---- The library --------------------------------------------------------------------------------------------------

CK_RV C_Initialize(void *arguments) {
    struct call call = { .exclusive = true };
    CK_RV rv = enter(&call, F_C_Initialize);
    if (!call.told) rv = softhsm->C_Initialize(arguments);
    if (rv == CKR_OK) {
        pthread_mutex_lock(&state);
        begin_life();
        pthread_mutex_unlock(&state);
    }
    return leave(&call, rv);
}

static void watch_finalize(void) {
    pthread_mutex_lock(&state);
    unsigned open = open_sessions();
    pthread_mutex_unlock(&state);
    if (open > 0) violation("C_Finalize: %u sessions are open", open);
    if (inside(ANY_FUNCTION) > 0) violation("C_Finalize: %u calls are inside", inside(ANY_FUNCTION));
}

CK_RV C_Finalize(void *reserved) {
    watch_finalize();
    struct call call = { .exclusive = true };
    CK_RV rv = enter(&call, F_C_Finalize);
    if (rv == CKR_OK) rv = softhsm->C_Finalize(reserved);
    if (rv == CKR_OK) {
        pthread_mutex_lock(&state);
        end_life();
        pthread_mutex_unlock(&state);
    }
    return leave(&call, rv);
}

CK_RV C_GetInfo(CK_INFO *info) {
    struct call call = { 0 };
    CK_RV rv = enter(&call, F_C_GetInfo);
    if (rv == CKR_OK) rv = softhsm->C_GetInfo(info);
    if (rv == CKR_OK) {
        pthread_mutex_lock(&state);
        show(info->manufacturerID, sizeof info->manufacturerID, settings.manufacturer);
        show(info->libraryDescription, sizeof info->libraryDescription, settings.description);
        uint64_t version = settings.version;
        if (version != 0) info->libraryVersion = (CK_VERSION){ (CK_BYTE)(version >> 8), (CK_BYTE)version };
        pthread_mutex_unlock(&state);
    }
    return leave(&call, rv);
}

// ---- Slots and tokens ---------------------------------------------------------------------------------------------

static enum presence presence_in(CK_SLOT_ID slot) {
    struct token *token;
    return token_in(slot, &token) == CKR_OK ? token->presence : PRESENT;
}

// Hands out a list in the two steps that PKCS#11 has for it.
static CK_RV hand_out(const CK_ULONG *found, CK_ULONG count, CK_ULONG *list, CK_ULONG *length) {
    CK_ULONG room = *length;
    *length = count;
    if (list == NULL) return CKR_OK;
    if (room < count) return CKR_BUFFER_TOO_SMALL;
    memcpy(list, found, count * sizeof *list);
    return CKR_OK;
}

#define LISTED 512

static CK_RV list_slots(CK_BBOOL with_token, CK_SLOT_ID *list, CK_ULONG *length) {
    CK_SLOT_ID slots[LISTED];
    CK_ULONG count = LISTED, kept = 0;
    if (length == NULL) return CKR_ARGUMENTS_BAD;
    // Only a call without room for an answer has SoftHSM2 look for new tokens.
    CK_RV rv = list == NULL ? softhsm->C_GetSlotList(with_token, NULL, &count) : CKR_OK;
    count = LISTED;
    if (rv == CKR_OK) rv = softhsm->C_GetSlotList(with_token, slots, &count);
    if (rv != CKR_OK) return rv;
    for (CK_ULONG each = 0; each < count; each++)
        if (!with_token || presence_in(slots[each]) != GONE) slots[kept++] = slots[each];
    return hand_out(slots, kept, list, length);
}

CK_RV C_GetSlotList(CK_BBOOL with_token, CK_SLOT_ID *list, CK_ULONG *length) {
    struct call call = { 0 };
    CK_RV rv = enter(&call, F_C_GetSlotList);
    if (rv == CKR_OK) rv = list_slots(with_token, list, length);
    return leave(&call, rv);
}

CK_RV C_GetSlotInfo(CK_SLOT_ID slot, CK_SLOT_INFO *info) {
    struct call call = { 0 };
    CK_RV rv = enter(&call, F_C_GetSlotInfo);
    if (rv == CKR_OK) rv = softhsm->C_GetSlotInfo(slot, info);
    if (rv == CKR_OK && presence_in(slot) == GONE) info->flags &= ~CKF_TOKEN_PRESENT;
    return leave(&call, rv);
}

static void show_token(const struct token *token, CK_TOKEN_INFO *info) {
    show(info->label, sizeof info->label, token->shown_label);
    show(info->manufacturerID, sizeof info->manufacturerID, token->shown_manufacturer);
    show(info->model, sizeof info->model, token->shown_model);
    info->flags = (info->flags | token->more_flags) & ~token->less_flags;
    if (token->no_login[0] != '\0') info->flags &= ~CKF_LOGIN_REQUIRED;
    if (token->limit_told) info->ulMaxSessionCount = info->ulMaxRwSessionCount = token->limit;
}

CK_RV C_GetTokenInfo(CK_SLOT_ID slot, CK_TOKEN_INFO *info) {
    struct call call = { 0 };
    CK_RV rv = enter_slot(&call, F_C_GetTokenInfo, slot);
    if (call.token != NULL && call.token->presence == GONE) rv = CKR_TOKEN_NOT_PRESENT;
    if (rv == CKR_OK) rv = softhsm->C_GetTokenInfo(slot, info);
    if (rv == CKR_OK) {
        pthread_mutex_lock(&state);
        show_token(call.token, info);
        pthread_mutex_unlock(&state);
    }
    return leave(&call, rv);
}

static CK_RV list_mechanisms(CK_SLOT_ID slot, CK_MECHANISM_TYPE *list, CK_ULONG *length) {
    CK_MECHANISM_TYPE mechanisms[LISTED];
    CK_ULONG count = LISTED, kept = 0;
    if (length == NULL) return CKR_ARGUMENTS_BAD;
    CK_RV rv = softhsm->C_GetMechanismList(slot, mechanisms, &count);
    if (rv != CKR_OK) return rv;
    pthread_mutex_lock(&state);
    for (CK_ULONG each = 0; each < count; each++)
        if (!is_hidden(mechanisms[each])) mechanisms[kept++] = mechanisms[each];
    pthread_mutex_unlock(&state);
    return hand_out(mechanisms, kept, list, length);
}

CK_RV C_GetMechanismList(CK_SLOT_ID slot, CK_MECHANISM_TYPE *list, CK_ULONG *length) {
    struct call call = { 0 };
    CK_RV rv = enter_slot(&call, F_C_GetMechanismList, slot);
    if (rv == CKR_OK) rv = list_mechanisms(slot, list, length);
    return leave(&call, rv);
}

CK_RV C_GetMechanismInfo(CK_SLOT_ID slot, CK_MECHANISM_TYPE mechanism, CK_MECHANISM_INFO *info) {
    struct call call = { 0 };
    CK_RV rv = enter_slot(&call, F_C_GetMechanismInfo, slot);
    pthread_mutex_lock(&state);
    if (rv == CKR_OK && is_hidden(mechanism)) rv = CKR_MECHANISM_INVALID;
    pthread_mutex_unlock(&state);
    if (rv == CKR_OK) rv = softhsm->C_GetMechanismInfo(slot, mechanism, info);
    return leave(&call, rv);
}

CK_RV C_InitToken(CK_SLOT_ID slot, CK_UTF8CHAR *pin, CK_ULONG pin_len, CK_UTF8CHAR *label) {
    struct call call = { .exclusive = true };
    CK_RV rv = enter_slot(&call, F_C_InitToken, slot);
    if (rv == CKR_OK) rv = softhsm->C_InitToken(slot, pin, pin_len, label);
    return leave(&call, rv);
}

CK_RV C_WaitForSlotEvent(CK_FLAGS flags, CK_SLOT_ID *slot, void *reserved) {
    struct call call = { 0 };
    (void)flags, (void)slot, (void)reserved;
    CK_RV rv = enter(&call, F_C_WaitForSlotEvent);
    return leave(&call, rv == CKR_OK ? CKR_FUNCTION_NOT_SUPPORTED : rv);
}

// ---- Sessions -----------------------------------------------------------------------------------------------------

static CK_RV may_open(const struct token *token, CK_FLAGS flags) {
    uint64_t refused = flags & CKF_RW_SESSION ? settings.read_write_code : settings.read_only_code;
    if (refused != CKR_OK) return refused;
    return token->limit != 0 && token->open >= token->limit ? CKR_SESSION_COUNT : CKR_OK;
}

// Where the token needs no login, SoftHSM2 has one of the module's.
static CK_RV log_in_unseen(const struct token *token, CK_SESSION_HANDLE real) {
    if (token->no_login[0] == '\0') return CKR_OK;
    CK_RV rv = softhsm->C_Login(real, CKU_USER, (CK_BYTE *)token->no_login, strlen(token->no_login));
    return rv == CKR_USER_ALREADY_LOGGED_IN ? CKR_OK : rv;
}

// Alone, so that no more sessions are opened than are allowed.
static CK_RV open_session(struct token *token, CK_SLOT_ID slot, CK_FLAGS flags, CK_SESSION_HANDLE *session) {
    CK_SESSION_HANDLE real;
    CK_RV rv = may_open(token, flags);
    if (rv == CKR_OK) rv = softhsm->C_OpenSession(slot, flags, NULL, NULL, &real);
    if (rv != CKR_OK) return rv;
    rv = log_in_unseen(token, real);
    if (rv == CKR_OK) *session = add_session(token, slot, real);
    else softhsm->C_CloseSession(real);
    return rv;
}

CK_RV C_OpenSession(CK_SLOT_ID slot, CK_FLAGS flags, void *application, CK_NOTIFY notify, CK_SESSION_HANDLE *session) {
    struct call call = { 0 };
    (void)application, (void)notify;
    CK_RV rv = enter_slot(&call, F_C_OpenSession, slot);
    pthread_mutex_lock(&state);
    lose_idle_sessions(&call);
    if (rv == CKR_OK) rv = open_session(call.token, slot, flags, session);
    pthread_mutex_unlock(&state);
    return leave(&call, rv);
}

CK_RV C_CloseSession(CK_SESSION_HANDLE session) {
    struct call call = { .exclusive = true };
    CK_RV rv = enter_session(&call, F_C_CloseSession, session);
    if (rv == CKR_OK) rv = softhsm->C_CloseSession(call.real);
    if (rv == CKR_OK) {
        pthread_mutex_lock(&state);
        lose_session(call.session);
        pthread_mutex_unlock(&state);
    }
    return leave(&call, rv);
}

CK_RV C_CloseAllSessions(CK_SLOT_ID slot) {
    struct call call = { .exclusive = true };
    CK_RV rv = enter_slot(&call, F_C_CloseAllSessions, slot);
    if (rv == CKR_OK) {
        pthread_mutex_lock(&state);
        lose_sessions(call.token);
        pthread_mutex_unlock(&state);
    }
    return leave(&call, rv);
}

CK_RV C_GetSessionInfo(CK_SESSION_HANDLE session, CK_SESSION_INFO *info) {
    struct call call = { 0 };
    CK_RV rv = enter_session(&call, F_C_GetSessionInfo, session);
    if (rv == CKR_OK) rv = softhsm->C_GetSessionInfo(call.real, info);
    // The login that the module has made itself is nobody's.
    if (rv == CKR_OK && call.token->no_login[0] != '\0')
        info->state = info->flags & CKF_RW_SESSION ? CKS_RW_PUBLIC_SESSION : CKS_RO_PUBLIC_SESSION;
    return leave(&call, rv);
}

// ---- Logins -------------------------------------------------------------------------------------------------------

static CK_RV prove(struct call *call, const CK_BYTE *pin, CK_ULONG pin_len) {
    struct token *token = call->token;
    if (!call->session->unproven) return CKR_OPERATION_NOT_INITIALIZED;
    if (pin_len != token->pin_len || memcmp(pin, token->pin, pin_len) != 0) return CKR_PIN_INCORRECT;
    call->session->unproven = false;
    return CKR_OK;
}

static CK_RV check_user(const struct token *token, CK_USER_TYPE user) {
    if (token->no_login[0] != '\0') return token->no_login_code;
    if (token->more_flags & CKF_USER_PIN_LOCKED) return CKR_PIN_LOCKED;
    if (user == CKU_USER) return settings.vendor_user_only ? CKR_USER_TYPE_INVALID : CKR_OK;
    return settings.vendor_user != 0 && user == settings.vendor_user ? CKR_OK : CKR_USER_TYPE_INVALID;
}

// Cuts the user off the PIN `user:password`, where that is the custom.
static CK_RV cut_user(CK_BYTE **pin, CK_ULONG *pin_len) {
    size_t length = strlen(settings.pin_user);
    if (length == 0) return CKR_OK;
    if (*pin_len <= length || memcmp(*pin, settings.pin_user, length) != 0 || (*pin)[length] != ':')
        return settings.pin_user_code;
    *pin += length + 1;
    *pin_len -= length + 1;
    return CKR_OK;
}

static void remember(struct token *token, CK_USER_TYPE user, const CK_BYTE *pin, CK_ULONG pin_len) {
    token->login_lost = false;
    token->role = user;
    token->pin_len = pin_len < sizeof token->pin ? pin_len : 0;
    memcpy(token->pin, pin, token->pin_len);
}

static void watch_login(struct call *call) {
    CK_TOKEN_INFO info;
    CK_RV rv = softhsm->C_GetTokenInfo(call->session->slot, &info);
    if (rv == CKR_OK && (info.flags | call->token->more_flags) & CKF_USER_PIN_FINAL_TRY)
        violation("C_Login: it was the last try before the PIN is locked");
}

static CK_RV log_in(struct call *call, CK_USER_TYPE user, CK_BYTE *pin, CK_ULONG pin_len) {
    CK_BYTE *whole = pin;
    CK_ULONG whole_len = pin_len;
    CK_RV rv = check_user(call->token, user);
    if (rv == CKR_OK) rv = cut_user(&pin, &pin_len);
    if (rv == CKR_OK) rv = softhsm->C_Login(call->real, CKU_USER, pin, pin_len);
    if (rv == CKR_OK) remember(call->token, user, whole, whole_len);
    bool other = rv == CKR_USER_ALREADY_LOGGED_IN && call->token->role != user;
    return other ? CKR_USER_ANOTHER_ALREADY_LOGGED_IN : rv;
}

CK_RV C_Login(CK_SESSION_HANDLE session, CK_USER_TYPE user, CK_UTF8CHAR *pin, CK_ULONG pin_len) {
    struct call call = { 0 };
    CK_RV rv = enter_session(&call, F_C_Login, session);
    if (rv != CKR_OK) return leave(&call, rv);
    bool natural = user == CKU_SO || (user == CKU_CONTEXT_SPECIFIC && settings.always_authenticate != ALL_KEYS);
    if (natural) return leave(&call, softhsm->C_Login(call.real, user, pin, pin_len));
    if (user != CKU_CONTEXT_SPECIFIC) watch_login(&call);
    pthread_mutex_lock(&state);
    rv = user == CKU_CONTEXT_SPECIFIC ? prove(&call, pin, pin_len) : log_in(&call, user, pin, pin_len);
    pthread_mutex_unlock(&state);
    return leave(&call, rv);
}

CK_RV C_Logout(CK_SESSION_HANDLE session) {
    struct call call = { .exclusive = true };
    CK_RV rv = enter_session(&call, F_C_Logout, session);
    if (rv == CKR_OK) rv = softhsm->C_Logout(call.real);
    return leave(&call, rv);
}

CK_RV C_InitPIN(CK_SESSION_HANDLE session, CK_UTF8CHAR *pin, CK_ULONG pin_len) {
    struct call call = { 0 };
    CK_RV rv = enter_session(&call, F_C_InitPIN, session);
    if (rv == CKR_OK) rv = softhsm->C_InitPIN(call.real, pin, pin_len);
    return leave(&call, rv);
}

CK_RV C_SetPIN(CK_SESSION_HANDLE session, CK_UTF8CHAR *old, CK_ULONG old_len, CK_UTF8CHAR *pin, CK_ULONG pin_len) {
    struct call call = { 0 };
    CK_RV rv = enter_session(&call, F_C_SetPIN, session);
    if (rv == CKR_OK) rv = softhsm->C_SetPIN(call.real, old, old_len, pin, pin_len);
    return leave(&call, rv);
}
