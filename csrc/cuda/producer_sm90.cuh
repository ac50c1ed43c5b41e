// How the kernels of compute capability 9.0 bring tiles of codes into shared memory, ahead of the warpgroups that multiply.
//
// A ring of stages, each with two barriers:
//
//        wait empty -> fill -> arrive full          the producer, stage after stage
//   ring: [ stage 0 ][ stage 1 ][ stage 2 ] ->
//        wait full -> fence -> products -> arrive empty        the consumers, behind it
//
// A stage is handed over when its codes have landed, not a stage later: copies of threads arrive at its barrier by themselves
// (cp_async_arrive), the copy engine counts its bytes there, and codes that threads unpack are there when these arrive. The producer
// never waits for its own copies, so it cannot make the fence that must stand between them and products. The consumer that waits for a stage
// makes it, behind the wait (Ring::wait_full). docs/gpu_cuda.md has the rules of PTX ISA behind this.
//
// There are three routes, by how the codes of an image are stored (Route):
//   the copy engine: one thread starts a box for every 16 channels, and pixels outside the image arrive as zeros;
//   bytes: each of 128 threads stays with 16 channels of one column and goes from line to line, so that a source is a sum;
//   4 or 2 bits: a thread takes whole pixels and turns words into rows of bytes on the way, several loaded before the first is unpacked.
//
// Where a pixel's source lies is the same for all tiles of an image relative to the tile's first one. Such offsets are kept in registers
// where they are few (PixelOffsets), and a tile inside the image takes a form without any test (kInside, `inside`).
#pragma once

#include "cuda/tile_sm90.cuh"

namespace adabm {
namespace cuda {
namespace sm90 {

// The offset of a pixel of a halo in its image, in bytes, and whether it lies inside; the offset of a pixel outside is not valid.
struct ImagePixel {
  uint32_t offset;
  bool inside;
};

// A tile with its halo, of one image: where its pixels lie in the image and in shared memory, in lines of neighbours. Lines are rows,
// or columns where a tile stands upright; "inner" is along a line, "outer" from line to line.
struct Halo {
  int across, lines;             // pixels of a line, and how many lines
  int inner, outer;              // the first pixel, counted in the image; it may lie outside
  int inner_size, outer_size;    // size of the image along a line and across lines
  int inner_bytes, outer_bytes;  // bytes from one pixel to the next, and from one line to the next
  BlockDivisor line;                  // divides numbers of pixels, which are counted line after line, by `across`

  ADABM_DEVICE Halo(int across, int lines, int inner_size, int outer_size, int inner_bytes, int outer_bytes)
      : across(across), lines(lines), inner(0), outer(0), inner_size(inner_size), outer_size(outer_size), inner_bytes(inner_bytes), outer_bytes(outer_bytes),
        line(across) {}
  ADABM_DEVICE int pixels() const { return across * lines; }
  // Returns the offset of the first pixel in bytes.
  ADABM_DEVICE int64_t offset() const { return static_cast<int64_t>(outer) * outer_bytes + inner * inner_bytes; }
  // Returns whether all pixels are inside the image.
  ADABM_DEVICE bool inside() const { return (inner | outer | (inner_size - across - inner) | (outer_size - lines - outer)) >= 0; }

