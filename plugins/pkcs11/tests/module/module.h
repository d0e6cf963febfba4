// A PKCS#11 module for the tests: it hands every call on to SoftHSM2, misbehaves as it is told, and watches its caller.
//
// It is told in two ways, by the test that set KEYSTEAD_TEST_MODULE_CONTROL (control.rs is that end):
//
// - a page of memory that the test and all processes share, the file `$KEYSTEAD_TEST_MODULE_CONTROL.page`: what each
//   function is to do, and what is counted. It outlives a process that crashes. rules.c
// - a unix socket at `$KEYSTEAD_TEST_MODULE_CONTROL`: what is said of tokens, and what is to be done at once. control.c
//
// What the caller does that it shouldn't is a line in the file `$KEYSTEAD_TEST_MODULE_CONTROL.violations`.
//
// Session handles are the module's own, and so are object handles where they are to become invalid. No call waits for
// the test while it is inside SoftHSM2, which is what allows control.c to take sessions from under their callers.
#pragma once

#include <p11-kit/pkcs11.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct session;
struct token;

enum function {
    ANY_FUNCTION,
#define FUNCTION(name) F_##name,
#include "functions.h"
#undef FUNCTION
    FUNCTIONS
};

// A call from its beginning to its end.
struct call {
    bool query;              // only asks how long the answer will be; to be set by the function, as the next one
    bool exclusive;          // nobody else may be inside of SoftHSM2
    enum function function;
    uint64_t start, latency;
    bool told;               // the answer is that of a rule
    bool locked;
    struct session *session;
    struct token *token;
    CK_SESSION_HANDLE real;  // SoftHSM2's
};

// ---- rules.c: what each function is to do -------------------------------------------------------------------------

// A call that begins takes one of `left`, which the test sets; this many never run out.
#define ALWAYS UINT64_MAX

// What the tests read and write by position: nine numbers for each function, ANY_FUNCTION first.
struct rule {
    _Atomic uint64_t calls;      // begun so far; where they only ask how long the answer will be: `queries`
    _Atomic uint64_t queries;
    _Atomic uint64_t at_once;    // the most that were inside of one process at once
    _Atomic uint64_t latency;    // ns from the beginning to the end of a call, what it does included
    _Atomic uint64_t code;       // the answer, as long as there are `code_left`
    _Atomic uint64_t code_left;
    _Atomic uint64_t hang_left;  // as many calls hang until `released` changes
    _Atomic uint64_t released;
    _Atomic uint64_t crash_left;
};

const char *name_of(enum function function);
enum function function_named(const char *name);
bool map_page(const char *path);
uint64_t now(void);
void violation(const char *format, ...) __attribute__((format(printf, 1, 2)));
// How many calls of a function are inside.
unsigned inside(enum function function);
// The most sessions of one process on a token; NULL where there is no room to count.
_Atomic uint64_t *peak_of(const char *label);
void raise_to(_Atomic uint64_t *peak, uint64_t value);
// Ends every hanging, now and later: nobody is left to release a call.
void orphan(void);

// ---- tokens.c: tokens, sessions and objects, as the caller sees them ----------------------------------------------

// Held by calls inside of SoftHSM2; exclusively to take something from under them. Taken before `state`.
extern pthread_rwlock_t softhsm_lock;
// Guards all that follows, `settings` excepted.
extern pthread_mutex_t state;

extern CK_FUNCTION_LIST *softhsm;
extern bool initialised;

enum presence { PRESENT, GONE, NEEDS_INITIALISE };

struct token {
    char label[33];          // in SoftHSM2, and to the tests
    enum presence presence;
    CK_RV code;              // the answer of all that concerns it while it isn't PRESENT
    bool login_lost;
    unsigned open;           // sessions
    uint64_t limit;          // of sessions; 0: none
    bool limit_told;
    unsigned forgotten;      // how often its object handles were
    CK_RV stale;             // the answer to a handle that isn't good any more
    CK_FLAGS more_flags, less_flags; // told beside SoftHSM2's, and not told
    char shown_label[33], shown_manufacturer[33], shown_model[17]; // instead of SoftHSM2's, where not empty
    char no_login[256];      // the PIN by which the module logs in, so that nobody else has to
    CK_RV no_login_code;     // what C_Login answers then
    CK_USER_TYPE role;       // of the last login
    size_t pin_len;
    CK_BYTE pin[256];
    _Atomic uint64_t *peak;
    struct token *next;
};

