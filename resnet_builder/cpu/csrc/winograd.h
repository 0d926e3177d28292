// Winograd's minimal filtering, as Lavin and Gray 2015 (arXiv 1509.09308, section 4.1) have it:
// Y = A^T ((G g G^T) * (B^T d B)) A for weights g of 3 x 3 pixels, where d is a patch of the input,
// Y one of the output, and * multiplies element by element and sums over input channels.
//
// Images are channels-last; 16 channels are one vector. Transforms and sums are in fp32; what is
// multiplied has the precision of the images.

#pragma once

#include <vector>

#include "convolution.h"

namespace {

// ---- transforms --------------------------------------------------------------------------------
//
// Each has B^T d, G g and A^T m of one dimension, in 16 lanes, and
//
//   INPUTS   pixels d,
//   STEP     pixels from one d to the next,
//   POINTS   products, and
//   OUTPUTS  pixels Y.
//
// Patches are transformed down their columns, and then across their lines. What goes across in the
// gradient of weights has the transposed transform of Y, too, which makes points of Y's gradient.

// F(2, 3): 4 products in place of 6. All factors are 1, -1 and 1/2, so that little is rounded more
// than in plain sums.
struct F23 {
  static constexpr int INPUTS = 4, STEP = 2, POINTS = 4, OUTPUTS = 2;

  static void transform_input(const __m512* d, __m512* to) {
    to[0] = _mm512_sub_ps(d[0], d[2]);
    to[1] = _mm512_add_ps(d[1], d[2]);
    to[2] = _mm512_sub_ps(d[2], d[1]);
    to[3] = _mm512_sub_ps(d[3], d[1]);
  }
  static void transform_weight(const __m512* g, __m512* to) {
    const __m512 half = _mm512_set1_ps(0.5f), ends = _mm512_add_ps(g[0], g[2]);
    to[0] = g[0];
    to[1] = _mm512_mul_ps(half, _mm512_add_ps(ends, g[1]));
    to[2] = _mm512_mul_ps(half, _mm512_sub_ps(ends, g[1]));
    to[3] = g[2];
  }
  static void transform_output(const __m512* m, __m512* to) {
    to[0] = _mm512_add_ps(_mm512_add_ps(m[0], m[1]), m[2]);
    to[1] = _mm512_add_ps(_mm512_sub_ps(m[1], m[2]), m[3]);
  }
  static void transform_gradient(const __m512* y, __m512* to) {
    to[0] = y[0];
    to[1] = _mm512_add_ps(y[0], y[1]);
    to[2] = _mm512_sub_ps(y[0], y[1]);
    to[3] = y[1];
  }
};

// F(4, 3): 6 products in place of 12. Polynomials are evaluated in 0, +-5/8, +-3/2 and infinity:
// all factors of pixels are then exact even in bf16, and half of what is lost with the usual 0, +-1
// and +-2 is, two to three times what plain sums lose. In bf16 it is three times what its rounding
// loses if the other direction has F(2, 3), five times if it has this, too.
struct F43 {
  static constexpr int INPUTS = 6, STEP = 4, POINTS = 6, OUTPUTS = 4;

  static void transform_input(const __m512* d, __m512* to) {
    const __m512 near = number(NEAR), far = number(FAR);
    const __m512 near_square = number(-NEAR * NEAR), far_square = number(-FAR * FAR);
    const __m512 both = number(-NEAR * NEAR - FAR * FAR), all = number(NEAR * NEAR * FAR * FAR);
    const auto ends = [&](const __m512* of) {
      return _mm512_fmadd_ps(all, of[0], _mm512_fmadd_ps(both, of[2], of[4]));
    };
    to[0] = ends(d);
    const __m512 even = _mm512_fmadd_ps(far_square, d[2], d[4]);
    const __m512 odd = _mm512_fmadd_ps(far_square, d[1], d[3]);
    to[1] = _mm512_fmadd_ps(near, odd, even);
    to[2] = _mm512_fnmadd_ps(near, odd, even);
    const __m512 far_even = _mm512_fmadd_ps(near_square, d[2], d[4]);
    const __m512 far_odd = _mm512_fmadd_ps(near_square, d[1], d[3]);
    to[3] = _mm512_fmadd_ps(far, far_odd, far_even);
    to[4] = _mm512_fnmadd_ps(far, far_odd, far_even);
    to[5] = ends(d + 1);
  }
  static void transform_weight(const __m512* g, __m512* to) {
    to[0] = _mm512_mul_ps(number(1 / (NEAR * NEAR * FAR * FAR)), g[0]);
    evaluate(g, NEAR, 1 / (2 * NEAR * NEAR * (NEAR * NEAR - FAR * FAR)), to + 1);
    evaluate(g, FAR, 1 / (2 * FAR * FAR * (FAR * FAR - NEAR * NEAR)), to + 3);
    to[5] = g[2];
  }
  static void transform_output(const __m512* m, __m512* to) {
    const __m512 even = _mm512_add_ps(m[1], m[2]), odd = _mm512_sub_ps(m[1], m[2]);
    const __m512 far_even = _mm512_add_ps(m[3], m[4]), far_odd = _mm512_sub_ps(m[3], m[4]);
    const auto sum = [](float factor, __m512 near, float far_factor, __m512 far) {
      return _mm512_fmadd_ps(number(factor), near, _mm512_mul_ps(number(far_factor), far));
    };
    to[0] = _mm512_add_ps(m[0], _mm512_add_ps(even, far_even));
    to[1] = sum(NEAR, odd, FAR, far_odd);
    to[2] = sum(NEAR * NEAR, even, FAR * FAR, far_even);
    to[3] = _mm512_add_ps(m[5], sum(NEAR * NEAR * NEAR, odd, FAR * FAR * FAR, far_odd));
  }

