// Stream capture: what is captured does not run, a graph runs it again and again, with a fork and a join.
#include <cuda_runtime.h>
#include "check.h"

__global__ void add(int* x, int value) { *x += value; }
__global__ void twice(int* x, const int* y) { *x = 2 * *x + *y; }

int main() {
  int *x, *y, host = -1;
  OK(cudaMalloc(&x, sizeof(int)));
  OK(cudaMalloc(&y, sizeof(int)));
  OK(cudaMemset(x, 0, sizeof(int)));
  cudaStream_t s, side;
  cudaEvent_t fork, join;
  OK(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
  OK(cudaStreamCreateWithFlags(&side, cudaStreamNonBlocking));
  OK(cudaEventCreateWithFlags(&fork, cudaEventDisableTiming));
  OK(cudaEventCreateWithFlags(&join, cudaEventDisableTiming));

  // The first launch loads the module: the capture, in the strictest mode, must not mind.
  OK(cudaStreamBeginCapture(s, cudaStreamCaptureModeGlobal));
  cudaStreamCaptureStatus status;
  OK(cudaStreamIsCapturing(s, &status));
  EQUAL(status, cudaStreamCaptureStatusActive);
  OK(cudaEventRecord(fork, s));
  OK(cudaStreamWaitEvent(side, fork, 0));
  OK(cudaMemsetAsync(y, 0, sizeof(int), side));
  add<<<1, 1, 0, side>>>(y, 3);
  OK(cudaEventRecord(join, side));
  add<<<1, 1, 0, s>>>(x, 1);
  OK(cudaStreamWaitEvent(s, join, 0));
  twice<<<1, 1, 0, s>>>(x, y);
  OK(cudaMemcpyAsync(&host, x, sizeof(int), cudaMemcpyDeviceToHost, s));
  cudaGraph_t graph;
  OK(cudaStreamEndCapture(s, &graph));
  OK(cudaStreamSynchronize(s));
  EQUAL(host, -1);
  size_t nodes = 0;
  OK(cudaGraphGetNodes(graph, nullptr, &nodes));
  EQUAL(nodes, 5);

  cudaGraphExec_t exec;
  OK(cudaGraphInstantiate(&exec, graph, 0));
  OK(cudaGraphDestroy(graph));
  int want = 0;
  for (int i = 0; i < 4; i++) {
    OK(cudaGraphLaunch(exec, s));
    want = 2 * (want + 1) + 3;
  }
  OK(cudaStreamSynchronize(s));
  EQUAL(host, want);
  OK(cudaGraphExecDestroy(exec));
  printf("right\n");
}
