// Gloo behind C functions: exceptions become texts, templates become numbers.
#include "shim.h"

#include <chrono>
#include <cstring>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include <gloo/allgather.h>
#include <gloo/allreduce.h>
#include <gloo/barrier.h>
#include <gloo/broadcast.h>
#include <gloo/context.h>
#include <gloo/math.h>
#include <gloo/transport/address.h>
#include <gloo/transport/context.h>
#include <gloo/transport/device.h>
#include <gloo/transport/tcp/device.h>

namespace {

// Gloo's own way to find ranks is a store that all of them can write to. Here they have exchanged their
// addresses already.
class Mesh : public gloo::Context {
 public:
  Mesh(int rank, int size) : gloo::Context(rank, size) {}

  void listen(std::shared_ptr<gloo::transport::Device> device) {
    device_ = std::move(device);
    transportContext_ = device_->createContext(rank, size);
    transportContext_->setTimeout(getTimeout());
    for (int peer = 0; peer < size; peer++) {
      if (peer == rank) continue;
      auto& pair = transportContext_->createPair(peer);
      pair->setLocalRank(0);  // Gloo only prints it; it is not initialised otherwise
      addresses_.push_back(pair->address().bytes());
    }
    for (const auto& address : addresses_) {
      if (address.size() != addresses_[0].size())
        throw std::runtime_error("Gloo's addresses differ in length");
    }
  }

  size_t addressBytes() const { return addresses_.empty() ? 0 : addresses_[0].size(); }

  // Where this rank waits for `peer`.
  const std::vector<char>& address(int peer) const {
    return addresses_[peer < rank ? peer : peer - 1];
  }

  void connect(const char* all) {
    const size_t bytes = addressBytes();
    for (int peer = 0; peer < size; peer++) {
      if (peer == rank) continue;
      const char* address = all + (static_cast<size_t>(peer) * size + rank) * bytes;
      transportContext_->getPair(peer)->connect(std::vector<char>(address, address + bytes));
    }
  }

 private:
  std::vector<std::vector<char>> addresses_;
};

// Runs `work`; what it throws becomes a text.
template <typename Work>
int guarded(char* error, size_t capacity, Work work) {
  const char* why = "an exception that is none of the standard library's";
  std::string text;
  try {
    work();
    return 0;
  } catch (const std::exception& exception) {
    text = exception.what();
    why = text.c_str();
  } catch (...) {
  }
  if (capacity > 0) {
    std::strncpy(error, why, capacity - 1);
    error[capacity - 1] = 0;
  }
  return -1;
}

// Gloo has each of them twice, with and without types; this picks the one without.
using Function = void (*)(void*, const void*, const void*, size_t);

template <typename T>
Function function(uint32_t op) {
  switch (op) {
    case kSum: return &gloo::sum<T>;
    case kProd: return &gloo::product<T>;
    case kMin: return &gloo::min<T>;
    case kMax: return &gloo::max<T>;
    default: throw std::invalid_argument("no such operation");
  }
}

template <typename T>
void allReduce(const std::shared_ptr<Mesh>& mesh, const WmGlooCall& call) {
  gloo::AllreduceOptions options(mesh);
  const size_t count = call.count;
  if (call.input) options.setInput(const_cast<T*>(static_cast<const T*>(call.input)), count);
  options.setOutput(static_cast<T*>(call.output), count);
  options.setReduceFunction(function<T>(call.op));
  options.setAlgorithm(call.algorithm == kBcube ? gloo::AllreduceOptions::Algorithm::BCUBE
                                                : gloo::AllreduceOptions::Algorithm::RING);
  gloo::allreduce(options);
}

template <typename T>
void allGather(const std::shared_ptr<Mesh>& mesh, const WmGlooCall& call) {
  gloo::AllgatherOptions options(mesh);
  const size_t count = call.count;
  // In place Gloo takes this rank's block of the output.
  if (call.input) options.setInput(const_cast<T*>(static_cast<const T*>(call.input)), count);
  options.setOutput(static_cast<T*>(call.output), count * mesh->size);
  gloo::allgather(options);
}

template <typename T>
void broadcast(const std::shared_ptr<Mesh>& mesh, const WmGlooCall& call) {
  gloo::BroadcastOptions options(mesh);
  const bool root = static_cast<uint32_t>(mesh->rank) == call.root;
  if (call.input && root)
    options.setInput(const_cast<T*>(static_cast<const T*>(call.input)), call.count);
  options.setOutput(static_cast<T*>(call.output), call.count);
  options.setRoot(static_cast<int>(call.root));
  gloo::broadcast(options);
}

template <typename T>
void run(const std::shared_ptr<Mesh>& mesh, const WmGlooCall& call) {
  switch (call.collective) {
    case kAllReduce: return allReduce<T>(mesh, call);
    case kAllGather: return allGather<T>(mesh, call);
    case kBroadcast: return broadcast<T>(mesh, call);
    default: throw std::invalid_argument("no such collective");
  }
}

void dispatch(const std::shared_ptr<Mesh>& mesh, const WmGlooCall& call) {
  switch (call.type) {
    case kI8: return run<int8_t>(mesh, call);
    case kU8: return run<uint8_t>(mesh, call);
    case kI32: return run<int32_t>(mesh, call);
    case kU32: return run<uint32_t>(mesh, call);
    case kI64: return run<int64_t>(mesh, call);
    case kU64: return run<uint64_t>(mesh, call);
    case kF32: return run<float>(mesh, call);
    case kF64: return run<double>(mesh, call);
    default: throw std::invalid_argument("no such type");
  }
}

}  // namespace

