// Elements of NCCL's types, one at a time.
#pragma once

#include <nccl.h>
#include <stddef.h>

size_t size_of(ncclDataType_t dtype);

// into[i] = into[i] op from[i], rounded to the type.
void fold(ncclDataType_t dtype, ncclRedOp_t op, char* into, const char* from, size_t count);

// data[i] = data[i] times the scalar of the same type, rounded to the type.
void scale(ncclDataType_t dtype, char* data, const void* scalar, size_t count);

// What NCCL's average does to each contribution of a float type: times 1/n, rounded; and to the sum of integers: divided by n.
void average_before(ncclDataType_t dtype, char* data, size_t count, int n);
void average_after(ncclDataType_t dtype, char* data, size_t count, int n);
