/*
 * keystead_plugin.h - all that a Keystead plugin in C or C++ needs.
 *
 * SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * Closed plugins may include this file and use it without further ado: nothing of Keystead is linked.
 *
 * Made from plugin-api/src/abi.rs; don't edit. A whole plugin to start from is in examples/plugin-c.
 *
 * BUILDING
 *
 * A plugin is a shared library libkeystead_plugin_NAME.so for 64-bit Linux that exports one symbol, keystead_plugin:
 *
 *     cc -std=c11 -shared -fPIC -fvisibility=hidden -o libkeystead_plugin_NAME.so plugin.c
 *
 * With -fvisibility=hidden the declaration below exports keystead_plugin and nothing else. Libraries that are linked in
 * statically may still export their symbols: hide those with -Wl,--exclude-libs,ALL, or everything by a version script
 * (-Wl,--version-script=FILE) of one line: { global: keystead_plugin; local: *; };
 *
 * The library runs on machines whose glibc is at least as new as the one it was built with, so build it on the oldest
 * system that it is for. Keystead itself needs glibc 2.28. A library that is linked against musl is refused: it would
 * bring a second libc into the process. Libraries are loaded with RTLD_NOW and RTLD_LOCAL, and never unloaded.
 *
 * WHAT A PLUGIN MAY NOT DO
 *
 * A plugin is a guest in a server that goes on for months. It may not end the process, fork, change signal dispositions
 * or masks of threads that aren't its own, the locale, the working directory, the umask or the environment, nor read
 * standard input or write to standard output or error: what it has to say it logs. It may have threads of its own.
 */
