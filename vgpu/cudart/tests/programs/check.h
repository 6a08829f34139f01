// What the test programs share: a failed call or comparison ends the program with a line that says where.
#pragma once
#include <cstdio>
#include <cstdlib>

#define OK(call)                                                                                                     \
  do {                                                                                                               \
    cudaError_t error_ = (call);                                                                                     \
    if (error_ != cudaSuccess) {                                                                                     \
      printf("%s:%d: %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorName(error_));                                \
      exit(1);                                                                                                       \
    }                                                                                                                \
  } while (0)

#define FAILS(code, call)                                                                                            \
  do {                                                                                                               \
    cudaError_t error_ = (call);                                                                                     \
    if (error_ != (code)) {                                                                                          \
      printf("%s:%d: %s: %s instead of %s\n", __FILE__, __LINE__, #call, cudaGetErrorName(error_), #code);           \
      exit(1);                                                                                                       \
    }                                                                                                                \
    cudaGetLastError();                                                                                              \
  } while (0)

#define EQUAL(a, b)                                                                                                  \
  do {                                                                                                               \
    double a_ = (double)(a), b_ = (double)(b);                                                                       \
    if (a_ != b_) {                                                                                                  \
      printf("%s:%d: %s is %g, not %g\n", __FILE__, __LINE__, #a, a_, b_);                                           \
      exit(1);                                                                                                       \
    }                                                                                                                \
  } while (0)
