// The gradient of weights of 3 x 3 pixels in bf16 by Winograd's minimal filtering.
//
// Y = A^T ((G g G^T) * (B^T d B)) A is linear in g, so its gradient is
// G^T ((A dY A^T) * (B^T d B)) G, where * is summed over all patches.

#include <cstdint>

#define EXPORT extern "C" __attribute__((visibility("default")))

#if !defined(__AVX512BW__) || !defined(__AVX512BF16__)

EXPORT void winograd_weight_gradient(const void*, const void*, float*, const std::int64_t*, int) {}

#else

#include <omp.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "vnni.h"
#include "winograd.h"

namespace {

// ---- transforms --------------------------------------------------------------------------------
//
// What is multiplied: B^T d B of the input and A dY A^T of the output's gradient, in bf16. Words
// have two patches' numbers, next to each other in a line.

// The matrices of a transform: what it makes of unit vectors.
template <typename Transform>
struct Matrices {
  float inputs[Transform::POINTS][Transform::INPUTS];    // B^T
  float weights[Transform::POINTS][3];             // G
  float outputs[Transform::OUTPUTS][Transform::POINTS];  // A^T

  Matrices() {
    fill(Transform::transform_input, inputs);
    fill(Transform::transform_weight, weights);
    fill(Transform::transform_output, outputs);
  }

 private:
  template <int LINES, int COLUMNS>
  static void fill(void (*transform)(const __m512*, __m512*), float (&matrix)[LINES][COLUMNS]) {
    for (int column = 0; column < COLUMNS; ++column) {
      __m512 ones[COLUMNS] = {}, made[LINES];
      ones[column] = _mm512_set1_ps(1);
      transform(ones, made);
      for (int line = 0; line < LINES; ++line) matrix[line][column] = _mm512_cvtss_f32(made[line]);
    }
  }
};

// What is transformed down the columns to a line of points: some lines, times factors, which are
// the same in bf16.
struct Taps {
  static constexpr int MOST = 4;

  int count = 0, news = 0;
  int64_t lines[MOST], new_lines[MOST];  // new are those that are read for the first time
  float factors[MOST];

  void add(int64_t line, float factor) {
    if (factor == 0) return;
    lines[count] = line;
    factors[count++] = factor;
  }
};

// Finds what is new: neither a line of points before has it nor have the patches above, of whose
// lines so many are common.
template <int POINTS>
void find_new_lines(Taps (&taps)[POINTS], int64_t common) {
  uint32_t seen = (1u << common) - 1;
  for (Taps& of : taps)
    for (int tap = 0; tap < of.count; ++tap) {
      const uint32_t line = 1u << of.lines[tap];
      if (!(seen & line)) of.new_lines[of.news++] = of.lines[tap];
      seen |= line;
    }
}

// 32 channels of an image, or its last 16.
struct Image {
  const uint16_t* pixels;
  int64_t height, width, channels;
  __mmask32 mask;

  Image(const uint16_t* images, int64_t number, int64_t height, int64_t width, int64_t channels,
        int64_t channel)
      : pixels(images + number * height * width * channels + channel),
        height(height),
        width(width),
        channels(channels),
        mask(channels - channel > LANES ? 0xffffffff : 0xffff) {}
};

// The sum of lines of an image times factors; there are zeros outside the image.
template <int TAPS>
class Lines {
 public:
  // Lines are counted from `top`. The new ones of the next patches, so many lines below, are needed
  // soon. Below an image is the next one; below the last, fetching does nothing.
  Lines(const Image& image, const Taps& taps, int64_t top, int64_t next)
      : width_(image.width), channels_(image.channels), mask_(image.mask), soon_count_(taps.news) {
    const int64_t line = image.width * image.channels;
    for (int tap = 0; tap < TAPS; ++tap) {
      uint32_t bits;
      std::memcpy(&bits, &taps.factors[tap], sizeof bits);
      lower_[tap] = (__m512bh)_mm512_set1_epi32(int(bits >> 16));
      upper_[tap] = (__m512bh)_mm512_set1_epi32(int(bits));
      const int64_t y = top + taps.lines[tap];
      const bool inside = y >= 0 && y < image.height;
      pixels_[tap] = inside ? image.pixels + y * line : ZEROS;
      step_[tap] = inside ? image.channels : 0;
    }
    for (int i = 0; i < taps.news; ++i)
      soon_[i] = image.pixels + (top + next + taps.new_lines[i]) * line;
  }

