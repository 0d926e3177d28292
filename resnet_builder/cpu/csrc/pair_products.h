// Products of pairs of bf16 numbers in vectors: for each pair, each output channel's two numbers
// times those of 16 input channels are one instruction.

#pragma once

#include "pairs.h"

namespace {

constexpr int AT_ONCE = 3;  // factors of 16 input channels each

// Some pairs of the long row.
struct Run {
  int64_t from, count;
};

// Sums the products of 16 output channels and of what COUNT taps see, 16 input channels each. If
// they are to be added to others, they are summed up before, which rounds less; those others, which
// may be far away, are fetched meanwhile.
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

}  // namespace
