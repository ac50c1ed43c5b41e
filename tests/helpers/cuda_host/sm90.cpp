// What compute capability 9.0 adds to the runtime: products of four warps, barriers in shared memory, bulk and tensor copies, named
// barriers.
#include <algorithm>
#include <cstring>
#include <deque>
#include <map>

#include "cuda_host.h"

namespace cuda_host {
namespace {

constexpr int kLanes = 32, kWarpsOfGroup = 4, kDepth = 32;

struct Operands {
  int32_t* d;
  const uint32_t* a;
};

struct Product {
  const char* who;
  Operands lanes[kLanes];
  int columns, accumulate;
  uint64_t left, descriptor;  // of A, where it is in shared memory, and of B
  bool landed;
};

struct WarpProducts {
  bool fenced = false;
  size_t issued = 0;
  std::vector<Product> open;
  std::deque<std::vector<Product>> groups;  // oldest first
};

struct BulkCopy {
  uint32_t shared;
  const void* global;
  uint32_t bytes;
  int warp;
  uint32_t step;
  std::vector<uint8_t> box;  // of a tensor copy, in place of `global`
};

// An arrival that comes when copies of a thread have landed.
struct CopyArrival {
  std::vector<AsyncCopy> copies;
  int thread;
  uint32_t step;
};

struct Barrier {
  int count, pending;
  int64_t bytes;  // announced and not yet there
  uint32_t phase;
  Clock arriving, complete;
  std::vector<BulkCopy> copies;        // under way
  std::vector<CopyArrival> arrivals;  // still to come, counted in `pending`
};

struct NamedBarrier {
  int arrived = 0, threads = 0;
  uint32_t phase = 0;
  Clock arriving, complete;
};

struct {
  std::vector<WarpProducts> warps;
  std::map<int, std::vector<uint64_t>> sequence;  // of each warpgroup: what its warps have issued
  std::map<uint32_t, Barrier> barriers;
  std::map<int, NamedBarrier> named;
} block;

WarpProducts& products() { return block.warps[current->warp]; }

// Reads groups of eight rows of 32 bytes from where a descriptor says, from the first group on, with the checks of a read at this
// moment.
void read_matrix(const char* who, uint64_t descriptor, int first, int groups, uint8_t (*rows)[kDepth]) {
  const auto field = [&](int bit) { return static_cast<uint32_t>(descriptor >> bit & 0x3fff) << 4; };
  const uint32_t start = field(0), half_bytes = field(16), group_bytes = field(32);
  if (descriptor >> 46) fail("%s with a descriptor that asks for a swizzle or an offset", who);
  for (int group = 0; group < groups; group++)
    for (int half = 0; half < 2; half++) {
      const auto* bytes = static_cast<const uint8_t*>(shared_read_async(who, start + (first + group) * group_bytes + half * half_bytes, 128, 16));
      for (int row = 0; row < 8; row++) std::memcpy(rows[group * 8 + row] + half * 16, bytes + row * 16, 16);
    }
}

// Reads what is in shared memory, and where `compute` is set multiplies this warp's 16 rows of A with B.
void read_and_multiply(const Product& p, bool compute) {
  static uint8_t a[16][kDepth], b[256][kDepth];
  read_matrix(p.who, p.descriptor, 0, p.columns / 8, b);
  if (p.left) read_matrix(p.who, p.left, current->warp % kWarpsOfGroup * 2, 2, a);
  if (!compute) return;
  if (!p.left)
    for (int row = 0; row < 16; row++)
      for (int quarter = 0; quarter < 4; quarter++)
        for (int half = 0; half < 2; half++)
          std::memcpy(a[row] + 16 * half + 4 * quarter, p.lanes[row % 8 * 4 + quarter].a + row / 8 + 2 * half, 4);
  for (int row = 0; row < 16; row++) {
    int16_t left[kDepth];
    for (int k = 0; k < kDepth; k++) left[k] = static_cast<int8_t>(a[row][k]);
    for (int column = 0; column < p.columns; column++) {
      int32_t& d = p.lanes[row % 8 * 4 + column % 8 / 2].d[column / 8 * 4 + row / 8 * 2 + column % 2];
      int32_t sum = 0;
      for (int k = 0; k < kDepth; k++) sum += left[k] * b[column][k];
      d = static_cast<int32_t>((p.accumulate ? static_cast<uint32_t>(d) : 0) + static_cast<uint32_t>(sum));
    }
  }
}

// Runs `body` once for the warp.
template <class Body>
void once(const char* name, Body&& body) {
  warp_collective(name, &body, [](void* const* lanes) { (*static_cast<Body*>(lanes[current->lane]))(); });
}

void flip_if_complete(Barrier& b) {
  if (b.pending || b.bytes) return;
  b.pending = b.count, b.phase++;
  b.complete = b.arriving;
}

// A step of a warp is over by the end of the barrier's phase.
void arrive_by(Barrier& b, int warp, uint32_t step) {
  if (b.arriving.size() <= static_cast<size_t>(warp)) b.arriving.resize(warp + 1);
  b.arriving[warp] = std::max(b.arriving[warp], step);
}

void land(Barrier& b) {
  for (const BulkCopy& copy : b.copies) {
    shared_land(copy.shared, copy.global ? copy.global : copy.box.data(), static_cast<int>(copy.bytes), copy.warp, copy.step);
    b.bytes -= copy.bytes;
    arrive_by(b, copy.warp, copy.step);
  }
  b.copies.clear();
  for (const CopyArrival& arrival : b.arrivals) {
    land_async_copies(arrival.copies, arrival.thread, arrival.step);
    b.pending--;
    arrive_by(b, arrival.thread / kLanes, arrival.step);
  }
  b.arrivals.clear();
}

Barrier& barrier_at(const char* who, uint32_t address) {
  shared_read(who, address, 8, 8);
  const auto found = block.barriers.find(address);
  if (found == block.barriers.end()) fail("%s at byte %u of shared memory, where no mbarrier is", who, address - kSharedBase);
  return found->second;
}

}  // namespace

static void issue(const char* who, int32_t* d, int columns, const uint32_t* a, uint64_t left, uint64_t descriptor, int accumulate) {
  Product product = {who, {}, columns, accumulate, left, descriptor, false};
  struct Lane {
    Product& product;
    Operands operands;
  } lane = {product, {d, a}};
  warp_collective(who, &lane, [](void* const* lanes) {
    Product p = static_cast<Lane*>(lanes[current->lane])->product;
    WarpProducts& own = products();
    if (!own.fenced) fail("%s without wgmma_fence since its registers were last in use", p.who);
    std::vector<uint64_t>& sequence = block.sequence[current->warp / kWarpsOfGroup];
    if (own.issued == sequence.size())
      sequence.push_back(p.descriptor);
    else if (sequence[own.issued] != p.descriptor)
      fail("%s: the warps of a warpgroup issue different products", p.who);
    own.issued++;
    for (int i = 0; i < kLanes; i++) {
      const Lane& other = *static_cast<Lane*>(lanes[i]);
      const bool alike = other.product.descriptor == p.descriptor && other.product.left == p.left && !other.product.accumulate == !p.accumulate;
      if (!alike) fail("%s: the lanes of a warp name different operands", p.who);
      p.lanes[i] = other.operands;
    }
    // Products finish in the order they were issued in: one can land now only where all before it have.
    p.landed = land_now();
    for (const auto& group : own.groups)
      for (const Product& before : group) p.landed = p.landed && before.landed;
    for (const Product& before : own.open) p.landed = p.landed && before.landed;
    read_and_multiply(p, p.landed);
    own.open.push_back(p);
  });
}

void product(const char* who, int32_t* d, int columns, const uint32_t* a, uint64_t descriptor, int accumulate) {
  issue(who, d, columns, a, 0, descriptor, accumulate);
}
void product(const char* who, int32_t* d, int columns, uint64_t a, uint64_t descriptor, int accumulate) {
  issue(who, d, columns, nullptr, a, descriptor, accumulate);
}

void product_fence() {
  once("wgmma_fence", [] { products().fenced = true; });
}

void product_commit() {
  once("wgmma_commit", [] {
    products().groups.push_back(std::move(products().open));
    products().open.clear();
  });
}

void product_wait(int pending) {
  once("wgmma_wait", [pending] {
    WarpProducts& own = products();
    own.fenced = false;
    for (; static_cast<int>(own.groups.size()) > pending; own.groups.pop_front())
      for (const Product& p : own.groups.front()) read_and_multiply(p, !p.landed);
  });
}

void mbarrier_init(uint32_t address, int arrivals) {
  shared_write("mbarrier_init", address, 8, 8);
  if (arrivals < 1) fail("mbarrier_init with %d arrivals", arrivals);
  block.barriers[address] = {arrivals, arrivals, 0, 0, {}, {}, {}, {}};
}

void mbarrier_arrive(const char* who, uint32_t address, uint32_t bytes) {
  Barrier& b = barrier_at(who, address);
  if (b.pending <= static_cast<int>(b.arrivals.size())) fail("%s at byte %u of shared memory: more than the %d arrivals of a phase", who, address - kSharedBase, b.count);
  release_clock(b.arriving);
  b.pending--, b.bytes += bytes;
  flip_if_complete(b);
}

void mbarrier_wait(uint32_t address, uint32_t parity) {
  Barrier& b = barrier_at("mbarrier_wait", address);
  struct Waiting {
    Barrier& b;
    uint32_t parity;
  } waiting = {b, parity};
  wait_until("mbarrier_wait", [](void* context) {
    auto& w = *static_cast<Waiting*>(context);
    // The last moment: nothing else is missing.
    const bool only_copies = w.b.pending == static_cast<int>(w.b.arrivals.size()) && !(w.b.copies.empty() && w.b.arrivals.empty());
    if (w.b.phase % 2 == w.parity && only_copies) land(w.b), flip_if_complete(w.b);
    return w.b.phase % 2 != w.parity;
  }, &waiting);
  acquire_clock(b.complete);
}

void async_arrive(const char* who, uint32_t address) {
  Barrier& b = barrier_at(who, address);
  if (b.pending <= static_cast<int>(b.arrivals.size())) fail("%s at byte %u of shared memory: more than the %d arrivals of a phase", who, address - kSharedBase, b.count);
  b.arrivals.push_back({take_async_copies(), current->warp * kLanes + current->lane, take_step()});
  if (land_now()) land(b), flip_if_complete(b);
}

void bulk_copy(uint32_t shared, const void* global, uint32_t bytes, uint32_t barrier) {
  Barrier& b = barrier_at("bulk_copy", barrier);
  if (bytes == 0 || bytes % 16) fail("bulk_copy of %u bytes, which must be a multiple of 16", bytes);
  if ((shared - kSharedBase) % 16) fail("bulk_copy at byte %u of shared memory, which must be a multiple of 16", shared - kSharedBase);
  global_read("bulk_copy", global, bytes, 16);
  shared_begin_copy("bulk_copy", shared, static_cast<int>(bytes));
  b.copies.push_back({shared, global, bytes, current->warp, take_step(), {}});
  if (land_now()) land(b), flip_if_complete(b);
}

const char* why_not_encoded(const TensorMap& map) {
  if (reinterpret_cast<uintptr_t>(map.base) % 16) return "the address must be a multiple of 16";
  if (map.box[0] % 16) return "the innermost side of the box must be a multiple of 16 bytes";
  for (int64_t stride : map.strides)
    if (stride % 16 || stride >= int64_t{1} << 40) return "strides must be multiples of 16 below 2^40";
  for (int i = 0; i < 4; i++)
    if (map.box[i] < 1 || map.box[i] > 256 || map.sizes[i] < 1 || map.sizes[i] >= int64_t{1} << 32) return "sizes must be 1..2^32 and those of the box 1..256";
  return nullptr;
}

void tensor_copy(uint32_t shared, const TensorMap& map, const int (&at)[4], uint32_t barrier) {
  Barrier& b = barrier_at("tensor_copy", barrier);
  if ((shared - kSharedBase) % 128) fail("tensor_copy at byte %u of shared memory, which must be a multiple of 128", shared - kSharedBase);
  const int64_t row = map.box[0], bytes = row * map.box[1] * map.box[2] * map.box[3];
  std::vector<uint8_t> box(bytes, 0);
  uint8_t* to = box.data();
  for (int n = at[3]; n < at[3] + map.box[3]; n++)
    for (int h = at[2]; h < at[2] + map.box[2]; h++)
      for (int w = at[1]; w < at[1] + map.box[1]; w++, to += row) {
        const bool inside = n >= 0 && n < map.sizes[3] && h >= 0 && h < map.sizes[2] && w >= 0 && w < map.sizes[1];
        const int64_t first = std::max(at[0], 0), last = std::min<int64_t>(at[0] + row, map.sizes[0]);
        if (!inside || first >= last) continue;
        const uint8_t* from = map.base + n * map.strides[2] + h * map.strides[1] + w * map.strides[0] + first;
        global_read("tensor_copy", from, last - first, 1);
        std::memcpy(to + first - at[0], from, last - first);
      }
  shared_begin_copy("tensor_copy", shared, static_cast<int>(bytes));
  b.copies.push_back({shared, nullptr, static_cast<uint32_t>(bytes), current->warp, take_step(), std::move(box)});
  if (land_now()) land(b), flip_if_complete(b);
}

void named_barrier(int id, int threads) {
  if (id < 1 || id > 15 || threads % kLanes) fail("sync_threads of %d threads at barrier %d", threads, id);
  NamedBarrier& b = block.named[id];
  if (b.arrived && b.threads != threads) fail("sync_threads at barrier %d with %d threads and with %d", id, b.threads, threads);
  b.threads = threads;
  release_clock(b.arriving);
  struct Waiting {
    const NamedBarrier& b;
    uint32_t phase;
  } waiting = {b, b.phase};
  if (++b.arrived == threads) {
    b.arrived = 0, b.phase++;
    b.complete = b.arriving;
  }
  wait_until("sync_threads", [](void* context) {
    const auto& w = *static_cast<const Waiting*>(context);
    return w.b.phase != w.phase;
  }, &waiting);
  acquire_clock(b.complete);
}

void sm90_begin_block(int warps) {
  block.warps.assign(warps, {});
  block.sequence.clear(), block.barriers.clear(), block.named.clear();
}

const char* sm90_end_block() {
  for (size_t w = 0; w < block.warps.size(); w++) {
    const WarpProducts& own = block.warps[w];
    if (!own.open.empty() || !own.groups.empty()) return "the block ends with products under way";
    if (own.issued != block.sequence[static_cast<int>(w) / kWarpsOfGroup].size()) return "the warps of a warpgroup issue different products";
  }
  for (const auto& [address, b] : block.barriers)
    if (!b.copies.empty() || b.bytes)
      return "the block ends with bulk copies under way";
    else if (!b.arrivals.empty())
      return "the block ends with copies under way that arrive at a barrier";
  return nullptr;
}

}  // namespace cuda_host