  // That of 32 channels of one column in fp32: those in the lower halves of words in bf16, and
  // those in the upper halves.
  void read(int64_t column, __m512* even, __m512* odd) const {
    *even = *odd = _mm512_setzero_ps();
    if (column < 0 || column >= width_) return;
    for (int i = 0; i < soon_count_; ++i)
      _mm_prefetch(soon_[i] + column * channels_, _MM_HINT_T1);
#pragma GCC unroll 4
    for (int tap = 0; tap < TAPS; ++tap) {
      const uint16_t* from = pixels_[tap] + column * step_[tap];
      const __m512bh words = (__m512bh)_mm512_maskz_loadu_epi16(mask_, from);
      *even = _mm512_dpbf16_ps(*even, words, lower_[tap]);
      *odd = _mm512_dpbf16_ps(*odd, words, upper_[tap]);
    }
  }

 private:
  alignas(64) static constexpr uint16_t ZEROS[2 * LANES] = {};

  const int64_t width_, channels_;
  const __mmask32 mask_;
  const int soon_count_;
  __m512bh lower_[TAPS], upper_[TAPS];  // a factor and zero; zero and a factor
  const uint16_t *pixels_[TAPS], *soon_[Taps::MOST];
  int64_t step_[TAPS];  // from pixel to pixel; none where all are zeros
};

// Where a pair of patches has its words of a point, those of the next point, and those of the next
// 16 channels.
struct Place {
  Line* words;
  int64_t next_point, next_channels;

  // Writes 32 channels of both patches, so many points further on. Where there are only 16, those
  // are written over the others.
  void write(int64_t point, __m512 first_even, __m512 first_odd, __m512 second_even,
             __m512 second_odd) const {
    alignas(64) static constexpr uint16_t ORDER[2 * LANES] = {
        0, 16, 32, 48, 1, 17, 33, 49, 2, 18, 34, 50, 3, 19, 35, 51,
        4, 20, 36, 52, 5, 21, 37, 53, 6, 22, 38, 54, 7, 23, 39, 55};
    const __m512i order = _mm512_load_si512(ORDER);
    const __m512i others = _mm512_add_epi16(order, _mm512_set1_epi16(8));
    const __m512i even = (__m512i)_mm512_cvtne2ps_pbh(second_even, first_even);
    const __m512i odd = (__m512i)_mm512_cvtne2ps_pbh(second_odd, first_odd);
    Line* to = words + point * next_point;
    _mm512_store_si512(to + next_channels, _mm512_permutex2var_epi16(even, others, odd));
    _mm512_store_si512(to, _mm512_permutex2var_epi16(even, order, odd));
  }
};

// Factors of some pairs of patches, of a line of points: for each point, all pairs' of the first
// block of 16 channels, then of the next. The points' are as many lines apart as no power of two
// divides, for the cache keeps few of those that one does.
class Factors {
 public:
  Factors(int64_t points, int64_t blocks, int64_t pairs)
      : blocks_(blocks),
        pairs_(pairs),
        step_(blocks * pairs | 1),
        lines_(new Line[points * step_]) {}

  const Line* pairs(int64_t point, int64_t block) const {
    return &lines_[point * step_ + block * pairs_];
  }

  // Where two blocks, or the last one, have their first point.
  Place place(int64_t block, int64_t pair) {
    Line* words = &lines_[block * pairs_ + pair];
    return {words, step_, block + 1 < blocks_ ? pairs_ : 0};
  }

