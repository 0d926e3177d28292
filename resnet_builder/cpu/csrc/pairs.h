// Pairs of pixels in bf16, as instructions want them that multiply two pairs of numbers and add up.

#pragma once

#include "convolution.h"

namespace {

// 16 channels of a pixel in the lower halves of words, and of the next one in the upper halves.
inline __m512i pair(const uint16_t* pixel, const uint16_t* next) {
  alignas(64) static constexpr uint16_t ORDER[2 * LANES] = {
      0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
      8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  __m512i both = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i*)pixel));
  both = _mm512_inserti64x4(both, _mm256_loadu_si256((const __m256i*)next), 1);
  return _mm512_permutexvar_epi16(_mm512_load_si512(ORDER), both);
}

// Writes 16 channels of a line's pixels as pairs, of which the first has pixel 0 of the long row.
// `at` is the first pixel's place there; a pair that is half outside the line has zeros there.
inline void write_pairs(const uint16_t* pixels, int64_t count, int64_t step, int64_t at, Line* to) {
  alignas(64) static constexpr uint16_t ZEROS[LANES] = {};
  to += at / 2;
  int64_t i = 0;
  if (at % 2) _mm512_store_si512(to++, pair(ZEROS, pixels)), i = 1;
  for (; i + 1 < count; i += 2)
    _mm512_store_si512(to++, pair(pixels + i * step, pixels + (i + 1) * step));
  if (i < count) _mm512_store_si512(to, pair(pixels + i * step, ZEROS));
}

}  // namespace
