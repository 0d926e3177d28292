// Implicit GEMM of a weight's gradient in AVX512-BF16 vectors.

#pragma once

#include <limits>
#include <vector>

#include "implicit_gemm.h"
#include "vnni.h"

namespace {

constexpr int64_t STEP = 2;  // that the pitch is a multiple of, so that every line begins a pair

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
    const Line* pairs = &pairs_[channel / LANES * size()];
    MULTIPLY[count - 1](pairs, inputs, sums, runs_.data(), runs_.size(), true);
  }

 private:
  int64_t size() const { return row_.pixels / 2; }

  const Convolution& c_;
  const Row& row_;
  std::vector<Line> pairs_;
  std::vector<Run> runs_;
};

}  // namespace
