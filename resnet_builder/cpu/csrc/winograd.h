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

// A patch of output pixels that are computed together, by its first one.
template <typename Plane>
struct Patch {
  static constexpr int64_t HEIGHT = Plane::Down::OUTPUTS, WIDTH = Plane::Across::OUTPUTS;

  int64_t image, y, x;

  // The one of this number, of all images' one after the other.
  Patch(const Convolution& c, int64_t number) {
    const int64_t columns = in_line(c), lines = in_column(c);
    image = number / (lines * columns);
    y = number / columns % lines * HEIGHT;
    x = number % columns * WIDTH;
  }

  // How many there are in a line and in a column of an image, from one column on, and in all.
  static int64_t in_line(const Convolution& c, int64_t from = 0) {
    return (c.out_width - from + WIDTH - 1) / WIDTH;
  }
  static int64_t in_column(const Convolution& c) { return (c.out_height + HEIGHT - 1) / HEIGHT; }
  static int64_t count(const Convolution& c) { return c.images * in_column(c) * in_line(c); }

  // Goes so many patches on, to the next line's first one at most.
  void advance(const Convolution& c, int64_t patches) {
    if ((x += WIDTH * patches) < c.out_width) return;
    x = 0;
    if ((y += HEIGHT) < c.out_height) return;
    y = 0;
    ++image;
  }
};

// The images that a convolution is given.
template <typename Type, typename Plane>
class Input {
 public:
  using Number = typename Type::Number;

  Input(const Convolution& c, const Number* x) : c_(c), x_(x), zeros_(LANES) {}

  // Calls write(i, y, points) with each line y of B^T d B of 16 channels, for each of some patches
  // of a line, which may go on beyond its end. Neighbours have columns in common.
  template <typename Write>
  void read(const Patch<Plane>& patch, int64_t count, int64_t channel, Write write) const {
    constexpr int HEIGHT = Down::INPUTS, WIDTH = Across::INPUTS, COMMON = WIDTH - Across::STEP;
    const int64_t top = patch.y / Down::OUTPUTS * Down::STEP - c_.padding;
    const int64_t left = patch.x / Across::OUTPUTS * Across::STEP - c_.padding;
    const int64_t width = c_.width;
    const Number* pixels[HEIGHT];
    int64_t next[HEIGHT];  // from column to column; none where all are zeros
    for (int64_t y = 0; y < HEIGHT; ++y) {
      const bool inside = top + y >= 0 && top + y < c_.height;
      const int64_t line = (patch.image * c_.height + top + y) * width;
      pixels[y] = inside ? x_ + line * c_.in_channels + channel : zeros_.data();
      next[y] = inside ? c_.in_channels : 0;
    }
    // Lines that the next patches have, and these have not, are fetched, for as many channels as a
    // line of the cache has. Below an image is the next; below the last, fetching does nothing.
    const bool fetches = channel % int64_t(sizeof(Line) / sizeof(Number)) == 0;
    const int64_t below = (patch.image * c_.height + top + HEIGHT) * width;
    const Number* soon = x_ + below * c_.in_channels + channel;
    const auto read_column = [&](int64_t place, __m512* to) {
      __m512 d[HEIGHT] = {};
      if (place >= 0 && place < width) {
#pragma GCC unroll 8
        for (int y = 0; y < HEIGHT; ++y) d[y] = Type::load(pixels[y] + place * next[y]);
        if (fetches)
#pragma GCC unroll 8
          for (int y = 0; y < Down::STEP; ++y)
            _mm_prefetch(soon + (y * width + place) * c_.in_channels, _MM_HINT_T1);
      }
      Down::transform_input(d, to);
    };
    __m512 columns[WIDTH][Down::POINTS];
    for (int x = 0; x < COMMON; ++x) read_column(left + x, columns[x]);
    for (int64_t i = 0; i < count; ++i) {
#pragma GCC unroll 8
      for (int x = COMMON; x < WIDTH; ++x)
        read_column(left + i * Across::STEP + x, columns[x]);
#pragma GCC unroll 8
      for (int y = 0; y < Down::POINTS; ++y) {
        __m512 line[WIDTH], points[Across::POINTS];
#pragma GCC unroll 8
        for (int x = 0; x < WIDTH; ++x) line[x] = columns[x][y];
        Across::transform_input(line, points);
        write(i, y, points);
#pragma GCC unroll 8
        for (int x = 0; x < COMMON; ++x) columns[x][y] = line[Across::STEP + x];
      }
    }
  }

 private:
  using Down = typename Plane::Down;
  using Across = typename Plane::Across;

  const Convolution& c_;
  const Number* x_;
  const std::vector<Number> zeros_;
};

}  // namespace
