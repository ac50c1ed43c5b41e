/* The whole public C ABI of adabm_kernels. Parses as C99; includes nothing but fixed-size integers.
 *
 * Conventions: every entry returns a status; the message of the last failure on the calling thread is in
 * adabm_last_error(). Entries keep no pointer and throw nothing; those of the CUDA library that take a stream allocate nothing, those of
 * the CPU library only scratch memory that each thread keeps, as large as one band of the widest layer asks for.
 * Pointers to elements of 2 and 4 bytes are aligned to these. Tensors are dense, row major. Codes are unsigned bytes [N, H, W, C4] with C4 = C rounded up to a multiple of 4 and the
 * padding channels holding 0. Tables for run-time bit-widths have one row for each of 2, 3, ..., 8 bits.
 */
#ifndef ADABM_ADABM_H_
#define ADABM_ADABM_H_

#include <stdint.h>

#if defined(_WIN32)
#define ADABM_API __declspec(dllexport)
#else
#define ADABM_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define ADABM_ABI_VERSION 12
#define ADABM_MIN_BITS 2
#define ADABM_MAX_BITS 8
#define ADABM_BIT_WIDTHS 7

typedef int32_t adabm_status;
enum {
  ADABM_OK = 0,
  ADABM_INVALID_ARGUMENT = 1, /* a rule of this header is broken; the message names argument, rule and value */
  ADABM_UNSUPPORTED = 2,      /* right, but not on this machine or in this build */
  ADABM_INTERNAL = 3          /* our own fault */
};

enum { ADABM_ACT_NONE = 0, ADABM_ACT_RELU = 1, ADABM_ACT_PRELU = 2 };

/* Which code tensors are stored packed, at s bits a code: 2 for images of 2 bits, 4 for 3 and 4 bits, 8 above. Image n still starts at
 * byte n * H * W * C4; its pixels are ceil(C4 * s / 32) * 4 bytes each, channels from the low bits up. */
enum { ADABM_PACKED_X = 1, ADABM_PACKED_Y = 2 };

/* How features are stored, those of y, residual and a quantisation's x: float32, or int16 in units of 2^-fraction,
 * ADABM_MIN_FRACTION <= fraction <= ADABM_MAX_FRACTION:
 *
 *   stored = clamp(round_half_even(v * 2^fraction), -32767, 32767)      of NaN -32767
 *   value  = float(stored) * 2^-fraction                                exact
 *
 * Where a convolution writes y as int16, all that it gives is of the value that y holds, y_q too. The kernels may multiply alpha and beta
 * rather than v by 2^fraction, so both must stay finite: below 2^(128 - fraction) in magnitude, 2^104 for the largest fraction. */
enum { ADABM_FEATURES_FLOAT32 = 0, ADABM_FEATURES_INT16 = 1 };
#define ADABM_MIN_FRACTION (-16)
#define ADABM_MAX_FRACTION 24

/* Instruction sets of the CPU library, slowest first. */
enum {
  ADABM_ISA_AUTO = 0,
  ADABM_ISA_SCALAR = 1,
  ADABM_ISA_NEON = 2,
  ADABM_ISA_AVX2 = 3,
  ADABM_ISA_AVXVNNI = 4,
  ADABM_ISA_AVX512VNNI = 5,
  ADABM_ISA_AMX = 6,
  ADABM_ISA_COUNT = 7
};

/* Ways to compute a convolution: directly, or by tiles F(2, 3) along the rows times F(1|2|3|4, 3) along the columns, or by F(4, 3) along
 * both on operands of 16 bits, or for kernels of 5x5 by F(2, 5) along both on operands of 16 bits, or for few outputs, and kernels of
 * 3, 9 or 15 rows, by F(4, 3) along the rows with the kernel's columns as outputs, or by F(3, 3) along the rows times F(3|4, 3) along
 * the columns (adabm_kernels/planning/tiles.py). */
