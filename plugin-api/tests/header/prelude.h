#ifndef KEYSTEAD_PLUGIN_H
#define KEYSTEAD_PLUGIN_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
#define KEYSTEAD_ASSERT(condition) static_assert(condition, #condition)
extern "C" {
#else
#define KEYSTEAD_ASSERT(condition) _Static_assert(condition, #condition)
#endif

// What marks the one symbol that is exported, also under -fvisibility=hidden.
#define KEYSTEAD_EXPORT __attribute__((visibility("default")))
