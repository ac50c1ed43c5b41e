// The CPU library called from several threads at once: convolutions of every form, packing, quantisation, depths and interpolation,
// each with several threads of the library's own. Every call must give what it gives alone. Built with a sanitizer for threads, or
// with those for addresses, undefined behaviour and leaks.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <thread>
#include <vector>

#include "adabm/adabm.h"

namespace {

constexpr int kHeight = 13, kWidth = 21, kBatch = 2, kThreads = 3;

struct Form {
  const char* name;
  int channels, outputs, kernel, tile;
  adabm_geometry geometry;
};

const Form kForms[] = {
    {"direct", 12, 20, 3, ADABM_TILE_DIRECT, {}},
    {"tiled", 12, 20, 3, 2, {}},
    {"large", 5, 8, 5, ADABM_TILE_DIRECT, {}},
    {"strided", 8, 12, 3, ADABM_TILE_DIRECT, {2, 2, 1, 1, 1, 1, 1, 1, 1}},
    {"dilated groups", 12, 12, 3, ADABM_TILE_DIRECT, {1, 1, 2, 2, 3, 2, 2, 2, 2}},
    {"depthwise", 17, 17, 3, ADABM_TILE_DIRECT, {1, 1, 1, 1, 17, 1, 1, 1, 1}},
};

bool ok(adabm_status status, const char* what) {
  if (status != ADABM_OK) std::printf("%s: %s\n", what, adabm_last_error());
  return status == ADABM_OK;
}

// Whole numbers that differ from place to place.
template <class T>
std::vector<T> numbers(size_t count, int low, int high) {
  std::vector<T> made(count);
  for (size_t i = 0; i < count; i++) made[i] = static_cast<T>(low + static_cast<int>((static_cast<uint32_t>(i) * 2654435761u >> 7) % static_cast<uint32_t>(high - low + 1)));
  return made;
}

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

// The bytes that a convolution of this form gives; none where a call fails.
std::vector<uint8_t> convolve(const Form& form, int threads) {
  const adabm_geometry& g = form.geometry;
  const bool plain = g.stride_h == 0;
  const int groups = plain ? 1 : g.groups, k = form.outputs, r = form.kernel;
  const int rows = plain ? kHeight : (kHeight + g.pad_top + g.pad_bottom - g.dilation_h * (r - 1) - 1) / g.stride_h + 1;
  const int columns = plain ? kWidth : (kWidth + g.pad_left + g.pad_right - g.dilation_w * (r - 1) - 1) / g.stride_w + 1;
  const std::vector<int8_t> weight = numbers<int8_t>(static_cast<size_t>(k) * r * r * form.channels / groups, -7, 7);
  adabm_weights weights = {};
  weights.struct_bytes = sizeof weights, weights.out_channels = k, weights.channels = form.channels, weights.kernel_h = weights.kernel_w = r;
  weights.weight = weight.data(), weights.shuffle = 1, weights.geometry = g;
  weights.tile_for_bits[2] = form.tile;
  uint64_t bytes = 0;
  if (!ok(adabm_pack_bytes_cpu(&weights, &bytes), form.name)) return {};
  const std::unique_ptr<void, Free> packed(std::aligned_alloc(64, (bytes + 63) / 64 * 64));
  if (!ok(adabm_pack_cpu(&weights, packed.get()), form.name)) return {};

  const int c4 = (form.channels + 3) / 4 * 4, k4 = (k + 3) / 4 * 4;
  std::vector<uint8_t> x(static_cast<size_t>(kBatch) * kHeight * kWidth * c4);
  for (size_t i = 0; i < x.size(); i++) x[i] = static_cast<int>(i % c4) < form.channels ? i * 7 % 16 : 0;
  const std::vector<int32_t> bits(kBatch, 4);
  const std::vector<float> alpha(7 * k, 0.125f), beta(static_cast<size_t>(64 + kHeight * kWidth) * k, 0.5f), grid(14, 0.25f);
  std::vector<float> y(static_cast<size_t>(kBatch) * rows * columns * k);
  std::vector<uint8_t> y_q(static_cast<size_t>(kBatch) * rows * columns * k4);
  adabm_conv2d_args a = {};
  a.struct_bytes = sizeof a, a.threads = threads, a.batch = kBatch, a.height = kHeight, a.width = kWidth, a.out_channels = k;
  a.channels = form.channels, a.kernel_h = a.kernel_w = r, a.x_q = x.data(), a.x_bits = bits.data(), a.packed = packed.get();
  a.packed_bytes = bytes, a.activation = ADABM_ACT_RELU, a.shuffle = 1, a.alpha = alpha.data(), a.beta = beta.data();
  a.out_grid = grid.data(), a.out_bits = bits.data(), a.y = y.data(), a.y_q = y_q.data(), a.geometry = g;
  if (!ok(adabm_conv2d_cpu(&a), form.name)) return {};
  const uint8_t* first = reinterpret_cast<const uint8_t*>(y.data());
  y_q.insert(y_q.end(), first, first + y.size() * sizeof(float));
  return y_q;
}

std::vector<uint8_t> quantize(int threads) {
  constexpr int kChannels = 7, kCodes = 8;
  const std::vector<float> x = numbers<float>(static_cast<size_t>(kBatch) * kHeight * kWidth * kChannels, -20, 20), grid(14, 0.75f);
  const std::vector<int32_t> bits(kBatch, 5);
  std::vector<uint8_t> y_q(static_cast<size_t>(kBatch) * kHeight * kWidth * kCodes);
  adabm_quantize_args a = {};
  a.struct_bytes = sizeof a, a.threads = threads, a.batch = kBatch, a.height = kHeight, a.width = kWidth, a.channels = kChannels;
  a.stride_n = kHeight * kWidth * kChannels, a.stride_h = kWidth * kChannels, a.stride_w = kChannels, a.stride_c = 1;
  a.x = x.data(), a.grid = grid.data(), a.bits = bits.data(), a.y_q = y_q.data();
  return ok(adabm_quantize_cpu(&a), "quantize") ? y_q : std::vector<uint8_t>();
}

std::vector<uint8_t> depths(int threads) {
  const std::vector<uint8_t> x = numbers<uint8_t>(static_cast<size_t>(kBatch) * kHeight * kWidth * 4, 0, 30);
  std::vector<uint8_t> depth(static_cast<size_t>(kBatch) * 4 * 6);
  adabm_depths_args a = {};
  a.struct_bytes = sizeof a, a.threads = threads, a.batch = kBatch, a.height = kHeight, a.width = kWidth, a.x_q = x.data();
  a.tile = 4, a.threshold = 40, a.deep = 3, a.depth = depth.data();
  return ok(adabm_depths_cpu(&a), "depths") ? depth : std::vector<uint8_t>();
}

std::vector<uint8_t> interpolate(int threads) {
  constexpr int kScale = 2, kChannels = 3;
  const std::vector<uint8_t> x = numbers<uint8_t>(kHeight * kWidth * kChannels, 0, 255);
  const std::vector<int16_t> shares((kHeight + 2) * (kWidth + 2), 9);
  const std::vector<float> cubic(kScale * 5, 0.2f), linear(kScale * 3, 0.25f);
  std::vector<uint8_t> y(static_cast<size_t>(kHeight) * kScale * kWidth * kScale * kChannels);
  adabm_interpolate_args a = {};
  a.struct_bytes = sizeof a, a.threads = threads, a.height = a.x_height = kHeight, a.width = a.x_width = kWidth, a.channels = kChannels;
  a.scale = kScale, a.element = 1, a.x_stride_h = kWidth * kChannels, a.x_stride_w = kChannels, a.x_stride_c = 1, a.x = x.data();
  a.shares = shares.data(), a.full = 9, a.y_pitch = kChannels, a.cubic = cubic.data(), a.linear = linear.data(), a.y = y.data();
  a.y_stride_h = kWidth * kScale * kChannels;
  return ok(adabm_interpolate_cpu(&a), "interpolate") ? y : std::vector<uint8_t>();
}

std::vector<std::vector<uint8_t>> everything(int threads) {
  std::vector<std::vector<uint8_t>> results;
  for (const Form& form : kForms) results.push_back(convolve(form, threads));
  results.push_back(quantize(threads)), results.push_back(depths(threads)), results.push_back(interpolate(threads));
  return results;
}

}  // namespace

int main(int count, char** arguments) {
  const int rounds = count > 1 ? std::atoi(arguments[1]) : 10, callers = count > 2 ? std::atoi(arguments[2]) : 4;
  const std::vector<std::vector<uint8_t>> alone = everything(1);
  int empty = 0;
  for (const std::vector<uint8_t>& result : alone) empty += result.empty();
  std::vector<int> differing(callers, 0);  // each thread writes its own
  std::vector<std::thread> threads;
  for (int caller = 0; caller < callers; caller++)
    threads.emplace_back([&, caller] {
      for (int round = 0; round < rounds; round++) differing[caller] += everything(kThreads) != alone;
    });
  for (std::thread& thread : threads) thread.join();
  int failures = empty;
  for (int of_caller : differing) failures += of_caller;
  std::printf("%d failures\n", failures);
  return failures != 0;
}
