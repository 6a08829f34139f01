// A cooperative launch: every block sees in each round what all blocks wrote in the last one.
#include <cooperative_groups.h>
#include <cuda_runtime.h>
#include "check.h"

namespace cg = cooperative_groups;

__global__ void rounds(int* cells, int* wrong, int n) {
  cg::grid_group grid = cg::this_grid();
  int blocks = gridDim.x, me = blockIdx.x;
  for (int round = 1; round <= n; round++) {
    if (threadIdx.x == 0) cells[me] = round;
    grid.sync();
    if (threadIdx.x < blocks && ((volatile int*)cells)[threadIdx.x] != round) atomicAdd(wrong, 1);
    grid.sync();
  }
}

int main() {
  int *cells, *wrong, host = -1, n = 20;
  OK(cudaMalloc(&cells, 64 * sizeof(int)));
  OK(cudaMalloc(&wrong, sizeof(int)));
  OK(cudaMemset(wrong, 0, sizeof(int)));
  void* args[] = {&cells, &wrong, &n};
  OK(cudaLaunchCooperativeKernel((void*)rounds, dim3(8), dim3(64), args, 0, 0));
  OK(cudaMemcpy(&host, wrong, sizeof host, cudaMemcpyDeviceToHost));
  EQUAL(host, 0);
  // More blocks than can be resident at once would wait for each other for ever.
  cudaError_t tooLarge = cudaLaunchCooperativeKernel((void*)rounds, dim3(100000), dim3(64), args, 0, 0);
  if (tooLarge == cudaSuccess || cudaGetLastError() != tooLarge) return 2;
  OK(cudaDeviceSynchronize());
  printf("right\n");
}
