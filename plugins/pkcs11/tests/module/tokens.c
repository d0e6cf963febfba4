// Tokens, sessions and objects, as the caller sees them.
#include "module.h"

#include <stdlib.h>
#include <string.h>

pthread_rwlock_t softhsm_lock = PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP;
pthread_mutex_t state = PTHREAD_MUTEX_INITIALIZER;
CK_FUNCTION_LIST *softhsm;
bool initialised;
struct settings settings;

struct token every_token = { .stale = CKR_OBJECT_HANDLE_INVALID };
static struct token *first_token;

// From one C_Initialize to the next. What was of earlier ones is never freed: a call may still hang in it.
static uint32_t life;
static struct session **sessions;
static uint32_t session_count;

// ---- Tokens -------------------------------------------------------------------------------------------------------

struct token *tokens(void) {
    return first_token;
}

struct token *token_labelled(const char *label) {
    for (struct token *token = first_token; token != NULL; token = token->next)
        if (strcmp(token->label, label) == 0) return token;
    struct token *token = malloc(sizeof *token);
    if (token == NULL) abort();
    *token = every_token;
    strncpy(token->label, label, sizeof token->label - 1);
    token->peak = peak_of(token->label);
    token->next = first_token;
    return first_token = token;
}

CK_RV token_in(CK_SLOT_ID slot, struct token **token) {
    CK_TOKEN_INFO info;
    CK_RV rv = softhsm->C_GetTokenInfo(slot, &info);
    if (rv != CKR_OK) return rv;
    char label[33] = "";
    memcpy(label, info.label, sizeof info.label);
    for (size_t end = sizeof info.label; end > 0 && label[end - 1] == ' '; end--) label[end - 1] = '\0';
    pthread_mutex_lock(&state);
    *token = token_labelled(label);
    pthread_mutex_unlock(&state);
    return CKR_OK;
}

bool is_hidden(CK_MECHANISM_TYPE mechanism) {
    for (size_t each = 0; each < settings.hidden_count; each++)
        if (settings.hidden[each] == mechanism) return true;
    return false;
}

// ---- Sessions -----------------------------------------------------------------------------------------------------

void begin_life(void) {
    life++;
    initialised = true;
    sessions = NULL;
    session_count = 0;
    for (struct token *token = first_token; token != NULL; token = token->next) {
        if (token->presence == NEEDS_INITIALISE) token->presence = PRESENT;
        token->login_lost = false;
        token->open = 0;
    }
}

void end_life(void) {
    initialised = false;
    for (uint32_t each = 0; each < session_count; each++) sessions[each]->lost = true;
}

unsigned open_sessions(void) {
    unsigned open = 0;
    for (uint32_t each = 0; each < session_count; each++) open += !sessions[each]->lost;
    return open;
}

CK_SESSION_HANDLE add_session(struct token *token, CK_SLOT_ID slot, CK_SESSION_HANDLE real) {
    struct session *session = malloc(sizeof *session);
    struct session **more = realloc(sessions, (session_count + 1) * sizeof(struct session *));
    if (session == NULL || more == NULL) abort();
    sessions = more;
    sessions[session_count++] = session;
    *session = (struct session){
        .token = token, .slot = slot, .real = real, .life = life, .number = session_count, .last_used = now(),
    };
    token->open++;
    if (token->peak != NULL) raise_to(token->peak, token->open);
    return (CK_SESSION_HANDLE)life << 32 | session->number;
}

struct session *session_with(CK_SESSION_HANDLE handle, bool *former) {
    uint64_t of = handle >> 32, number = handle & UINT32_MAX;
    *former = of != 0 && (of < life || (of == life && !initialised));
    return of == life && number > 0 && number <= session_count ? sessions[number - 1] : NULL;
}

bool is_good(const struct session *session) {
    return session->life == life && !session->lost;
}

void lose_session(struct session *session) {
    session->lost = true;
    session->token->open--;
}

static void take_away(struct session *session) {
    lose_session(session);
    softhsm->C_CloseSession(session->real);
}

void lose_sessions(const struct token *token) {
    for (uint32_t each = 0; each < session_count; each++)
        if (sessions[each]->token == token && is_good(sessions[each])) take_away(sessions[each]);
}

void lose_idle_sessions(const struct call *call) {
    uint64_t limit = settings.idle_ms * 1000000;
    for (uint32_t each = 0; limit != 0 && initialised && each < session_count; each++) {
        struct session *session = sessions[each];
        bool unused = session->inside == (session == call->session);
        if (unused && is_good(session) && session->last_used + limit < call->start) take_away(session);
    }
}

struct session *any_session(const struct token *token) {
    for (uint32_t each = 0; each < session_count; each++)
        if (sessions[each]->token == token && is_good(sessions[each])) return sessions[each];
    return NULL;
}