  // Returns the number of the i-th pixel of a thread, or the number of the last pixel where there is none.
  ADABM_DEVICE int pixel(int thread, int i) const {
    const int number = i * kGroupThreads + thread;
    return (i + 1) * kGroupThreads <= pixels() || number < pixels() ? number : pixels() - 1;
  }
  // Returns the offset from the first pixel in bytes, where all pixels are inside: an image has less than 2^31 bytes.
  ADABM_DEVICE uint32_t offset_of(int thread, int i) const {
    const uint32_t along_bytes = inner_bytes, line_bytes = outer_bytes - across * along_bytes;  // modulo 2^32, as the sum is below
    return line.quotient(pixel(thread, i)) * line_bytes + pixel(thread, i) * along_bytes;
  }
  // Counts from the first pixel of the image: the first pixel of the halo may lie several long rows above it, more than 2^32 bytes before the
  // pixels inside.
  ADABM_DEVICE ImagePixel in_image(int thread, int i) const {
    const int line_number = line.quotient(pixel(thread, i)), along = pixel(thread, i) - line_number * across;
    const uint32_t o = outer + line_number, n = inner + along;
    return {o * static_cast<uint32_t>(outer_bytes) + n * static_cast<uint32_t>(inner_bytes),
            o < static_cast<uint32_t>(outer_size) && n < static_cast<uint32_t>(inner_size)};
  }
};

// Copies the codes of a tile, stored as bytes, to kPlanes rows of 16 channels, from the channel `from` on; zeros outside the image and
// behind its channels. Each thread stays with 16 channels of one column and goes from line to line. kWide: pixels are multiples of 16
// bytes.
template <int kPlanes, bool kWide, bool kInside>
ADABM_DEVICE void copy_bytes(const Halo& h, int thread, const uint8_t* image, int pitch, int from, uint32_t to, uint32_t plane_bytes) {
  const uint32_t line_bytes = ptx::own_register(h.outer_bytes, thread);  // otherwise it would be moved to a register for every line
  for (int unit = thread; unit < h.across * kPlanes; unit += kGroupThreads) {
    const int along = unit / kPlanes, plane = unit % kPlanes, channel = from + plane * kRowBytes;
    const bool inside = kInside || static_cast<unsigned>(h.inner + along) < static_cast<unsigned>(h.inner_size);
    const int there = inside ? pitch - channel : 0;  // bytes of the 16 channels that exist
    const uint8_t* source = image + h.offset() + along * h.inner_bytes + channel;  // it is read only where it lies inside
    uint32_t target = to + plane * plane_bytes + along * kRowBytes;
#pragma unroll(kWide ? 6 : 1)
    for (int line = 0; line < h.lines; line++) {
      const bool wanted = kInside || static_cast<unsigned>(h.outer + line) < static_cast<unsigned>(h.outer_size);
      if (kWide) {
        ptx::cp_async<16>(target, source, wanted && there > 0 ? 16 : 0);
      } else {
#pragma unroll
        for (int i = 0; i < 4; i++) ptx::cp_async<4>(target + 4 * i, source + 4 * i, wanted && 4 * i < there ? 4 : 0);
      }
      source += line_bytes, target += h.across * kRowBytes;
    }
  }
}

// Turns codes of 2 or 4 bits into bytes: kPlanes rows of 16 codes, which lie one behind the other in `words`.
template <int kPlanes, int kStorage>
ADABM_DEVICE void bytes_of_codes(const uint32_t* words, ptx::Words4 (&rows)[kPlanes]) {
  constexpr uint32_t kPairs = 0x33333333, kNibbles = 0x0f0f0f0f, kCodes = 0x03030303;
  if constexpr (kStorage == 4) {
#pragma unroll
    for (int i = 0; i < 2 * kPlanes; i++) {
      const uint32_t even = words[i] & kNibbles, odd = words[i] >> 4 & kNibbles;
      uint32_t* out = rows[i / 2].w + i % 2 * 2;
      out[0] = ptx::byte_perm(even, odd, 0x5140), out[1] = ptx::byte_perm(even, odd, 0x7362);
    }
  } else if constexpr (kPlanes == 4) {
    // Row r, byte k, code j of it: all four rows trade places of code and row, then of code and byte, 52 instructions in place of 60.
    uint32_t x[4], y[4], bytes[4];
#pragma unroll
    for (int r = 0; r < 4; r += 2) {
      x[r] = ptx::select_bits(kPairs, words[r], words[r + 1] << 2);
      x[r + 1] = ptx::select_bits(kPairs, words[r] >> 2, words[r + 1]);
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
      y[r] = ptx::select_bits(kNibbles, x[r], x[r + 2] << 4);
      y[r + 2] = ptx::select_bits(kNibbles, x[r] >> 4, x[r + 2]);
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const uint32_t low = ptx::byte_perm(y[0], y[1], half ? 0x7362 : 0x5140), high = ptx::byte_perm(y[2], y[3], half ? 0x7362 : 0x5140);
      bytes[2 * half] = ptx::byte_perm(low, high, 0x5410), bytes[2 * half + 1] = ptx::byte_perm(low, high, 0x7632);
    }
#pragma unroll
    for (int r = 0; r < 4; r++)
#pragma unroll
      for (int k = 0; k < 4; k++) rows[r].w[k] = bytes[k] >> (2 * r) & kCodes;
  } else {
#pragma unroll
    for (int i = 0; i < kPlanes; i++) {
      const uint32_t even = words[i] & kPairs, odd = words[i] >> 2 & kPairs;
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const uint32_t pairs = ptx::byte_perm(even, odd, half ? 0x7362 : 0x5140), low = pairs & kNibbles, high = pairs >> 4 & kNibbles;
        rows[i].w[2 * half] = ptx::byte_perm(low, high, 0x5410), rows[i].w[2 * half + 1] = ptx::byte_perm(low, high, 0x7632);
      }
    }
  }
}

// The offsets of the pixels of a halo that a thread unpacks, from the first pixel of the halo: pixels i * kGroupThreads + thread for i = 0, 1
// and so on, or the last pixel where there is no such pixel. They are equal for all tiles of an image, so they stay in registers if few.
template <int kRounds>
class PixelOffsets {
  uint32_t offsets_[kRounds];

