// The socket to the test: a line for each command, of words between tabs, and a line for each answer.
//
// The test says first all that was said so far, then `go`. What a command says holds for calls that begin after `ok`.
#include "module.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define WORDS 5

static FILE *from_test;
static int to_test;
static pthread_mutex_t start = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t started = PTHREAD_COND_INITIALIZER;
static bool may_start;

// ---- What is said of a token, or of every one: `*` ----------------------------------------------------------------

typedef void (*token_command)(struct token *token, char **words);

static uint64_t number(const char *word) {
    return strtoull(word, NULL, 0);
}

static void copy(char *field, size_t size, const char *text) {
    snprintf(field, size, "%s", text);
}

static void limit(struct token *token, char **words) {
    token->limit = number(words[0]);
    token->limit_told = number(words[1]) != 0;
}

static void forget_sessions(struct token *token, char **words) {
    (void)words;
    if (token != &every_token) lose_sessions(token);
}

static void forget_objects(struct token *token, char **words) {
    token->stale = number(words[0]);
    token->forgotten++;
}

static void stale(struct token *token, char **words) {
    token->stale = number(words[0]);
}

static void forget_login(struct token *token, char **words) {
    struct session *session = token != &every_token && initialised ? any_session(token) : NULL;
    (void)words;
    if (session != NULL) token->login_lost = softhsm->C_Logout(session->real) == CKR_OK;
}

static void gone(struct token *token, char **words) {
    token->presence = GONE;
    token->code = number(words[0]);
    if (token != &every_token) lose_sessions(token);
}

static void back(struct token *token, char **words) {
    (void)words;
    token->presence = PRESENT;
}

// A process that hasn't initialised its module yet, or does so now, has nothing to get over.
static void back_if_initialised(struct token *token, char **words) {
    token->presence = token != &every_token && initialised ? NEEDS_INITIALISE : PRESENT;
    token->code = number(words[0]);
}

static void no_login(struct token *token, char **words) {
    copy(token->no_login, sizeof token->no_login, words[0]);
    token->no_login_code = number(words[1]);
}

static void more_flags(struct token *token, char **words) {
    token->more_flags = number(words[0]);
}

static void less_flags(struct token *token, char **words) {
    token->less_flags = number(words[0]);
}

static void token_label(struct token *token, char **words) {
    copy(token->shown_label, sizeof token->shown_label, words[0]);
}

static void token_manufacturer(struct token *token, char **words) {
    copy(token->shown_manufacturer, sizeof token->shown_manufacturer, words[0]);
}

static void token_model(struct token *token, char **words) {
    copy(token->shown_model, sizeof token->shown_model, words[0]);
}

static const struct {
    const char *name;
    size_t words; // beside the token
    token_command command;
} token_commands[] = {
    { "limit", 2, limit },
    { "forget-sessions", 0, forget_sessions },
    { "forget-objects", 1, forget_objects },
    { "stale", 1, stale },
    { "forget-login", 0, forget_login },
    { "gone", 1, gone },
    { "back", 0, back },
    { "back-if-initialised", 1, back_if_initialised },
    { "no-login", 2, no_login },
    { "more-flags", 1, more_flags },
    { "less-flags", 1, less_flags },
    { "token-label", 1, token_label },
    { "token-manufacturer", 1, token_manufacturer },
    { "token-model", 1, token_model },
};

static void of_tokens(token_command command, const char *label, char **words) {
    if (strcmp(label, "*") != 0) {
        command(token_labelled(label), words);
        return;
    }
    command(&every_token, words);
    for (struct token *token = tokens(); token != NULL; token = token->next) command(token, words);
}

// ---- What holds for all tokens ------------------------------------------------------------------------------------

static const struct {
    const char *name;
    _Atomic uint64_t *place;
} numbers[] = {
    { "public-keys-hidden", &settings.public_keys_hidden },
    { "raw-points", &settings.raw_points },
    { "objects-of-session", &settings.objects_of_session },
    { "always-authenticate", &settings.always_authenticate },
    { "idle-ms", &settings.idle_ms },
    { "read-only-code", &settings.read_only_code },
    { "read-write-code", &settings.read_write_code },
    { "vendor-user", &settings.vendor_user },
    { "vendor-user-only", &settings.vendor_user_only },
    { "pin-user-code", &settings.pin_user_code },
    { "version", &settings.version },
};

static const struct {
    const char *name;
    char *place;
    size_t size;
} texts[] = {
    { "pin-user", settings.pin_user, sizeof settings.pin_user },
    { "manufacturer", settings.manufacturer, sizeof settings.manufacturer },
    { "description", settings.description, sizeof settings.description },
};

#define COUNT(array) (sizeof(array) / sizeof *(array))

