// Convolutions in fp32 of 3 x 3 pixels and stride 1, with 16 products for 4 pixels in place of 36.
//
// Winograd's minimal filtering F(2 x 2, 3 x 3), as Lavin and Gray 2015 (arXiv 1509.09308, section
// 4.1) have it: Y = A^T ((G g G^T) * (B^T d B)) A, where d are 4 x 4 pixels of an input channel, g
// is a kernel, * multiplies element by element and is summed over input channels, and Y are 2 x 2
// pixels. All factors are 1, -1 and 1/2, so that little is rounded more than in plain sums.
//
// Images are channels-last; 16 channels are one vector.

#include <cstdint>

#define EXPORT extern "C" __attribute__((visibility("default")))

#if !defined(__AVX512F__)

EXPORT int has_winograd() { return 0; }
EXPORT void winograd_convolution(const float*, const float*, const float*, const float*, int,
                                 float*, const std::int64_t*, int) {}

#else

#include <omp.h>

#include <cstring>

#include "rows.h"

namespace {

constexpr int POINTS = 16;  // elements of 4 x 4
constexpr int AT_ONCE = 8;   // squares of 2 x 2 output pixels whose sums are in registers, of 32

struct alignas(64) Vector {
  float values[LANES];
};

// ---- transforms --------------------------------------------------------------------------------

// G g G^T of every kernel: for each point and 16 output channels a vector for each input channel.
std::vector<Vector> transformed_weights(const Convolution& c, const float* weights) {
  const int64_t blocks = c.out_channels / LANES;
  std::vector<Vector> found(POINTS * blocks * c.in_channels);
  for (int64_t out = 0; out < c.out_channels; ++out)
    for (int64_t in = 0; in < c.in_channels; ++in) {
      const auto tap = [&](int y, int x) {
        return weights[(out * 9 + 3 * y + x) * c.in_channels + in];
      };
      float lines[4][3];
      for (int x = 0; x < 3; ++x) {
        const float first = tap(0, x), middle = tap(1, x), last = tap(2, x);
        lines[0][x] = first;
        lines[1][x] = (first + last + middle) / 2;
        lines[2][x] = (first + last - middle) / 2;
        lines[3][x] = last;
      }
      for (int y = 0; y < 4; ++y) {
        const float first = lines[y][0], middle = lines[y][1], last = lines[y][2];
        const float points[] = {first, (first + last + middle) / 2, (first + last - middle) / 2,
                                last};
        for (int x = 0; x < 4; ++x) {
          const int64_t at = ((4 * y + x) * blocks + out / LANES) * c.in_channels + in;
          found[at].values[out % LANES] = points[x];
        }
      }
    }
  return found;
}

// A column of B^T d, of 16 channels.
struct Column {
  __m512 values[4];
};

inline Column transform_column(const float* const* pixels, const int64_t* at) {
  __m512 d[4];
#pragma GCC unroll 4
  for (int y = 0; y < 4; ++y) d[y] = _mm512_loadu_ps(pixels[y] + at[y]);
  return {{_mm512_sub_ps(d[0], d[2]), _mm512_add_ps(d[1], d[2]), _mm512_sub_ps(d[2], d[1]),
           _mm512_sub_ps(d[1], d[3])}};
}

// B^T d B of 16 channels, from its columns; `to` has the next point `step` vectors further on.
inline void transform_lines(const Column* columns, Vector* to, int64_t step) {
#pragma GCC unroll 4
  for (int y = 0; y < 4; ++y, to += 4 * step) {
    const __m512 first = columns[0].values[y], second = columns[1].values[y];
    const __m512 third = columns[2].values[y], last = columns[3].values[y];
    _mm512_store_ps(to[0 * step].values, _mm512_sub_ps(first, third));
    _mm512_store_ps(to[1 * step].values, _mm512_add_ps(second, third));
    _mm512_store_ps(to[2 * step].values, _mm512_sub_ps(third, second));
    _mm512_store_ps(to[3 * step].values, _mm512_sub_ps(second, last));
  }
}

// A^T m A of 16 channels; `from` has the next point AT_ONCE vectors further on.
inline void transform_output(const Vector* from, __m512 y[2][2]) {
  __m512 lines[2][4];
#pragma GCC unroll 4
  for (int x = 0; x < 4; ++x) {
    const auto point = [&](int y) { return _mm512_load_ps(from[(4 * y + x) * AT_ONCE].values); };
    const __m512 second = point(1), third = point(2);
    lines[0][x] = _mm512_add_ps(_mm512_add_ps(point(0), second), third);
    lines[1][x] = _mm512_sub_ps(_mm512_sub_ps(second, third), point(3));
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    const __m512* line = lines[i];
    y[i][0] = _mm512_add_ps(_mm512_add_ps(line[0], line[1]), line[2]);
    y[i][1] = _mm512_sub_ps(_mm512_sub_ps(line[1], line[2]), line[3]);
  }
}

// ---- products ----------------------------------------------------------------------------------

// Sums the products of one point over input channels: AT_ONCE squares, 16 output channels.
inline void multiply(const Vector* inputs, const Vector* weights, int64_t in_channels,
                     Vector* sums) {
  __m512 sum[AT_ONCE];
#pragma GCC unroll 8
  for (int i = 0; i < AT_ONCE; ++i) sum[i] = _mm512_setzero_ps();
  for (int64_t in = 0; in < in_channels; in += LANES, inputs += AT_ONCE)
    for (int lane = 0; lane < LANES; ++lane) {
      const __m512 weight = _mm512_load_ps(weights++->values);
#pragma GCC unroll 8
      for (int i = 0; i < AT_ONCE; ++i)
        sum[i] = _mm512_fmadd_ps(_mm512_set1_ps(inputs[i].values[lane]), weight, sum[i]);
    }
#pragma GCC unroll 8
  for (int i = 0; i < AT_ONCE; ++i) _mm512_store_ps(sums[i].values, sum[i]);
}

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

// y = relu(convolution(x) + bias + addend), without what there is not, for a range of squares.
class Winograd {
 public:
  Winograd(const Convolution& c, const std::vector<Vector>& weights, const float* bias,
           const float* addend, bool relu)
      : c_(c),
        weights_(weights),
        bias_(bias),
        addend_(addend),
        relu_(relu),
        zeros_(c.in_channels),
        inputs_(POINTS * AT_ONCE * c.in_channels / LANES),
        sums_(POINTS * AT_ONCE) {}

