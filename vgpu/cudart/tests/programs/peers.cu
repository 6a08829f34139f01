// Two devices: properties, the current device per thread, copies between them, a kernel on the other's memory.
#include <cuda_runtime.h>
#include <cstring>
#include <thread>
#include "check.h"

__global__ void fill(int* x, int base) { x[threadIdx.x] = base + threadIdx.x; }

static void properties() {
  struct {
    cudaDeviceProp p;
    char guard[64];
  } box;
  memset(&box, 0x5a, sizeof box);
  OK(cudaGetDeviceProperties(&box.p, 1));
  for (char c : box.guard) EQUAL(c, 0x5a);
  const cudaDeviceProp& p = box.p;
  auto attribute = [](cudaDeviceAttr a) {
    int value = -1;
    OK(cudaDeviceGetAttribute(&value, a, 1));
    return value;
  };
  if (p.name[0] == 0 || strlen(p.name) > 255) exit(2);
  EQUAL(p.major, 9);
  EQUAL(p.warpSize, 32);
  EQUAL(p.maxThreadsDim[2], 64);
  EQUAL(p.multiProcessorCount, attribute(cudaDevAttrMultiProcessorCount));
  EQUAL(p.maxThreadsPerMultiProcessor, attribute(cudaDevAttrMaxThreadsPerMultiProcessor));
  EQUAL(p.sharedMemPerBlockOptin, attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin));
  EQUAL(p.cooperativeLaunch, 1);
  EQUAL(p.reservedSharedMemPerBlock, 1024);
  cudaDeviceProp other;
  OK(cudaGetDeviceProperties(&other, 0));
  if (!memcmp(&p.uuid, &other.uuid, sizeof p.uuid)) exit(3);
}

int main() {
  int count = 0, device = -1, can = 0, host[32];
  OK(cudaGetDevice(&device));
  EQUAL(device, 0);
  OK(cudaGetDeviceCount(&count));
  EQUAL(count, 2);
  properties();
  int *a, *b;
  OK(cudaMalloc(&a, sizeof host));
  OK(cudaSetDevice(1));
  std::thread([] {
    int device = -1;
    OK(cudaGetDevice(&device));
    EQUAL(device, 0);  // each thread has its own
  }).join();
  OK(cudaMalloc(&b, sizeof host));
  OK(cudaGetDevice(&device));
  EQUAL(device, 1);

  OK(cudaSetDevice(0));
  fill<<<1, 32>>>(a, 100);
  OK(cudaDeviceSynchronize());
  OK(cudaMemcpyPeer(b, 1, a, 0, sizeof host));
  OK(cudaSetDevice(1));
  OK(cudaMemcpy(host, b, sizeof host, cudaMemcpyDeviceToHost));
  EQUAL(host[31], 131);

  OK(cudaDeviceCanAccessPeer(&can, 1, 0));
  EQUAL(can, 1);
  OK(cudaDeviceEnablePeerAccess(0, 0));
  fill<<<1, 32>>>(a, 200);  // device 1 writes device 0's memory
  OK(cudaDeviceSynchronize());
  OK(cudaMemcpyPeerAsync(b, 1, a, 0, sizeof host, 0));
  OK(cudaMemcpyAsync(host, b, sizeof host, cudaMemcpyDeviceToHost, 0));
  OK(cudaStreamSynchronize(0));
  EQUAL(host[31], 231);
  FAILS(cudaErrorInvalidDevice, cudaSetDevice(2));
  FAILS(cudaErrorInvalidDevice, cudaGetDeviceProperties((cudaDeviceProp*)host, -1));
  FAILS(cudaErrorInvalidDevice, cudaMemcpyPeer(b, 7, a, 0, 4));
  printf("right\n");
}
