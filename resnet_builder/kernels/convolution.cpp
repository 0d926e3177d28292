// The gradient of a convolution's kernels in bf16, by the matrix unit of Intel's processors (AMX).
// Images are channels-last, and so are kernels.
//
// Pixels of the output's gradient are put into one long row, with zeros between the lines and
// between the images, and so are those of the input. What one tap of the kernel saw is then the
// input's row, moved by a constant. Its gradient is a product of matrices that has a summand for
// each pixel: 32 of them, 16 output channels and 16 input channels are one instruction.

#include <cstdint>

#define EXPORT extern "C" __attribute__((visibility("default")))

#if !defined(__AMX_BF16__) || !defined(__AVX512BW__) || !defined(__linux__)

EXPORT int has_tiles() { return 0; }
EXPORT void kernel_gradient(const void*, const void*, float*, const std::int64_t*, int) {}

#else

#include <immintrin.h>
#include <omp.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

namespace {

using std::int64_t;
using std::uint16_t;
using std::uint32_t;

constexpr int64_t LANES = 16;           // lines of a tile, and its 32-bit columns
constexpr int64_t PAIRS = LANES;        // of pixels that one instruction sums over
constexpr int64_t CHUNK = 512;          // pairs whose copies stay in the second-level cache
constexpr int64_t BLOCK = 16 * PAIRS;   // pairs that stay in the first-level cache
constexpr int ACCUMULATORS = 5;         // tiles; the other three are factors

// Tiles are read several times slower from where their lines are not those of the cache.
struct alignas(64) Line {
  uint32_t words[LANES];
};
struct alignas(64) Sums {
  float values[LANES * LANES];
};

// ---- geometry ----------------------------------------------------------------------------------

struct Convolution {
  int64_t images, height, width, in_channels, out_height, out_width, out_channels;
  int64_t size, stride, padding;
};

// One tap of the kernel sees every stride-th pixel, from one of stride x stride first ones on, and
// those moved by so many lines and columns. (Python's division, which rounds down.)
struct Tap {
  int64_t first, moved;

  Tap(int64_t at, const Convolution& c) {
    const int64_t from = at - c.padding;
    first = (from % c.stride + c.stride) % c.stride;
    moved = (from - first) / c.stride;
  }
};

// Where pixels are in the long row: those of several images at once, or of some lines of one.
struct Row {
  int64_t reach;          // lines and columns that a tap is moved by, at most
  int64_t pitch, image;   // pixels from line to line, and from image to image
  int64_t lead;           // zeros before the first pixel and behind the last; even
  int64_t lines, images;  // of the output, at once
  int64_t pairs;          // of their pixels, in whole tiles

  explicit Row(const Convolution& c) {
    reach = std::max(-Tap(0, c).moved, Tap(c.size - 1, c).moved);
    pitch = std::max(c.out_width + reach, (c.width + c.stride - 1) / c.stride + 1);
    lines = std::min(c.out_height, std::max<int64_t>(1, 2 * CHUNK / pitch - reach));
    image = pitch * (lines + reach);
    images = lines < c.out_height ? 1 : std::max<int64_t>(1, 2 * CHUNK / image);
    lead = (reach * pitch + reach) / 2 * 2 + 2;
    pairs = whole(images);
  }
  int64_t whole(int64_t images) const {
    return (images * image + 2 * PAIRS - 1) / (2 * PAIRS) * PAIRS;
  }
};

// What is put into the row at once: some lines of the output, of each of some images.
struct Piece {
  int64_t image, images, line, lines;
};

// ---- factors -----------------------------------------------------------------------------------

// 16 channels of a pixel in the lower halves of words, and of the next one in the upper halves.
inline __m512i pair(const uint16_t* pixel, const uint16_t* next) {
  alignas(64) static constexpr uint16_t ORDER[2 * LANES] = {
      0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
      8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  __m512i both = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i*)pixel));
  both = _mm512_inserti64x4(both, _mm256_loadu_si256((const __m256i*)next), 1);
  return _mm512_permutexvar_epi16(_mm512_load_si512(ORDER), both);
}