enum {
  ADABM_TILE_DIRECT = 0,
  ADABM_TILE_F2X1 = 1,
  ADABM_TILE_F2X2 = 2,
  ADABM_TILE_F2X3 = 3,
  ADABM_TILE_F2X4 = 4,
  ADABM_TILE_F4X4 = 5,
  ADABM_TILE_F2X2_5X5 = 6,
  ADABM_TILE_F4_KN2ROW = 7,
  ADABM_TILE_F3X3 = 8,
  ADABM_TILE_F3X4 = 9,
  ADABM_TILE_COUNT = 10
};

ADABM_API int32_t adabm_abi_version(void);
ADABM_API const char* adabm_last_error(void);

/* ---- CPU library ------------------------------------------------------------------------------------------------ */

/* Whether an instruction set was built into the library, and whether this processor has it and the operating system lets this process
 * use it: for AMX that is asked for at the first call that may need it. */
ADABM_API adabm_status adabm_isa_cpu(int32_t isa, int32_t* built, int32_t* present);

#define ADABM_MAX_STEP 1024

/* How a kernel goes over an image. Where stride_h is 0 the rest is not read and the geometry is plain: stride 1, taps side by side, one
 * group, and kernel / 2 zeros around the image, of a kernel with odd sides. Otherwise tap (r, s) of output (i, j) lies on pixel
 * (i * stride_h - pad_top + r * dilation_h, j * stride_w - pad_left + s * dilation_w), zero outside the image, and the output has
 * (H + pad_top + pad_bottom - dilation_h * (R - 1) - 1) / stride_h + 1 rows, columns likewise. Group g has channels g * C / groups on, and
 * of the outputs those from g * K / groups on as they are before a PixelShuffle: o % (K / r^2) * r^2 + o / (K / r^2) for output o. */
/* Comments beside fields are aligned by hand. */
/* clang-format off */
typedef struct {
  int32_t stride_h, stride_w;     /* 1..ADABM_MAX_STEP, or stride_h 0 */
  int32_t dilation_h, dilation_w; /* 1..ADABM_MAX_STEP */
  int32_t groups;                 /* divides channels and out_channels */
  int32_t pad_top, pad_left, pad_bottom, pad_right; /* 0..ADABM_MAX_STEP */
} adabm_geometry;

typedef struct {
  uint32_t struct_bytes; /* sizeof(adabm_weights) */
  int32_t out_channels, channels; /* at most 2^16 */
  int32_t kernel_h, kernel_w;     /* at most 15; odd where the geometry is plain */
  int32_t border_kernels;                    /* 1: a kernel of its own for every border class of the pixel, see below; plain geometry */
  const int8_t* weight;                      /* [K, R, S, C / groups], or [R, S, K, R, S, C] with border_kernels */
  int32_t tile_for_bits[ADABM_BIT_WIDTHS];   /* ADABM_TILE_* for codes of 2..8 bits; refused where it would not be exact */
  int32_t box_filter, shuffle;               /* those of the convolution; read where the geometry is not plain */
  adabm_geometry geometry;
} adabm_weights;

/* Bytes of the packed form, which depend on the weights where there are tiles, and the packing itself; `packed` is 64-byte aligned. */
ADABM_API adabm_status adabm_pack_bytes_cpu(const adabm_weights* weights, uint64_t* bytes);
ADABM_API adabm_status adabm_pack_cpu(const adabm_weights* weights, void* packed);

/* Where a layer computes, by the depth of each tile of an image: how many blocks of the network are computed there.
 *
 * A pixel is computed where the depth of its own tile is in own_least..own_most and a tile whose depth is in near_least..near_most
 * has a pixel at most `reach` rows and columns away. It is passed on where it is not computed and a tile whose depth is in
 * pass_least..pass_most has a pixel at most pass_reach rows and columns away; no pixel is where pass_least is above pass_most.
 * Nothing is written of other pixels, with one exception: a convolution that gives y_q alone, without a residual, and passes
 * nothing on may write any codes around what it computes. Pixels are those of x, each with its shuffle * shuffle pixels of the output. */
