// Cubic interpolation of the smooth parts of a picture, blended into the output of the network.
#include <algorithm>
#include <vector>

#include "common/rules.h"
#include "common/status.h"
#include "cpu/isa/choose.h"
#include "cpu/thread_pool.h"

namespace {

constexpr int kRows = 8, kColumns = 32;  // size of a tile in low-resolution pixels: its enlarged pixels stay in the nearest caches
constexpr int kReach = adabm::kCubicTaps / 2;
constexpr int kPadding = 16;  // floats that vectors may read beyond a row

struct Job {
  const adabm_interpolate_args& a;
  const adabm::Kernels& kernels;
  int across;  // tiles in a row
};

// Finds the largest and the smallest share in a tile and around it.
std::pair<int, int> extremes(const adabm_interpolate_args& a, int top, int left, int rows, int columns) {
  int most = 0, least = a.full;
  for (int row = 0; row < rows + 2; row++) {
    const int16_t* shares = a.shares + static_cast<ptrdiff_t>(top + row) * (a.width + 2) + left;
    for (int column = 0; column < columns + 2; column++) {
      most = std::max<int>(most, shares[column]);
      least = std::min<int>(least, shares[column]);
    }
  }
  return {most, least};
}

// Copies the pixels of a tile and around it to planes of floats, [channels][rows][pitch]; beyond its borders the outermost pixels of x are
// repeated.
template <class T>
void take(const adabm_interpolate_args& a, int top, int left, int rows, int columns, ptrdiff_t pitch, float* out) {
  for (int c = 0; c < a.channels; c++)
    for (int row = 0; row < rows; row++, out += pitch) {
      const int y = std::clamp(a.top + top + row - kReach, 0, a.x_height - 1);
      const T* x = static_cast<const T*>(a.x) + y * a.x_stride_h + c * a.x_stride_c;
      for (int column = 0; column < columns; column++)
        out[column] = static_cast<float>(x[std::clamp(a.left + left + column - kReach, 0, a.x_width - 1) * a.x_stride_w]);
    }
}

void interpolate_task(void* context, int task) {
  const Job& job = *static_cast<const Job*>(context);
  const adabm_interpolate_args& a = job.a;
  const int top = task / job.across * kRows, left = task % job.across * kColumns;
  const int rows = std::min(kRows, a.height - top), columns = std::min(kColumns, a.width - left);
  const auto [most, least] = extremes(a, top, left, rows, columns);
  if (!most) return;
  adabm::InterpolateArgs t = {};
  t.rows = rows, t.columns = columns, t.channels = a.channels, t.scale = a.scale, t.element = a.element;
  t.cubic = a.cubic, t.linear = a.linear;
  t.x_pitch = kColumns + adabm::kCubicTaps - 1 + kPadding;
  t.pitch = static_cast<ptrdiff_t>(kColumns) * a.scale * a.channels + kPadding;
  thread_local std::vector<float> scratch;
  const size_t held = kRows + adabm::kCubicTaps - 1;
  scratch.resize(held * (t.x_pitch * (a.channels + 1) + t.pitch * 2));
  float* x = scratch.data();
  float* shares = x + held * t.x_pitch * a.channels;
  t.x = x, t.enlarged = shares + held * t.x_pitch, t.enlarged_shares = t.enlarged + held * t.pitch;
  const int taken_rows = rows + adabm::kCubicTaps - 1, taken_columns = columns + adabm::kCubicTaps - 1;
  if (a.element == 1)
    take<uint8_t>(a, top, left, taken_rows, taken_columns, t.x_pitch, x);
  else if (a.element == 2)
    take<uint16_t>(a, top, left, taken_rows, taken_columns, t.x_pitch, x);
  else
    take<float>(a, top, left, taken_rows, taken_columns, t.x_pitch, x);
  if (least < a.full) {
    t.shares = shares;
    for (int row = 0; row < rows + 2; row++)
      for (int column = 0; column < columns + 2; column++)
        shares[row * t.x_pitch + column] =
            static_cast<float>(a.shares[static_cast<ptrdiff_t>(top + row) * (a.width + 2) + left + column]) / static_cast<float>(a.full);
  }
  t.y_stride = a.y_stride_h, t.y_pitch = a.y_pitch;
  t.y = static_cast<char*>(a.y) + a.element * (static_cast<ptrdiff_t>(top) * a.scale * a.y_stride_h + static_cast<ptrdiff_t>(left) * a.scale * a.y_pitch);
  job.kernels.interpolate_tile(t);
}

}  // namespace

extern "C" adabm_status adabm_interpolate_cpu(const adabm_interpolate_args* args) {
  return adabm::guarded([&] {
    ADABM_REQUIRE(args && args->struct_bytes == sizeof(adabm_interpolate_args), "args must be a struct of %zu bytes", sizeof(adabm_interpolate_args));
    const adabm_interpolate_args& a = *args;
    ADABM_REQUIRE(a.threads >= 1 && a.threads <= adabm::kMaxThreads, "threads must be 1..%d, got %d", adabm::kMaxThreads, a.threads);
    ADABM_REQUIRE(a.height > 0 && a.width > 0 && a.height <= 1 << 20 && a.width <= 1 << 20, "height and width must be 1..2^20, got %d and %d", a.height,
                  a.width);
    ADABM_REQUIRE(a.channels >= 1 && a.channels <= 4, "channels must be 1..4, got %d", a.channels);
    ADABM_REQUIRE(a.scale >= 1 && a.scale <= 16, "scale must be 1..16, got %d", a.scale);
    ADABM_REQUIRE(a.element == 1 || a.element == 2 || a.element == 4, "element must be 1, 2 or 4 bytes, got %d", a.element);
    ADABM_REQUIRE(a.x && a.shares && a.cubic && a.linear && a.y, "x, shares, cubic, linear and y must not be null");
    adabm::check_aligned({{a.x, "x"}, {a.y, "y"}}, a.element);
    adabm::check_aligned({{a.shares, "shares"}}, 2);
    adabm::check_aligned({{a.cubic, "cubic"}, {a.linear, "linear"}}, 4);
    ADABM_REQUIRE(a.x_height > 0 && a.x_width > 0, "x_height and x_width must be positive, got %d and %d", a.x_height, a.x_width);
    const int64_t bottom = static_cast<int64_t>(a.top) + a.height, right = static_cast<int64_t>(a.left) + a.width;
    ADABM_REQUIRE(a.top >= 0 && a.left >= 0 && bottom <= a.x_height && right <= a.x_width,
                  "what is interpolated must lie within x, %dx%d, got %dx%d from %d, %d", a.x_height, a.x_width, a.height, a.width, a.top, a.left);
    ADABM_REQUIRE(a.full > 0 && a.full <= INT16_MAX, "full must be 1..32767, got %d", a.full);
    ADABM_REQUIRE(a.y_pitch >= a.channels, "y_pitch must be at least channels %d, got %d", a.channels, a.y_pitch);
    const int across = (a.width + kColumns - 1) / kColumns, down = (a.height + kRows - 1) / kRows;
    ADABM_REQUIRE(static_cast<int64_t>(across) * down < INT32_MAX, "height times width must be smaller, got %dx%d", a.height, a.width);
    Job job = {a, adabm::choose_kernels(a.isa), across};
    adabm::parallel_for(a.threads, across * down, interpolate_task, &job);
  });
}
