// What the gradient of Winograd's kernels multiplies: B^T d B of the input and A dY A^T of the
// output's gradient, in bf16. Words have two squares' numbers, next to each other in a line.

#pragma once

#include <memory>

#include "winograd.h"

namespace {

constexpr int64_t SIDE = TwoPixels::POINTS;  // lines and columns of points

// 32 channels in fp32: those in the lower halves of words in bf16, and those in the upper halves.
struct Channels {
  __m512 even, odd;

  static Channels of(__m512i words) {
    const __m512i upper = _mm512_set1_epi32(int(0xffff0000));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(words, 16)),
            _mm512_castsi512_ps(_mm512_and_si512(words, upper))};
  }
  Channels operator+(const Channels& other) const {
    return {_mm512_add_ps(even, other.even), _mm512_add_ps(odd, other.odd)};
  }
  Channels operator-(const Channels& other) const {
    return {_mm512_sub_ps(even, other.even), _mm512_sub_ps(odd, other.odd)};
  }
  // This times a sign, plus other channels.
  Channels times(__m512 sign, const Channels& plus) const {
    return {_mm512_fmadd_ps(even, sign, plus.even), _mm512_fmadd_ps(odd, sign, plus.odd)};
  }
};

// 32 channels of an image, or the last 16.
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

// The sum of a line of pixels and of another one times a sign; there are zeros outside the image.
class TwoLines {
 public:
  TwoLines(const Image& image, int64_t first, int64_t second, float sign)
      : width_(image.width),
        channels_(image.channels),
        mask_(image.mask),
        sign_(_mm512_set1_ps(sign)),
        first_(image, first),
        second_(image, second) {}

  // That of one column. What is two lines further down is needed soon.
  Channels operator()(int64_t column) const {
    const bool inside = column >= 0 && column < width_;
    const uint16_t* first = inside ? first_.pixels + column * first_.step : ZEROS;
    const uint16_t* second = inside ? second_.pixels + column * second_.step : ZEROS;
    _mm_prefetch(first + 2 * width_ * channels_, _MM_HINT_T1);
    const Channels sum = Channels::of(_mm512_maskz_loadu_epi16(mask_, first));
    return Channels::of(_mm512_maskz_loadu_epi16(mask_, second)).times(sign_, sum);
  }

 private:
  alignas(64) static constexpr uint16_t ZEROS[2 * LANES] = {};

  struct OneLine {
    const uint16_t* pixels;
    int64_t step;  // from pixel to pixel; none where all are zeros

    OneLine(const Image& image, int64_t line) : pixels(ZEROS), step(0) {
      if (line < 0 || line >= image.height) return;
      pixels = image.pixels + line * image.width * image.channels;
      step = image.channels;
    }
  };

  const int64_t width_, channels_;
  const __mmask32 mask_;
  const __m512 sign_;
  const OneLine first_, second_;
};

// Where a pair of squares has its words of a point, those of the next point, and those of the next
// 16 channels.
struct Place {
  Line* words;
  int64_t next_point, next_channels;

  // Writes 32 channels of both squares, so many points further on. Where there are only 16, those
  // are written over the others.
  void write(int64_t point, const Channels& first, const Channels& second) const {
    alignas(64) static constexpr uint16_t ORDER[2 * LANES] = {
        0, 16, 32, 48, 1, 17, 33, 49, 2, 18, 34, 50, 3, 19, 35, 51,
        4, 20, 36, 52, 5, 21, 37, 53, 6, 22, 38, 54, 7, 23, 39, 55};
    const __m512i order = _mm512_load_si512(ORDER);
    const __m512i others = _mm512_add_epi16(order, _mm512_set1_epi16(8));
    const __m512i even = (__m512i)_mm512_cvtne2ps_pbh(second.even, first.even);
    const __m512i odd = (__m512i)_mm512_cvtne2ps_pbh(second.odd, first.odd);
    Line* to = words + point * next_point;
    _mm512_store_si512(to + next_channels, _mm512_permutex2var_epi16(even, others, odd));
    _mm512_store_si512(to, _mm512_permutex2var_epi16(even, order, odd));
  }
};

// Factors of some pairs of squares: for each point, all pairs' of the first 16 channels, then of
// the next. The points' are as many lines apart as no power of two divides, for the cache keeps few
// of those that one does.
class Factors {
 public:
  Factors(int64_t points, int64_t channels, int64_t pairs)
      : channels_(channels),
        pairs_(pairs),
        step_(channels / LANES * pairs | 1),
        lines_(new Line[points * step_]) {}

  const Line* pairs(int64_t point, int64_t channel) const {
    return &lines_[point * step_ + channel / LANES * pairs_];
  }

  Place place(int64_t point, int64_t channel, int64_t pair) {
    Line* words = &lines_[point * step_ + channel / LANES * pairs_ + pair];
    return {words, step_, channels_ - channel > LANES ? pairs_ : 0};
  }

 private:
  const int64_t channels_, pairs_, step_;
  const std::unique_ptr<Line[]> lines_;
};

// A line of the points B^T d B of a line's pairs of squares. As in A dY A^T below, the last line
// and column have the other sign, which makes no difference to products.
void transform_inputs(const Image& image, int64_t line, int64_t top, int64_t left, int64_t pairs,
                      Place to) {
  constexpr int64_t SECOND[] = {2, 2, 1, 1};
  const TwoLines at(image, top + line, top + SECOND[line], line == 1 ? 1 : -1);
  Channels d0 = at(left), d1 = at(left + 1);
  for (int64_t i = 0; i < pairs; ++i, ++to.words) {
    const int64_t x = left + 4 * i;
    const Channels d2 = at(x + 2), d3 = at(x + 3), d4 = at(x + 4), d5 = at(x + 5);
    to.write(0, d0 - d2, d2 - d4);
    to.write(1, d1 + d2, d3 + d4);
    to.write(2, d2 - d1, d4 - d3);
    to.write(3, d3 - d1, d5 - d3);
    d0 = d4;
    d1 = d5;
  }
}

// A line of the points A dY A^T of a line's pairs of squares.
void transform_gradients(const Image& image, int64_t line, int64_t top, int64_t pairs, Place to) {
  constexpr int64_t NONE = -1, FIRST[] = {0, 0, 0, 1};
  const bool both = line == 1 || line == 2;
  const TwoLines at(image, top + FIRST[line], both ? top + 1 : NONE, line == 1 ? 1 : -1);
  for (int64_t x = 0; x < 4 * pairs; x += 4, ++to.words) {
    const Channels y0 = at(x), y1 = at(x + 1), y2 = at(x + 2), y3 = at(x + 3);
    to.write(0, y0, y2);
    to.write(1, y0 + y1, y2 + y3);
    to.write(2, y0 - y1, y2 - y3);
    to.write(3, y1, y3);
  }
}

}  // namespace