typedef struct {
  const uint8_t* depth;  /* [N, ceil((top + H) / tile), ceil((left + W) / tile)]; null: every pixel is computed, the rest is not read */
  int32_t tile;          /* pixels a side, at most 2^20 */
  int32_t top, left;     /* pixels that the first row and column of tiles lack, 0..tile - 1 */
  int32_t own_least, own_most, near_least, near_most, reach;  /* depths 0..255; reach 0..tile */
  int32_t pass_least, pass_most, pass_reach;                  /* convolutions only */
} adabm_region;

/* Integer convolution with zero padding of the codes and a fused epilogue:
 *
 *   acc  = SUM x_q * w                        (times 2, plus SUM x_q, where box_filter is set: the weights are then 2w + 1)
 *   v    = fma(float(acc), alpha[bits][o], beta[row class][column class][o])
 *   v    = activation(v)                      PReLU: v < 0 ? slope[o] * v : v
 *   v    = residual + v                       where residual is given
 *   v    = what int16 holds of it             where y_format is ADABM_FEATURES_INT16
 *   code = clamp(round_half_even(fma(v, out_grid[out_bits][0], out_grid[out_bits][1])), 0, 2^out_bits - 1)
 *
 * in float32. `alpha` has a row per bit-width of the input codes; border classes are Axis.border_class of adabm_kernels/quantize.py: the
 * taps that an output lacks before the image, times one more than can be missing after it, plus those that it lacks after it. As many can
 * be missing as there are taps in the padding: R' = min(R, ceil(pad_top / dilation_h)) before and so on, R / 2 on each side where the
 * geometry is plain. H and W are those of the output in what follows, which equal the image's there. With shuffle r > 1 the output has
 * size [H*r, W*r] and out_channels / r^2 channels: output
 * o = (i*r + j) * (out_channels / r^2) + c goes to channel c of pixel (y*r + i, x*r + j). Any of y, y_q, y_acc may be
 * null, not all. residual may be the same memory as y.
 *
 * With border_kernels the first axes of weight and beta are the classes of row and column: the first R/2 and the last R/2
 * pixels have one each and all others share the one between, R (and S) in all. The image must have R rows and S columns.
 */
typedef struct {
  uint32_t struct_bytes; /* sizeof(adabm_conv2d_args) */
  int32_t isa;           /* ADABM_ISA_* */
  int32_t threads;       /* 1..256; CPU only */
  int32_t batch, height, width; /* sides at most 2^20, batch * height below 2^31 */
  int32_t out_channels, channels, kernel_h, kernel_w; /* K, C, R, S: what the weights were packed from */
  const uint8_t* x_q;       /* [N, H, W, C4] */
  const int32_t* x_bits;    /* [N], 2..8 */
  const void* packed;       /* from adabm_pack_cpu */
  uint64_t packed_bytes;
  int32_t box_filter;
  int32_t activation;       /* ADABM_ACT_* */
  int32_t shuffle;          /* 1..16 */
  const float* alpha;       /* [7, K] */
  const float* beta;        /* [classes of rows, classes of columns, K], (R/2+1)^2 x (S/2+1)^2 of them where the geometry is plain; or
                               [R, S, K] with border_kernels */
  const float* slope;       /* [K], PReLU only */
  const void* residual;     /* shape of y, or null; float32 or int16 by y_format */
  const float* out_grid;    /* [7, 2], where y_q is given */
  const int32_t* out_bits;  /* [N], where y_q is given */
  void* y;                  /* [N, H*r, W*r, K/r^2]; float32 or int16 by y_format */
  uint8_t* y_q;             /* [N, H*r, W*r, (K/r^2)4] */
  int32_t* y_acc;           /* as y: the accumulators, for tests */
  int32_t y_pitch;          /* elements from one pixel of y, residual and y_acc to the next, at least K; 0 stands for K/r^2.
                               Anything else only without shuffle: y is then a slice of wider features */
  int32_t packed_codes;     /* CUDA only: ADABM_PACKED_X and ADABM_PACKED_Y, or 0 */
  int32_t border_kernels;   /* CUDA only: that of adabm_weights; elsewhere the packed form says so */
  int32_t config;           /* CUDA of compute capability 9.0 only: i + 1 takes configuration i of the kernel (adabm_config_cuda), 0 lets the library choose */
  int32_t y_format;         /* ADABM_FEATURES_*, of residual and y, and of v where neither is given; FLOAT32 with y_acc or y_image, y_pitch or a
                               shuffle above 1 */
  int32_t y_fraction;       /* of ADABM_FEATURES_INT16, else 0 */
  uint8_t* y_image;         /* not with y_q or y_pitch: [N, H*r, W*r, K/r^2], clamp(round_half_even(v), 0, 255) */
  adabm_region region;      /* of pixels that are passed on v is the residual, or 0 without one; not with shuffle above 1, y_acc or y_image;
                               only where the output has the size of the image */
  adabm_geometry geometry;  /* that of the weights; plain on CUDA */
} adabm_conv2d_args;

