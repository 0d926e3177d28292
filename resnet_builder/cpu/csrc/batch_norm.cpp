// Batch normalisation in training, fused with the sum and the ReLU behind it: two passes over
// memory forward, two backward. Images are channels-last: a matrix of a row for each pixel and a
// column for each channel.
//
// Results do not depend on the number of threads: rows are cut into the same parts for any number,
// and what the parts come to is added in their order, in double precision.

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

namespace {

using std::int64_t;

struct BFloat16 {
  std::uint16_t bits;
};

// ---- vectors -----------------------------------------------------------------------------------

constexpr int64_t LANES = 16;
constexpr int64_t WIDTH = 2 * LANES;  // channels that are computed at once

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef std::uint32_t Words __attribute__((vector_size(4 * LANES)));

// WIDTH channels of a row. A pair of bf16 numbers is one word of 32 bits, so they are taken apart
// into those of even and of odd channels, which takes no shuffling; floats are in their own order.
struct Channels {
  Floats first, second;
};

inline Channels load(const float* from) {
  Channels values;
  std::memcpy(&values, from, sizeof values);
  return values;
}

inline Channels load(const BFloat16* from) {
  Words pairs;
  std::memcpy(&pairs, from, sizeof pairs);
  return {(Floats)(pairs << 16), (Floats)(pairs & 0xffff0000u)};
}

inline void store(float* to, Channels values) { std::memcpy(to, &values, sizeof values); }

// The nearest bf16 number in the upper half of each word, the even one of two; NaN stays NaN.
inline Words rounded(Floats values) {
  const Words bits = (Words)values;
  const Words nearest = bits + 0x7fffu + ((bits >> 16) & 1u);
  return values != values ? (bits | 0x400000u) : nearest;
}

inline void store(BFloat16* to, Channels values) {
  const Words pairs = (rounded(values.first) >> 16) | (rounded(values.second) & 0xffff0000u);
  std::memcpy(to, &pairs, sizeof pairs);
}

// What storing and loading makes of numbers.
template <typename T>
Channels as_stored(Channels values) {
  if (std::is_same<T, float>::value) return values;
  return {(Floats)(rounded(values.first) & 0xffff0000u),
          (Floats)(rounded(values.second) & 0xffff0000u)};
}

// Where a channel's number stands in an array that is read by `load(const float*)`.
template <typename T>
int64_t place(int64_t channel) {
  if (std::is_same<T, float>::value) return channel;
  return channel / WIDTH * WIDTH + channel % 2 * LANES + channel % WIDTH / 2;
}

// ---- matrices ----------------------------------------------------------------------------------

constexpr int64_t PARTS = 64;         // each is summed by one thread
constexpr int64_t BLOCK_ROWS = 64;    // so few that they stay in the fastest cache
constexpr int64_t WIDE = 2 * WIDTH;   // channels that keep the processor's pipelines filled
constexpr int64_t SMALL = 32 * 1024;  // numbers that are not worth sharing among threads

// Few channels are too narrow to compute with, so several pixels are taken for one wide row.
struct Matrix {
  int64_t rows, columns, channels;

