// How the kernels of compute capability 9.0 bring tiles of codes into shared memory, ahead of the warpgroups that multiply.
//
// A stage is handed over when what is in it has landed, not a stage later: copies of threads arrive at its barrier by themselves
// (cp_async_arrive), the copy engine counts its bytes there, and codes that threads unpack are there when these arrive. The producer
// never waits for its own copies, so it makes no fence for them either. Whoever waits for a stage does, between its wait and its
// products (Ring::wait_full). That is where PTX ISA wants it: cp.async writes by the generic proxy (only its bulk forms use the async
// proxy, "Async proxy"), wgmma reads by the async proxy ("wgmma.fence": an async proxy fence must stand between writes to a matrix and
// its reads by wgmma.mma_async), the arrival of cp.async.mbarrier.arrive comes after the copies, and waiting at an mbarrier acquires
// what arrivals at it released ("mbarrier.try_wait"). So the write comes before the fence, and the fence before the read, in the
// reading thread's own order; no thread but the reader could fence without waiting for the copy first.
#pragma once

#include "cuda/tile_sm90.cuh"

namespace adabm {
namespace cuda {
namespace sm90 {

// A tile with its halo, of one image: where its pixels lie in the image and in shared memory, in lines of neighbours. Lines are rows,
// or columns where a tile stands upright; "inner" is along a line, "outer" from line to line.
struct Halo {
  int across, lines;             // pixels of a line, and how many lines
  int inner, outer;              // the first pixel in the image, which may lie outside
  int inner_size, outer_size;    // of the image
  int inner_bytes, outer_bytes;  // from one pixel to the next, from one line to the next

  ADABM_DEVICE int pixels() const { return across * lines; }
  // Whether all pixels are inside the image.
  ADABM_DEVICE bool inside() const { return inner >= 0 && outer >= 0 && inner + across <= inner_size && outer + lines <= outer_size; }
};

// A thread's way through the pixels of a tile, from the first-th on, each kStep pixels after the one before: additions alone.
template <int kStep>
class Walk {
  int across_, end_, inner_step_, outer_step_, step_bytes_, line_bytes_;

 public:
  int inner, outer, offset;  // the place in the image, and in bytes from its first pixel

