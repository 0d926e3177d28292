// Winograd's minimal filtering F(2 x 2, 3 x 3), as Lavin and Gray 2015 (arXiv 1509.09308, section
// 4.1) have it: Y = A^T ((G g G^T) * (B^T d B)) A, where d are 4 x 4 pixels of an input channel, g
// is a kernel, * multiplies element by element and is summed over input channels, and Y are 2 x 2
// pixels: 16 products for 4 pixels in place of 36. All factors are 1, -1 and 1/2, so that little is
// rounded more than in plain sums.
//
// Images are channels-last; 16 channels are one vector. Transforms and sums are in fp32; what is
// multiplied is in the numbers that the images are in.

#pragma once

#include <vector>

#include "numbers.h"

namespace {

constexpr int POINTS = 16;  // elements of 4 x 4

struct alignas(64) Vector {
  float values[LANES];
};

// A square of 2 x 2 output pixels, by its first one.
struct Square {
  int64_t image, y, x;

  // The one of this number, of all images' one after the other.
  Square(const Convolution& c, int64_t number) {
    const int64_t lines = (c.out_height + 1) / 2, columns = (c.out_width + 1) / 2;
    image = number / (lines * columns);
    y = number / columns % lines * 2;
    x = number % columns * 2;
  }

  static int64_t count(const Convolution& c) {
    return c.images * ((c.out_height + 1) / 2) * ((c.out_width + 1) / 2);
  }

  // Goes so many squares on, to the next line's first one at most.
  void advance(const Convolution& c, int64_t squares) {
    if ((x += 2 * squares) < c.out_width) return;
    x = 0;
    if ((y += 2) < c.out_height) return;
    y = 0;
    ++image;
  }
};

// B^T d of four numbers.
inline void transform_input(const __m512* d, __m512* to) {
  to[0] = _mm512_sub_ps(d[0], d[2]);
  to[1] = _mm512_add_ps(d[1], d[2]);
  to[2] = _mm512_sub_ps(d[2], d[1]);
  to[3] = _mm512_sub_ps(d[1], d[3]);
}

// The images that a convolution is given.
template <typename Type>
class Input {
 public:
  using Number = typename Type::Number;

  Input(const Convolution& c, const Number* x) : c_(c), x_(x), zeros_(LANES) {}

  // Calls write(i, points) with B^T d B of 16 channels for each of some squares of a line, which
  // may go on beyond its end. Neighbours have two columns in common.
  template <typename Write>
  void read(const Square& square, int64_t count, int64_t channel, Write write) const {
    const int64_t top = square.y - c_.padding, left = square.x - c_.padding;
    const Number* pixels[4];
    int64_t next[4];  // from column to column; none where all are zeros
    for (int64_t y = 0; y < 4; ++y) {
      const bool inside = top + y >= 0 && top + y < c_.height;
      const int64_t line = (square.image * c_.height + top + y) * c_.width;
      pixels[y] = inside ? x_ + line * c_.in_channels + channel : zeros_.data();
      next[y] = inside ? c_.in_channels : 0;
    }
    const auto read_column = [&](int64_t place, __m512* to) {
      __m512 d[4] = {};
      if (place >= 0 && place < c_.width)
#pragma GCC unroll 4
        for (int y = 0; y < 4; ++y) d[y] = Type::load(pixels[y] + place * next[y]);
      transform_input(d, to);
    };
    __m512 columns[4][4];
    read_column(left, columns[0]);
    read_column(left + 1, columns[1]);
    for (int64_t i = 0; i < count; ++i) {
      read_column(left + 2 * i + 2, columns[2]);
      read_column(left + 2 * i + 3, columns[3]);
      __m512 points[POINTS];
#pragma GCC unroll 4
      for (int y = 0; y < 4; ++y) {
        const __m512 line[] = {columns[0][y], columns[1][y], columns[2][y], columns[3][y]};
        transform_input(line, points + 4 * y);
        columns[0][y] = line[2];
        columns[1][y] = line[3];
      }
      write(i, points);
    }
  }

 private:
  const Convolution& c_;
  const Number* x_;
  const std::vector<Number> zeros_;
};

}  // namespace
