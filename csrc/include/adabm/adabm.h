/* The whole public C ABI of adabm_kernels. Parses as C99; includes nothing but fixed-size integers.
 *
 * Conventions: every entry returns a status; the message of the last failure on the calling thread is in
 * adabm_last_error(). Entries keep no pointer and throw nothing. Entries of the CUDA library that take a stream allocate nothing. Entries
 * of the CPU library allocate only scratch memory, which each thread keeps and which is as large as one band of the widest layer needs.
 * Pointers to elements of 2 and 4 bytes are aligned to 2 and 4 bytes. Tensors are dense and row major. Codes are unsigned bytes
 * [N, H, W, C4], where C4 is C rounded up to a multiple of 4 and the padding channels hold 0. Tables for run-time bit-widths have one row
 * for each of 2, 3, ..., 8 bits.
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
  ADABM_UNSUPPORTED = 2,      /* the call is right, but this machine or this build cannot run it */
  ADABM_INTERNAL = 3          /* the fault is in the library */
};

enum { ADABM_ACT_NONE = 0, ADABM_ACT_RELU = 1, ADABM_ACT_PRELU = 2 };

/* Flags that say which code tensors are stored packed, at s bits a code: s is 2 for images of 2 bits, 4 for images of 3 and 4 bits, and 8
 * for images of more bits. Image n still starts at byte n * H * W * C4; each of its pixels takes ceil(C4 * s / 32) * 4 bytes, whose
 * channels stand in ascending order from the low bits up. */
enum { ADABM_PACKED_X = 1, ADABM_PACKED_Y = 2 };

/* How the features in y, in residual and in the x of a quantisation are stored: as float32, or as int16 in units of 2^-fraction, where
 * ADABM_MIN_FRACTION <= fraction <= ADABM_MAX_FRACTION:
 *
 *   stored = clamp(round_half_even(v * 2^fraction), -32767, 32767)      NaN becomes -32767
 *   value  = float(stored) * 2^-fraction                                this product is exact
 *
 * Where a convolution writes y as int16, its other outputs, such as y_q, are computed from the value that y holds. The kernels may multiply
 * alpha and beta rather than v by 2^fraction, so the products must stay finite: alpha and beta must be below 2^(128 - fraction) in
 * magnitude, which is 2^104 for the largest fraction. */
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

/* Ways to compute a convolution (adabm_kernels/planning/tiles.py):
 *
 *   DIRECT           product by product, as the definition says
 *   F2X1 .. F2X4     by exact tiles F(2, 3) along the rows times F(1|2|3|4, 3) along the columns
 *   F4X4             by F(4, 3) along both axes, on operands of 16 bits
 *   F2X2_5X5         by F(2, 5) along both axes, on operands of 16 bits, for kernels of 5x5
 *   F4_KN2ROW        by F(4, 3) along the rows with the kernel's columns as outputs, for few outputs and kernels of 3, 9 or 15 rows
 *   F3X3, F3X4       by F(3, 3) along the rows times F(3|4, 3) along the columns */
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

/* Sets *built to 1 where the instruction set was built into the library, and *present to 1 where this processor has it and the operating
 * system lets this process use it; otherwise to 0. Permission to use AMX is asked for at the first call that may need it. */
ADABM_API adabm_status adabm_isa_cpu(int32_t isa, int32_t* built, int32_t* present);

#define ADABM_MAX_STEP 1024

/* How a kernel goes over an image. Where stride_h is 0 the other fields are not read and the geometry is plain: stride 1, taps side by
 * side, one group, a kernel with odd sides, and kernel / 2 zeros around the image. Otherwise tap (r, s) of output (i, j) lies on pixel
 * (i * stride_h - pad_top + r * dilation_h, j * stride_w - pad_left + s * dilation_w), which is zero outside the image. The output then has
 * (H + pad_top + pad_bottom - dilation_h * (R - 1) - 1) / stride_h + 1 rows, and columns likewise. Group g has the C / groups channels from
 * g * C / groups on and the K / groups outputs from g * K / groups on, where outputs are counted as they are before a PixelShuffle: output o
 * has number o % (K / r^2) * r^2 + o / (K / r^2) there. */