 private:
  static constexpr float NEAR = 0.625f, FAR = 1.5f;

  static __m512 number(float value) { return _mm512_set1_ps(value); }

  // A weight's polynomial in a number and its negative, times a factor.
  static void evaluate(const __m512* g, float at, float factor, __m512* to) {
    const __m512 even = _mm512_fmadd_ps(number(at * at), g[2], g[0]);
    const __m512 odd = _mm512_mul_ps(number(at), g[1]);
    to[0] = _mm512_mul_ps(number(factor), _mm512_add_ps(even, odd));
    to[1] = _mm512_mul_ps(number(factor), _mm512_sub_ps(even, odd));
  }
};

// Stride 2: the middle of a weight sees every other pixel alone, and its ends see the pixels in
// between: for these F(2, 2), 5 products in place of 6 in all.
struct F22Stride2 {
  static constexpr int INPUTS = 5, STEP = 4, POINTS = 5, OUTPUTS = 2;

  static void transform_input(const __m512* d, __m512* to) {
    to[0] = _mm512_sub_ps(d[0], d[2]);
    to[1] = d[2];
    to[2] = _mm512_sub_ps(d[4], d[2]);
    to[3] = d[1];
    to[4] = d[3];
  }
  static void transform_weight(const __m512* g, __m512* to) {
    to[0] = g[0];
    to[1] = _mm512_add_ps(g[0], g[2]);
    to[2] = g[2];
    to[3] = to[4] = g[1];
  }
  static void transform_output(const __m512* m, __m512* to) {
    to[0] = _mm512_add_ps(_mm512_add_ps(m[0], m[1]), m[3]);
    to[1] = _mm512_add_ps(_mm512_add_ps(m[1], m[2]), m[4]);
  }
  static void transform_gradient(const __m512* y, __m512* to) {
    to[0] = to[3] = y[0];
    to[1] = _mm512_add_ps(y[0], y[1]);
    to[2] = to[4] = y[1];
  }
};

// The input's gradient with stride 2, by weights rotated by half a turn.
struct F22Stride2Transposed {
  static constexpr int INPUTS = 3, STEP = 2, POINTS = 5, OUTPUTS = 4;

  static void transform_input(const __m512* d, __m512* to) {
    to[0] = _mm512_sub_ps(d[0], d[1]);
    to[1] = d[1];
    to[2] = _mm512_sub_ps(d[1], d[2]);
    to[3] = d[0];
    to[4] = d[1];
  }
  static void transform_weight(const __m512* g, __m512* to) { F22Stride2::transform_weight(g, to); }
  static void transform_output(const __m512* m, __m512* to) {
    to[0] = m[3];
    to[1] = _mm512_add_ps(m[0], m[1]);
    to[2] = m[4];
    to[3] = _mm512_sub_ps(m[1], m[2]);
  }
};

// Transforms of a patch: one down its columns, one across its lines.
template <typename DownTransform, typename AcrossTransform>
struct Plane {
  using Down = DownTransform;
  using Across = AcrossTransform;
  static constexpr int POINTS = Down::POINTS * Across::POINTS;
};
template <typename Transform>
using Square = Plane<Transform, Transform>;

// ---- patches -----------------------------------------------------------------------------------

struct alignas(64) Vector {
  float values[LANES];
};

// A patch of output pixels that are computed together (a tile in the paper), by its first one.
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