 private:
  const int64_t blocks_, pairs_, step_;
  const std::unique_ptr<Line[]> lines_;
};

// Transforms lines across, to the points of a line's pairs of patches. The first patch has COLUMNS
// columns from this one on, each of the others as many, STEP further on.
template <int COLUMNS, int STEP, int POINTS, auto TRANSFORM, int TAPS>
void transform_across(const Lines<TAPS>& lines, int64_t from, int64_t pairs, Place to) {
  constexpr int COMMON = COLUMNS - STEP, ALL = COLUMNS + STEP;
  __m512 even[ALL], odd[ALL];
  for (int x = 0; x < COMMON; ++x) lines.read(from + x, &even[x], &odd[x]);
  for (int64_t i = 0; i < pairs; ++i, from += 2 * STEP, ++to.words) {
#pragma GCC unroll 16
    for (int x = COMMON; x < ALL; ++x) lines.read(from + x, &even[x], &odd[x]);
    __m512 first_even[POINTS], first_odd[POINTS], second_even[POINTS], second_odd[POINTS];
    TRANSFORM(even, first_even);
    TRANSFORM(odd, first_odd);
    TRANSFORM(even + STEP, second_even);
    TRANSFORM(odd + STEP, second_odd);
#pragma GCC unroll 8
    for (int point = 0; point < POINTS; ++point)
      to.write(point, first_even[point], first_odd[point], second_even[point], second_odd[point]);
#pragma GCC unroll 8
    for (int x = 0; x < COMMON; ++x) {
      even[x] = even[2 * STEP + x];
      odd[x] = odd[2 * STEP + x];
    }
  }
}

// Calls body(lines) with the sum that some taps make of an image.
template <typename Body>
void with_lines(const Image& image, const Taps& taps, int64_t top, int64_t next, Body body) {
  switch (taps.count) {
    case 1: return body(Lines<1>(image, taps, top, next));
    case 2: return body(Lines<2>(image, taps, top, next));
    case 3: return body(Lines<3>(image, taps, top, next));
    case 4: return body(Lines<4>(image, taps, top, next));
  }
}

// ---- products ----------------------------------------------------------------------------------

// Bytes of factors at once: as many as of the sums that they are added to, which are read and
// written once for them, but not more than caches have room for.
constexpr int64_t LEAST_FACTORS = 512 << 10, MOST_FACTORS = 2 << 20;
constexpr int64_t MOST_SUMS = 16 << 20;  // bytes of all threads' sums, if that can be had
constexpr int64_t NEAR = 128;            // pairs whose factors the first level of the cache keeps

// A part of so many things, of some parts that have about as many.
struct Range {
  int64_t from, to;

  Range(int64_t things, int64_t part, int64_t parts)
      : from(things * part / parts), to(things * (part + 1) / parts) {}
};

// 16 output channels and up to AT_ONCE times 16 input channels: blocks, counted in 16.
struct Item {
  int64_t out, in, ins;
};

// All of some output channels, which are blocks from one on. Next to each other are those with the
// same input channels.
struct Items {
  int64_t ins, first, outs;

  int64_t groups() const { return (ins + AT_ONCE - 1) / AT_ONCE; }  // of input channels
  int64_t count() const { return groups() * outs; }

  // The one of this number. All have about as many input channels.
  Item operator[](int64_t number) const {
    const int64_t group = number / outs, in = ins * group / groups();
    return {first + number % outs, in, ins * (group + 1) / groups() - in};
  }

  bool has(const Item& item) const { return item.out >= first && item.out < first + outs; }

  // Blocks before those of an item.
  int64_t place(const Item& item) const { return item.in * outs + (item.out - first) * item.ins; }
};

// A thread's part: some output channels, of some lines of patches.
template <typename Plane>
class Gradient {
 public:
  Gradient(const Convolution& c, const uint16_t* x, const uint16_t* dy, const Items& items)
      : c_(c),
        x_(x),
        dy_(dy),
        items_(items),
        pairs_((Patch<Plane>::in_line(c) + 1) / 2),
        at_once_(lines_at_once()),
        inputs_(Across::POINTS, items.ins, at_once_ * pairs_),
        gradients_(Across::POINTS, items.outs, at_once_ * pairs_),
        sums_(new Sums[Plane::POINTS * items.ins * items.outs]) {
    const Matrices<Down> matrices;
    for (int point = 0; point < Down::POINTS; ++point) {
      for (int line = 0; line < Down::INPUTS; ++line)
        input_taps_[point].add(line, matrices.inputs[point][line]);
      for (int line = 0; line < Down::OUTPUTS; ++line)
        gradient_taps_[point].add(line, matrices.outputs[line][point]);
    }
    find_new_lines(input_taps_, Down::INPUTS - Down::STEP);
    find_new_lines(gradient_taps_, 0);
  }

  // Sums the products of a range of lines of patches: a line of points at a time, for its sums are
  // near then.
  void compute(int64_t from, int64_t to) {
    for (bool add = false; from < to; from += at_once_, add = true) {
      const int64_t count = std::min(at_once_, to - from);
      for (int y = 0; y < Down::POINTS; ++y) {
        for (int64_t line = 0; line < count; ++line) read(from + line, y, line * pairs_);
        for (int x = 0; x < Across::POINTS; ++x)
          for (int64_t i = 0; i < items_.count(); ++i)
            multiply(items_[i], y, x, count * pairs_, add);
      }
    }
  }

