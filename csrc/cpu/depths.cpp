// Finds the depth of each depth tile: deep where the image bends by more than a threshold in the tile.
//
// The second difference of neighbouring pixels along rows and along columns is 0 on flat colours and on even slopes, however steep: a small
// filter upscales these as well as the whole network does (docs/depth.md). The largest second difference in a tile, in any colour, is
// compared with the threshold. Neighbours may lie in other tiles; at the border of the image a pixel is its own neighbour.
#include <algorithm>
#include <vector>

#include "common/rules.h"
#include "common/status.h"
#include "cpu/thread_pool.h"

namespace {

constexpr int kPixelBytes = 4;

// most[i] = max(most[i], |before[i] - 2 * at[i] + after[i]|), which fits 10 bits.
void take_second_differences(const uint8_t* before, const uint8_t* at, const uint8_t* after, int count, int16_t* most) {
  for (int i = 0; i < count; i++) {
    const int16_t change = static_cast<int16_t>(before[i] - 2 * at[i] + after[i]), other = static_cast<int16_t>(-change);
    const int16_t size = change > other ? change : other;
    most[i] = most[i] > size ? most[i] : size;
  }
}

// Finds the depths of one row of tiles of an image.
void find_depths(const adabm_depths_args& a, int image, int tile_row) {
  const int first = std::max(tile_row * a.tile - a.top, 0), end = std::min((tile_row + 1) * a.tile - a.top, a.height);
  const int columns = (a.left + a.width + a.tile - 1) / a.tile, row_bytes = a.width * kPixelBytes;
  const uint8_t* x = a.x_q + static_cast<ptrdiff_t>(image) * a.height * row_bytes;
  static thread_local std::vector<int16_t> most;
  most.assign(row_bytes, 0);
  for (int row = first; row < end; row++) {
    const uint8_t* at = x + static_cast<ptrdiff_t>(row) * row_bytes;
    take_second_differences(row ? at - row_bytes : at, at, row + 1 < a.height ? at + row_bytes : at, row_bytes, most.data());
    const int last = row_bytes - kPixelBytes;
    if (a.width == 1) continue;
    take_second_differences(at, at, at + kPixelBytes, kPixelBytes, most.data());
    take_second_differences(at, at + kPixelBytes, at + 2 * kPixelBytes, last - kPixelBytes, most.data() + kPixelBytes);
    take_second_differences(at + last - kPixelBytes, at + last, at + last, kPixelBytes, most.data() + last);
  }
  uint8_t* depth = a.depth + (static_cast<ptrdiff_t>(image) * ((a.top + a.height + a.tile - 1) / a.tile) + tile_row) * columns;
  for (int tile = 0; tile < columns; tile++) {
    const int from = std::max(tile * a.tile - a.left, 0), to = std::min((tile + 1) * a.tile - a.left, a.width);
    int16_t bend = 0;
    for (int i = from * kPixelBytes; i < to * kPixelBytes; i++) bend = bend > most[i] ? bend : most[i];
    depth[tile] = static_cast<uint8_t>(bend > a.threshold ? a.deep : 0);
  }
}

}  // namespace

extern "C" adabm_status adabm_depths_cpu(const adabm_depths_args* args) {
  using namespace adabm;
  return guarded([&] {
    ADABM_REQUIRE(args && args->struct_bytes == sizeof(adabm_depths_args), "args must be a struct of %zu bytes", sizeof(adabm_depths_args));
    const adabm_depths_args& a = *args;
    ADABM_REQUIRE(a.threads >= 1 && a.threads <= kMaxThreads, "threads must be 1..%d, got %d", kMaxThreads, a.threads);
    check_rules(a);
    const int tile_rows = (a.top + a.height + a.tile - 1) / a.tile;
    struct Job {
      const adabm_depths_args& a;
      int tile_rows;
    } job = {a, tile_rows};
    parallel_for(
        a.threads, a.batch * tile_rows,
        [](void* context, int task) {
          const Job& job = *static_cast<const Job*>(context);
          find_depths(job.a, task / job.tile_rows, task % job.tile_rows);
        },
        &job);
  });
}