static bool set(const char *name, const char *value) {
    for (size_t each = 0; each < COUNT(numbers); each++) {
        if (strcmp(numbers[each].name, name) != 0) continue;
        *numbers[each].place = number(value);
        return true;
    }
    for (size_t each = 0; each < COUNT(texts); each++) {
        if (strcmp(texts[each].name, name) != 0) continue;
        copy(texts[each].place, texts[each].size, value);
        return true;
    }
    return false;
}

static bool show_mechanism(CK_MECHANISM_TYPE mechanism) {
    size_t kept = 0;
    for (size_t each = 0; each < settings.hidden_count; each++)
        if (settings.hidden[each] != mechanism) settings.hidden[kept++] = settings.hidden[each];
    settings.hidden_count = kept;
    return true;
}

static bool hide_mechanism(CK_MECHANISM_TYPE mechanism) {
    show_mechanism(mechanism);
    if (settings.hidden_count == COUNT(settings.hidden)) return false;
    settings.hidden[settings.hidden_count++] = mechanism;
    return true;
}

// ---- The conversation ---------------------------------------------------------------------------------------------

static void go(void) {
    pthread_mutex_lock(&start);
    may_start = true;
    pthread_cond_broadcast(&started);
    pthread_mutex_unlock(&start);
}

static bool obey_command(char **words, size_t count) {
    if (count == 3 && strcmp(words[0], "set") == 0) return set(words[1], words[2]);
    if (count == 2 && strcmp(words[0], "hide-mechanism") == 0) return hide_mechanism(number(words[1]));
    if (count == 2 && strcmp(words[0], "show-mechanism") == 0) return show_mechanism(number(words[1]));
    for (size_t each = 0; each < COUNT(token_commands); each++) {
        if (strcmp(token_commands[each].name, words[0]) != 0) continue;
        if (count != token_commands[each].words + 2) return false;
        of_tokens(token_commands[each].command, words[1], words + 2);
        return true;
    }
    return false;
}

// The answer to a question; none where the line is a command.
static bool answer_question(char **words, size_t count) {
    if (count != 2) return false;
    if (strcmp(words[0], "inside") == 0 && function_named(words[1]) != FUNCTIONS)
        dprintf(to_test, "%u\n", inside(function_named(words[1])));
    else if (strcmp(words[0], "sessions") == 0) dprintf(to_test, "%u\n", token_labelled(words[1])->open);
    else return false;
    return true;
}

// With nobody inside of SoftHSM2: its sessions may be taken away.
static void hear(char *line) {
    char *words[WORDS] = { 0 };
    size_t count = 0;
    for (char *word; count < WORDS && (word = strsep(&line, "\t")) != NULL;) words[count++] = word;
    pthread_rwlock_wrlock(&softhsm_lock);
    pthread_mutex_lock(&state);
    bool answered = answer_question(words, count);
    bool done = answered || strcmp(words[0], "go") == 0 || obey_command(words, count);
    pthread_mutex_unlock(&state);
    pthread_rwlock_unlock(&softhsm_lock);
    if (strcmp(words[0], "go") == 0) go();
    if (!answered) dprintf(to_test, done ? "ok\n" : "no such command: %s, with %zu words\n", words[0], count);
}

static void *listen_to_test(void *unused) {
    char *line = NULL;
    size_t room = 0;
    ssize_t length;
    while ((length = getline(&line, &room, from_test)) > 0) {
        if (line[length - 1] == '\n') line[length - 1] = '\0';
        hear(line);
    }
    // The test is over, or gone. What was said stays; nobody waits for its word any more.
    orphan();
    go();
    free(line);
    return unused;
}

static int connect_to(const char *path) {
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    int socket_ = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
    if (socket_ < 0 || connect(socket_, (struct sockaddr *)&address, sizeof address) != 0) {
        fprintf(stderr, "the module for tests: `%s`: %s\n", path, strerror(errno));
        return -1;
    }
    return socket_;
}

// No signal of the process is for this thread, and no SIGPIPE is for anybody.
static bool start_thread(void) {
    pthread_t thread;
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    bool begun = pthread_create(&thread, NULL, listen_to_test, NULL) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (begun) pthread_detach(thread);
    return begun;
}

bool connect_control(void) {
    const char *path = getenv("KEYSTEAD_TEST_MODULE_CONTROL");
    if (path == NULL) return true;
    to_test = connect_to(path);
    from_test = to_test < 0 ? NULL : fdopen(to_test, "r");
    if (from_test == NULL || !map_page(path) || !start_thread()) return false;
    pthread_mutex_lock(&start);
    while (!may_start) pthread_cond_wait(&started, &start);
    pthread_mutex_unlock(&start);
    return true;
}
