// Convolutions of 3 x 3 pixels by minimal filtering: Y = A^T ((G g G^T) * (B^T d B)) A, where * is
// summed over input channels. `filtering.h` has the ways.
//
// Images are channels-last; 16 channels are one vector. Transforms and sums are in fp32; what is
// multiplied is in the numbers that the images are in.

#pragma once

#include <vector>

#include "filtering.h"
#include "numbers.h"

namespace {

struct alignas(64) Vector {
  float values[LANES];
};

// A square of output pixels that are computed together, by its first one.
template <typename Way>
struct Square {
  static constexpr int64_t SIDE = Way::OUTPUTS;

  int64_t image, y, x;

  // The one of this number, of all images' one after the other.
  Square(const Convolution& c, int64_t number) {
    const int64_t columns = in(c.out_width), lines = in(c.out_height);
    image = number / (lines * columns);
    y = number / columns % lines * SIDE;
    x = number % columns * SIDE;
  }

  // How many there are in so many pixels, and in all images.
  static int64_t in(int64_t pixels) { return (pixels + SIDE - 1) / SIDE; }
  static int64_t count(const Convolution& c) {
    return c.images * in(c.out_height) * in(c.out_width);
  }

  // Goes so many squares on, to the next line's first one at most.
  void advance(const Convolution& c, int64_t squares) {
    if ((x += SIDE * squares) < c.out_width) return;
    x = 0;
    if ((y += SIDE) < c.out_height) return;
    y = 0;
    ++image;
  }
};

// The images that a convolution is given.
template <typename Type, typename Way>
class Input {
 public:
  using Number = typename Type::Number;

  Input(const Convolution& c, const Number* x) : c_(c), x_(x), zeros_(LANES) {}

  // Calls write(i, y, points) with each line y of B^T d B of 16 channels, for each of some squares
  // of a line, which may go on beyond its end. Neighbours have columns in common.
  template <typename Write>
  void read(const Square<Way>& square, int64_t count, int64_t channel, Write write) const {
    constexpr int SIDE = Way::INPUTS, COMMON = SIDE - Way::STEP;
    const int64_t top = square.y / Way::OUTPUTS * Way::STEP - c_.padding;
    const int64_t left = square.x / Way::OUTPUTS * Way::STEP - c_.padding;
    const int64_t width = c_.width;
    const Number* pixels[SIDE];
    int64_t next[SIDE];  // from column to column; none where all are zeros
    for (int64_t y = 0; y < SIDE; ++y) {
      const bool inside = top + y >= 0 && top + y < c_.height;
      const int64_t line = (square.image * c_.height + top + y) * width;
      pixels[y] = inside ? x_ + line * c_.in_channels + channel : zeros_.data();
      next[y] = inside ? c_.in_channels : 0;
    }
    const auto read_column = [&](int64_t place, __m512* to) {
      __m512 d[SIDE] = {};
      if (place >= 0 && place < width)
#pragma GCC unroll 8
        for (int y = 0; y < SIDE; ++y) d[y] = Type::load(pixels[y] + place * next[y]);
      Way::transform_input(d, to);
    };
    __m512 columns[SIDE][Way::POINTS];
    for (int x = 0; x < COMMON; ++x) read_column(left + x, columns[x]);
    for (int64_t i = 0; i < count; ++i) {
#pragma GCC unroll 8
      for (int x = COMMON; x < SIDE; ++x) read_column(left + i * Way::STEP + x, columns[x]);
#pragma GCC unroll 8
      for (int y = 0; y < Way::POINTS; ++y) {
        __m512 line[SIDE], points[Way::POINTS];
#pragma GCC unroll 8
        for (int x = 0; x < SIDE; ++x) line[x] = columns[x][y];
        Way::transform_input(line, points);
        write(i, y, points);
#pragma GCC unroll 8
        for (int x = 0; x < COMMON; ++x) columns[x][y] = line[Way::STEP + x];
      }
    }
  }

 private:
  const Convolution& c_;
  const Number* x_;
  const std::vector<Number> zeros_;
};

}  // namespace
