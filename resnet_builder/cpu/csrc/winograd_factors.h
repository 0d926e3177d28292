// What the gradient of Winograd's kernels multiplies: B^T d B of the input and A dY A^T of the
// output's gradient, in bf16. Words have two patches' numbers, next to each other in a line.

#pragma once

#include <memory>

#include "winograd.h"

namespace {

// The matrices of a way: what its transforms make of ones.
template <typename Way>
struct Matrices {
  float inputs[Way::POINTS][Way::INPUTS];    // B^T
  float kernels[Way::POINTS][3];             // G
  float outputs[Way::OUTPUTS][Way::POINTS];  // A^T

  Matrices() {
    fill(Way::transform_input, inputs);
    fill(Way::transform_kernel, kernels);
    fill(Way::transform_output, outputs);
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

}  // namespace