struct session {
    struct token *token;
    CK_SLOT_ID slot;
    CK_SESSION_HANDLE real;
    uint32_t life, number;
    bool lost;               // closed, or taken from its owner
    bool unproven;           // C_Login(CKU_CONTEXT_SPECIFIC) is due
    unsigned inside;         // calls
    uint64_t last_used;
};

enum always_authenticate { AS_IT_IS, UNKNOWN, ALL_KEYS };

// What holds for all tokens. 0 is SoftHSM2's way.
struct settings {
    _Atomic uint64_t public_keys_hidden, raw_points, objects_of_session, always_authenticate, idle_ms;
    _Atomic uint64_t read_only_code, read_write_code; // the answer to C_OpenSession for such a session
    _Atomic uint64_t vendor_user, vendor_user_only;   // a user type that stands for CKU_USER, or in its place
    _Atomic uint64_t pin_user_code;                   // the answer to a PIN without the user before a colon
    char pin_user[64];
    char manufacturer[33], description[33];           // of the library, where not empty
    _Atomic uint64_t version;                         // major * 256 + minor
    size_t hidden_count;
    CK_MECHANISM_TYPE hidden[64];
};
extern struct settings settings;

// What new tokens begin with: what was said of all tokens, `*`.
extern struct token every_token;
struct token *tokens(void);
struct token *token_labelled(const char *label);
// The token in a slot, by asking SoftHSM2. `state` must be free.
CK_RV token_in(CK_SLOT_ID slot, struct token **token);

void begin_life(void);
void end_life(void);
unsigned open_sessions(void);
CK_SESSION_HANDLE add_session(struct token *token, CK_SLOT_ID slot, CK_SESSION_HANDLE real);
// By its handle; NULL where there is none. Violations are the caller's own: `former` is a handle of an earlier life.
struct session *session_with(CK_SESSION_HANDLE handle, bool *former);
bool is_good(const struct session *session);
void lose_session(struct session *session);
void lose_sessions(const struct token *token);
// Those that were idle for too long when a call began, its own as well.
void lose_idle_sessions(const struct call *call);
// Any session of a token; NULL where it has none.
struct session *any_session(const struct token *token);
bool is_hidden(CK_MECHANISM_TYPE mechanism);

// ---- control.c ----------------------------------------------------------------------------------------------------

// Connects where a test listens, and returns when all is set; false where it can't though it should.
bool connect_control(void);

// ---- calls.c: the way of a call in and out ------------------------------------------------------------------------

// The steps that follow from the rule of a function, in rules.c: it is counted, or crashes; it hangs, and then has the
// answer that it is told to give, CKR_OK where that is none; it waits for its deadline.
void begin(struct call *call, enum function function);
CK_RV obey(struct call *call);
void end(const struct call *call);

// Each answers whether the call may go on. `leave` follows in any case.
CK_RV enter(struct call *call, enum function function);
CK_RV enter_slot(struct call *call, enum function function, CK_SLOT_ID slot);
CK_RV enter_session(struct call *call, enum function function, CK_SESSION_HANDLE session);
CK_RV leave(struct call *call, CK_RV rv);
// What `enter_session` left out since a rule gave the answer: whether the session is good, and the way into SoftHSM2.
CK_RV admit(struct call *call);

// ---- objects.c: handles of objects --------------------------------------------------------------------------------

CK_OBJECT_HANDLE shown(const struct call *call, CK_OBJECT_HANDLE real);
CK_RV real_object(const struct call *call, CK_OBJECT_HANDLE handle, CK_OBJECT_HANDLE *real);
