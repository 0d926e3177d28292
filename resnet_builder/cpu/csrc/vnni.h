// VNNI packing: pairs of pixels in bf16, as instructions want them that multiply two pairs of
// numbers and add both products; and such products in AVX512-BF16 vectors.

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

#ifdef __AVX512BF16__

// ---- products in vectors -----------------------------------------------------------------------

constexpr int AT_ONCE = 3;  // inputs of 16 channels each

// Some pairs of the long row.
struct Run {
  int64_t from, count;
};

// Outer products: for each pair, 16 output channels of the gradient times 16 input channels of what
// each of COUNT taps reads. Sums are added to others only in the end, which rounds less; those
// others, which may be far away, are prefetched meanwhile.
template <int COUNT>
void multiply_pairs(const Line* gradients, const Line* const* inputs, Sums* sums,
                    const Run* runs, int64_t count, bool add) {
  constexpr int CHANNELS = COUNT == 1 ? 16 : 8;  // whose sums are in registers, of which 32 are
  for (int64_t first = 0; first < LANES; first += CHANNELS) {
    __m512 sum[COUNT][CHANNELS];
#pragma GCC unroll 3
    for (int i = 0; i < COUNT; ++i)
#pragma GCC unroll 16
      for (int channel = 0; channel < CHANNELS; ++channel)
        sum[i][channel] = _mm512_setzero_ps();
#pragma GCC unroll 3
    for (int i = 0; i < COUNT; ++i)
#pragma GCC unroll 16
      for (int channel = 0; channel < CHANNELS; ++channel)
        _mm_prefetch(&sums[i].values[(first + channel) * LANES], _MM_HINT_T0);
    for (const Run* run = runs; run != runs + count; ++run) {
      const uint32_t* gradient = gradients[run->from].words + first;
      for (int64_t at = run->from; at < run->from + run->count; ++at, gradient += LANES) {
        __m512bh input[COUNT];
#pragma GCC unroll 3
        for (int i = 0; i < COUNT; ++i)
          input[i] = (__m512bh)_mm512_load_si512(inputs[i] + at);
#pragma GCC unroll 16
        for (int channel = 0; channel < CHANNELS; ++channel) {
          const __m512bh factor = (__m512bh)_mm512_set1_epi32(int(gradient[channel]));
#pragma GCC unroll 3
          for (int i = 0; i < COUNT; ++i)
            sum[i][channel] = _mm512_dpbf16_ps(sum[i][channel], factor, input[i]);
        }
      }
    }
#pragma GCC unroll 3
    for (int i = 0; i < COUNT; ++i)
#pragma GCC unroll 16
      for (int channel = 0; channel < CHANNELS; ++channel) {
        float* all = &sums[i].values[(first + channel) * LANES];
        const __m512 others = add ? _mm512_load_ps(all) : _mm512_setzero_ps();
        _mm512_store_ps(all, _mm512_add_ps(others, sum[i][channel]));
      }
  }
}

constexpr decltype(&multiply_pairs<1>) MULTIPLY[AT_ONCE] = {multiply_pairs<1>, multiply_pairs<2>,
                                                            multiply_pairs<3>};

#endif

}  // namespace
