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
#include <vector>

#include "pair_products.h"
#include "winograd_factors.h"

namespace {

// Up to so many bytes, each thread has sums of its own, of its images. More are shared, and so are
// factors then, which cores have to hand to each other.
constexpr int64_t MOST_OWN = 4 << 20;
constexpr int64_t SHARED_FACTORS = 3 << 20;

// Sums are read and written once for all factors at once, which are as many bytes, if the core's
// cache has room for them.
constexpr int64_t LEAST_FACTORS = 256 << 10, MOST_FACTORS = 1 << 20;
constexpr int64_t NEAR = 128;  // pairs whose factors stay in the first level of the cache

// 16 output channels and up to AT_ONCE times 16 input channels: blocks, counted in 16.
struct Item {
  int64_t out, in, ins;
};

// The gradient of some lines of squares, computed by some threads together.
class Gradient {
 public:
  Gradient(const Convolution& c, const uint16_t* x, const uint16_t* dy, int64_t factors)
      : c_(c),
        x_(x),
        dy_(dy),
        ins_(c.in_channels / LANES),
        outs_(c.out_channels / LANES),
        groups_((ins_ + AT_ONCE - 1) / AT_ONCE),
        pairs_((c.out_width + 3) / 4),
        at_once_(std::max<int64_t>(1, factors / bytes_of_line())),
        inputs_(c.in_channels, at_once_ * pairs_),
        gradients_(c.out_channels, at_once_ * pairs_),
        sums_(new Sums[POINTS * ins_ * outs_]) {}

  int64_t items() const { return groups_ * outs_; }

  // Items next to each other have the same input channels. All have about as many.
  Item item(int64_t number) const {
    const int64_t group = number / outs_, in = ins_ * group / groups_;
    return {number % outs_, in, ins_ * (group + 1) / groups_ - in};
  }

  void compute(int64_t from, int64_t to, int64_t thread, int64_t threads) {
    const auto part = [&](int64_t of, int64_t number) { return of * number / threads; };
    const int64_t first = part(items(), thread), last = part(items(), thread + 1);
    for (int64_t point = 0; point < POINTS; ++point)
      for (int64_t i = first; i < last; ++i)
        std::memset(sums(item(i), point), 0, item(i).ins * sizeof(Sums));
    for (; from < to; from += at_once_) {
      const int64_t count = std::min(at_once_, to - from);
      for (int64_t line = part(count, thread); line < part(count, thread + 1); ++line)
        read(from + line, line * pairs_);
      wait(threads);
      for (int64_t point = 0; point < POINTS; ++point)
        for (int64_t i = first; i < last; ++i) multiply(item(i), point, count * pairs_);
      wait(threads);
    }
  }

  // Sums of a point and an item: of each 16 input channels.
  Sums* sums(const Item& item, int64_t point) const {
    return &sums_[(point * ins_ + item.in) * outs_ + item.out * item.ins];
  }

 private:
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
    const Square<TwoPixels> first(c_, line * Square<TwoPixels>::in(c_.out_width));
    const auto places = [&](Factors& factors, int64_t channel, Place (&to)[4]) {
      for (int64_t y = 0; y < 4; ++y) to[y] = factors.place(4 * y, channel, pair);
    };
    Place to[4];
    for (int64_t channel = 0; channel < c_.in_channels; channel += 2 * LANES) {
      const Image image(x_, first.image, c_.height, c_.width, c_.in_channels, channel);
      places(inputs_, channel, to);
      transform_inputs(image, first.y - c_.padding, -c_.padding, pairs_, to);
    }
    for (int64_t channel = 0; channel < c_.out_channels; channel += 2 * LANES) {
      const Image image(dy_, first.image, c_.out_height, c_.out_width, c_.out_channels, channel);
      places(gradients_, channel, to);
      transform_gradients(image, first.y, pairs_, to);
    }
  }