// Writes 16 channels of a line's pixels as pairs, of which the first has pixel 0 of the long row.
// `at` is the first pixel's place there; a pair that is half outside the line has zeros there.
inline void write_pairs(const uint16_t* pixels, int64_t count, int64_t step, int64_t at, Line* to) {
  alignas(64) static constexpr uint16_t ZEROS[LANES] = {};
  to += at / 2;
  int64_t i = 0;
  if (at % 2) _mm512_store_si512(to++, pair(ZEROS, pixels)), i = 1;
  for (; i + 1 < count; i += 2)
    _mm512_store_si512(to++, pair(pixels + i * step, pixels + (i + 1) * step));
  if (i < count) _mm512_store_si512(to, pair(pixels + i * step, ZEROS));
}

// Swaps rows and columns, first in blocks of 8 x 8, then of 4 x 4 within them, and so on.
inline void transpose(const Line* from, Line* to) {
  __m512i rows[LANES];
#pragma GCC unroll 16
  for (int i = 0; i < LANES; ++i) rows[i] = _mm512_load_si512(from + i);
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
#pragma GCC unroll 4
  for (int block = 8; block > 0; block /= 2) {
    const __m512i length = _mm512_set1_epi32(block), other = _mm512_set1_epi32(LANES);
    const __mmask16 right = _mm512_test_epi32_mask(lane, length);
    const __m512i above = _mm512_mask_add_epi32(lane, right, lane, _mm512_sub_epi32(other, length));
    const __m512i below = _mm512_mask_add_epi32(_mm512_add_epi32(lane, length), right, lane, other);
#pragma GCC unroll 16
    for (int i = 0; i < LANES; ++i) {
      if (i & block) continue;
      const __m512i upper = rows[i], lower = rows[i + block];
      rows[i] = _mm512_permutex2var_epi32(upper, above, lower);
      rows[i + block] = _mm512_permutex2var_epi32(upper, below, lower);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < LANES; ++i) _mm512_store_si512(to + i, rows[i]);
}

// The output's gradient, as tiles of a line for each channel and a column for each pair of pixels:
// all tiles of the first 16 channels, then of the next.
class Gradients {
 public:
  Gradients(const Convolution& c, const Row& row)
      : c_(c), row_(row), pairs_(row.pairs), tiles_(row.pairs * c.out_channels / LANES) {}

  void read(const uint16_t* dy, const Piece& piece) {
    const int64_t line = c_.out_width * c_.out_channels, pairs = row_.whole(piece.images);
    const int64_t end = (piece.images - 1) * row_.image + piece.lines * row_.pitch;
    dy += (piece.image * c_.out_height + piece.line) * line;
    for (int64_t channel = 0; channel < c_.out_channels; channel += LANES) {
      for (int64_t image = 0; image < piece.images; ++image)
        for (int64_t y = 0; y < piece.lines; ++y)
          write_pairs(dy + (image * c_.out_height + y) * line + channel, c_.out_width,
                      c_.out_channels, image * row_.image + y * row_.pitch, pairs_.data());
      std::fill(pairs_.begin() + end / 2, pairs_.begin() + pairs, Line());
      Line* to = &tiles_[channel / LANES * row_.pairs];
      for (int64_t i = 0; i < pairs; i += PAIRS) transpose(&pairs_[i], to + i);
    }
  }

  const Line* tiles(int64_t channel) const { return &tiles_[channel / LANES * row_.pairs]; }

 private:
  const Convolution& c_;
  const Row& row_;
  std::vector<Line> pairs_, tiles_;
};

// Every stride-th pixel of the input, in pairs that begin with an even and with an odd one.
class Inputs {
 public:
  Inputs(const Convolution& c, const Row& row, int64_t first_line, int64_t first_column)
      : c_(c), row_(row), first_line_(first_line), first_column_(first_column) {}

  // Has what a tap sees which is moved by so many pixels read from now on.
  void take(int64_t moved) {
    pairs_[(row_.lead + moved) % 2].resize(count() * c_.in_channels / LANES);
  }

  void read(const uint16_t* x, const Piece& piece) {
    const int64_t line = c_.width * c_.in_channels, step = c_.stride * c_.in_channels;
    const int64_t lines = taken(c_.height, first_line_), columns = taken(c_.width, first_column_);
    const int64_t first = std::max<int64_t>(0, piece.line - row_.reach);
    const int64_t end = std::min(lines, piece.line + piece.lines + row_.reach);
    if (row_.lines < c_.out_height && end - first < row_.lines + 2 * row_.reach) clear();
    x += piece.image * c_.height * line + first_line_ * line + first_column_ * c_.in_channels;
    for (int64_t image = 0; image < piece.images; ++image, x += c_.height * line)
      for (int64_t y = first; y < end; ++y) {
        const uint16_t* from = x + y * c_.stride * line;
        const int64_t at = row_.lead + image * row_.image + (y - piece.line) * row_.pitch;
        for (int64_t odd = 0; odd < 2; ++odd) {
          if (pairs_[odd].empty()) continue;
          for (int64_t channel = 0; channel < c_.in_channels; channel += LANES)
            write_pairs(from + channel, columns, step, at - odd,
                        &pairs_[odd][channel / LANES * count()]);
        }
      }
  }

  // What a tap sees which is moved by so many pixels: a line of 16 channels for each pair.
  const Line* pairs(int64_t channel, int64_t moved) const {
    const int64_t from = row_.lead + moved;
    return &pairs_[from % 2][channel / LANES * count() + from / 2];
  }

 private:
  int64_t count() const { return row_.pairs + row_.lead + 1; }

  int64_t taken(int64_t all, int64_t first) const {
    return (all - first + c_.stride - 1) / c_.stride;
  }

  void clear() {
    for (auto& pairs : pairs_) std::fill(pairs.begin(), pairs.end(), Line());
  }

  const Convolution& c_;
  const Row& row_;
  int64_t first_line_, first_column_;
  std::vector<Line> pairs_[2];
};

// ---- products ----------------------------------------------------------------------------------

struct alignas(64) TileConfig {
  std::uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  std::uint8_t rows[16];
};

// Tiles of 16 lines of 64 bytes, for as long as it is in scope; whoever had others has them back.
class Tiles {
 public:
  Tiles() {
    _tile_storeconfig(&before_);
    TileConfig config = {};
    config.palette = 1;
    std::fill_n(config.row_bytes, 8, 4 * LANES);
    std::fill_n(config.rows, 8, LANES);
    _tile_loadconfig(&config);
  }
  ~Tiles() {
    if (before_.palette)
      _tile_loadconfig(&before_);
    else
      _tile_release();
  }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;

 private:
  TileConfig before_ = {};
};

// The compiler does not know that tiles read and write memory.
inline void settle_memory() { asm volatile("" ::: "memory"); }

// Adds the products of 16 output channels and COUNT times 16 input channels to as many tiles. Two
// tiles take turns for the inputs, so that one is read while the other is multiplied.
template <int COUNT>
void multiply(const Line* gradients, const Line* const* inputs, Sums* sums, int64_t pairs) {
  settle_memory();
  _tile_loadd(0, &sums[0], 64);
  if constexpr (COUNT > 1) _tile_loadd(1, &sums[1], 64);
  if constexpr (COUNT > 2) _tile_loadd(2, &sums[2], 64);
  if constexpr (COUNT > 3) _tile_loadd(3, &sums[3], 64);
  if constexpr (COUNT > 4) _tile_loadd(4, &sums[4], 64);
  for (int64_t at = 0; at < pairs; at += PAIRS) {
    _tile_loadd(5, gradients + at, 64);
    _tile_loadd(6, inputs[0] + at, 64);
    if constexpr (COUNT > 1) _tile_loadd(7, inputs[1] + at, 64);
    _tile_dpbf16ps(0, 5, 6);
    if constexpr (COUNT > 2) _tile_loadd(6, inputs[2] + at, 64);
    if constexpr (COUNT > 1) _tile_dpbf16ps(1, 5, 7);
    if constexpr (COUNT > 3) _tile_loadd(7, inputs[3] + at, 64);
    if constexpr (COUNT > 2) _tile_dpbf16ps(2, 5, 6);
    if constexpr (COUNT > 4) _tile_loadd(6, inputs[4] + at, 64);
    if constexpr (COUNT > 3) _tile_dpbf16ps(3, 5, 7);
    if constexpr (COUNT > 4) _tile_dpbf16ps(4, 5, 6);
  }
  _tile_stored(0, &sums[0], 64);
  if constexpr (COUNT > 1) _tile_stored(1, &sums[1], 64);
  if constexpr (COUNT > 2) _tile_stored(2, &sums[2], 64);
  if constexpr (COUNT > 3) _tile_stored(3, &sums[3], 64);
  if constexpr (COUNT > 4) _tile_stored(4, &sums[4], 64);
  settle_memory();
}

constexpr decltype(&multiply<1>) MULTIPLY[ACCUMULATORS] = {multiply<1>, multiply<2>, multiply<3>,
                                                           multiply<4>, multiply<5>};

// Adds the gradient from some of the images to tiles: for each 16 input channels and 16 output
// channels one for each tap.
void add_gradient(const Convolution& c, const Row& row, const uint16_t* x, const uint16_t* dy,
                  int64_t images, std::vector<Sums>& sums) {
  Gradients gradients(c, row);
  std::vector<Inputs> inputs;
  std::vector<std::pair<int64_t, int64_t>> taps;  // which inputs, and how far they are moved
  std::vector<int64_t> where(c.stride * c.stride, -1);
  for (int64_t i = 0; i < c.size; ++i)
    for (int64_t j = 0; j < c.size; ++j) {
      const Tap line(i, c), column(j, c);
      int64_t& found = where[line.first * c.stride + column.first];
      if (found < 0) {
        found = int64_t(inputs.size());
        inputs.emplace_back(c, row, line.first, column.first);
      }
      taps.emplace_back(found, line.moved * row.pitch + column.moved);
      inputs[found].take(taps.back().second);
    }

  std::vector<Piece> pieces;
  for (int64_t image = 0; image < images; image += row.images)
    for (int64_t line = 0; line < c.out_height; line += row.lines)
      pieces.push_back({image, std::min(row.images, images - image), line,
                        std::min(row.lines, c.out_height - line)});

  const Tiles tiles;
  for (const Piece& piece : pieces) {
    gradients.read(dy, piece);
    for (Inputs& input : inputs) input.read(x, piece);
    const int64_t pairs = row.whole(piece.images);
    for (int64_t from = 0; from < pairs; from += BLOCK) {
      const int64_t length = std::min(BLOCK, pairs - from);
      Sums* sum = sums.data();
      for (int64_t in = 0; in < c.in_channels; in += LANES)
        for (int64_t out = 0; out < c.out_channels; out += LANES)
          for (std::size_t i = 0; i < taps.size(); i += ACCUMULATORS) {
            const Line* factors[ACCUMULATORS];
            int some = 0;
            for (; some < ACCUMULATORS && i + some < taps.size(); ++some)
              factors[some] = inputs[taps[i + some].first].pairs(in, taps[i + some].second) + from;
            MULTIPLY[some - 1](gradients.tiles(out) + from, factors, sum, length);
            sum += some;
          }
    }
  }
}

}  // namespace