  const Items& items() const { return items_; }

  // Sums of a point and an item: of each 16 input channels.
  Sums* sums(const Item& item, int64_t point) const {
    return &sums_[point * items_.ins * items_.outs + items_.place(item)];
  }

 private:
  using Down = typename Plane::Down;
  using Across = typename Plane::Across;

  int64_t lines_at_once() const {
    const int64_t sums = Across::POINTS * items_.ins * items_.outs * int64_t(sizeof(Sums));
    const int64_t pair = Across::POINTS * (items_.ins + items_.outs) * int64_t(sizeof(Line));
    const int64_t factors = std::min(std::max(sums, LEAST_FACTORS), MOST_FACTORS);
    return std::max<int64_t>(1, factors / (pair * pairs_));
  }

  // Transforms what a line of patches needs to a line of points. The last pair may be half outside
  // the image.
  void read(int64_t number, int y, int64_t pair) {
    const Patch<Plane> patch(c_, number * Patch<Plane>::in_line(c_));
    const int64_t top = patch.y / Down::OUTPUTS * Down::STEP - c_.padding;
    for (int64_t channel = 0; channel < c_.in_channels; channel += 2 * LANES) {
      const Image image(x_, patch.image, c_.height, c_.width, c_.in_channels, channel);
      with_lines(image, input_taps_[y], top, Down::STEP, [&](const auto& lines) {
        transform_across<Across::INPUTS, Across::STEP, Across::POINTS, Across::transform_input>(
            lines, -c_.padding, pairs_, inputs_.place(channel / LANES, pair));
      });
    }
    for (int64_t out = 0; out < items_.outs; out += 2) {
      const int64_t channel = (items_.first + out) * LANES;
      const Image image(dy_, patch.image, c_.out_height, c_.out_width, c_.out_channels, channel);
      with_lines(image, gradient_taps_[y], patch.y, Down::OUTPUTS, [&](const auto& lines) {
        transform_across<Across::OUTPUTS, Across::OUTPUTS, Across::POINTS,
                         Across::transform_gradient>(lines, 0, pairs_,
                                                     gradients_.place(out, pair));
      });
    }
  }

  // Sums the products of an item at a point, of some pairs of patches.
  void multiply(const Item& item, int y, int x, int64_t pairs, bool add) const {
    for (int64_t from = 0; from < pairs; from += NEAR, add = true) {
      const Line* inputs[AT_ONCE];
      for (int64_t i = 0; i < item.ins; ++i) inputs[i] = inputs_.pairs(x, item.in + i) + from;
      const Run run = {0, std::min(NEAR, pairs - from)};
      MULTIPLY[item.ins - 1](gradients_.pairs(x, item.out - items_.first) + from, inputs,
                             sums(item, Across::POINTS * y + x), &run, 1, add);
    }
  }

  const Convolution& c_;
  const uint16_t *const x_, *const dy_;
  const Items items_;
  const int64_t pairs_, at_once_;  // pairs of a line, and lines at once
  Taps input_taps_[Down::POINTS], gradient_taps_[Down::POINTS];
  Factors inputs_, gradients_;          // of a line of points
  const std::unique_ptr<Sums[]> sums_;  // for each point those of all items
};

// All threads' parts. Each has images of its own if there are not too many sums for that; otherwise
// some threads share images, which each of them transforms, and divide the output channels.
template <typename Plane>
class Parts {
 public:
  Parts(const Convolution& c, int64_t threads) : c_(c), threads_(threads), parts_(threads) {
    const int64_t bytes = Plane::POINTS * c.in_channels * c.out_channels * int64_t(sizeof(float));
    const int64_t least = (threads + c.out_channels / LANES - 1) / (c.out_channels / LANES);
    shares_ = std::min(threads, std::max(least, MOST_SUMS / bytes));
  }

  void compute(const uint16_t* x, const uint16_t* dy, int64_t thread) {
    const int64_t lines = c_.images * Patch<Plane>::in_column(c_);
    const Range sharing(threads_, ((thread + 1) * shares_ - 1) / threads_, shares_);
    const Range outs(c_.out_channels / LANES, thread - sharing.from, sharing.to - sharing.from);
    const Items items = {c_.in_channels / LANES, outs.from, outs.to - outs.from};
    const int64_t from = lines * sharing.from / threads_, to = lines * sharing.to / threads_;
    if (from == to) return;
    parts_[thread].reset(new Gradient<Plane>(c_, x, dy, items));
    parts_[thread]->compute(from, to);
  }

