// The gradient of kernels of 3 x 3 pixels and stride 1 in bf16, in fewer products.
//
// Y = A^T ((G g G^T) * (B^T d B)) A is linear in g, so its gradient is
// G^T ((A dY A^T) * (B^T d B)) G, where * is summed over all squares of 2 x 2 pixels.

#include <cstdint>

#define EXPORT extern "C" __attribute__((visibility("default")))

#if !defined(__AVX512BW__) || !defined(__AVX512BF16__)

EXPORT void winograd_gradient(const void*, const void*, float*, const std::int64_t*, int) {}

#else

#include <omp.h>

#include <algorithm>
#include <cstring>
#include <memory>

#include "pair_products.h"
#include "winograd.h"

namespace {

constexpr int POINTS = TwoPixels::POINTS * TwoPixels::POINTS;

// Up to so many products of channels, each thread has sums of its own, of its images: they stay in
// its cache, with so many bytes of factors. More are shared among threads.
constexpr int64_t MOST_OWN = 64 * 64;
constexpr int64_t OWN_FACTORS = 256 << 10;
constexpr int64_t SHARED_FACTORS = 4 << 20;
constexpr int64_t NEAR = 128;  // pairs whose factors stay in the first level of the cache

// A dY A^T of a square's output, of 16 channels; there are zeros outside the image.
inline void transform_gradient(const Convolution& c, const uint16_t* dy, const Square<TwoPixels>& square,
                               int64_t channel, __m512* points) {
  __m512 columns[2][4];
  const auto expand = [](__m512 first, __m512 second, __m512* to) {
    to[0] = first;
    to[1] = _mm512_add_ps(first, second);
    to[2] = _mm512_sub_ps(first, second);
    to[3] = _mm512_sub_ps(_mm512_setzero_ps(), second);
  };
  for (int64_t x = 0; x < 2; ++x) {
    const auto pixel = [&](int64_t y) {
      if (square.y + y >= c.out_height || square.x + x >= c.out_width) return _mm512_setzero_ps();
      const int64_t line = square.image * c.out_height + square.y + y;
      return Bf16::load(dy + (line * c.out_width + square.x + x) * c.out_channels + channel);
    };
    expand(pixel(0), pixel(1), columns[x]);
  }
  for (int y = 0; y < 4; ++y) expand(columns[0][y], columns[1][y], points + 4 * y);
}

// Factors of some pairs of squares: for each point, all pairs' of the first 16 channels, then of
// the next. The points' are as many lines apart as no power of two divides, for the cache keeps few
// of those that one does.
class Factors {
 public:
  Factors(int64_t channels, int64_t pairs)
      : pairs_(pairs),
        step_(channels / LANES * pairs | 1),
        lines_(new Line[POINTS * step_]) {}

  const Line* pairs(int64_t point, int64_t channel) const {
    return &lines_[point * step_ + channel / LANES * pairs_];
  }

  // Writes those of a pair's two squares.
  void write(int64_t pair, int64_t channel, const __m512 (&points)[2][POINTS]) {
    Line* to = &lines_[channel / LANES * pairs_ + pair];
#pragma GCC unroll 16
    for (int point = 0; point < POINTS; ++point) {
      const __m512 both[] = {points[0][point], points[1][point]};
      _mm512_store_si512(to + point * step_, Bf16::words(both));
    }
  }

 private:
  const int64_t pairs_, step_;
  const std::unique_ptr<Line[]> lines_;
};

// The gradient of some lines of squares, computed by some threads together.
class Gradient {
 public:
  Gradient(const Convolution& c, const uint16_t* x, const uint16_t* dy, int64_t factors)
      : c_(c),
        input_(c, x),
        dy_(dy),
        pairs_((c.out_width + 3) / 4),
        at_once_(std::max<int64_t>(1, factors / bytes_of_line())),
        inputs_(c.in_channels, at_once_ * pairs_),
        gradients_(c.out_channels, at_once_ * pairs_),
        sums_(new Sums[POINTS * blocks()]) {}

  void compute(int64_t from, int64_t to, int64_t thread, int64_t threads) {
    const int64_t ins = (c_.in_channels / LANES + AT_ONCE - 1) / AT_ONCE;
    const auto part = [&](int64_t of, int64_t number) { return of * number / threads; };
    const int64_t sums = part(POINTS * blocks(), thread);
    std::memset(&sums_[sums], 0, (part(POINTS * blocks(), thread + 1) - sums) * sizeof(Sums));
    for (; from < to; from += at_once_) {
      const int64_t count = std::min(at_once_, to - from);
      for (int64_t line = part(count, thread); line < part(count, thread + 1); ++line)
        read(from + line, line * pairs_);
      wait(threads);
      for (int64_t i = part(POINTS * ins, thread); i < part(POINTS * ins, thread + 1); ++i)
        multiply(i / ins, i % ins * AT_ONCE, count * pairs_);
      wait(threads);
    }
  }

  // Adds the sums of a point, an output channel, and 16 input channels.
  __m512 add(__m512 sum, int64_t point, int64_t block, int64_t channel) const {
    const Sums& sums = sums_[point * blocks() + block];
    return _mm512_add_ps(sum, _mm512_load_ps(&sums.values[channel * LANES]));
  }

 private:
  int64_t blocks() const { return c_.in_channels * c_.out_channels / (LANES * LANES); }