ADABM_API adabm_status adabm_conv2d_cpu(const adabm_conv2d_args* args);

/* code = clamp(round_half_even(fma(x - shift[c], grid[bits][0], grid[bits][1])), 0, 2^bits - 1) */
typedef struct {
  uint32_t struct_bytes; /* sizeof(adabm_quantize_args) */
  int32_t isa, threads;
  int32_t batch, height, width, channels;
  int64_t stride_n, stride_h, stride_w, stride_c; /* of x, in elements; stride_c 0..2^27-1 */
  const void* x;         /* float32 or int16 by x_format */
  const float* shift;    /* [C] or null; null with int16 */
  const float* grid;     /* [7, 2] */
  const int32_t* bits;   /* [N] */
  uint8_t* y_q;          /* [N, H, W, y_pitch] from the first channel to write on */
  int32_t y_channels;    /* codes written for each pixel, those beyond the channels 0; 0 stands for C4 */
  int32_t y_pitch;       /* codes from one pixel to the next; 0 stands for C4 */
  int32_t packed_codes;  /* CUDA only: ADABM_PACKED_Y or 0; y_channels must then be 0, and y_q be all of a buffer with C4 = y_pitch */
  int32_t y_start;       /* CUDA only, with ADABM_PACKED_Y: first channel to write, a multiple of 4 */
  int32_t x_format;      /* ADABM_FEATURES_* */
  int32_t x_fraction;    /* of ADABM_FEATURES_INT16, else 0 */
  adabm_region region;   /* passes nothing on */
} adabm_quantize_args;

ADABM_API adabm_status adabm_quantize_cpu(const adabm_quantize_args* args);

#define ADABM_MAX_BEND 510

/* The depth of each tile of images: `deep` where a pixel of it bends by more than `threshold`, else 0. A pixel bends by the largest
 * magnitude of its second differences along the rows and the columns, of any channel; an image goes on as it ends. */
typedef struct {
  uint32_t struct_bytes; /* sizeof(adabm_depths_args) */
  int32_t threads;       /* CPU only */
  int32_t batch, height, width; /* sides at most 2^20, batch * height below 2^31 */
  const uint8_t* x_q;    /* [N, H, W, 4], 8 bits a code; channels there are none of are 0 */
  int32_t tile, top, left; /* as in adabm_region */
  int32_t threshold;     /* 0..ADABM_MAX_BEND */
  int32_t deep;          /* 1..255 */
  uint8_t* depth;        /* [N, ceil((top + H) / tile), ceil((left + W) / tile)] */
} adabm_depths_args;

ADABM_API adabm_status adabm_depths_cpu(const adabm_depths_args* args);