  // Calls body(part) with each that has an item's sums.
  template <typename Body>
  void having(const Item& item, Body body) const {
    for (const auto& part : parts_)
      if (part && part->items().has(item)) body(*part);
  }

 private:
  const Convolution& c_;
  const int64_t threads_;
  int64_t shares_;  // of the images, for threads next to each other
  std::vector<std::unique_ptr<Gradient<Plane>>> parts_;
};

// The gradient of weights, from sums of all points: G^T m G.
template <typename Plane>
class WeightGradient {
 public:
  WeightGradient(const Convolution& c, const Parts<Plane>& parts) : c_(c), parts_(parts) {}

  // Writes that of an item.
  void write(const Item& item, float* dweight) {
    for (int64_t in = 0; in < item.ins; ++in) {
      std::fill_n(columns_[0][0].values, 3 * Across::POINTS * LANES * LANES, 0.f);
      parts_.having(item, [&](const Gradient<Plane>& part) {
        for (int y = 0; y < Down::POINTS; ++y)
          for (int x = 0; x < Across::POINTS; ++x)
            add(part.sums(item, Across::POINTS * y + x)[in], down_.weights[y], x);
      });
      for (int64_t channel = 0; channel < LANES; ++channel)
        write(channel, dweight + (item.out * LANES + channel) * 9 * c_.in_channels +
                           (item.in + in) * LANES);
    }
  }

 private:
  using Down = typename Plane::Down;
  using Across = typename Plane::Across;

  // Transforms a point's sums down its column.
  void add(const Sums& sums, const float* factors, int x) {
    const __m512 factor[] = {_mm512_set1_ps(factors[0]), _mm512_set1_ps(factors[1]),
                             _mm512_set1_ps(factors[2])};
    for (int64_t at = 0; at < LANES * LANES; at += LANES) {
      const __m512 sum = _mm512_load_ps(sums.values + at);
#pragma GCC unroll 3
      for (int i = 0; i < 3; ++i) {
        float* to = columns_[i][x].values + at;
        _mm512_store_ps(to, _mm512_fmadd_ps(sum, factor[i], _mm512_load_ps(to)));
      }
    }
  }

  // Transforms lines, and writes what is of one output channel and 16 input channels.
  void write(int64_t channel, float* to) const {
    for (int i = 0; i < 3; ++i) {
      __m512 pixels[3] = {};
      for (int x = 0; x < Across::POINTS; ++x) {
        const __m512 sum = _mm512_load_ps(columns_[i][x].values + channel * LANES);
        for (int j = 0; j < 3; ++j)
          pixels[j] = _mm512_fmadd_ps(sum, _mm512_set1_ps(across_.weights[x][j]), pixels[j]);
      }
      for (int j = 0; j < 3; ++j) _mm512_storeu_ps(to + (3 * i + j) * c_.in_channels, pixels[j]);
    }
  }

  const Convolution& c_;
  const Parts<Plane>& parts_;
  const Matrices<Down> down_;
  const Matrices<Across> across_;
  Sums columns_[3][Across::POINTS];  // of 16 input and 16 output channels
};

template <typename Plane>
void compute(const Convolution& c, const uint16_t* x, const uint16_t* dy, float* dweight,
             int threads) {
  std::unique_ptr<Parts<Plane>> parts;
#pragma omp parallel num_threads(threads)
  {
    const int64_t thread = omp_get_thread_num(), count = omp_get_num_threads();
#pragma omp single
    parts.reset(new Parts<Plane>(c, count));
    parts->compute(x, dy, thread);
#pragma omp barrier
    WeightGradient<Plane> gradient(c, *parts);
    const Items items = {c.in_channels / LANES, 0, c.out_channels / LANES};
    const Range range(items.count(), thread, count);
    for (int64_t i = range.from; i < range.to; ++i) gradient.write(items[i], dweight);
  }
}

}  // namespace

// ---- what Python calls -------------------------------------------------------------------------

EXPORT void winograd_weight_gradient(const uint16_t* x, const uint16_t* dy, float* dweight,
                              const int64_t* numbers, int threads) {
  const Convolution c = Convolution::of(numbers);
  const auto plane = c.stride == 2      ? compute<Square<F22Stride2>>
                     : c.out_height > 2 ? compute<Plane<F43, F23>>
                                        : compute<Square<F23>>;
  plane(c, x, dy, dweight, threads);
}

#endif
