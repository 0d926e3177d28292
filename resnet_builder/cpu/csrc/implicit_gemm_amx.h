// Implicit GEMM of a weight's gradient in AMX tiles: a product of matrices that has a summand for
// each pixel, of which 32, 16 output channels and 16 input channels are one instruction.

#pragma once

#include <vector>

#include "implicit_gemm.h"
#include "vnni.h"

namespace {

// ---- tiles -------------------------------------------------------------------------------------

struct alignas(64) TileConfig {
  std::uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  std::uint8_t rows[16];
};

// Tiles of 16 rows of 64 bytes, for as long as it is in scope. The configuration before is
// restored: oneDNN keeps its own from call to call.
class Tiles {
 public:
  Tiles() {
    asm volatile("sttilecfg %0" : "=m"(before_));
    TileConfig config = {};
    config.palette = 1;
    std::fill_n(config.row_bytes, 8, 4 * LANES);
    std::fill_n(config.rows, 8, LANES);
    load(config);
  }
  ~Tiles() {
    if (before_.palette)
      load(before_);
    else
      _tile_release();
  }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;

 private:
  // The intrinsic function tells the compiler of the first eight bytes only.
  static void load(const TileConfig& config) { asm volatile("ldtilecfg %0" : : "m"(config)); }

  TileConfig before_;
};

// The compiler does not know that tile instructions read and write memory.
inline void memory_barrier() { asm volatile("" ::: "memory"); }

// ---- products ----------------------------------------------------------------------------------

constexpr int64_t PAIRS = LANES;  // of pixels that one instruction sums over
constexpr int64_t STEP = 1;       // that the pitch is a multiple of
constexpr int AT_ONCE = 5;        // tiles of sums; the other three are factors

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

// Adds the products of 16 output channels and COUNT times 16 input channels to as many tiles. Two
// tiles take turns for the inputs, so that one is read while the other is multiplied.
template <int COUNT>
void multiply_tiles(const Line* gradients, const Line* const* inputs, Sums* sums, int64_t pairs) {
  memory_barrier();
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
  memory_barrier();
}

constexpr decltype(&multiply_tiles<1>) MULTIPLY[AT_ONCE] = {
    multiply_tiles<1>, multiply_tiles<2>, multiply_tiles<3>, multiply_tiles<4>, multiply_tiles<5>};

// The output's gradient, as tiles of a line for each channel and a column for each pair of pixels:
// all tiles of the first 16 channels, then of the next.
class Gradients {
 public:
  static constexpr int64_t BLOCK = 16 * PAIRS;  // pairs that stay in the first-level cache

  Gradients(const Convolution& c, const Row& row)
      : c_(c), row_(row), pairs_(row.pixels / 2), tiles_(pairs_.size() * c.out_channels / LANES) {}

  void read(const uint16_t* dy, const Piece& piece) {
    const int64_t line = c_.out_width * c_.out_channels;
    const int64_t end = (piece.images - 1) * row_.image + piece.lines * row_.pitch;
    count_ = row_.whole(piece.images, piece.lines) / 2;
    dy += (piece.image * c_.out_height + piece.line) * line;
    for (int64_t channel = 0; channel < c_.out_channels; channel += LANES) {
      for (int64_t image = 0; image < piece.images; ++image)
        for (int64_t y = 0; y < piece.lines; ++y)
          write_pairs(dy + (image * c_.out_height + y) * line + channel, c_.out_width,
                      c_.out_channels, image * row_.image + y * row_.pitch, pairs_.data());
      std::fill(pairs_.begin() + end / 2, pairs_.begin() + count_, Line());
      Line* to = &tiles_[channel / LANES * pairs_.size()];
      for (int64_t i = 0; i < count_; i += PAIRS) transpose(&pairs_[i], to + i);
    }
  }

  // How many pairs there are.
  int64_t count() const { return count_; }

  // Adds products of 16 output channels and of what some taps see, from a pair on, to sums.
  void multiply(int64_t channel, int64_t from, const Line* const* inputs, int count,
                Sums* sums) const {
    const Line* tiles = &tiles_[channel / LANES * pairs_.size()];
    MULTIPLY[count - 1](tiles + from, inputs, sums, std::min(BLOCK, count_ - from));
  }

 private:
  const Convolution& c_;
  const Row& row_;
  const Tiles configured_;
  std::vector<Line> pairs_, tiles_;
  int64_t count_ = 0;
};

}  // namespace