  // Adds the products of an item at one point.
  void multiply(const Item& item, int64_t point, int64_t pairs) const {
    for (int64_t from = 0; from < pairs; from += NEAR) {
      const Line* inputs[AT_ONCE];
      for (int64_t i = 0; i < item.ins; ++i)
        inputs[i] = inputs_.pairs(point, (item.in + i) * LANES) + from;
      const Run run = {0, std::min(NEAR, pairs - from)};
      MULTIPLY[item.ins - 1](gradients_.pairs(point, item.out * LANES) + from, inputs,
                             sums(item, point), &run, 1);
    }
  }

  const Convolution& c_;
  const uint16_t *const x_, *const dy_;
  const int64_t ins_, outs_, groups_;  // blocks of 16 channels, and groups of input channels'
  const int64_t pairs_, at_once_;      // pairs of a line, and lines at once
  Factors inputs_, gradients_;
  const std::unique_ptr<Sums[]> sums_;  // for each point those of all items
};

// G^T m of four numbers.
inline void transform_sums(const __m512* m, __m512* to) {
  const __m512 half = _mm512_set1_ps(0.5f), both = _mm512_mul_ps(half, _mm512_add_ps(m[1], m[2]));
  to[0] = _mm512_add_ps(m[0], both);
  to[1] = _mm512_mul_ps(half, _mm512_sub_ps(m[1], m[2]));
  to[2] = _mm512_add_ps(both, m[3]);
}

// Writes the kernels' gradient of one of an item's 16 input channels and one output channel, of
// which there are parts.
void write(const Convolution& c, const std::unique_ptr<Gradient>* parts, int64_t count,
           const Item& item, int64_t in, int64_t channel, float* dweight) {
  __m512 lines[3][4];
  for (int x = 0; x < 4; ++x) {
    __m512 column[4] = {}, taps[3];
    for (int y = 0; y < 4; ++y)
      for (int64_t part = 0; part < count; ++part) {
        const float* sums = parts[part]->sums(item, 4 * y + x)[in].values + channel * LANES;
        column[y] = _mm512_add_ps(column[y], _mm512_load_ps(sums));
      }
    transform_sums(column, taps);
    for (int y = 0; y < 3; ++y) lines[y][x] = taps[y];
  }
  float* to = dweight + (item.out * LANES + channel) * 9 * c.in_channels + (item.in + in) * LANES;
  for (int y = 0; y < 3; ++y) {
    __m512 taps[3];
    transform_sums(lines[y], taps);
    for (int x = 0; x < 3; ++x) _mm512_storeu_ps(to + (3 * y + x) * c.in_channels, taps[x]);
  }
}

}  // namespace

// ---- what Python calls -------------------------------------------------------------------------

EXPORT void winograd_gradient(const uint16_t* x, const uint16_t* dy, float* dweight,
                              const int64_t* numbers, int threads) {
  const Convolution c = Convolution::of(numbers);
  const int64_t lines = c.images * ((c.out_height + 1) / 2);
  const int64_t sums = POINTS * c.in_channels * c.out_channels * int64_t(sizeof(float));
  const bool own = sums <= MOST_OWN;
  const int64_t factors =
      own ? std::min(std::max(sums, LEAST_FACTORS), MOST_FACTORS) : SHARED_FACTORS;
  std::vector<std::unique_ptr<Gradient>> parts(own ? threads : 1);
  if (!own) parts[0].reset(new Gradient(c, x, dy, factors));
#pragma omp parallel num_threads(threads)
  {
    const int64_t thread = omp_get_thread_num(), count = omp_get_num_threads();
    if (own) {
      parts[thread].reset(new Gradient(c, x, dy, factors));
      parts[thread]->compute(lines * thread / count, lines * (thread + 1) / count, 0, 1);
    } else {
      parts[0]->compute(0, lines, thread, count);
    }
#pragma omp barrier
    const int64_t items = parts[0]->items();
    for (int64_t i = items * thread / count; i < items * (thread + 1) / count; ++i) {
      const Item item = parts[0]->item(i);
      for (int64_t in = 0; in < item.ins; ++in)
        for (int64_t channel = 0; channel < LANES; ++channel)
          write(c, parts.data(), own ? count : 1, item, in, channel, dweight);
    }
  }
}

#endif