  Matrix(int64_t pixels, int64_t channels) : rows(pixels), columns(channels), channels(channels) {
    while ((columns < WIDE || columns % WIDTH) && rows % 2 == 0) rows /= 2, columns *= 2;
  }
  int64_t pixels() const { return rows * (columns / channels); }
  int64_t begin(int64_t part) const { return rows * part / PARTS; }
  int64_t end(int64_t part) const { return begin(part + 1); }
};

// Calls body(part, from, to) for blocks of rows; blocks of one part come in order, in one thread.
// A thread has the same parts each time, and begins a second pass with those that it ended the
// first with: they are still in its cache.
template <typename Body>
void over_blocks(const Matrix& matrix, int threads, bool again, Body body) {
  const bool shared = matrix.rows * matrix.columns > SMALL;
#pragma omp parallel num_threads(threads) if (shared)
  {
    const int64_t thread = omp_get_thread_num(), count = omp_get_num_threads();
    const int64_t first = PARTS * thread / count, end = PARTS * (thread + 1) / count;
    for (int64_t i = first; i < end; ++i) {
      const int64_t part = again ? first + end - 1 - i : i;
      for (int64_t from = matrix.begin(part); from < matrix.end(part); from += BLOCK_ROWS)
        body(part, from, std::min(from + BLOCK_ROWS, matrix.end(part)));
    }
  }
}

// Calls body(column, count) for groups of count * WIDTH columns; count is a constant.
template <typename Body>
void over_columns(const Matrix& matrix, Body body) {
  int64_t column = 0;
  for (; column + 2 * WIDTH <= matrix.columns; column += 2 * WIDTH)
    body(column, std::integral_constant<int, 2>());
  for (; column < matrix.columns; column += WIDTH) body(column, std::integral_constant<int, 1>());
}

// An array with a number for each column, in the order that vectors have them.
template <typename T, typename Value>
std::vector<float> per_column(const Matrix& matrix, Value value) {
  std::vector<float> numbers(matrix.columns);
  for (int64_t column = 0; column < matrix.columns; ++column)
    numbers[place<T>(column)] = value(column % matrix.channels);
  return numbers;
}

// Adds the numbers of all columns that belong to one channel.
template <typename T>
std::vector<double> per_channel(const Matrix& matrix, const std::vector<double>& numbers) {
  std::vector<double> sums(matrix.channels);
  for (int64_t column = 0; column < matrix.columns; ++column)
    sums[column % matrix.channels] += numbers[place<T>(column)];
  return sums;
}

// Loads what belongs to a group of columns.
template <std::size_t COUNT>
void load_all(Channels (&values)[COUNT], const float* from) {
  for (std::size_t i = 0; i < COUNT; ++i) values[i] = load(from + i * WIDTH);
}

inline void add(float* to, Channels values) {
  Channels sum = load(to);
  sum.first += values.first, sum.second += values.second;
  store(to, sum);
}

// ---- forward -----------------------------------------------------------------------------------

struct Moments {
  std::vector<double> mean, variance;  // of each channel; the variance over n, not n - 1
};

// One pass: deviations are taken from each part's first row, for their squares would lose all
// digits were they taken from zero and a mean far off. Chan, Golub and LeVeque 1983.
template <typename T>
Moments moments(const Matrix& matrix, const T* x, int threads) {
  const int64_t columns = matrix.columns;
  std::vector<float> origins(PARTS * columns), sums(PARTS * columns), squares(PARTS * columns);
  over_blocks(matrix, threads, false, [&](int64_t part, int64_t from, int64_t to) {
    over_columns(matrix, [&](int64_t column, auto count) {
      const int64_t at = part * columns + column;
      Channels origin[count], sum[count] = {}, square[count] = {};
      for (int i = 0; i < count; ++i)
        origin[i] = load(x + matrix.begin(part) * columns + column + i * WIDTH);
      for (int64_t row = from; row < to; ++row)
        for (int i = 0; i < count; ++i) {
          const Channels value = load(x + row * columns + column + i * WIDTH);
          const Floats first = value.first - origin[i].first;
          const Floats second = value.second - origin[i].second;
          sum[i].first += first, sum[i].second += second;
          square[i].first += first * first, square[i].second += second * second;
        }
      for (int i = 0; i < count; ++i) {
        store(&origins[at + i * WIDTH], origin[i]);
        add(&sums[at + i * WIDTH], sum[i]);
        add(&squares[at + i * WIDTH], square[i]);
      }
    });
  });

  const double pixels = double(matrix.pixels());
  std::vector<double> totals(columns), deviations(columns);
  for (int64_t part = 0; part < PARTS; ++part) {
    const double rows = double(matrix.end(part) - matrix.begin(part));
    for (int64_t i = 0, at = part * columns; i < columns; ++i, ++at)
      totals[i] += sums[at] + rows * origins[at];
  }
  Moments found{per_channel<T>(matrix, totals), {}};
  for (double& mean : found.mean) mean /= pixels;
  const std::vector<float> rough = per_column<T>(matrix, [&](int64_t c) { return found.mean[c]; });
  for (int64_t part = 0; part < PARTS; ++part) {
    const double rows = double(matrix.end(part) - matrix.begin(part));
    for (int64_t i = 0, at = part * columns; i < columns; ++i, ++at) {
      const double off = double(origins[at]) - rough[i];
      deviations[i] += squares[at] + 2 * off * sums[at] + rows * off * off;
    }
  }
  found.variance = per_channel<T>(matrix, deviations);
  for (int64_t c = 0; c < matrix.channels; ++c) {
    const double off = found.mean[c] - float(found.mean[c]);  // of the rough mean, for exactness
    found.variance[c] = found.variance[c] / pixels - off * off;
  }
  return found;
}

// y = relu(x * scale + shift + addend), without what there is not.
template <typename T>
void scale(const Matrix& matrix, const T* x, const T* addend, bool relu, T* y,
           const std::vector<float>& scales, const std::vector<float>& shifts, int threads) {
  const Floats zero = {};
  over_blocks(matrix, threads, true, [&](int64_t, int64_t from, int64_t to) {
    over_columns(matrix, [&](int64_t column, auto count) {
      Channels scale[count], shift[count];
      load_all(scale, &scales[column]);
      load_all(shift, &shifts[column]);
      for (int64_t row = from; row < to; ++row)
        for (int i = 0; i < count; ++i) {
          const int64_t at = row * matrix.columns + column + i * WIDTH;
          Channels value = load(x + at);
          value.first = value.first * scale[i].first + shift[i].first;
          value.second = value.second * scale[i].second + shift[i].second;
          if (addend) {
            const Channels other = load(addend + at);
            value.first += other.first, value.second += other.second;
          }
          if (relu) {
            value.first = value.first < zero ? zero : value.first;
            value.second = value.second < zero ? zero : value.second;
          }
          store(y + at, value);
        }
    });
  });
}

template <typename T>
void forward(const T* x, const T* addend, bool relu, T* y, const float* weight, const float* bias,
             float* running_mean, float* running_var, float* means, float* inverse_deviations,
             int64_t pixels, int64_t channels, double momentum, double eps, int threads) {
  const Matrix matrix(pixels, channels);
  const Moments found = moments(matrix, x, threads);
  for (int64_t c = 0; c < channels; ++c) {
    means[c] = float(found.mean[c]);
    inverse_deviations[c] = float(1 / std::sqrt(found.variance[c] + eps));
    const double unbiased = found.variance[c] * double(pixels) / double(pixels - 1);
    running_mean[c] = float(momentum * found.mean[c] + (1 - momentum) * running_mean[c]);
    running_var[c] = float(momentum * unbiased + (1 - momentum) * running_var[c]);
  }
  const auto factor = [&](int64_t c) { return weight[c] * inverse_deviations[c]; };
  const auto shift = [&](int64_t c) { return bias[c] - means[c] * factor(c); };
  scale(matrix, x, addend, relu, y, per_column<T>(matrix, factor), per_column<T>(matrix, shift),
        threads);
}

// ---- backward ----------------------------------------------------------------------------------

// The gradient of the ReLU's input, masked_dy, is that of y where y is not zero. If y was returned
// twice, its two gradients are added, and the sum is rounded as autograd would round it. Without an
// addend y is not saved, for it can be computed from x. masked_dy is stored where there is a place
// for it, and not computed twice: it is also the addend's gradient.
template <typename T>
void backward(const T* dy, const T* other_dy, const T* x, const T* y, bool relu, T* dx,
              T* masked_dy, const float* weight, const float* bias, const float* means,
              const float* inverse_deviations, float* dweight, float* dbias, int64_t pixels,
              int64_t channels, int threads) {
  const Matrix matrix(pixels, channels);
  const int64_t columns = matrix.columns;
  const Floats zero = {};
  const auto factor = [&](int64_t c) { return weight[c] * inverse_deviations[c]; };
  const std::vector<float> mean = per_column<T>(matrix, [&](int64_t c) { return means[c]; });
  const std::vector<float> scales = per_column<T>(matrix, factor);
  const std::vector<float> shifts =
      per_column<T>(matrix, [&](int64_t c) { return bias[c] - means[c] * factor(c); });
  const auto masked = [&](Channels gradient, Channels value, Channels scale, Channels shift) {
    value.first = value.first * scale.first + shift.first;
    value.second = value.second * scale.second + shift.second;
    gradient.first = value.first <= zero ? zero : gradient.first;
    gradient.second = value.second <= zero ? zero : gradient.second;
    return gradient;
  };
  const Channels one = {zero + 1, zero + 1}, nothing = {};

  std::vector<float> sums(PARTS * columns), products(PARTS * columns);
  over_blocks(matrix, threads, false, [&](int64_t part, int64_t from, int64_t to) {
    over_columns(matrix, [&](int64_t column, auto count) {
      const int64_t start = part * columns + column;
      Channels center[count], scale[count], shift[count], sum[count] = {}, product[count] = {};
      load_all(center, &mean[column]);
      load_all(scale, &scales[column]);
      load_all(shift, &shifts[column]);
      for (int64_t row = from; row < to; ++row)
        for (int i = 0; i < count; ++i) {
          const int64_t at = row * columns + column + i * WIDTH;
          const Channels value = load(x + at);
          Channels gradient = load(dy + at);
          if (other_dy) {
            const Channels other = load(other_dy + at);
            gradient = as_stored<T>({gradient.first + other.first, gradient.second + other.second});
          }
          if (relu && y)
            gradient = masked(gradient, load(y + at), one, nothing);
          else if (relu)
            gradient = masked(gradient, value, scale[i], shift[i]);
          if (masked_dy) store(masked_dy + at, gradient);
          sum[i].first += gradient.first, sum[i].second += gradient.second;
          product[i].first += gradient.first * (value.first - center[i].first);
          product[i].second += gradient.second * (value.second - center[i].second);
        }
      for (int i = 0; i < count; ++i) {
        add(&sums[start + i * WIDTH], sum[i]);
        add(&products[start + i * WIDTH], product[i]);
      }
    });
  });

  std::vector<double> sum_totals(columns), product_totals(columns);
  for (int64_t part = 0; part < PARTS; ++part)
    for (int64_t i = 0, at = part * columns; i < columns; ++i, ++at) {
      sum_totals[i] += sums[at];
      product_totals[i] += products[at];
    }
  const std::vector<double> sum = per_channel<T>(matrix, sum_totals);
  const std::vector<double> product = per_channel<T>(matrix, product_totals);
  for (int64_t c = 0; c < channels; ++c) {
    dbias[c] = float(sum[c]);
    dweight[c] = float(product[c] * inverse_deviations[c]);
  }

  // dx = factor * (gradient - its mean - (x - mean) * what the variance passes on)
  const double all = double(pixels);
  const std::vector<float> slopes = per_column<T>(matrix, [&](int64_t c) {
    return -factor(c) * inverse_deviations[c] * inverse_deviations[c] * product[c] / all;
  });
  const std::vector<float> offsets =
      per_column<T>(matrix, [&](int64_t c) { return -factor(c) * sum[c] / all; });
  const T* gradients = masked_dy ? masked_dy : dy;
  over_blocks(matrix, threads, true, [&](int64_t, int64_t from, int64_t to) {
    over_columns(matrix, [&](int64_t column, auto count) {
      Channels center[count], scale[count], shift[count], slope[count], offset[count];
      load_all(center, &mean[column]);
      load_all(scale, &scales[column]);
      load_all(shift, &shifts[column]);
      load_all(slope, &slopes[column]);
      load_all(offset, &offsets[column]);
      for (int64_t row = from; row < to; ++row)
        for (int i = 0; i < count; ++i) {
          const int64_t at = row * columns + column + i * WIDTH;
          const Channels value = load(x + at);
          Channels gradient = load(gradients + at);
          if (relu && !masked_dy) gradient = masked(gradient, value, scale[i], shift[i]);
          gradient.first = gradient.first * scale[i].first + offset[i].first +
                           (value.first - center[i].first) * slope[i].first;
          gradient.second = gradient.second * scale[i].second + offset[i].second +
                            (value.second - center[i].second) * slope[i].second;
          store(dx + at, gradient);
        }
    });
  });
}

}  // namespace