/* Comments beside fields are aligned by hand. */
/* clang-format off */
typedef struct {
  int32_t stride_h, stride_w;     /* 1..ADABM_MAX_STEP; stride_h 0 makes the geometry plain */
  int32_t dilation_h, dilation_w; /* 1..ADABM_MAX_STEP */
  int32_t groups;                 /* number of groups; divides channels and out_channels */
  int32_t pad_top, pad_left, pad_bottom, pad_right; /* zeros around the image, 0..ADABM_MAX_STEP */
} adabm_geometry;

typedef struct {
  uint32_t struct_bytes; /* sizeof(adabm_weights) */
  int32_t out_channels, channels; /* K and C, each at most 2^16 */
  int32_t kernel_h, kernel_w;     /* R and S, each at most 15; odd where the geometry is plain */
  int32_t border_kernels;                    /* 1: every class of border pixels has its own kernel (see adabm_conv2d_args); only with a plain geometry */
  const int8_t* weight;                      /* [K, R, S, C / groups], or [R, S, K, R, S, C] with border_kernels */
  int32_t tile_for_bits[ADABM_BIT_WIDTHS];   /* the ADABM_TILE_* for codes of 2, 3, ..., 8 bits; a tile that would not be exact is refused */
  int32_t box_filter, shuffle;               /* as in the adabm_conv2d_args of the layer; read only where the geometry is not plain */
  adabm_geometry geometry;
} adabm_weights;

/* The first entry tells how many bytes the packed weights take, which depends on the weights where there are tiles; the second packs the
 * weights into `packed`, which must be 64-byte aligned and have that many bytes. */
ADABM_API adabm_status adabm_pack_bytes_cpu(const adabm_weights* weights, uint64_t* bytes);
ADABM_API adabm_status adabm_pack_cpu(const adabm_weights* weights, void* packed);

/* Where a layer computes, as given by the depth of each depth tile of an image (how many blocks of the network are computed in the tile).
 *
 * A pixel is computed where the depth of its own tile is in own_least..own_most and a tile whose depth is in near_least..near_most
 * has a pixel at most `reach` rows and columns away. It is passed on where it is not computed and a tile whose depth is in
 * pass_least..pass_most has a pixel at most pass_reach rows and columns away; where pass_least is above pass_most no pixel is passed on.
 * The outputs of all other pixels are left as they are, with one exception: a convolution that gives y_q alone, without a residual, and
 * passes nothing on may write any codes around the pixels that it computes. Pixels here are pixels of x; each stands for its
 * shuffle * shuffle pixels of the output. */