// ---- what Python calls -------------------------------------------------------------------------

// Whether the processor has tiles, and the system lets this process use them.
EXPORT int has_tiles() {
  constexpr int REQUEST = 0x1023, TILE_DATA = 18;  // from Linux' asm/prctl.h and Intel's manual
  return syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
}

// Each thread sums over its images, and what they come to is added in their order.
EXPORT void kernel_gradient(const uint16_t* x, const uint16_t* dy, float* dweight,
                            const int64_t* numbers, int threads) {
  Convolution c;
  std::memcpy(&c, numbers, sizeof c);
  const Row row(c);
  const int64_t taps = c.size * c.size;
  std::vector<std::vector<Sums>> parts(threads);
#pragma omp parallel num_threads(threads)
  {
    const int64_t thread = omp_get_thread_num(), count = omp_get_num_threads();
    const int64_t from = c.images * thread / count, to = c.images * (thread + 1) / count;
    std::vector<Sums>& sums = parts[thread];
    sums.resize(c.out_channels * c.in_channels * taps / (LANES * LANES));
    add_gradient(c, row, x + from * c.height * c.width * c.in_channels,
                 dy + from * c.out_height * c.out_width * c.out_channels, to - from, sums);
#pragma omp barrier
    for (int64_t tile = thread; tile < int64_t(sums.size()); tile += count) {
      const int64_t tap = tile % taps, blocks = c.out_channels / LANES;
      const int64_t out = tile / taps % blocks * LANES, in = tile / taps / blocks * LANES;
      for (int64_t i = 0; i < LANES; ++i) {
        __m512 sum = _mm512_setzero_ps();
        for (int64_t part = 0; part < count; ++part)
          sum = _mm512_add_ps(sum, _mm512_load_ps(&parts[part][tile].values[i * LANES]));
        _mm512_storeu_ps(dweight + ((out + i) * taps + tap) * c.in_channels + in, sum);
      }
    }
  }
}

#endif