  ADABM_DEVICE Walk(const Halo& h, int first) {
    const Divider lines(h.across);
    const int line = lines.quotient(first);
    across_ = h.across, end_ = h.inner + h.across;
    outer_step_ = lines.quotient(kStep), inner_step_ = kStep - outer_step_ * h.across;
    step_bytes_ = outer_step_ * h.outer_bytes + inner_step_ * h.inner_bytes, line_bytes_ = h.outer_bytes - h.across * h.inner_bytes;
    inner = h.inner + first - line * h.across, outer = h.outer + line;
    offset = inner * h.inner_bytes + outer * h.outer_bytes;
  }
  ADABM_DEVICE bool inside(const Halo& h) const {
    return static_cast<unsigned>(inner) < static_cast<unsigned>(h.inner_size) && static_cast<unsigned>(outer) < static_cast<unsigned>(h.outer_size);
  }
  ADABM_DEVICE void next() {
    inner += inner_step_, outer += outer_step_, offset += step_bytes_;
    if (inner >= end_) inner -= across_, outer++, offset += line_bytes_;
  }
};

// Copies the codes of a tile, stored as bytes, to kPlanes rows of 16 channels, from the channel `from` on; zeros outside the image and
// behind its channels. kWide: pixels are multiples of 16 bytes. kInside: so are the tile's pixels of the image.
template <int kPlanes, bool kWide, bool kInside>
ADABM_DEVICE void copy_bytes(const Halo& h, const uint8_t* image, int pitch, int from, uint32_t to, uint32_t plane_bytes) {
  constexpr int kStep = kGroupThreads / kPlanes;  // a thread stays with its plane
  const int thread = threadIdx.x % kGroupThreads, first = thread / kPlanes, channel = from + thread % kPlanes * kRowBytes;
  const int there = pitch - channel;  // bytes of this row that exist
  image += there > 0 ? channel : 0;
  uint32_t target = to + thread % kPlanes * plane_bytes + first * kRowBytes;
  Walk<kStep> at(h, first);
#pragma unroll 4
  for (int pixel = first; pixel < h.pixels(); pixel += kStep) {
    const bool wanted = (kInside || at.inside(h)) && there > 0;
    const uint8_t* source = image + (kInside || wanted ? at.offset : 0);
    if (kWide) {
      ptx::cp_async<16>(target, source, wanted ? 16 : 0);
    } else {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const bool exists = wanted && 4 * i < there;
        ptx::cp_async<4>(target + 4 * i, exists ? source + 4 * i : image, exists ? 4 : 0);
      }
    }
    target += kStep * kRowBytes;
    at.next();
  }
}

// A word of codes of kStorage bits as bytes, in 5 instructions for two words and 15 for four.
template <int kStorage>
ADABM_DEVICE void bytes_of_word(uint32_t x, uint32_t* out) {
  if constexpr (kStorage == 4) {
    const uint32_t even = x & 0x0f0f0f0fu, odd = x >> 4 & 0x0f0f0f0fu;
    out[0] = ptx::byte_perm(even, odd, 0x5140), out[1] = ptx::byte_perm(even, odd, 0x7362);
  } else {
    const uint32_t even = x & 0x33333333u, odd = x >> 2 & 0x33333333u;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      // Bytes of codes 0 and 2, 1 and 3, 4 and 6, 5 and 7 of this half.
      const uint32_t pairs = ptx::byte_perm(even, odd, half ? 0x7362 : 0x5140);
      const uint32_t low = pairs & 0x0f0f0f0fu, high = pairs >> 4 & 0x0f0f0f0fu;
      out[2 * half] = ptx::byte_perm(low, high, 0x5410), out[2 * half + 1] = ptx::byte_perm(low, high, 0x7632);
    }
  }
}

// The same for codes of kStorage bits, 2 or 4, which become bytes on the way. A thread takes a pixel at a time, and loads a batch of
// them before it unpacks the first. kWide: pixels are multiples of 32 channels, so that what is read of one is whole vectors.
template <int kPlanes, int kStorage, bool kWide>
ADABM_DEVICE void unpack_codes(const Halo& h, bool inside, const uint8_t* image, int pitch, int from, uint32_t to, uint32_t plane_bytes) {
  constexpr int kWordsOfRow = kStorage / 2, kWords = kPlanes * kWordsOfRow, kBatch = kWords > 4 ? 3 : 5;
  constexpr int kVector = !kWide ? 1 : kWords > 4 ? 4 : kWords;
  const int thread = threadIdx.x % kGroupThreads, there = pitch - from;
  uint32_t target = to + thread * kRowBytes;
  image += from;
  Walk<kGroupThreads> at(h, thread);
#pragma unroll 2
  for (int left = h.pixels(); left > 0; left -= kBatch * kGroupThreads) {
    const auto taken = [&](int i) { return left >= (i + 1) * kGroupThreads || thread + i * kGroupThreads < left; };
    uint32_t words[kBatch][kWords];
#pragma unroll
    for (int i = 0; i < kBatch; i++) {
      const bool wanted = taken(i) && (inside || at.inside(h));
#pragma unroll
      for (int word = 0; word < kWords; word += kVector) {
        if (wanted && (kWide || 4 * word < there)) {
          ptx::load_constant_words<kVector>(words[i] + word, image + at.offset + 4 * word);
        } else {
#pragma unroll
          for (int j = 0; j < kVector; j++) words[i][word + j] = 0;
        }
      }
      at.next();
    }
#pragma unroll
    for (int i = 0; i < kBatch; i++) {
      if (!taken(i)) continue;
#pragma unroll
      for (int plane = 0; plane < kPlanes; plane++) {
        ptx::Words4 row;
#pragma unroll
        for (int j = 0; j < kWordsOfRow; j++) {
          bytes_of_word<kStorage>(words[i][plane * kWordsOfRow + j], row.w + j * 4 / kWordsOfRow);
        }
        ptx::store_shared(target + i * kGroupThreads * kRowBytes + plane * plane_bytes, row);
      }
    }
    target += kBatch * kGroupThreads * kRowBytes;
  }
}

// What a producer needs to know of an image.
struct Image {
  const uint8_t* codes;
  int number, storage, pitch;
  bool tensor;  // the copy engine brings its tiles in
  ADABM_DEVICE Image(const Conv2dParams& p, int image, int tensor_bytes)
      : codes(p.x_q + static_cast<int64_t>(image) * p.height * p.width * p.code_channels),
        number(image),
        storage(storage_bits(image_bits(p.x_bits, image), p.packed_codes & ADABM_PACKED_X)),
        pitch(pixel_bytes(p.code_channels, storage)),
        tensor(tensor_bytes && storage == 8) {}
};

// Threads bring kPlanes rows of 16 channels, from the first_plane-th on, of a tile and its halo into shared memory, and arrive at the
// barrier when they are there.
template <int kPlanes>
ADABM_DEVICE void load_tile(const Conv2dParams& p, const Halo& h, const Image& image, int first_plane, uint32_t to, uint32_t barrier) {
  const uint32_t plane_bytes = p.plane_pixels * kRowBytes;
  const int from = first_plane * kRowBytes * image.storage / 8;
  const bool inside = h.inside();
  if (image.storage == 8) {
    if (image.pitch % kRowBytes)
      copy_bytes<kPlanes, false, false>(h, image.codes, image.pitch, from, to, plane_bytes);
    else if (inside)
      copy_bytes<kPlanes, true, true>(h, image.codes, image.pitch, from, to, plane_bytes);
    else
      copy_bytes<kPlanes, true, false>(h, image.codes, image.pitch, from, to, plane_bytes);
    ptx::cp_async_arrive(barrier);
    return;
  }
  const bool wide = p.code_channels % kStepBytes == 0;
  if (image.storage == 4) {
    if (wide)
      unpack_codes<kPlanes, 4, true>(h, inside, image.codes, image.pitch, from, to, plane_bytes);
    else
      unpack_codes<kPlanes, 4, false>(h, inside, image.codes, image.pitch, from, to, plane_bytes);
  } else {
    if (wide)
      unpack_codes<kPlanes, 2, true>(h, inside, image.codes, image.pitch, from, to, plane_bytes);
    else
      unpack_codes<kPlanes, 2, false>(h, inside, image.codes, image.pitch, from, to, plane_bytes);
  }
  ptx::mbarrier_arrive(barrier);
}

// The copy engine does: one thread starts a box for each row of 16 channels, of codes stored as bytes, whose first pixel is at this row
// and column. The others only arrive.
template <int kPlanes>
ADABM_DEVICE void copy_tile(const Conv2dParams& p, const ptx::TensorMap& map, int row, int column, int image, int first_plane, uint32_t to,
                            uint32_t barrier) {
  if (threadIdx.x == 0)
#pragma unroll
    for (int plane = 0; plane < kPlanes; plane++)
      ptx::tensor_copy(to + plane * p.plane_pixels * kRowBytes, map, (first_plane + plane) * kRowBytes, column, row, image, barrier);
  ptx::mbarrier_arrive(barrier);
}

// A ring of stages in shared memory: barrier 2 i says that stage i is full, barrier 2 i + 1 that it is empty again.
struct Ring {
  uint32_t barriers;
  int stages, stage = 0;
  uint32_t parity = 0;

