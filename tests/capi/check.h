/* Checks of the C tests: a failure says where and with which text, and ends the program. */
#ifndef TESSERA_TESTS_CAPI_CHECK_H_
#define TESSERA_TESTS_CAPI_CHECK_H_

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tessera.h"

#define CHECK(condition)                                                      \
  do {                                                                        \
    if (!(condition)) {                                                       \
      fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition); \
      exit(1);                                                                \
    }                                                                         \
  } while (0)

#define CHECK_OK(call)                                                                                \
  do {                                                                                                \
    const tessera_result result_ = (call);                                                            \
    if (result_ != TESSERA_OK) {                                                                      \
      fprintf(stderr, "%s:%d: %s: %s: %s\n", __FILE__, __LINE__, #call, tessera_result_name(result_), \
              tessera_last_error());                                                                  \
      exit(1);                                                                                        \
    }                                                                                                 \
  } while (0)

/* The code, and words that the text must have. */
#define CHECK_REFUSED(call, code, words)                                                                    \
  do {                                                                                                      \
    const tessera_result result_ = (call);                                                                  \
    if (result_ != (code) || strstr(tessera_last_error(), (words)) == NULL) {                               \
      fprintf(stderr, "%s:%d: %s\n  gave     %s: %s\n  expected %s: ...%s...\n", __FILE__, __LINE__, #call, \
              tessera_result_name(result_), tessera_last_error(), tessera_result_name(code), (words));      \
      exit(1);                                                                                              \
    }                                                                                                       \
  } while (0)

#endif