typedef struct {
  const uint8_t* depth;  /* [N, ceil((top + H) / tile), ceil((left + W) / tile)]; where null, every pixel is computed and the other fields are not read */
  int32_t tile;          /* side of a tile in pixels, at most 2^20 */
  int32_t top, left;     /* how many pixels the first row and the first column of tiles lack, 0..tile - 1 */
  int32_t own_least, own_most, near_least, near_most, reach;  /* depths in 0..255; reach in pixels, 0..tile */
  int32_t pass_least, pass_most, pass_reach;                  /* the same units; only convolutions may pass pixels on */
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
 * all computed in float32. `alpha` has a row for each bit-width of the input codes. Border classes are those of Axis.border_class of
 * adabm_kernels/quantize.py. Along each axis the class of an output is (number of its taps that lie before the image) * (1 + the most taps
 * that can lie after the image) + (number of its taps that lie after the image). As many taps can lie outside as there are in the padding:
 * min(R, ceil(pad_top / dilation_h)) before the first row and so on for the other sides; R / 2 on each side where the geometry is plain.
 *
 * Below, H and W are the height and width of the output, which equal those of the image where the geometry is plain. With shuffle r > 1 the
 * output has size [H*r, W*r] and out_channels / r^2 channels: output o = (i*r + j) * (out_channels / r^2) + c of pixel (y, x) goes to
 * channel c of pixel (y*r + i, x*r + j). Any of y, y_q, y_acc and y_image may be null, but not all of them. residual may be the same memory
 * as y.
 *
 * With border_kernels the first axes of weight and beta are kernel classes of rows and columns: each of the first R/2 and the last R/2 rows
 * has a class of its own and all rows between share one, which makes R classes; columns have S classes likewise. The image must have at
 * least R rows and S columns.
 */
typedef struct {
  uint32_t struct_bytes; /* sizeof(adabm_conv2d_args) */
  int32_t isa;           /* ADABM_ISA_* */
  int32_t threads;       /* 1..256; CPU only */
  int32_t batch, height, width; /* sides at most 2^20, batch * height below 2^31 */
  int32_t out_channels, channels, kernel_h, kernel_w; /* K, C, R, S, as in the adabm_weights that were packed */
  const uint8_t* x_q;       /* [N, H, W, C4] */
  const int32_t* x_bits;    /* [N]: bits of the codes of each image, 2..8 */
  const void* packed;       /* packed weights from adabm_pack_cpu, or from adabm_pack_cuda on the device */
  uint64_t packed_bytes;    /* as adabm_pack_bytes_cpu or adabm_pack_bytes_cuda told */
  int32_t box_filter;       /* 0, or 1: the weights are 2w + 1, see above */
  int32_t activation;       /* ADABM_ACT_* */
  int32_t shuffle;          /* r of the PixelShuffle, 1..16; 1: none */
  const float* alpha;       /* [7, K] */
  const float* beta;        /* [border classes of rows, border classes of columns, K], which is [(R/2+1)^2, (S/2+1)^2, K] where the
                               geometry is plain; [R, S, K] with border_kernels */
  const float* slope;       /* [K]; read only with ADABM_ACT_PRELU */
  const void* residual;     /* null, or features of the shape and format of y */
  const float* out_grid;    /* [7, 2]: scale and offset for each bit-width of y_q; read only where y_q is given */
  const int32_t* out_bits;  /* [N]: bits of the codes in y_q, 2..8; read only where y_q is given */
  void* y;                  /* [N, H*r, W*r, K/r^2]; float32 or int16, as y_format says */
  uint8_t* y_q;             /* [N, H*r, W*r, K/r^2 rounded up to a multiple of 4] */
  int32_t* y_acc;           /* the accumulators, in the shape of y; for tests */
  int32_t y_pitch;          /* elements from one pixel of y, residual and y_acc to the next; 0 stands for K/r^2. Only without a
                               shuffle it may be another number, at least K: y is then a slice of wider features */
  int32_t packed_codes;     /* CUDA only: any of the flags ADABM_PACKED_X and ADABM_PACKED_Y; 0 on the CPU */
  int32_t border_kernels;   /* CUDA only: as in adabm_weights; on the CPU the packed weights hold it */
  int32_t config;           /* CUDA of compute capability 9.0 only: i + 1 takes configuration i of the kernel (adabm_config_cuda), 0 lets the library
                               choose */
  int32_t y_format;         /* the ADABM_FEATURES_* of residual and y; v is rounded to it even where neither is given. It must be
                               ADABM_FEATURES_FLOAT32 with y_acc, with y_image, with y_pitch or with a shuffle above 1 */
  int32_t y_fraction;       /* the fraction of ADABM_FEATURES_INT16; 0 with ADABM_FEATURES_FLOAT32 */
  uint8_t* y_image;         /* [N, H*r, W*r, K/r^2]: clamp(round_half_even(v), 0, 255); must be null with y_q or y_pitch */
  adabm_region region;      /* needs an output of the size of the image. Where a pixel is passed on, v is the residual, or 0 without a
                               residual; no pixel may be passed on with a shuffle above 1, y_acc or y_image */
  adabm_geometry geometry;  /* as in the adabm_weights that were packed; must be plain on CUDA */
} adabm_conv2d_args;

ADABM_API adabm_status adabm_conv2d_cpu(const adabm_conv2d_args* args);

/* Features become codes: code = clamp(round_half_even(fma(x - shift[c], grid[bits][0], grid[bits][1])), 0, 2^bits - 1) */
typedef struct {
  uint32_t struct_bytes; /* sizeof(adabm_quantize_args) */
  int32_t isa, threads;
  int32_t batch, height, width, channels;
  int64_t stride_n, stride_h, stride_w, stride_c; /* strides of x in elements; stride_c must be 0..2^27-1 */
  const void* x;         /* float32 or int16, as x_format says */
  const float* shift;    /* [C], or null for 0; must be null where x is int16 */
  const float* grid;     /* [7, 2]: scale and offset for each bit-width */
  const int32_t* bits;   /* [N]: bits of the codes of each image, 2..8 */
  uint8_t* y_q;          /* [N, H, W, y_pitch], begun at the first channel to write */
  int32_t y_channels;    /* how many codes are written for each pixel, of which those behind the last channel are 0; 0 stands for C4 */
  int32_t y_pitch;       /* codes from one pixel to the next; 0 stands for C4 */
  int32_t packed_codes;  /* CUDA only: ADABM_PACKED_Y or 0. With ADABM_PACKED_Y y_channels must be 0, and y_q a whole buffer with C4 = y_pitch */
  int32_t y_start;       /* CUDA only, with ADABM_PACKED_Y: the first channel to write, a multiple of 4; otherwise 0 */
  int32_t x_format;      /* the ADABM_FEATURES_* of x */
  int32_t x_fraction;    /* the fraction of ADABM_FEATURES_INT16; 0 with ADABM_FEATURES_FLOAT32 */
  adabm_region region;   /* where its depth is given, pass_least must be above pass_most: no pixel is passed on */
} adabm_quantize_args;

ADABM_API adabm_status adabm_quantize_cpu(const adabm_quantize_args* args);

#define ADABM_MAX_BEND 510

/* Finds the depth of each depth tile of images: `deep` where a pixel of the tile bends by more than `threshold`, else 0. A pixel bends by
 * the largest magnitude of its second differences along the rows and the columns in any channel. Beyond its borders an image repeats its
 * outermost pixels. */
typedef struct {
  uint32_t struct_bytes; /* sizeof(adabm_depths_args) */
  int32_t threads;       /* 1..256; CPU only */
  int32_t batch, height, width; /* sides at most 2^20, batch * height below 2^31 */
  const uint8_t* x_q;    /* [N, H, W, 4], codes of 8 bits; channels that an image does not have are 0 */
  int32_t tile, top, left; /* as in adabm_region */
  int32_t threshold;     /* the largest bend of a tile of depth 0: 0..ADABM_MAX_BEND */
  int32_t deep;          /* the depth of tiles that bend by more than threshold, 1..255 */
  uint8_t* depth;        /* [N, ceil((top + H) / tile), ceil((left + W) / tile)] */
} adabm_depths_args;

ADABM_API adabm_status adabm_depths_cpu(const adabm_depths_args* args);

/* Blends interpolated values into the smooth parts of a picture y. Let v be the cubic interpolation of x by `scale`, along the rows and then
 * along the columns, and w the linear interpolation of shares / full:
 *
 *   y = w < 1 ? (v - y) * w + y : v           in float32; terms are added in the order of their taps, without those of weight 0
 *
 * An integer y is clamped to its type and rounded, halves up. Where w is 0, y stays as it is. Beyond the borders of x its outermost pixels
 * are repeated. */
typedef struct {
  uint32_t struct_bytes; /* sizeof(adabm_interpolate_args) */
  int32_t isa, threads;
  int32_t height, width;    /* size in low-resolution pixels of the part to interpolate, each at most 2^20 */
  int32_t channels, scale;  /* channels 1..4, scale 1..16 */
  int32_t element;          /* bytes of an element of x and y: 1 and 2 stand for unsigned integers, 4 for float32 */
  int32_t x_height, x_width, top, left; /* size of the picture x, and the pixel of x where the part to interpolate begins */
  int64_t x_stride_h, x_stride_w, x_stride_c; /* strides of x in elements */
  const void* x;
  const int16_t* shares;    /* [height + 2, width + 2]: shares 0..full of the pixels of the part and of the pixels around it */
  int32_t full;             /* the share that stands for 1, 1..32767 */
  int32_t y_pitch;          /* elements from one pixel of y to the next, at least channels */
  const float* cubic;       /* [scale, 5]: for each phase the weights of the pixels -2..2 */
  const float* linear;      /* [scale, 3]: for each phase the weights of the pixels -1..1 */
  void* y;                  /* [scale * height, scale * width, channels]: the enlarged part */
  int64_t y_stride_h;       /* elements from one row of y to the next */
} adabm_interpolate_args;

ADABM_API adabm_status adabm_interpolate_cpu(const adabm_interpolate_args* args);

/* Multiplies and adds in registers alone, `rounds` times on each thread: the time that this takes is the peak that kernels are compared
 * with. `macs` gets the number of multiply-accumulates of all threads. Returns ADABM_UNSUPPORTED for the scalar form, which has no
 * instruction of its own. */
ADABM_API adabm_status adabm_peak_cpu(int32_t isa, int32_t threads, int64_t rounds, int64_t* macs);

/* ---- CUDA library ----------------------------------------------------------------------------------------------- */

typedef struct {
  uint32_t struct_bytes; /* sizeof(adabm_device) */
  int32_t compute_major, compute_minor, multiprocessors;
  uint64_t memory_bytes;
  char name[256];
} adabm_device;

/* Tells how many devices the driver shows, and what one of them is. Without a driver both return ADABM_UNSUPPORTED and set a message. */
ADABM_API adabm_status adabm_device_count_cuda(int32_t* count);
ADABM_API adabm_status adabm_device_cuda(int32_t index, adabm_device* device);
/* Returns ADABM_OK where the library has kernels for the device and its driver runs them; otherwise ADABM_UNSUPPORTED with the reason in
 * the message. */
ADABM_API adabm_status adabm_usable_cuda(int32_t device);

/* Every entry below that takes a stream starts its kernels on this stream of the device (null: the legacy default stream) and returns: it
 * allocates nothing, waits for nothing and can be captured into a graph. All pointers in its struct point to device memory, bit-widths
 * too; a bit-width outside 2..8 is taken for the nearest one inside. Where a launch fails, the status of that call says so; a kernel that
 * fails later shows at the caller's next synchronisation, as usual with CUDA. */

/* The first entry tells how many bytes the packed weights for the GPU take; the second makes them in host memory, from where the caller
 * copies them to the device. tile_for_bits is not read. box_filter and shuffle are as in the adabm_conv2d_args of the layer. */
ADABM_API adabm_status adabm_pack_bytes_cuda(const adabm_weights* weights, int32_t box_filter, int32_t shuffle, uint64_t* bytes);
ADABM_API adabm_status adabm_pack_cuda(const adabm_weights* weights, int32_t box_filter, int32_t shuffle, void* packed);

/* Computes what adabm_conv2d_cpu computes, equal in every bit; isa and threads are not read. Images of up to 4 bits are multiplied on 4-bit
 * tensor cores where the device has them (compute capability 8.x) and the weights fit; the device decides this for each image. */
ADABM_API adabm_status adabm_conv2d_cuda(const adabm_conv2d_args* args, int32_t device, void* stream);
/* Computes both convolutions of a residual block in one kernel, equal to two calls of adabm_conv2d_cuda. `first` has no outputs and
 * `second` no x_q: the codes between them, on first->out_grid and first->out_bits, never reach memory. These codes are made of v in float32:
 * first->y_format must be ADABM_FEATURES_FLOAT32, whatever second->y_format is. Only `second` may have a region: the first convolution
 * computes the same pixels and passes zeros on to the pixels around them. Kernels must be 3x3, with 33 to 64 channels, and the device of
 * compute capability 9.0; otherwise ADABM_UNSUPPORTED is returned with the reason. second->y_q must not be the same memory as first->x_q;
 * y may be the same memory as residual. */
ADABM_API adabm_status adabm_resblock_cuda(const adabm_conv2d_args* first, const adabm_conv2d_args* second, int32_t device, void* stream);
ADABM_API adabm_status adabm_quantize_cuda(const adabm_quantize_args* args, int32_t device, void* stream);

#define ADABM_MAX_TARGETS 16

/* Makes codes of the same x on 1..ADABM_MAX_TARGETS grids, with x read once. The result equals that of adabm_quantize_cuda for each of the
 * `count` structs in the array `args`, whose x, shift, sizes and strides must be the same. With more than one struct none may have a
 * region. */
ADABM_API adabm_status adabm_quantize_many_cuda(const adabm_quantize_args* args, int32_t count, int32_t device, void* stream);

/* Kernels of compute capability 9.0 that come in several configurations: the convolution with its weights in registers (RESIDENT, up to 64
 * channels, 3x3), the convolution whose weights pass through shared memory (STAGED), and the residual block (RESBLOCK), whose configuration
 * is named by the `config` of its first convolution. */
enum { ADABM_KERNEL_RESIDENT = 0, ADABM_KERNEL_STAGED = 1, ADABM_KERNEL_RESBLOCK = 2, ADABM_KERNEL_COUNT = 3 };

typedef struct {
  uint32_t struct_bytes;            /* sizeof(adabm_config) */
  int32_t count;                    /* how many configurations this kernel has */
  int32_t tile_height, tile_width;  /* size of a tile in pixels; a residual block has the tile of its first convolution, 2 pixels more each way than results */
  int32_t stages;                   /* how many tiles are in shared memory at once, where they fit */
  int32_t middles;                  /* tiles of codes between the convolutions of a residual block in shared memory; 0 for other kernels */
  int32_t tensor_copies;            /* 1: tensor copies bring in the tiles of 8-bit codes, where the number of channels is a multiple of 16 */
} adabm_config;

/* Describes configuration `index` of the kernel ADABM_KERNEL_*. Needs no device. */
ADABM_API adabm_status adabm_config_cuda(int32_t kernel, int32_t index, adabm_config* config);

/* Finds the same depths as adabm_depths_cpu; x_q must be 4-byte aligned. */
ADABM_API adabm_status adabm_depths_cuda(const adabm_depths_args* args, int32_t device, void* stream);

#define ADABM_MEASURE_BYTES 512 /* how much workspace each image needs */

/* Finds the measure of each image, 1000 times the mean |Sobel gradient| of its luma, and the bits of each layer that follow from it:
 *
 *   offset      = (measure > *upper) - (measure < *lower)
 *   bits[l][n]  = clamp(rules[l][0] + rules[l][1] * offset of image n, 2, 8) */
typedef struct {
  uint32_t struct_bytes; /* sizeof(adabm_image_bits_args) */
  int32_t batch, height, width;
  int64_t stride_n, stride_c, stride_h, stride_w; /* strides of x in elements */
  const float* x;                                 /* [N, 3, H, W] in 0..255 */
  void* workspace;          /* scratch memory on the device */
  uint64_t workspace_bytes; /* at least ADABM_MEASURE_BYTES * N */
  float* measure;           /* [N], or null where it is not wanted */
  int32_t layers;           /* L, the number of layers; 0 where bits is null */
  const float* lower;       /* [1]: images that measure less get offset -1 */
  const float* upper;       /* [1]: images that measure more get offset 1 */
  const int32_t* rules;     /* [L, 2]: for each layer its bits at offset 0, and how many bits offset 1 adds to them */
  int32_t* bits;            /* [L, N], or null where they are not wanted */
} adabm_image_bits_args;
/* clang-format on */

ADABM_API adabm_status adabm_image_bits_cuda(const adabm_image_bits_args* args, int32_t device, void* stream);

#ifdef __cplusplus
}
#endif
#endif
