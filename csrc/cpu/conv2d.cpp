// The C entry of the convolution: checks every rule of the header, then hands bands of rows to the threads.
#include <cstring>

#include "common/rules.h"
#include "common/status.h"
#include "cpu/convolution.h"
#include "cpu/isa/choose.h"
#include "cpu/thread_pool.h"

namespace adabm {
namespace {

void check_bits(const int32_t* bits, int batch, const char* name) {
  for (int n = 0; n < batch; n++) ADABM_REQUIRE(bits[n] >= ADABM_MIN_BITS && bits[n] <= ADABM_MAX_BITS, "%s[%d] must be 2..8, got %d", name, n, bits[n]);
}

const PackedHeader& checked_header(const adabm_conv2d_args& a) {
  ADABM_REQUIRE(a.packed && a.packed_bytes >= kPackedHeaderBytes && reinterpret_cast<uintptr_t>(a.packed) % 64 == 0,
                "packed must be 64-byte aligned and hold a header");
  const PackedHeader& header = *static_cast<const PackedHeader*>(a.packed);
  ADABM_REQUIRE(header.magic == kPackedMagic && header.version == ADABM_ABI_VERSION && header.bytes == a.packed_bytes,
                "packed was not made by adabm_pack_cpu of this version");
  ADABM_REQUIRE(header.out_channels == a.out_channels && header.channels == a.channels && header.kernel_h == a.kernel_h && header.kernel_w == a.kernel_w,
                "packed holds %dx%dx%dx%d weights, not out_channels x kernel_h x kernel_w x channels = %dx%dx%dx%d", header.out_channels, header.kernel_h,
                header.kernel_w, header.channels, a.out_channels, a.kernel_h, a.kernel_w, a.channels);
  ADABM_REQUIRE(is_plain(header.geometry) ? is_plain(a.geometry) : !std::memcmp(&header.geometry, &a.geometry, sizeof a.geometry),
                "packed holds weights of another geometry");
  ADABM_REQUIRE(!header.general() || (header.shuffle == a.shuffle && header.box_filter == a.box_filter),
                "packed holds weights of shuffle %d and box_filter %d, not of %d and %d", header.shuffle, header.box_filter, a.shuffle, a.box_filter);
  return header;
}

}  // namespace
}  // namespace adabm

extern "C" adabm_status adabm_conv2d_cpu(const adabm_conv2d_args* args) {
  using namespace adabm;
  return guarded([&] {
    ADABM_REQUIRE(args && args->struct_bytes == sizeof(adabm_conv2d_args), "args must be a struct of %zu bytes", sizeof(adabm_conv2d_args));
    const adabm_conv2d_args& a = *args;
    ADABM_REQUIRE(a.threads >= 1 && a.threads <= kMaxThreads, "threads must be 1..%d, got %d", kMaxThreads, a.threads);
    ADABM_REQUIRE(!a.packed_codes, "packed_codes must be 0 on the CPU, got %d", a.packed_codes);
    check_rules(a);
    const PackedHeader& header = checked_header(a);
    const int64_t out_width = axes_of(header.geometry, header.kernel_h, header.kernel_w).columns.outputs(a.width);
    ADABM_REQUIRE(static_cast<int64_t>(a.width) * header.quads() * 4 * header.kernel_h < INT32_MAX &&
                      out_width * (header.out_channels + 3 * a.shuffle * a.shuffle) < INT32_MAX,
                  "width %d is too large for %d to %d channels", a.width, header.channels, header.out_channels);
    ADABM_REQUIRE(!header.border_kernels || (a.height >= header.kernel_h && a.width >= header.kernel_w),
                  "height and width must be at least the kernel's %dx%d with border_kernels, got %dx%d", header.kernel_h, header.kernel_w, a.height, a.width);
    check_bits(a.x_bits, a.batch, "x_bits");
    if (a.y_q) check_bits(a.out_bits, a.batch, "out_bits");
    const Convolution conv(a, choose_kernels(a.isa), header);
    parallel_for(
        a.threads, static_cast<int>(conv.bands.all().size()),
        [](void* context, int task) {
          const Convolution& c = *static_cast<const Convolution*>(context);
          c.run_band(c.bands.all()[task]);
        },
        const_cast<Convolution*>(&conv));
  });
}