  void convolve(const float* x, float* y, int64_t from, int64_t to) {
    const Vector* weights = weights_.data();
    const int64_t blocks = c_.out_channels / LANES, step = inputs_.size() / POINTS;
    Square next(c_, from);
    for (; from < to; from += AT_ONCE) {
      const int64_t count = std::min<int64_t>(AT_ONCE, to - from);
      const Square first = next;
      for (int64_t i = 0; i < count;) {
        const int64_t some = std::min(count - i, (c_.out_width - next.x + 1) / 2);
        read(x, next, i, some);
        i += some;
        next.advance(c_, some);
      }
      for (int64_t block = 0; block < blocks; ++block) {
        for (int64_t point = 0; point < POINTS; ++point)
          multiply(&inputs_[point * step], weights + (point * blocks + block) * c_.in_channels,
                   c_.in_channels, &sums_[point * AT_ONCE]);
        Square square = first;
        for (int64_t i = 0; i < count; ++i, square.advance(c_, 1))
          write(y, square, i, block * LANES);
      }
    }
  }

 private:
  // Transforms the input of some squares of a line; neighbours have two columns in common.
  void read(const float* x, const Square& square, int64_t number, int64_t count) {
    const int64_t top = square.y - c_.padding, left = square.x - c_.padding;
    const float* pixels[4];
    int64_t next[4];  // from column to column; none where all are zeros
    for (int64_t y = 0; y < 4; ++y) {
      const bool inside = top + y >= 0 && top + y < c_.height;
      const int64_t line = (square.image * c_.height + top + y) * c_.width;
      pixels[y] = inside ? x + line * c_.in_channels : zeros_.data();
      next[y] = inside ? c_.in_channels : 0;
    }
    const int64_t step = inputs_.size() / POINTS;
    for (int64_t channel = 0; channel < c_.in_channels; channel += LANES) {
      const auto column = [&](int64_t place) {
        if (place < 0 || place >= c_.width) return Column{};
        int64_t at[4];
        for (int y = 0; y < 4; ++y) at[y] = place * next[y] + channel;
        return transform_column(pixels, at);
      };
      Vector* to = &inputs_[channel / LANES * AT_ONCE + number];
      Column columns[4] = {column(left), column(left + 1)};
      for (int64_t i = 0; i < count; ++i, columns[0] = columns[2], columns[1] = columns[3]) {
        columns[2] = column(left + 2 * i + 2);
        columns[3] = column(left + 2 * i + 3);
        transform_lines(columns, to + i, step);
      }
    }
  }