/* Smooth parts of a picture, interpolated over what is in y. With v the interpolation of x by scale, along the rows and then along the
 * columns, and w that of shares / full:
 *
 *   y = w < 1 ? (v - y) * w + y : v           in float32, terms added in the order of their taps, those of weight 0 left out
 *
 * where an integer y is clamped to its type and rounded, halves up. Where w is 0, y stays. Beyond x its ends are repeated. */
typedef struct {
  uint32_t struct_bytes; /* sizeof(adabm_interpolate_args) */
  int32_t isa, threads;
  int32_t height, width;    /* low-resolution pixels to interpolate, at most 2^20 a side */
  int32_t channels, scale;  /* 1..4 and 1..16 */
  int32_t element;          /* bytes of an element of x and y: 1 and 2 are unsigned integers, 4 is float32 */
  int32_t x_height, x_width, top, left; /* the picture x, and where in it the part to interpolate begins */
  int64_t x_stride_h, x_stride_w, x_stride_c; /* in elements */
  const void* x;
  const int16_t* shares;    /* [height + 2, width + 2], 0..full: of the part and the pixels around it */
  int32_t full;
  int32_t y_pitch;          /* elements from one pixel of y to the next, at least channels */
  const float* cubic;       /* [scale, 5], of the pixels -2..2, for each phase */
  const float* linear;      /* [scale, 3], of the pixels -1..1 */
  void* y;                  /* [scale * height, scale * width, channels], of the part */
  int64_t y_stride_h;       /* elements from one row of y to the next */
} adabm_interpolate_args;

ADABM_API adabm_status adabm_interpolate_cpu(const adabm_interpolate_args* args);

/* Multiplies and adds in registers alone, `rounds` times on each thread: the peak that time is measured against. `macs` gets the
 * multiply-accumulates of all threads. ADABM_UNSUPPORTED for the scalar form, which has no instruction of its own. */
ADABM_API adabm_status adabm_peak_cpu(int32_t isa, int32_t threads, int64_t rounds, int64_t* macs);

/* ---- CUDA library ----------------------------------------------------------------------------------------------- */

typedef struct {
  uint32_t struct_bytes; /* sizeof(adabm_device) */
  int32_t compute_major, compute_minor, multiprocessors;
  uint64_t memory_bytes;
  char name[256];
} adabm_device;

/* Devices the driver shows. Without a driver: ADABM_UNSUPPORTED and a message, never a crash. */
ADABM_API adabm_status adabm_device_count_cuda(int32_t* count);
ADABM_API adabm_status adabm_device_cuda(int32_t index, adabm_device* device);
/* ADABM_OK where the library has kernels for the device and its driver runs them; otherwise ADABM_UNSUPPORTED and why not. */
ADABM_API adabm_status adabm_usable_cuda(int32_t device);

/* Every entry below starts its kernels on a stream of a device (null: the legacy default stream) and returns: it allocates nothing,
 * waits for nothing and can be captured into a graph. All pointers in its struct are device memory, bit-widths too: those outside
 * 2..8 are taken for the nearest. A launch that fails is the status of that call; a kernel that fails later shows at the caller's
 * next synchronisation, as usual with CUDA. */

/* The packed form for the GPU, made in host memory and copied to the device by the caller; tile_for_bits is not read. box_filter and
 * shuffle are those of the convolution. */
ADABM_API adabm_status adabm_pack_bytes_cuda(const adabm_weights* weights, int32_t box_filter, int32_t shuffle, uint64_t* bytes);
ADABM_API adabm_status adabm_pack_cuda(const adabm_weights* weights, int32_t box_filter, int32_t shuffle, void* packed);

/* As adabm_conv2d_cpu, equal to it in every bit; isa and threads are not read. Images of up to 4 bits are multiplied on 4-bit tensor
 * cores where the device has them (compute capability 8.x) and the weights fit, decided on the device for each image. */