  int64_t bytes_of_line() const {
    return pairs_ * POINTS * (c_.in_channels + c_.out_channels) * int64_t(sizeof(uint32_t));
  }

  static void wait(int64_t threads) {
    if (threads > 1) {
#pragma omp barrier
    }
  }

  // Transforms what a line of squares needs; the last pair may be half outside the image.
  void read(int64_t line, int64_t pair) {
    const Square<TwoPixels> first(c_, line * ((c_.out_width + 1) / 2));
    __m512 points[2][POINTS];
    for (int64_t channel = 0; channel < c_.in_channels; channel += LANES)
      input_.read(first, 2 * pairs_, channel, [&](int64_t i, int y, const __m512* line) {
        std::memcpy(points[i % 2] + 4 * y, line, 4 * sizeof(__m512));
        if (i % 2 && y == 3) inputs_.write(pair + i / 2, channel, points);
      });
    for (int64_t channel = 0; channel < c_.out_channels; channel += LANES) {
      Square<TwoPixels> square = first;
      for (int64_t i = 0; i < 2 * pairs_; ++i, square.x += 2) {
        transform_gradient(c_, dy_, square, channel, points[i % 2]);
        if (i % 2) gradients_.write(pair + i / 2, channel, points);
      }
    }
  }

  // Adds the products of one point and AT_ONCE blocks of 16 input channels, which stay in the first
  // level of the cache.
  void multiply(int64_t point, int64_t block, int64_t pairs) const {
    const int64_t ins = c_.in_channels / LANES, outs = c_.out_channels / LANES;
    const int64_t some = std::min<int64_t>(AT_ONCE, ins - block);
    for (int64_t from = 0; from < pairs; from += NEAR) {
      const Line* inputs[AT_ONCE];
      for (int64_t i = 0; i < some; ++i)
        inputs[i] = inputs_.pairs(point, (block + i) * LANES) + from;
      const std::vector<Run> runs = {{0, std::min(NEAR, pairs - from)}};
      for (int64_t out = 0; out < outs; ++out)
        MULTIPLY[some - 1](gradients_.pairs(point, out * LANES) + from, inputs,
                           &sums_[(point * outs + out) * ins + block], runs);
    }
  }

  const Convolution& c_;
  const Input<Bf16, TwoPixels> input_;
  const uint16_t* const dy_;
  const int64_t pairs_, at_once_;  // pairs of a line, and lines at once
  Factors inputs_, gradients_;
  const std::unique_ptr<Sums[]> sums_;  // for each point those of all output and input channels
};

// G^T m of four numbers.
inline void transform_sums(const __m512* m, __m512* to) {
  const __m512 half = _mm512_set1_ps(0.5f), both = _mm512_mul_ps(half, _mm512_add_ps(m[1], m[2]));
  to[0] = _mm512_add_ps(m[0], both);
  to[1] = _mm512_mul_ps(half, _mm512_sub_ps(m[1], m[2]));
  to[2] = _mm512_add_ps(both, m[3]);
}

// Writes the kernels' gradient from 16 input to 16 output channels, of which there are parts.
void write(const Convolution& c, const std::unique_ptr<Gradient>* parts, int64_t count,
           int64_t block, float* dweight) {
  const int64_t ins = c.in_channels / LANES;
  for (int64_t channel = 0; channel < LANES; ++channel) {
    __m512 lines[3][4];
    for (int x = 0; x < 4; ++x) {
      __m512 column[4] = {}, taps[3];
      for (int y = 0; y < 4; ++y)
        for (int64_t part = 0; part < count; ++part)
          column[y] = parts[part]->add(column[y], 4 * y + x, block, channel);
      transform_sums(column, taps);
      for (int y = 0; y < 3; ++y) lines[y][x] = taps[y];
    }
    float* to = dweight + (block / ins * LANES + channel) * 9 * c.in_channels + block % ins * LANES;
    for (int y = 0; y < 3; ++y) {
      __m512 taps[3];
      transform_sums(lines[y], taps);
      for (int x = 0; x < 3; ++x) _mm512_storeu_ps(to + (3 * y + x) * c.in_channels, taps[x]);
    }
  }
}

}  // namespace

// ---- what Python calls -------------------------------------------------------------------------

EXPORT void winograd_gradient(const uint16_t* x, const uint16_t* dy, float* dweight,
                              const int64_t* numbers, int threads) {
  const Convolution c = Convolution::of(numbers);
  const int64_t lines = c.images * ((c.out_height + 1) / 2);
  const int64_t blocks = c.in_channels * c.out_channels / (LANES * LANES);
  const bool own = c.in_channels * c.out_channels <= MOST_OWN;
  std::vector<std::unique_ptr<Gradient>> parts(own ? threads : 1);
  if (!own) parts[0].reset(new Gradient(c, x, dy, SHARED_FACTORS));
#pragma omp parallel num_threads(threads)
  {
    const int64_t thread = omp_get_thread_num(), count = omp_get_num_threads();
    if (own) {
      parts[thread].reset(new Gradient(c, x, dy, OWN_FACTORS));
      parts[thread]->compute(lines * thread / count, lines * (thread + 1) / count, 0, 1);
    } else {
      parts[0]->compute(0, lines, thread, count);
    }
#pragma omp barrier
    for (int64_t block = thread; block < blocks; block += count)
      write(c, parts.data(), own ? count : 1, block, dweight);
  }
}

#endif
