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
#include <memory>
#include <vector>

#include "pair_products.h"
#include "winograd_factors.h"

namespace {

// Bytes of factors at once: as many as of the sums, which are read and written once for them, but
// not more than a core's cache has room for.
constexpr int64_t LEAST_FACTORS = 256 << 10, MOST_FACTORS = 1 << 20;
constexpr int64_t NEAR = 128;  // pairs whose factors stay in the first level of the cache

// 16 output channels and up to AT_ONCE times 16 input channels: blocks, counted in 16.
struct Item {
  int64_t out, in, ins;
};

// A thread's part: some lines of the points, of some lines of squares.
class Gradient {
 public:
  Gradient(const Convolution& c, const uint16_t* x, const uint16_t* dy, int64_t first,
           int64_t lines)
      : c_(c),
        x_(x),
        dy_(dy),
        first_(first),
        points_(lines * SIDE),
        ins_(c.in_channels / LANES),
        outs_(c.out_channels / LANES),
        groups_((ins_ + AT_ONCE - 1) / AT_ONCE),
        pairs_((c.out_width + 3) / 4),
        at_once_(lines_at_once()),
        inputs_(points_, c.in_channels, at_once_ * pairs_),
        gradients_(points_, c.out_channels, at_once_ * pairs_),
        sums_(new Sums[points_ * ins_ * outs_]()) {}

  int64_t items() const { return groups_ * outs_; }

  // Items next to each other have the same input channels. All have about as many.
  Item item(int64_t number) const {
    const int64_t group = number / outs_, in = ins_ * group / groups_;
    return {number % outs_, in, ins_ * (group + 1) / groups_ - in};
  }

  void compute(int64_t from, int64_t to) {
    for (; from < to; from += at_once_) {
      const int64_t count = std::min(at_once_, to - from);
      for (int64_t line = 0; line < count; ++line) read(from + line, line * pairs_);
      for (int64_t point = 0; point < points_; ++point)
        for (int64_t i = 0; i < items(); ++i) multiply(item(i), point, count * pairs_);
    }
  }

  // Sums of one of its points and an item: of each 16 input channels.
  Sums* sums(const Item& item, int64_t point) const {
    return &sums_[(point * ins_ + item.in) * outs_ + item.out * item.ins];
  }

 private:
  int64_t lines_at_once() const {
    const int64_t sums = points_ * ins_ * outs_ * int64_t(sizeof(Sums));
    const int64_t line = pairs_ * points_ * (ins_ + outs_) * int64_t(sizeof(Line));
    return std::max<int64_t>(1, std::min(std::max(sums, LEAST_FACTORS), MOST_FACTORS) / line);
  }

  // Transforms what a line of squares needs; the last pair may be half outside the image.
  void read(int64_t line, int64_t pair) {
    const Square<TwoPixels> square(c_, line * Square<TwoPixels>::in(c_.out_width));
    for (int64_t channel = 0; channel < c_.in_channels; channel += 2 * LANES) {
      const Image image(x_, square.image, c_.height, c_.width, c_.in_channels, channel);
      for (int64_t point = 0; point < points_; point += SIDE)
        transform_inputs(image, first_ + point / SIDE, square.y - c_.padding, -c_.padding, pairs_,
                         inputs_.place(point, channel, pair));
    }
    for (int64_t channel = 0; channel < c_.out_channels; channel += 2 * LANES) {
      const Image image(dy_, square.image, c_.out_height, c_.out_width, c_.out_channels, channel);
      for (int64_t point = 0; point < points_; point += SIDE)
        transform_gradients(image, first_ + point / SIDE, square.y, pairs_,
                            gradients_.place(point, channel, pair));
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
  const int64_t first_, points_;       // its first line of points, and how many points it has
  const int64_t ins_, outs_, groups_;  // blocks of 16 channels, and groups of input channels'
  const int64_t pairs_, at_once_;      // pairs of a line, and lines at once
  Factors inputs_, gradients_;
  const std::unique_ptr<Sums[]> sums_;  // for each point those of all items
};

// All threads' parts. Where sums are many, several threads have lines of points of the same images;
// others have all points of their images.
class Parts {
 public:
  Parts(const Convolution& c, int64_t threads) : parts_(threads), sharing_(1) {
    const int64_t sums = SIDE * SIDE * c.in_channels * c.out_channels * int64_t(sizeof(float));
    while (sharing_ < SIDE && threads % (2 * sharing_) == 0 && sums / sharing_ > MOST_FACTORS)
      sharing_ *= 2;
  }

  void compute(const Convolution& c, const uint16_t* x, const uint16_t* dy, int64_t thread) {
    const int64_t lines = c.images * Square<TwoPixels>::in(c.out_height), own = SIDE / sharing_;
    const int64_t of = int64_t(parts_.size()) / sharing_, part = thread / sharing_;
    parts_[thread].reset(new Gradient(c, x, dy, thread % sharing_ * own, own));
    parts_[thread]->compute(lines * part / of, lines * (part + 1) / of);
  }

  // Adds up what all that have a point came to, for an item, some input and one output channel.
  __m512 sum(const Item& item, int64_t point, int64_t in, int64_t channel) const {
    const int64_t own = SIDE * SIDE / sharing_;
    __m512 sum = _mm512_setzero_ps();
    for (size_t part = point / own; part < parts_.size(); part += sharing_) {
      const Sums& sums = parts_[part]->sums(item, point % own)[in];
      sum = _mm512_add_ps(sum, _mm512_load_ps(sums.values + channel * LANES));
    }
    return sum;
  }

  const Gradient& any() const { return *parts_[0]; }

 private:
  std::vector<std::unique_ptr<Gradient>> parts_;
  int64_t sharing_;  // threads next to each other, which have the same images
};

// G^T m of four numbers.
inline void transform_sums(const __m512* m, __m512* to) {
  const __m512 half = _mm512_set1_ps(0.5f), both = _mm512_mul_ps(half, _mm512_add_ps(m[1], m[2]));
  to[0] = _mm512_add_ps(m[0], both);
  to[1] = _mm512_mul_ps(half, _mm512_sub_ps(m[1], m[2]));
  to[2] = _mm512_add_ps(both, m[3]);
}

// Writes the kernels' gradient of one of an item's 16 input channels and one output channel.
void write(const Convolution& c, const Parts& parts, const Item& item, int64_t in, int64_t channel,
           float* dweight) {
  __m512 lines[3][4];
  for (int x = 0; x < 4; ++x) {
    __m512 column[4], taps[3];
    for (int y = 0; y < 4; ++y) column[y] = parts.sum(item, 4 * y + x, in, channel);
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
  std::unique_ptr<Parts> parts;
#pragma omp parallel num_threads(threads)
  {
    const int64_t thread = omp_get_thread_num(), count = omp_get_num_threads();
#pragma omp single
    parts.reset(new Parts(c, count));
    parts->compute(c, x, dy, thread);
#pragma omp barrier
    const int64_t items = parts->any().items();
    for (int64_t i = items * thread / count; i < items * (thread + 1) / count; ++i) {
      const Item item = parts->any().item(i);
      for (int64_t in = 0; in < item.ins; ++in)
        for (int64_t channel = 0; channel < LANES; ++channel)
          write(c, *parts, item, in, channel, dweight);
    }
  }
}

#endif