ADABM_API adabm_status adabm_conv2d_cuda(const adabm_conv2d_args* args, int32_t device, void* stream);
/* Both convolutions of a residual block in one kernel, equal to two calls of adabm_conv2d_cuda. The first has no outputs, the second no
 * x_q: the codes between them, on first->out_grid and first->out_bits, never reach memory. They are of v in float32: the first's
 * y_format must be ADABM_FEATURES_FLOAT32, whatever the second's is. A region is the second's alone: the first
 * computes the same pixels, and passes zeros on to those around them. 3x3, 33 to 64 channels, compute capability 9.0;
 * ADABM_UNSUPPORTED and why otherwise. y_q must not be x_q; y may be the same memory as residual. */
ADABM_API adabm_status adabm_resblock_cuda(const adabm_conv2d_args* first, const adabm_conv2d_args* second, int32_t device, void* stream);
ADABM_API adabm_status adabm_quantize_cuda(const adabm_quantize_args* args, int32_t device, void* stream);

#define ADABM_MAX_TARGETS 16

/* The same x on 1..ADABM_MAX_TARGETS grids: equal to adabm_quantize_cuda for each of `count` structs in a row, whose x, shift, sizes and
 * strides are the same, with x read once. Several have no region. */
ADABM_API adabm_status adabm_quantize_many_cuda(const adabm_quantize_args* args, int32_t count, int32_t device, void* stream);

/* Kernels of compute capability 9.0 that come in several configurations: the convolution with its weights in registers (up to 64
 * channels, 3x3), with weights that pass through shared memory, and the residual block, whose configuration is its first convolution's. */
enum { ADABM_KERNEL_RESIDENT = 0, ADABM_KERNEL_STAGED = 1, ADABM_KERNEL_RESBLOCK = 2, ADABM_KERNEL_COUNT = 3 };

typedef struct {
  uint32_t struct_bytes;            /* sizeof(adabm_config) */
  int32_t count;                    /* configurations of this kernel */
  int32_t tile_height, tile_width;  /* pixels of a tile: of a residual block those of its first convolution, two more each way than results */
  int32_t stages;                   /* tiles in shared memory, where they fit */
  int32_t middles;                  /* tiles of codes between the convolutions of a residual block, else 0 */
  int32_t tensor_copies;            /* 1: tiles of codes of 8 bits are brought in by tensor copies, where channels are a multiple of 16 */
} adabm_config;

/* Configuration `index` of a kernel. Needs no device. */
ADABM_API adabm_status adabm_config_cuda(int32_t kernel, int32_t index, adabm_config* config);

/* As adabm_depths_cpu, equal to it; x_q must be 4-byte aligned. */
ADABM_API adabm_status adabm_depths_cuda(const adabm_depths_args* args, int32_t device, void* stream);

#define ADABM_MEASURE_BYTES 512 /* of workspace for each image */

/* The measure of each image, 1000 times the mean |Sobel gradient| of its luma, and what it decides:
 *
 *   offset      = (measure > *upper) - (measure < *lower)
 *   bits[l][n]  = clamp(rules[l][0] + rules[l][1] * offset of image n, 2, 8) */
typedef struct {
  uint32_t struct_bytes; /* sizeof(adabm_image_bits_args) */
  int32_t batch, height, width;
  int64_t stride_n, stride_c, stride_h, stride_w; /* of x, in elements */
  const float* x;                                 /* [N, 3, H, W] in 0..255 */
  void* workspace;
  uint64_t workspace_bytes; /* ADABM_MEASURE_BYTES * N or more */
  float* measure;           /* [N] or null */
  int32_t layers;           /* L; 0 where bits is null */
  const float* lower;       /* [1] */
  const float* upper;       /* [1] */
  const int32_t* rules;     /* [L, 2] */
  int32_t* bits;            /* [L, N] or null */
} adabm_image_bits_args;
/* clang-format on */

ADABM_API adabm_status adabm_image_bits_cuda(const adabm_image_bits_args* args, int32_t device, void* stream);

#ifdef __cplusplus
}
#endif
#endif
