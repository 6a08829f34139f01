// Two streams with many kernels each, every one of which waits for its partner in the other stream.
#include <cuda_runtime.h>
#include "check.h"

__global__ void meet(unsigned* mine, unsigned* theirs, unsigned round) {
  unsigned seen;
  asm volatile("st.release.gpu.u32 [%0], %1;" ::"l"(mine), "r"(round) : "memory");
  do {
    asm volatile("ld.acquire.gpu.u32 %0, [%1];" : "=r"(seen) : "l"(theirs) : "memory");
  } while (seen < round);
}

int main() {
  const unsigned rounds = 20;
  unsigned *flags, host[2];
  cudaStream_t streams[2];
  OK(cudaMalloc(&flags, sizeof host));
  OK(cudaMemset(flags, 0, sizeof host));
  for (cudaStream_t& s : streams) OK(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
  for (unsigned round = 1; round <= rounds; round++)
    for (int i = 0; i < 2; i++) meet<<<1, 1, 0, streams[i]>>>(flags + i, flags + 1 - i, round);
  for (cudaStream_t s : streams) OK(cudaStreamSynchronize(s));
  OK(cudaMemcpy(host, flags, sizeof host, cudaMemcpyDeviceToHost));
  EQUAL(host[0], rounds);
  EQUAL(host[1], rounds);
  printf("right\n");
}
