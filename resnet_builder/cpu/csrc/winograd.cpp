// Convolutions of 3 x 3 pixels by Winograd's minimal filtering, and the gradients of their inputs:
// those of stride 1, and those of stride 2 that pad one pixel.

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

constexpr int PATCHES = 8;  // that are computed at once
constexpr int PARTS = 16;   // of each thread's share, for one that is held up computes fewer

// ---- weights -----------------------------------------------------------------------------------

// WeightBlock from 16 input to 16 output channels: for each pixel and input channel a vector.
struct WeightBlock {
  Vector pixels[9][LANES];

  // Those of a convolution, or those that give the gradient of its images: rotated by half a turn,
  // from its output channels to its input channels.
  void read(const Convolution& c, const float* weights, bool rotated, int64_t in, int64_t out) {
    const int64_t from = rotated ? in : out, to = rotated ? out : in;
    const int64_t channels = rotated ? c.out_channels : c.in_channels;
    const int64_t next = rotated ? 9 * LANES * channels : LANES;
    for (int64_t i = 0; i < LANES; ++i)
      for (int at = 0; at < 9; ++at) {
        const float* numbers = weights + ((from + i) * 9 + at) * channels + to;
        _mm_prefetch(numbers + next, _MM_HINT_T0);
        if (rotated)
          std::memcpy(&pixels[8 - at][i], numbers, sizeof(Vector));
        else
          for (int64_t j = 0; j < LANES; ++j) pixels[at][j].values[i] = numbers[j];
      }
  }
};

// G g G^T of all weights to 16 output channels: for each point a vector for each word.
template <typename Type, typename Plane>
void transform_weights(const Convolution& c, const float* weights, bool rotated, int64_t out,
                       Vector* to) {
  using Down = typename Plane::Down;
  using Across = typename Plane::Across;
  const int64_t words = c.in_channels / Type::PER_WORD;
  WeightBlock block;
  for (int64_t in = 0; in < c.in_channels; in += Type::PER_WORD, ++to) {
    if (in % LANES == 0) block.read(c, weights, rotated, in, out);
    __m512 points[Plane::POINTS][Type::PER_WORD];
    for (int64_t i = 0; i < Type::PER_WORD; ++i) {
      const auto pixel = [&](int at) {
        return _mm512_load_ps(block.pixels[at][in % LANES + i].values);
      };
      __m512 columns[3][Down::POINTS];
      for (int x = 0; x < 3; ++x) {
        const __m512 column[] = {pixel(x), pixel(3 + x), pixel(6 + x)};
        Down::transform_weight(column, columns[x]);
      }
      for (int y = 0; y < Down::POINTS; ++y) {
        const __m512 line[] = {columns[0][y], columns[1][y], columns[2][y]};
        __m512 transformed[Across::POINTS];
        Across::transform_weight(line, transformed);
        for (int x = 0; x < Across::POINTS; ++x)
          points[Across::POINTS * y + x][i] = transformed[x];
      }
    }
    for (int point = 0; point < Plane::POINTS; ++point)
      _mm512_store_si512(to + point * words, Type::words(points[point]));
  }
}

// ---- products ----------------------------------------------------------------------------------