 public:
  static constexpr int kUnroll = kRounds;  // so that all indices are constants
  ADABM_DEVICE PixelOffsets(const Halo& h, int thread) {
#pragma unroll
    for (int i = 0; i < kRounds; i++) offsets_[i] = h.offset_of(thread, i);
  }
  ADABM_DEVICE uint32_t operator()(const Halo&, int, int i) const { return offsets_[i]; }
};
template <>
class PixelOffsets<0> {
 public:
  static constexpr int kUnroll = 1;
  ADABM_DEVICE PixelOffsets(const Halo&, int) {}
  ADABM_DEVICE uint32_t operator()(const Halo& h, int thread, int i) const { return h.offset_of(thread, i); }
};

// Does what copy_bytes does for codes of kStorage bits, 2 or 4, which become bytes on the way. A thread takes whole pixels, kGroupThreads from
// one to the next. kWide: pixels are multiples of 32 channels, so that whole vectors are read: then a batch of pixels is loaded before the
// first is unpacked.
template <int kPlanes, int kStorage, bool kWide, class Offsets>
ADABM_DEVICE void unpack_codes(const Halo& h, const Offsets& offsets, bool inside, int thread, const uint8_t* image, int pitch, int from, uint32_t to,
                               uint32_t plane_bytes) {
  constexpr int kWords = kPlanes * kStorage / 2, kVector = !kWide ? 1 : kWords > 4 ? 4 : kWords;
  constexpr int kBatch = !kWide ? 1 : Offsets::kUnroll == 1 ? (kWords > 4 ? 2 : 4) : kWords > 4 ? 3 : 5;
  const int there = pitch - from, pixels = h.pixels();
  const uint8_t* base = image + h.offset() + from;
  to += thread * kRowBytes;
#pragma unroll(kWide ? Offsets::kUnroll : 1)
  for (int first = 0; first * kGroupThreads < pixels; first += kBatch) {
    const auto some = [&](int i) { return (first + i) * kGroupThreads < pixels; };
    const auto mine = [&](int i) { return (first + i + 1) * kGroupThreads <= pixels || (first + i) * kGroupThreads + thread < pixels; };
    uint32_t words[kBatch][kWords];
    if (kWide && inside) {
#pragma unroll
      for (int i = 0; i < kBatch; i++)
        if (some(i)) {
          const uint8_t* source = base + offsets(h, thread, first + i);
#pragma unroll
          for (int word = 0; word < kWords; word += kVector) ptx::load_constant_words<kVector>(words[i] + word, source + 4 * word);
        }
    } else {
#pragma unroll
      for (int i = 0; i < kBatch; i++)
        if (some(i)) {
          const ImagePixel pixel = h.in_image(thread, first + i);
          const uint8_t* source = image + from + pixel.offset;
          const bool wanted = pixel.inside;
#pragma unroll
          for (int word = 0; word < kWords; word++) words[i][word] = 0;
#pragma unroll
          for (int word = 0; word < kWords; word += kVector)
            if (wanted && (kWide || 4 * word < there)) ptx::load_constant_words<kVector>(words[i] + word, source + 4 * word);
        }
    }
#pragma unroll
    for (int i = 0; i < kBatch; i++)
      if (mine(i)) {
        ptx::Words4 rows[kPlanes];
        bytes_of_codes<kPlanes, kStorage>(words[i], rows);
#pragma unroll
        for (int plane = 0; plane < kPlanes; plane++) ptx::store_shared(to + plane * plane_bytes + (first + i) * kGroupThreads * kRowBytes, rows[plane]);
      }
  }
}

// How the tiles of an image come in. Wide: a pixel is a multiple of 16 bytes, or of 32 channels where codes are packed.
enum class Route { kTensor, kBytes, kBytesNarrow, kFourBits, kFourBitsNarrow, kTwoBits, kTwoBitsNarrow };

// The constants of a producer for one image.
struct Image {
  const uint8_t* codes;
  int storage, pitch;
  Route route;
  ADABM_DEVICE Image(const Conv2dParams& p, int image, bool tensor)
      : codes(p.x_q + static_cast<int64_t>(image) * (p.height * p.width * p.code_channels)),  // an image has less than 2^31 bytes
        storage(storage_bits(image_bits(p.x_bits, image), p.packed_codes & ADABM_PACKED_X)), pitch(pixel_bytes(p.code_channels, storage)) {
    const bool wide = p.code_channels % kStepBytes == 0;
    if (storage == 8)
      route = tensor ? Route::kTensor : pitch % kRowBytes == 0 ? Route::kBytes : Route::kBytesNarrow;
    else if (storage == 4)
      route = wide ? Route::kFourBits : Route::kFourBitsNarrow;
    else
      route = wide ? Route::kTwoBits : Route::kTwoBitsNarrow;
  }
  ADABM_DEVICE bool tensor() const { return route == Route::kTensor; }
};

// All threads of the producer bring kPlanes rows of 16 channels, from the first_plane-th on, of a tile and its halo into shared memory, and arrive at the
// barrier when they are there.
template <int kPlanes, class Offsets>
ADABM_DEVICE void load_tile(const Conv2dParams& p, const Halo& h, const Offsets& offsets, bool inside, int thread, const Image& image, int first_plane,
                            uint32_t to, uint32_t barrier) {
  const uint32_t plane_bytes = p.plane_pixels * kRowBytes;
  const int from = first_plane * kRowBytes * image.storage / 8;
  const Route route = image.route;
  if (route == Route::kBytes || route == Route::kBytesNarrow) {
    if (route == Route::kBytesNarrow)
      copy_bytes<kPlanes, false, false>(h, thread, image.codes, image.pitch, from, to, plane_bytes);
    else if (inside)
      copy_bytes<kPlanes, true, true>(h, thread, image.codes, image.pitch, from, to, plane_bytes);
    else
      copy_bytes<kPlanes, true, false>(h, thread, image.codes, image.pitch, from, to, plane_bytes);
    return ptx::cp_async_arrive(barrier);
  }
  if (route == Route::kFourBits)
    unpack_codes<kPlanes, 4, true>(h, offsets, inside, thread, image.codes, image.pitch, from, to, plane_bytes);
  else if (route == Route::kTwoBits)
    unpack_codes<kPlanes, 2, true>(h, offsets, inside, thread, image.codes, image.pitch, from, to, plane_bytes);
  else if (route == Route::kFourBitsNarrow)
    unpack_codes<kPlanes, 4, false>(h, offsets, inside, thread, image.codes, image.pitch, from, to, plane_bytes);
  else
    unpack_codes<kPlanes, 2, false>(h, offsets, inside, thread, image.codes, image.pitch, from, to, plane_bytes);
  ptx::mbarrier_arrive(barrier);
}

// The copy engine brings them: one thread starts a box for each row of 16 channels of codes stored as bytes; the first pixel of the box is at
// the given row and column. The other threads only arrive.
template <int kPlanes>
ADABM_DEVICE void copy_tile(const Conv2dParams& p, const ptx::TensorMap& map, int thread, int row, int column, int image, int first_plane, uint32_t to,
                            uint32_t barrier) {
  if (thread == 0)
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
  // Afterwards the products of this thread may read the stage, whichever thread wrote it.
  ADABM_DEVICE void wait_full() const { ptx::mbarrier_wait(full(), parity), ptx::fence_async(); }
  // In the first round all stages are empty.
  ADABM_DEVICE void wait_empty() const { ptx::mbarrier_wait(empty(), parity ^ 1); }
  ADABM_DEVICE void next() {
    if (++stage == stages) stage = 0, parity ^= 1;
  }
};

// Tiles of the kernels whose weights are in registers: 3x3 taps and up to 64 channels. Their results are kTileRows by kTileColumns pixels,
// left out where `region` computes none of them; what is brought in begins kBefore pixels before those, up and to the left.
template <int kStrips, int kTileRows, int kTileColumns, int kBefore>
ADABM_DEVICE void produce_tiles(const Conv2dParams& p, const RegionParams& region, Ring ring, uint32_t stages, int stage_bytes, int blocks,
                                const ptx::TensorMap& map, int tensor_bytes) {
  constexpr int kPlanes = 2 * kResidentSteps, kColumns = kStrips * kStripColumns + 2, kRows = kStripRows + 2;
  constexpr int kRounds = (kColumns * kRows + kGroupThreads - 1) / kGroupThreads;
  const int thread = threadIdx.x % kGroupThreads;
  // The distance from one tile of the block to the next, in tiles and then in pixels.
  const int rows_on = blocks / p.inner_across, row_step = rows_on * kTileRows, column_step = (blocks - rows_on * p.inner_across) * kTileColumns;
  const int end_column = p.inner_across * kTileColumns, end_row = p.tiles / p.inner_across * kTileRows;
  int number = blockIdx.x / p.tiles, row = blockIdx.x - number * p.tiles;  // `row` is the number of the tile at first
  int column = row % p.inner_across * kTileColumns;
  row = row / p.inner_across * kTileRows;
  while (number < p.batch) {
    const Image image(p, number, tensor_bytes != 0);
    Halo h(kColumns, kRows, p.width, p.height, image.pitch, p.width * image.pitch);
    const PixelOffsets<kRounds <= 5 ? kRounds : 0> offsets(h, thread);
    for (; row < end_row; row += row_step, column += column_step) {
      if (column >= end_column) {
        column -= end_column, row += kTileRows;
        if (row >= end_row) break;
      }
      if (region.region.depth) {
        const Rectangle results = {row, column, row + kTileRows < p.height ? row + kTileRows : p.height,
                                   column + kTileColumns < p.width ? column + kTileColumns : p.width};
        if (!computes(share_of(region, number, results))) continue;
      }
      ring.wait_empty();
      const uint32_t to = stages + ring.stage * stage_bytes, full = ring.full();
      if (thread == 0) ptx::mbarrier_arrive_expect(full, image.tensor() ? kPlanes * tensor_bytes : 0);
      h.inner = column - kBefore, h.outer = row - kBefore;
      if (image.tensor())
        copy_tile<kPlanes>(p, map, thread, h.outer, h.inner, number, 0, to, full);
      else
        load_tile<kPlanes>(p, h, offsets, h.inside(), thread, image, 0, to, full);
      ring.next();
    }
    for (; row >= end_row; row -= end_row) number++;  // behind the last rows of an image tiles go on in the next image
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
    const int tile = item - number * p.tiles;
    // The tile is placed once more for its share, so that no place is kept in registers meanwhile.
    if (p.region.region.depth && !computes(share_of(p.region, number, pixels_of(p, place<kStrips>(p, ptx::opaque(tile)))))) continue;
    const Tile at = place<kStrips>(p, tile);
    const Image image(p, number, q.tensor_bytes != 0);
    const uint8_t* weights = packed + (p.border_kernels ? at.kernel : 0) * static_cast<int64_t>(p.tiling.tiles) * p.forms[0].tile_bytes;
    const int row = at.row - p.kernel_h / 2, column = at.column - p.kernel_w / 2, row_bytes = p.width * image.pitch;
    const bool upright = at.row_step == 1;
    Halo h = upright ? Halo(at.halo_rows, at.halo_columns, p.height, p.width, row_bytes, image.pitch)
                     : Halo(at.halo_columns, at.halo_rows, p.width, p.height, image.pitch, row_bytes);
    h.inner = upright ? row : column, h.outer = upright ? column : row;
    const bool inside = h.inside();
    for (int step = 0; step < q.steps; step++) {
      const int thread = ptx::opaque(threadIdx.x % kGroupThreads);  // numbers that follow from it are computed again, not kept in registers
      ring.wait_empty();
      const uint32_t to = stages + ring.stage * q.stage_bytes, full = ring.full();
      if (thread == 0) {
        ptx::mbarrier_arrive_expect(full, weight_bytes + (image.tensor() ? kPlanes * q.tensor_bytes : 0));
        ptx::bulk_copy(to + q.code_bytes, weights + static_cast<int64_t>(step) * weight_bytes, weight_bytes, full);
      }
      if (image.tensor())
        copy_tile<kPlanes>(p, q.map, thread, row, column, number, kPlanes * step, to, full);
      else
        load_tile<kPlanes>(p, h, PixelOffsets<0>(h, thread), inside, thread, image, kPlanes * step, to, full);
      ring.next();
    }
  }
  ptx::cp_async_commit(), ptx::cp_async_wait<0>();  // no thread ends with copies under way
}

}  // namespace sm90
}  // namespace cuda
}  // namespace adabm