struct WmGloo {
  std::shared_ptr<Mesh> mesh;
};

extern "C" {

int wm_gloo_open(int rank, int world, const char* interface, const char* host, double seconds,
                 WmGloo** gloo, char* error, size_t capacity) {
  return guarded(error, capacity, [&] {
    gloo::transport::tcp::attr attr;
    if (interface) attr.iface = interface;
    else if (host) attr.hostname = host;
    auto mesh = std::make_shared<Mesh>(rank, world);
    mesh->setTimeout(std::chrono::milliseconds(static_cast<int64_t>(seconds * 1e3)));
    mesh->listen(gloo::transport::tcp::CreateDevice(attr));
    *gloo = new WmGloo{std::move(mesh)};
  });
}

size_t wm_gloo_address_bytes(const WmGloo* gloo) { return gloo->mesh->addressBytes(); }

int wm_gloo_addresses(const WmGloo* gloo, uint8_t* addresses, char* error, size_t capacity) {
  return guarded(error, capacity, [&] {
    const Mesh& mesh = *gloo->mesh;
    const size_t bytes = mesh.addressBytes();
    std::memset(addresses, 0, bytes * mesh.size);
    for (int peer = 0; peer < mesh.size; peer++) {
      if (peer != mesh.rank)
        std::memcpy(addresses + peer * bytes, mesh.address(peer).data(), bytes);
    }
  });
}

int wm_gloo_connect(WmGloo* gloo, const uint8_t* addresses, char* error, size_t capacity) {
  return guarded(error, capacity,
                 [&] { gloo->mesh->connect(reinterpret_cast<const char*>(addresses)); });
}

int wm_gloo_run(WmGloo* gloo, const WmGlooCall* call, char* error, size_t capacity) {
  return guarded(error, capacity, [&] { dispatch(gloo->mesh, *call); });
}

int wm_gloo_barrier(WmGloo* gloo, char* error, size_t capacity) {
  return guarded(error, capacity, [&] {
    gloo::BarrierOptions options(gloo->mesh);
    gloo::barrier(options);
  });
}

void wm_gloo_close(WmGloo* gloo) { delete gloo; }
}