// Sums the products of one point over input channels: PATCHES patches, BLOCKS * 16 output channels.
// Of each block, weights and sums are so many vectors further on.
template <typename Type, int BLOCKS>
void multiply(const typename Type::Number* inputs, const Vector* weights, int64_t next_weights,
              int64_t words, Vector* sums, int64_t next_sums) {
  constexpr int64_t GROUP = LANES / Type::PER_WORD;  // words of 16 input channels
  __m512 sum[BLOCKS][PATCHES];
#pragma GCC unroll 2
  for (int block = 0; block < BLOCKS; ++block)
#pragma GCC unroll 16
    for (int i = 0; i < PATCHES; ++i) sum[block][i] = _mm512_setzero_ps();
  for (int64_t word = 0; word < words; word += GROUP, inputs += PATCHES * LANES)
    for (int64_t lane = 0; lane < GROUP; ++lane, ++weights) {
      __m512i weight[BLOCKS];
#pragma GCC unroll 2
      for (int block = 0; block < BLOCKS; ++block)
        weight[block] = _mm512_load_si512(weights + block * next_weights);
#pragma GCC unroll 16
      for (int i = 0; i < PATCHES; ++i) {
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
    for (int i = 0; i < PATCHES; ++i)
      _mm512_store_ps(sums[block * next_sums + i].values, sum[block][i]);
}

// y = relu(convolution(x) + bias + addend), without what there is not, for a range of patches.
template <typename Type, typename Plane>
class Winograd {
 public:
  using Number = typename Type::Number;

  Winograd(const Convolution& c, const Vector* weights, const Epilogue<Type>& epilogue,
           const Number* x)
      : c_(c),
        weights_(weights),
        epilogue_(epilogue),
        input_(c, x),
        step_(PATCHES * c.in_channels / LANES / Type::PER_WORD + 1),
        factors_(POINTS * step_),
        sums_(2 * POINTS * PATCHES) {}

  void convolve(int64_t from, int64_t to, Number* y) {
    Patch<Plane> next(c_, from);
    for (; from < to; from += PATCHES) {
      const int64_t count = std::min<int64_t>(PATCHES, to - from);
      const Patch<Plane> first = next;
      for (int64_t i = 0; i < count;) {
        const int64_t some = std::min(count - i, Patch<Plane>::in_line(c_, next.x));
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
  using Down = typename Plane::Down;
  using Across = typename Plane::Across;
  static constexpr int64_t POINTS = Plane::POINTS;

  // Transforms the input of some patches of a line, the first of which has this number.
  void read(const Patch<Plane>& patch, int64_t number, int64_t count) {
    for (int64_t channel = 0; channel < c_.in_channels; channel += LANES) {
      Number* const to = factors(0) + channel * PATCHES + number * LANES;
      const int64_t step = factors(1) - factors(0);
      input_.read(patch, count, channel, [=](int64_t i, int y, const __m512* points) {
#pragma GCC unroll 8
        for (int x = 0; x < Across::POINTS; ++x)
          Type::store(to + i * LANES + (Across::POINTS * y + x) * step, points[x]);
      });
    }
  }

  // Computes BLOCKS * 16 output channels of some patches whose input is transformed.
  template <int BLOCKS>
  void compute(Patch<Plane> patch, int64_t count, int64_t channel, Number* y) {
    constexpr int64_t SUMS = POINTS * PATCHES;
    const int64_t words = c_.in_channels / Type::PER_WORD;
    const Vector* weights = weights_ + channel / LANES * POINTS * words;
    for (int64_t point = 0; point < POINTS; ++point)
      multiply<Type, BLOCKS>(factors(point), weights + point * words, POINTS * words, words,
                             &sums_[point * PATCHES], SUMS);
    for (int64_t i = 0; i < count; ++i, patch.advance(c_, 1))
      for (int block = 0; block < BLOCKS; ++block)
        write(y, patch, &sums_[block * SUMS + i], channel + block * LANES);
  }

  // Writes A^T m A of 16 channels; `sums` has the next point PATCHES vectors further on.
  void write(Number* y, const Patch<Plane>& patch, const Vector* sums, int64_t channel) const {
    __m512 lines[Down::OUTPUTS][Across::POINTS];
#pragma GCC unroll 8
    for (int x = 0; x < Across::POINTS; ++x) {
      __m512 column[Down::POINTS], pixels[Down::OUTPUTS];
#pragma GCC unroll 8
      for (int y = 0; y < Down::POINTS; ++y)
        column[y] = _mm512_load_ps(sums[(Across::POINTS * y + x) * PATCHES].values);
      Down::transform_output(column, pixels);
#pragma GCC unroll 4
      for (int y = 0; y < Down::OUTPUTS; ++y) lines[y][x] = pixels[y];
    }
    const int64_t height = c_.out_height - patch.y, width = c_.out_width - patch.x;
    const int64_t next = c_.out_channels, line = c_.out_width * next;
    const int64_t at = (patch.image * c_.out_height + patch.y) * line + patch.x * next + channel;
    const __m512 bias = epilogue_.bias_of(channel);
#pragma GCC unroll 4
    for (int i = 0; i < Down::OUTPUTS; ++i) {
      if (i >= height) break;
      __m512 pixels[Across::OUTPUTS];
      Across::transform_output(lines[i], pixels);
#pragma GCC unroll 4
      for (int j = 0; j < Across::OUTPUTS; ++j)
        if (j < width) epilogue_.write(pixels[j], bias, y, at + i * line + j * next);
    }
  }

  // Of each point those of 16 channels of each patch, then those of the next. The points' are as
  // far apart as no power of two divides, for the cache keeps few of those that one does.
  Number* factors(int64_t point) {
    return reinterpret_cast<Number*>(factors_.data() + point * step_);
  }

  const Convolution& c_;
  const Vector* const weights_;
  const Epilogue<Type>& epilogue_;
  const Input<Type, Plane> input_;
  const int64_t step_;
  std::vector<Vector> factors_;
  std::vector<Vector> sums_;  // for each of two blocks and each point one for each patch
};

template <typename Type, typename Plane>
void convolve(const Convolution& c, const float* weights, bool rotated,
              const Epilogue<Type>& epilogue, const typename Type::Number* x,
              typename Type::Number* y, int threads) {
  const int64_t blocks = c.out_channels / LANES;
  const int64_t size = Plane::POINTS * c.in_channels / Type::PER_WORD;
  const std::unique_ptr<Vector[]> factors(new Vector[blocks * size]);
  const int64_t patches = Patch<Plane>::count(c), groups = (patches + PATCHES - 1) / PATCHES;
#pragma omp parallel num_threads(threads)
  {
    const int64_t thread = omp_get_thread_num(), count = omp_get_num_threads();
    for (int64_t block = thread; block < blocks; block += count)
      transform_weights<Type, Plane>(c, weights, rotated, block * LANES, &factors[block * size]);
#pragma omp barrier
    Winograd<Type, Plane> winograd(c, factors.get(), epilogue, x);
    const int64_t parts = std::min(groups, PARTS * count);
#pragma omp for schedule(dynamic)
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t from = groups * part / parts, to = groups * (part + 1) / parts;
      winograd.convolve(from * PATCHES, std::min(to * PATCHES, patches), y);
    }
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
  const bool large = std::min(c.out_height, c.out_width) > 2;
  const auto plane = c.stride == 2 ? convolve<Fp32, Square<F22Stride2>>
                     : large       ? convolve<Fp32, Square<F43>>
                                   : convolve<Fp32, Square<F23>>;
  plane(c, weights, false, {bias, addend, bool(relu)}, x, y, threads);
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
  const auto plane = c.stride == 2      ? convolve<Bf16, Square<F22Stride2>>
                     : c.out_height > 2 ? convolve<Bf16, Plane<F43, F23>>
                                        : convolve<Bf16, Square<F23>>;
  plane(c, weights, false, {bias, addend, bool(relu)}, x, y, threads);
}
EXPORT void winograd_input_gradient(const uint16_t* dy, const float* weights, uint16_t* dx,
                                    const int64_t* numbers, int threads) {
  const Convolution c = Convolution::of(numbers);
  const auto plane = c.stride == 2      ? convolve<Bf16, Square<F22Stride2Transposed>>
                     : c.out_height > 2 ? convolve<Bf16, Plane<F43, F23>>
                                        : convolve<Bf16, Square<F23>>;
  plane(c, weights, true, {nullptr, nullptr, false}, dy, dx, threads);
}
#else
EXPORT int has_winograd_bf16() { return 0; }
EXPORT void winograd_bf16(const void*, const float*, const float*, const void*, int, void*,
                          const std::int64_t*, int) {}
EXPORT void winograd_input_gradient(const void*, const float*, void*, const std::int64_t*, int) {}
#endif
