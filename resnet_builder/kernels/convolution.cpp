// The gradient of a convolution's weights in bf16, in tiles.
//
// The gradient of one tap is a product of matrices that has a summand for each pixel: 32 of them,
// 16 output channels and 16 input channels are one instruction.

#include <cstdint>

#define EXPORT extern "C" __attribute__((visibility("default")))

#if !defined(__AMX_BF16__) || !defined(__AVX512BW__) || !defined(__linux__)

EXPORT int has_tiles() { return 0; }
EXPORT void weight_gradient(const void*, const void*, float*, const std::int64_t*, int) {}

#else

#include <omp.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstring>

#include "tiles.h"

namespace {

constexpr int64_t PAIRS = LANES;       // of pixels that one instruction sums over
constexpr int64_t BLOCK = 16 * PAIRS;  // pairs that stay in the first-level cache
constexpr int ACCUMULATORS = 5;        // tiles; the other three are factors

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
      : c_(c), row_(row), pairs_(row.pixels / 2), tiles_(pairs_.size() * c.out_channels / LANES) {}

  void read(const uint16_t* dy, const Piece& piece) {
    const int64_t line = c_.out_width * c_.out_channels;
    const int64_t pairs = row_.whole(piece.images, piece.lines) / 2;
    const int64_t end = (piece.images - 1) * row_.image + piece.lines * row_.pitch;
    dy += (piece.image * c_.out_height + piece.line) * line;
    for (int64_t channel = 0; channel < c_.out_channels; channel += LANES) {
      for (int64_t image = 0; image < piece.images; ++image)
        for (int64_t y = 0; y < piece.lines; ++y)
          write_pairs(dy + (image * c_.out_height + y) * line + channel, c_.out_width,
                      c_.out_channels, image * row_.image + y * row_.pitch, pairs_.data());
      std::fill(pairs_.begin() + end / 2, pairs_.begin() + pairs, Line());
      Line* to = &tiles_[channel / LANES * pairs_.size()];
      for (int64_t i = 0; i < pairs; i += PAIRS) transpose(&pairs_[i], to + i);
    }
  }

  const Line* tiles(int64_t channel) const { return &tiles_[channel / LANES * pairs_.size()]; }

 private:
  const Convolution& c_;
  const Row& row_;
  std::vector<Line> pairs_, tiles_;
};

// A phase of the input, in pairs that begin with an even and with an odd pixel.
class Inputs {
 public:
  Inputs(const Convolution& c, const Row& row, const Phase& phase)
      : c_(c), row_(row), phase_(phase) {}

  // Has what a tap sees which is moved by so many pixels read from now on.
  void take(int64_t moved) {
    pairs_[(row_.lead + moved) % 2].resize(count() * c_.in_channels / LANES);
  }

  void read(const uint16_t* x, const Piece& piece) {
    const Lines lines(c_, row_, piece, phase_);
    const bool cut = row_.lines < c_.out_height;
    for (int64_t odd = 0; odd < 2; ++odd) {
      std::vector<Line>& pairs = pairs_[odd];
      if (pairs.empty()) continue;
      if (cut && !lines.whole) std::fill(pairs.begin(), pairs.end(), Line());
      over_lines(c_, row_, piece, phase_, lines, [&](int64_t from, int64_t to) {
        for (int64_t channel = 0; channel < c_.in_channels; channel += LANES)
          write_pairs(x + from * c_.in_channels + channel, lines.columns,
                      c_.stride * c_.in_channels, to - odd, &pairs[channel / LANES * count()]);
      });
    }
  }

  // What a tap sees which is moved by so many pixels: a line of 16 channels for each pair.
  const Line* pairs(int64_t channel, int64_t moved) const {
    const int64_t from = row_.lead + moved;
    return &pairs_[from % 2][channel / LANES * count() + from / 2];
  }

 private:
  int64_t count() const { return row_.pixels / 2 + row_.lead + 1; }

  const Convolution& c_;
  const Row& row_;
  const Phase& phase_;
  std::vector<Line> pairs_[2];
};

// ---- products ----------------------------------------------------------------------------------

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
                  int64_t from_image, int64_t to_image, std::vector<Sums>& sums) {
  Gradients gradients(c, row);
  std::vector<Inputs> inputs;
  for (const Phase& phase : row.phases) inputs.emplace_back(c, row, phase);
  for (const Tap& tap : row.taps) inputs[tap.phase].take(tap.moved);

  const Tiles tiles;
  for (const Piece& piece : pieces(c, row, from_image, to_image)) {
    gradients.read(dy, piece);
    for (Inputs& input : inputs) input.read(x, piece);
    const int64_t pairs = row.whole(piece.images, piece.lines) / 2;
    for (int64_t from = 0; from < pairs; from += BLOCK) {
      const int64_t length = std::min(BLOCK, pairs - from);
      Sums* sum = sums.data();
      for (int64_t in = 0; in < c.in_channels; in += LANES)
        for (int64_t out = 0; out < c.out_channels; out += LANES)
          for (std::size_t i = 0; i < row.taps.size(); i += ACCUMULATORS) {
            const Line* factors[ACCUMULATORS];
            int some = 0;
            for (; some < ACCUMULATORS && i + some < row.taps.size(); ++some) {
              const Tap& tap = row.taps[i + some];
              factors[some] = inputs[tap.phase].pairs(in, tap.moved) + from;
            }
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
EXPORT void weight_gradient(const uint16_t* x, const uint16_t* dy, float* dweight,
                            const int64_t* numbers, int threads) {
  Convolution c;
  std::memcpy(&c, numbers, sizeof c);
  const Row row(c);
  const int64_t taps = row.taps.size();
  std::vector<std::vector<Sums>> parts(threads);
#pragma omp parallel num_threads(threads)
  {
    const int64_t thread = omp_get_thread_num(), count = omp_get_num_threads();
    std::vector<Sums>& sums = parts[thread];
    sums.resize(c.out_channels * c.in_channels * taps / (LANES * LANES));
    add_gradient(c, row, x, dy, c.images * thread / count, c.images * (thread + 1) / count, sums);
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
