// Convolutions of 3 x 3 pixels and stride 1 in fewer products.

#include <cstdint>

#define EXPORT extern "C" __attribute__((visibility("default")))

// Whether the processor has what the functions below take, in fp32 and in bf16.
EXPORT int has_winograd_fp32();
EXPORT int has_winograd_bf16();

#ifdef __AVX512F__

#include <omp.h>

#include <algorithm>
#include <cstring>
#include <memory>

#include "winograd.h"

namespace {

constexpr int SQUARES = 8;  // that are computed at once

// ---- transforms --------------------------------------------------------------------------------

// Kernels from 16 input to 16 output channels: for each pixel and input channel a vector.
struct Kernels {
  Vector pixels[9][LANES];

  // Those of a convolution, or those that give the gradient of its images: turned by half a turn,
  // from its output channels to its input channels.
  void read(const Convolution& c, const float* weights, bool turned, int64_t in, int64_t out) {
    const int64_t from = turned ? in : out, to = turned ? out : in;
    const int64_t channels = turned ? c.out_channels : c.in_channels;
    for (int64_t i = 0; i < LANES; ++i)
      for (int at = 0; at < 9; ++at) {
        const float* numbers = weights + ((from + i) * 9 + at) * channels + to;
        if (turned)
          std::memcpy(&pixels[8 - at][i], numbers, sizeof(Vector));
        else
          for (int64_t j = 0; j < LANES; ++j) pixels[at][j].values[i] = numbers[j];
      }
  }
};

// G g of three numbers.
inline void transform_kernel(__m512 first, __m512 middle, __m512 last, __m512* to) {
  const __m512 half = _mm512_set1_ps(0.5f), ends = _mm512_add_ps(first, last);
  to[0] = first;
  to[1] = _mm512_mul_ps(half, _mm512_add_ps(ends, middle));
  to[2] = _mm512_mul_ps(half, _mm512_sub_ps(ends, middle));
  to[3] = last;
}

// G g G^T of all kernels to 16 output channels: for each point a vector for each word.
template <typename Type>
void transform_kernels(const Convolution& c, const float* weights, bool turned, int64_t out,
                       Vector* to) {
  const int64_t words = c.in_channels / Type::PER_WORD;
  Kernels kernels;
  for (int64_t in = 0; in < c.in_channels; in += Type::PER_WORD, ++to) {
    if (in % LANES == 0) kernels.read(c, weights, turned, in, out);
    __m512 points[POINTS][Type::PER_WORD];
    for (int64_t i = 0; i < Type::PER_WORD; ++i) {
      const auto pixel = [&](int at) {
        return _mm512_load_ps(kernels.pixels[at][in % LANES + i].values);
      };
      __m512 columns[3][4];
      for (int x = 0; x < 3; ++x)
        transform_kernel(pixel(x), pixel(3 + x), pixel(6 + x), columns[x]);
      for (int y = 0; y < 4; ++y) {
        __m512 line[4];
        transform_kernel(columns[0][y], columns[1][y], columns[2][y], line);
        for (int x = 0; x < 4; ++x) points[4 * y + x][i] = line[x];
      }
    }
    for (int point = 0; point < POINTS; ++point)
      _mm512_store_si512(to + point * words, Type::words(points[point]));
  }
}

// A^T m A of 16 channels; `from` has the next point SQUARES vectors further on.
inline void transform_output(const Vector* from, __m512 y[2][2]) {
  __m512 lines[2][4];
#pragma GCC unroll 4
  for (int x = 0; x < 4; ++x) {
    const auto point = [&](int y) { return _mm512_load_ps(from[(4 * y + x) * SQUARES].values); };
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

// Sums the products of one point over input channels: SQUARES squares, BLOCKS * 16 output channels.
// Of each block, weights and sums are so many vectors further on.
template <typename Type, int BLOCKS>
void multiply(const typename Type::Number* inputs, const Vector* weights, int64_t next_weights,
              int64_t words, Vector* sums, int64_t next_sums) {
  constexpr int64_t GROUP = LANES / Type::PER_WORD;  // words of 16 input channels
  __m512 sum[BLOCKS][SQUARES];
#pragma GCC unroll 2
  for (int block = 0; block < BLOCKS; ++block)
#pragma GCC unroll 16
    for (int i = 0; i < SQUARES; ++i) sum[block][i] = _mm512_setzero_ps();
  for (int64_t word = 0; word < words; word += GROUP, inputs += SQUARES * LANES)
    for (int64_t lane = 0; lane < GROUP; ++lane, ++weights) {
      __m512i weight[BLOCKS];
#pragma GCC unroll 2
      for (int block = 0; block < BLOCKS; ++block)
        weight[block] = _mm512_load_si512(weights + block * next_weights);
#pragma GCC unroll 16
      for (int i = 0; i < SQUARES; ++i) {
        int bits;
        std::memcpy(&bits, inputs + i * LANES + lane * Type::PER_WORD, sizeof bits);
        const __m512i input = _mm512_set1_epi32(bits);
#pragma GCC unroll 2
        for (int block = 0; block < BLOCKS; ++block)
          sum[block][i] = Type::add_product(sum[block][i], input, weight[block]);
      }
    }
#pragma GCC unroll 2
  for (int block = 0; block < BLOCKS; ++block)
#pragma GCC unroll 16
    for (int i = 0; i < SQUARES; ++i)
      _mm512_store_ps(sums[block * next_sums + i].values, sum[block][i]);
}

// y = relu(convolution(x) + bias + addend), without what there is not, for a range of squares.
template <typename Type>
class Winograd {
 public:
  using Number = typename Type::Number;

  Winograd(const Convolution& c, const Vector* weights, const Tail<Type>& tail, const Number* x)
      : c_(c),
        weights_(weights),
        tail_(tail),
        input_(c, x),
        factors_(POINTS * SQUARES * c.in_channels / LANES / Type::PER_WORD),
        sums_(2 * POINTS * SQUARES) {}

  void convolve(int64_t from, int64_t to, Number* y) {
    Square next(c_, from);
    for (; from < to; from += SQUARES) {
      const int64_t count = std::min<int64_t>(SQUARES, to - from);
      const Square first = next;
      for (int64_t i = 0; i < count;) {
        const int64_t some = std::min(count - i, (c_.out_width - next.x + 1) / 2);
        read(next, i, some);
        i += some;
        next.advance(c_, some);
      }
      for (int64_t channel = 0; channel < c_.out_channels; channel += 2 * LANES) {
        if (channel + LANES < c_.out_channels)
          compute<2>(first, count, channel, y);
        else
          compute<1>(first, count, channel, y);
      }
    }
  }

 private:
  // Transforms the input of some squares of a line, the first of which has this number.
  void read(const Square& square, int64_t number, int64_t count) {
    for (int64_t channel = 0; channel < c_.in_channels; channel += LANES)
      input_.read(square, count, channel, [&](int64_t i, const __m512* points) {
        Number* to = factors(0) + channel * SQUARES + (number + i) * LANES;
#pragma GCC unroll 16
        for (int point = 0; point < POINTS; ++point)
          Type::store(to + point * SQUARES * c_.in_channels, points[point]);
      });
  }

  // Computes BLOCKS * 16 output channels of some squares whose input is transformed.
  template <int BLOCKS>
  void compute(Square square, int64_t count, int64_t channel, Number* y) {
    constexpr int64_t SUMS = POINTS * SQUARES;
    const int64_t words = c_.in_channels / Type::PER_WORD;
    const Vector* weights = weights_ + channel / LANES * POINTS * words;
    for (int64_t point = 0; point < POINTS; ++point)
      multiply<Type, BLOCKS>(factors(point), weights + point * words, POINTS * words, words,
                             &sums_[point * SQUARES], SUMS);
    for (int64_t i = 0; i < count; ++i, square.advance(c_, 1))
      for (int block = 0; block < BLOCKS; ++block)
        write(y, square, &sums_[block * SUMS + i], channel + block * LANES);
  }

  void write(Number* y, const Square& square, const Vector* sums, int64_t channel) const {
    __m512 values[2][2];
    transform_output(sums, values);
    const int64_t lines = c_.out_height - square.y, columns = c_.out_width - square.x;
    const int64_t line = c_.out_width * c_.out_channels, column = c_.out_channels;
    const int64_t at = (square.image * c_.out_height + square.y) * line + square.x * column;
    const __m512 bias = tail_.bias_of(channel);
    tail_.write(values[0][0], bias, y, at + channel);
    if (columns > 1) tail_.write(values[0][1], bias, y, at + channel + column);
    if (lines > 1) tail_.write(values[1][0], bias, y, at + channel + line);
    if (lines > 1 && columns > 1)
      tail_.write(values[1][1], bias, y, at + channel + line + column);
  }

  // Of each point those of 16 channels of each square, then those of the next.
  Number* factors(int64_t point) {
    return reinterpret_cast<Number*>(factors_.data()) + point * SQUARES * c_.in_channels;
  }

  const Convolution& c_;
  const Vector* const weights_;
  const Tail<Type>& tail_;
  const Input<Type> input_;
  std::vector<Vector> factors_;
  std::vector<Vector> sums_;  // for each of two blocks and each point one for each square
};

template <typename Type>
void convolve(const Convolution& c, const float* weights, bool turned, const Tail<Type>& tail,
              const typename Type::Number* x, typename Type::Number* y, int threads) {
  const int64_t blocks = c.out_channels / LANES, size = POINTS * c.in_channels / Type::PER_WORD;
  const std::unique_ptr<Vector[]> factors(new Vector[blocks * size]);
  const int64_t squares = Square::count(c), groups = (squares + SQUARES - 1) / SQUARES;
#pragma omp parallel num_threads(threads)
  {
    const int64_t thread = omp_get_thread_num(), count = omp_get_num_threads();
    for (int64_t block = thread; block < blocks; block += count)
      transform_kernels<Type>(c, weights, turned, block * LANES, &factors[block * size]);
#pragma omp barrier
    const auto first = [&](int64_t part) {
      return std::min(groups * part / count * SQUARES, squares);
    };
    Winograd<Type>(c, factors.get(), tail, x).convolve(first(thread), first(thread + 1), y);
  }
}

}  // namespace

#endif

// ---- what Python calls -------------------------------------------------------------------------

#ifdef __AVX512F__
EXPORT int has_winograd_fp32() { return 1; }
EXPORT void winograd_fp32(const float* x, const float* weights, const float* bias,
                          const float* addend, int relu, float* y, const int64_t* numbers,
                          int threads) {
  const Convolution c = Convolution::of(numbers);
  convolve<Fp32>(c, weights, false, {bias, addend, bool(relu)}, x, y, threads);
}
#else
EXPORT int has_winograd_fp32() { return 0; }
EXPORT void winograd_fp32(const float*, const float*, const float*, const float*, int, float*,
                          const std::int64_t*, int) {}
#endif

#if defined(__AVX512F__) && defined(__AVX512BF16__)
EXPORT int has_winograd_bf16() { return 1; }
EXPORT void winograd_bf16(const uint16_t* x, const float* weights, const float* bias,
                          const uint16_t* addend, int relu, uint16_t* y, const int64_t* numbers,
                          int threads) {
  const Convolution c = Convolution::of(numbers);
  convolve<Bf16>(c, weights, false, {bias, addend, bool(relu)}, x, y, threads);
}
EXPORT void winograd_images_gradient(const uint16_t* dy, const float* weights, uint16_t* dx,
                                    const int64_t* numbers, int threads) {
  const Convolution c = Convolution::of(numbers);
  convolve<Bf16>(c, weights, true, {nullptr, nullptr, false}, dy, dx, threads);
}
#else
EXPORT int has_winograd_bf16() { return 0; }
EXPORT void winograd_bf16(const void*, const float*, const float*, const void*, int, void*,
                          const std::int64_t*, int) {}
EXPORT void winograd_images_gradient(const void*, const float*, void*, const std::int64_t*, int) {}
#endif
