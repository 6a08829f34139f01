// Two processes: the child, which is this program again, adds to the parent's device memory through a handle.
#include <cuda_runtime.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cstring>
#include <string>
#include "check.h"

__global__ void add(int* x, int value) { x[threadIdx.x] += value; }

static int child(const char* hex) {
  cudaIpcMemHandle_t handle;
  for (size_t i = 0; i < sizeof handle; i++) {
    unsigned byte;
    if (sscanf(hex + 2 * i, "%2x", &byte) != 1) return 2;
    handle.reserved[i] = (char)byte;
  }
  int* x;
  OK(cudaIpcOpenMemHandle((void**)&x, handle, cudaIpcMemLazyEnablePeerAccess));
  add<<<1, 32>>>(x, 1000);
  OK(cudaDeviceSynchronize());
  OK(cudaIpcCloseMemHandle(x));
  return 0;
}

int main(int argc, char** argv) {
  if (argc == 2) return child(argv[1]);
  int *x, host[32];
  OK(cudaMalloc(&x, sizeof host));
  OK(cudaMemset(x, 0, sizeof host));
  add<<<1, 32>>>(x, 5);
  OK(cudaDeviceSynchronize());
  cudaIpcMemHandle_t handle;
  OK(cudaIpcGetMemHandle(&handle, x));
  std::string hex;
  for (unsigned char byte : handle.reserved) {
    char digits[3];
    snprintf(digits, sizeof digits, "%02x", byte);
    hex += digits;
  }
  // A CUDA process may not go on after fork alone: the child begins anew.
  pid_t pid = fork();
  if (pid == 0) {
    execl("/proc/self/exe", argv[0], hex.c_str(), (char*)0);
    _exit(3);
  }
  int status = -1;
  if (waitpid(pid, &status, 0) != pid || status != 0) return 4;
  OK(cudaMemcpy(host, x, sizeof host, cudaMemcpyDeviceToHost));
  for (int v : host) EQUAL(v, 1005);
  FAILS(cudaErrorInvalidValue, cudaIpcGetMemHandle(&handle, host));
  printf("right\n");
}