  ADABM_DEVICE Ring(uint32_t barriers, int stages) : barriers(barriers), stages(stages) {}
  ADABM_DEVICE uint32_t full() const { return barriers + stage * 2 * ptx::kBarrierBytes; }
  ADABM_DEVICE uint32_t empty() const { return full() + ptx::kBarrierBytes; }
  // What the stage holds may then be read by this thread's products, whoever wrote it.
  ADABM_DEVICE void wait_full() const { ptx::mbarrier_wait(full(), parity), ptx::fence_async(); }
  // The first round finds everything empty.
  ADABM_DEVICE void wait_empty() const { ptx::mbarrier_wait(empty(), parity ^ 1); }
  ADABM_DEVICE void next() {
    if (++stage == stages) stage = 0, parity ^= 1;
  }
};

// Tiles of the kernels whose weights are in registers: 3x3 taps and up to 64 channels. Tiles lie kTileRows by kTileColumns pixels apart
// and begin kBefore pixels before that, up and to the left, with a halo that is as large for all. skips(image, row, column): whether the
// tile with the results from there on needs no codes.
template <int kStrips, int kTileRows, int kTileColumns, int kBefore, class Skips>
ADABM_DEVICE void produce_tiles(const Conv2dParams& p, Ring ring, uint32_t stages, int stage_bytes, int blocks, const ptx::TensorMap& map, int tensor_bytes,
                                Skips&& skips) {
  constexpr int kPlanes = 2 * kResidentSteps, kColumns = kStrips * kStripColumns + 2, kRows = kStripRows + 2;
  const int row_step = blocks / p.inner_across, column_step = blocks - row_step * p.inner_across;
  for (int item = blockIdx.x; item < p.batch * p.tiles;) {
    const int number = item / p.tiles;
    const Image image(p, number, tensor_bytes);
    int tile = item - number * p.tiles, tile_row = tile / p.inner_across, tile_column = tile - tile_row * p.inner_across;
    for (; tile < p.tiles; tile += blocks) {
      const int row = tile_row * kTileRows, column = tile_column * kTileColumns;
      tile_row += row_step, tile_column += column_step;
      if (tile_column >= p.inner_across) tile_column -= p.inner_across, tile_row++;
      if (skips(number, row, column)) continue;
      ring.wait_empty();
      const uint32_t to = stages + ring.stage * stage_bytes, full = ring.full();
      if (threadIdx.x == 0) ptx::mbarrier_arrive_expect(full, image.tensor ? kPlanes * tensor_bytes : 0);
      if (image.tensor) {
        copy_tile<kPlanes>(p, map, row - kBefore, column - kBefore, number, 0, to, full);
      } else {
        const Halo h = {kColumns, kRows, column - kBefore, row - kBefore, p.width, p.height, image.pitch, p.width * image.pitch};
        load_tile<kPlanes>(p, h, image, 0, to, full);
      }
      ring.next();
    }
    item = number * p.tiles + tile;
  }
  ptx::cp_async_commit(), ptx::cp_async_wait<0>();  // no thread ends with copies under way
}

// Tiles and weights of the other kernel, a stage of 32 channels after the other. `packed`: the weights of this block's outputs.
template <int kStrips>
ADABM_DEVICE void produce_stages(const Conv2dParams90& q, Ring ring, uint32_t stages, const uint8_t* packed) {
  constexpr int kPlanes = 2;
  const Conv2dParams& p = q.c;
  const int weight_bytes = p.kernel_h * p.kernel_w * p.tiling.width * kStepBytes;
  for (int item = blockIdx.x; item < p.batch * p.tiles; item += q.blocks) {
    const int number = item / p.tiles;
    const Tile at = place<kStrips>(p, item - number * p.tiles);
    if (!computes(share_of(p.region, number, pixels_of(p, at)))) continue;
    const Image image(p, number, q.tensor_bytes);
    const uint8_t* weights = packed + (p.border_kernels ? at.kernel : 0) * static_cast<int64_t>(p.tiling.tiles) * p.forms[0].tile_bytes;
    const int row = at.row - p.kernel_h / 2, column = at.column - p.kernel_w / 2, row_bytes = p.width * image.pitch;
    const bool upright = at.row_step == 1;
    const Halo h = upright ? Halo{at.halo_rows, at.halo_columns, row, column, p.height, p.width, row_bytes, image.pitch}
                           : Halo{at.halo_columns, at.halo_rows, column, row, p.width, p.height, image.pitch, row_bytes};
    for (int step = 0; step < q.steps; step++) {
      ring.wait_empty();
      const uint32_t to = stages + ring.stage * q.stage_bytes, full = ring.full();
      if (threadIdx.x == 0) {
        ptx::mbarrier_arrive_expect(full, weight_bytes + (image.tensor ? kPlanes * q.tensor_bytes : 0));
        ptx::bulk_copy(to + q.code_bytes, weights + static_cast<int64_t>(step) * weight_bytes, weight_bytes, full);
      }
      if (image.tensor)
        copy_tile<kPlanes>(p, q.map, row, column, number, kPlanes * step, to, full);
      else
        load_tile<kPlanes>(p, h, image, kPlanes * step, to, full);
      ring.next();
    }
  }
  ptx::cp_async_commit(), ptx::cp_async_wait<0>();  // no thread ends with copies under way
}

}  // namespace sm90
}  // namespace cuda
}  // namespace adabm
