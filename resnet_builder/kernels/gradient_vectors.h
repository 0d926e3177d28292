// The gradient of one tap in vectors: for each pair of pixels, each output channel's two numbers
// times those of 16 input channels are one instruction.

#pragma once

#include <limits>

#include "pairs.h"

namespace {

constexpr int64_t STEP = 2;  // that the pitch is a multiple of, so that every line begins a pair
constexpr int AT_ONCE = 3;   // taps

// Some pairs of the long row.
struct Run {
  int64_t from, count;
};

// Adds the products of 16 output channels and of what COUNT taps see, 16 input channels each. They
// are summed up before they are added, which rounds less.
template <int COUNT>
void multiply_pairs(const Line* gradients, const Line* const* inputs, Sums* sums,
                    const std::vector<Run>& runs) {
  constexpr int CHANNELS = COUNT == 1 ? 16 : 8;  // whose sums are in registers, of which 32 are
  for (int64_t first = 0; first < LANES; first += CHANNELS) {
    __m512 sum[COUNT][CHANNELS];
#pragma GCC unroll 3
    for (int i = 0; i < COUNT; ++i)
#pragma GCC unroll 16
      for (int channel = 0; channel < CHANNELS; ++channel)
        sum[i][channel] = _mm512_setzero_ps();
    for (const Run& run : runs) {
      const uint32_t* gradient = gradients[run.from].words + first;
      for (int64_t at = run.from; at < run.from + run.count; ++at, gradient += LANES) {
        __m512bh input[COUNT];
#pragma GCC unroll 3
        for (int i = 0; i < COUNT; ++i)
          input[i] = (__m512bh)_mm512_load_si512(inputs[i] + at);
#pragma GCC unroll 16
        for (int channel = 0; channel < CHANNELS; ++channel) {
          const __m512bh factor = (__m512bh)_mm512_set1_epi32(int(gradient[channel]));
#pragma GCC unroll 3
          for (int i = 0; i < COUNT; ++i)
            sum[i][channel] = _mm512_dpbf16_ps(sum[i][channel], factor, input[i]);
        }
      }
    }
#pragma GCC unroll 3
    for (int i = 0; i < COUNT; ++i)
#pragma GCC unroll 16
      for (int channel = 0; channel < CHANNELS; ++channel) {
        float* all = &sums[i].values[(first + channel) * LANES];
        _mm512_store_ps(all, _mm512_add_ps(_mm512_load_ps(all), sum[i][channel]));
      }
  }
}

constexpr decltype(&multiply_pairs<1>) MULTIPLY[AT_ONCE] = {multiply_pairs<1>, multiply_pairs<2>,
                                                            multiply_pairs<3>};

// The output's gradient: a line of 16 channels for each pair of pixels, all lines of the first 16
// channels, then of the next. Zeros between its lines are left out.
class Gradients {
 public:
  static constexpr int64_t BLOCK = std::numeric_limits<int64_t>::max();  // all pairs at once

  Gradients(const Convolution& c, const Row& row)
      : c_(c), row_(row), pairs_(size() * c.out_channels / LANES) {}

  void read(const uint16_t* dy, const Piece& piece) {
    const int64_t line = c_.out_width * c_.out_channels;
    dy += (piece.image * c_.out_height + piece.line) * line;
    runs_.clear();
    for (int64_t image = 0; image < piece.images; ++image)
      for (int64_t y = 0; y < piece.lines; ++y) {
        const int64_t at = image * row_.image + y * row_.pitch;
        runs_.push_back({at / 2, (c_.out_width + 1) / 2});
        for (int64_t channel = 0; channel < c_.out_channels; channel += LANES)
          write_pairs(dy + (image * c_.out_height + y) * line + channel, c_.out_width,
                      c_.out_channels, at, &pairs_[channel / LANES * size()]);
      }
  }

  // How many pairs there are.
  int64_t count() const { return size(); }

  // Adds products of 16 output channels and of what some taps see to sums.
  void multiply(int64_t channel, int64_t, const Line* const* inputs, int count, Sums* sums) const {
    MULTIPLY[count - 1](&pairs_[channel / LANES * size()], inputs, sums, runs_);
  }

 private:
  int64_t size() const { return row_.pixels / 2; }

  const Convolution& c_;
  const Row& row_;
  std::vector<Line> pairs_;
  std::vector<Run> runs_;
};

}  // namespace
