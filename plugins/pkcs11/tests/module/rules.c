// What each function is to do and what is counted, in a page that the tests and all processes share.
#include "module.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#define PEAKS 16

// A token's most sessions. Whoever finds an entry free claims it, and then names it.
struct peak {
    _Atomic uint64_t state;
    _Atomic uint64_t sessions;
    char label[48];
};

enum { FREE, CLAIMED, NAMED };

struct page {
    struct rule rules[FUNCTIONS];
    struct peak peaks[PEAKS];
};

static struct page own; // nobody's but this process', where no test listens
static struct page *page = &own;
static int violations = -1;
static atomic_bool orphaned;
static _Atomic unsigned inside_of[FUNCTIONS];

static const char *const names[] = {
    "any",
#define FUNCTION(name) #name,
#include "functions.h"
#undef FUNCTION
};

const char *name_of(enum function function) {
    return names[function];
}

enum function function_named(const char *name) {
    for (int function = 0; function < FUNCTIONS; function++)
        if (strcmp(names[function], name) == 0) return function;
    return FUNCTIONS;
}

// The test has made both files, and the page as large as it has to be.
bool map_page(const char *path) {
    char name[4096];
    snprintf(name, sizeof name, "%s.violations", path);
    violations = open(name, O_WRONLY | O_APPEND | O_CLOEXEC);
    snprintf(name, sizeof name, "%s.page", path);
    int file = open(name, O_RDWR | O_CLOEXEC);
    void *mapped = file < 0 ? MAP_FAILED : mmap(NULL, sizeof own, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (file >= 0) close(file);
    if (mapped == MAP_FAILED || violations < 0) return false;
    page = mapped;
    return true;
}

uint64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

// No later than the kernel can: by itself it adds 50 us.
static void sleep_until(uint64_t when) {
    prctl(PR_SET_TIMERSLACK, 1);
    struct timespec time = { .tv_sec = (time_t)(when / 1000000000), .tv_nsec = (long)(when % 1000000000) };
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, NULL) != 0) {}
}

// One write for each line, so that lines of several threads and processes don't mix.
void violation(const char *format, ...) {
    char line[256];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(line, sizeof line - 1, format, arguments);
    va_end(arguments);
    if (length < 0 || violations < 0) return;
    size_t end = (size_t)length < sizeof line - 2 ? (size_t)length : sizeof line - 2;
    line[end] = '\n';
    if (write(violations, line, end + 1) < 0) perror("KEYSTEAD_TEST_MODULE_CONTROL.violations");
}

unsigned inside(enum function function) {
    if (function != ANY_FUNCTION) return atomic_load(&inside_of[function]);
    unsigned all = 0;
    for (int each = 1; each < FUNCTIONS; each++) all += atomic_load(&inside_of[each]);
    return all;
}

_Atomic uint64_t *peak_of(const char *label) {
    for (struct peak *peak = page->peaks; peak < page->peaks + PEAKS; peak++) {
        uint64_t before = FREE;
        if (atomic_compare_exchange_strong(&peak->state, &before, CLAIMED)) {
            snprintf(peak->label, sizeof peak->label, "%s", label);
            atomic_store(&peak->state, NAMED);
        }
        while (atomic_load(&peak->state) == CLAIMED) {}
        if (strcmp(peak->label, label) == 0) return &peak->sessions;
    }
    return NULL;
}

void raise_to(_Atomic uint64_t *peak, uint64_t value) {
    uint64_t before = atomic_load(peak);
    while (before < value && !atomic_compare_exchange_weak(peak, &before, value)) {}
}

void orphan(void) {
    atomic_store(&orphaned, true);
}

static bool take(_Atomic uint64_t *left) {
    uint64_t before = atomic_load(left);
    while (before != 0 && before != ALWAYS)
        if (atomic_compare_exchange_weak(left, &before, before - 1)) return true;
    return before != 0;
}

static void crash(void) {
    volatile int *volatile nowhere = NULL;
    *nowhere = 1;
}

// A test that fails while a call hangs would wait for it, and the call for the test.
#define LONGEST_HANG 60000000000

static void give_up(void) {
    fputs("the module for tests: a call hangs, and nobody has released it for a minute\n", stderr);
    abort();
}

// The rule of a function, or else that for any, does it.
#define EITHER(function, does) (does(&page->rules[function]) || does(&page->rules[ANY_FUNCTION]))

static bool crashes(struct rule *rule) {
    return take(&rule->crash_left);
}

static bool hangs(struct rule *rule) {
    // Read before one is taken: a release in between counts.
    uint64_t released = atomic_load(&rule->released), end = now() + LONGEST_HANG;
    if (!take(&rule->hang_left)) return false;
    while (atomic_load(&rule->released) == released && !atomic_load(&orphaned)) {
        if (now() > end) give_up();
        sleep_until(now() + 1000000);
    }
    return true;
}

void begin(struct call *call, enum function function) {
    struct rule *rule = &page->rules[function];
    call->function = function;
    call->start = now();
    raise_to(&rule->at_once, atomic_fetch_add(&inside_of[function], 1) + 1);
    atomic_fetch_add(call->query ? &rule->queries : &rule->calls, 1);
    if (call->query) return;
    call->latency = atomic_load(&rule->latency);
    if (call->latency == 0) call->latency = atomic_load(&page->rules[ANY_FUNCTION].latency);
    if (EITHER(function, crashes)) crash();
}

CK_RV obey(struct call *call) {
    if (call->query) return CKR_OK;
    (void)EITHER(call->function, hangs);
    struct rule *rules[] = { &page->rules[call->function], &page->rules[ANY_FUNCTION] };
    for (size_t each = 0; each < 2 && !call->told; each++) {
        call->told = take(&rules[each]->code_left);
        if (call->told) return atomic_load(&rules[each]->code);
    }
    return CKR_OK;
}

void end(const struct call *call) {
    if (call->latency != 0) sleep_until(call->start + call->latency);
    atomic_fetch_sub(&inside_of[call->function], 1);
}
