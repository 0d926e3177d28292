// What all convolutions share: their geometry, aligned memory, precisions, and the epilogue.

#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace {

using std::int64_t;
using std::uint16_t;
using std::uint32_t;

constexpr int64_t LANES = 16;  // channels at once: 32-bit numbers of a vector, rows of an AMX tile

// A line of the cache: AMX tiles load several times slower from rows that are not aligned to it.
struct alignas(64) Line {
  uint32_t words[LANES];
};
// Sums of 16 output x 16 input channels.
struct alignas(64) Sums {
  float values[LANES * LANES];
};

// Geometry of a convolution; images are channels-last, weights (out, size, size, in).
struct Convolution {
  int64_t images, height, width, in_channels, out_height, out_width, out_channels;
  int64_t size, stride, padding;

  // From ten numbers in this order, as convolution.py passes them.
  static Convolution of(const int64_t* numbers) {
    Convolution c;
    std::memcpy(&c, numbers, sizeof c);
    return c;
  }
};

// ---- precisions ---------------------------------------------------------------------------------

// fp32: what an instruction multiplies is one number.
struct Fp32 {
  using Number = float;
  static constexpr int64_t PER_WORD = 1;  // numbers of 32 bits, whose products it sums

  static __m512 load(const Number* from) { return _mm512_loadu_ps(from); }
  static void store(Number* to, __m512 values) { _mm512_storeu_ps(to, values); }

  // A word of each of 16 lanes.
  static __m512i words(const __m512* values) { return _mm512_castps_si512(values[0]); }
  static __m512 add_product(__m512 sum, __m512i one, __m512i other) {
    return _mm512_fmadd_ps(_mm512_castsi512_ps(one), _mm512_castsi512_ps(other), sum);
  }
};

#ifdef __AVX512BF16__
// bf16: what an instruction multiplies is a pair of numbers, whose products it sums in fp32.
struct Bf16 {
  using Number = uint16_t;
  static constexpr int64_t PER_WORD = 2;

  static __m512 load(const Number* from) {
    const __m256i bits = _mm256_loadu_si256((const __m256i*)from);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }
  static void store(Number* to, __m512 values) {
    _mm256_storeu_si256((__m256i*)to, (__m256i)_mm512_cvtneps_pbh(values));
  }

  static __m512i words(const __m512* values) {
    const auto bits = [](__m512 one) {
      return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(one));
    };
    return _mm512_or_si512(bits(values[0]), _mm512_slli_epi32(bits(values[1]), 16));
  }
  static __m512 add_product(__m512 sum, __m512i one, __m512i other) {
    return _mm512_dpbf16_ps(sum, (__m512bh)one, (__m512bh)other);
  }
};
#endif

// Epilogue of a convolution: y = relu(sum + bias + addend), without what there is not.
template <typename Type>
struct Epilogue {
  const float* bias;
  const typename Type::Number* addend;
  bool relu;

  __m512 bias_of(int64_t channel) const {
    return bias ? _mm512_loadu_ps(bias + channel) : _mm512_setzero_ps();
  }

  // Writes 16 channels to their place in the output; their bias is read once for many pixels.
  void write(__m512 sum, __m512 bias, typename Type::Number* y, int64_t at) const {
    sum = _mm512_add_ps(sum, bias);
    if (addend) sum = _mm512_add_ps(sum, Type::load(addend + at));
    if (relu) {
      const __m512 zero = _mm512_setzero_ps();
      const __mmask16 negative = _mm512_cmp_ps_mask(sum, zero, _CMP_LT_OQ);
      sum = _mm512_mask_mov_ps(sum, negative, zero);  // NaN stays NaN
    }
    Type::store(y + at, sum);
  }
};

}  // namespace