// ---- what Python calls -------------------------------------------------------------------------

#define EXPORT extern "C" __attribute__((visibility("default")))

// Whether images of this many pixels and channels can be computed.
EXPORT int batch_norm_supports(int64_t pixels, int64_t channels) {
  return pixels > 1 && channels > 0 && Matrix(pixels, channels).columns % WIDTH == 0;
}

#define DEFINE(NAME, T)                                                                           \
  EXPORT void batch_norm_forward_##NAME(                                                          \
      const T* x, const T* addend, int relu, T* y, const float* weight, const float* bias,        \
      float* running_mean, float* running_var, float* means, float* inverse_deviations,           \
      int64_t pixels, int64_t channels, double momentum, double eps, int threads) {               \
    forward<T>(x, addend, relu, y, weight, bias, running_mean, running_var, means,                \
               inverse_deviations, pixels, channels, momentum, eps, threads);                     \
  }                                                                                               \
  EXPORT void batch_norm_backward_##NAME(                                                         \
      const T* dy, const T* other_dy, const T* x, const T* y, int relu, T* dx, T* masked_dy,      \
      const float* weight, const float* bias, const float* means, const float* inverse_deviations,\
      float* dweight, float* dbias, int64_t pixels, int64_t channels, int threads) {              \
    backward<T>(dy, other_dy, x, y, relu, dx, masked_dy, weight, bias, means, inverse_deviations, \
                dweight, dbias, pixels, channels, threads);                                       \
  }

DEFINE(bf16, BFloat16)
DEFINE(fp32, float)