  void write(float* y, const Square& square, int64_t number, int64_t channel) const {
    __m512 values[2][2];
    transform_output(&sums_[number], values);
    const __m512 bias = bias_ ? _mm512_loadu_ps(bias_ + channel) : _mm512_setzero_ps();
    const int64_t lines = c_.out_height - square.y, columns = c_.out_width - square.x;
    const int64_t line = c_.out_width * c_.out_channels, column = c_.out_channels;
    const int64_t at = (square.image * c_.out_height + square.y) * line + square.x * column;
    finish(y, at + channel, values[0][0], bias);
    if (columns > 1) finish(y, at + channel + column, values[0][1], bias);
    if (lines > 1) finish(y, at + channel + line, values[1][0], bias);
    if (lines > 1 && columns > 1) finish(y, at + channel + line + column, values[1][1], bias);
  }

  void finish(float* y, int64_t at, __m512 value, __m512 bias) const {
    value = _mm512_add_ps(value, bias);
    if (addend_) value = _mm512_add_ps(value, _mm512_loadu_ps(addend_ + at));
    if (relu_) {
      const __m512 zero = _mm512_setzero_ps();
      const __mmask16 negative = _mm512_cmp_ps_mask(value, zero, _CMP_LT_OQ);
      value = _mm512_mask_mov_ps(value, negative, zero);  // NaN stays NaN
    }
    _mm512_storeu_ps(y + at, value);
  }

  const Convolution& c_;
  const std::vector<Vector>& weights_;
  const float *bias_, *addend_;
  const bool relu_;
  std::vector<float> zeros_;
  std::vector<Vector> inputs_;  // for each point and 16 channels a vector for each square
  std::vector<Vector> sums_;    // for each point one for each square
};

}  // namespace

// ---- what Python calls -------------------------------------------------------------------------

EXPORT int has_winograd() { return 1; }

EXPORT void winograd_convolution(const float* x, const float* weights, const float* bias,
                                 const float* addend, int relu, float* y, const int64_t* numbers,
                                 int threads) {
  Convolution c;
  std::memcpy(&c, numbers, sizeof c);
  const std::vector<Vector> transformed = transformed_weights(c, weights);
  const int64_t squares = Square::count(c), groups = (squares + AT_ONCE - 1) / AT_ONCE;
#pragma omp parallel num_threads(threads)
  {
    const int64_t thread = omp_get_thread_num(), count = omp_get_num_threads();
    const auto first = [&](int64_t part) {
      return std::min(groups * part / count * AT_ONCE, squares);
    };
    Winograd(c, transformed, bias, addend, relu).convolve(x, y, first(thread), first(thread + 1));
  }
}

#endif
