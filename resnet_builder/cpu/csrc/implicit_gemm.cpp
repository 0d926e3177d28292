// The gradient of a convolution's weight in bf16 by implicit GEMM.

#include <cstdint>

#define EXPORT extern "C" __attribute__((visibility("default")))

// Whether the processor has AMX, and the system lets this process use it.
EXPORT int has_amx();

// Whether there is anything that gemm_weight_gradient() can use.
EXPORT int has_gemm_weight_gradient();

#if !defined(__AVX512BW__) || !defined(__linux__) || \
    !(defined(__AMX_BF16__) || defined(__AVX512BF16__))

EXPORT int has_amx() { return 0; }
EXPORT int has_gemm_weight_gradient() { return 0; }
EXPORT void gemm_weight_gradient(const void*, const void*, float*, const std::int64_t*, int) {}

#else

#include <omp.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifdef __AMX_BF16__
#include "implicit_gemm_amx.h"
#else
#include "implicit_gemm_avx512_bf16.h"
#endif

namespace {

// A phase of the input, in pairs that begin with an even and with an odd pixel.
class Inputs {
 public:
  Inputs(const Convolution& c, const Row& row, const Phase& phase)
      : c_(c), row_(row), phase_(phase) {}

  // Has what a tap of this shift reads packed from now on.
  void take(int64_t shift) {
    pairs_[(row_.lead + shift) % 2].resize(count() * c_.in_channels / LANES);
  }

  void read(const uint16_t* x, const Piece& piece) {
    const Lines lines(c_, row_, piece, phase_);
    const bool cut = row_.lines < c_.out_height;
    for (int64_t odd = 0; odd < 2; ++odd) {
      std::vector<Line>& pairs = pairs_[odd];
      if (pairs.empty()) continue;
      if (cut && !lines.whole) std::fill(pairs.begin(), pairs.end(), Line());
      over_lines(c_, row_, piece, phase_, lines, [&](int64_t from, int64_t to) {
        for (int64_t channel = 0; channel < c_.in_channels; channel += LANES)
          write_pairs(x + from * c_.in_channels + channel, lines.columns,
                      c_.stride * c_.in_channels, to - odd, &pairs[channel / LANES * count()]);
      });
    }
  }

  // What a tap of this shift reads: a line of 16 channels for each pair.
  const Line* pairs(int64_t channel, int64_t shift) const {
    const int64_t from = row_.lead + shift;
    return &pairs_[from % 2][channel / LANES * count() + from / 2];
  }

 private:
  int64_t count() const { return row_.pixels / 2 + row_.lead + 1; }

  const Convolution& c_;
  const Row& row_;
  const Phase& phase_;
  std::vector<Line> pairs_[2];
};

// Adds the gradient from some of the images to sums: for each 16 input x 16 output channels one for
// each tap.
void add_gradient(const Convolution& c, const Row& row, const uint16_t* x, const uint16_t* dy,
                  int64_t from_image, int64_t to_image, std::vector<Sums>& sums) {
  Gradients gradients(c, row);
  std::vector<Inputs> inputs;
  for (const Phase& phase : row.phases) inputs.emplace_back(c, row, phase);
  for (const Tap& tap : row.taps) inputs[tap.phase].take(tap.shift);

  for (const Piece& piece : pieces(c, row, from_image, to_image)) {
    gradients.read(dy, piece);
    for (Inputs& input : inputs) input.read(x, piece);
    for (int64_t from = 0; from < gradients.count(); from += Gradients::BLOCK) {
      Sums* sum = sums.data();
      for (int64_t in = 0; in < c.in_channels; in += LANES)
        for (int64_t out = 0; out < c.out_channels; out += LANES)
          for (std::size_t i = 0; i < row.taps.size(); i += AT_ONCE) {
            const Line* factors[AT_ONCE];
            int some = 0;
            for (; some < AT_ONCE && i + some < row.taps.size(); ++some) {
              const Tap& tap = row.taps[i + some];
              factors[some] = inputs[tap.phase].pairs(in, tap.shift) + from;
            }
            gradients.multiply(out, from, factors, some, sum);
            sum += some;
          }
    }
  }
}

}  // namespace

// ---- what Python calls -------------------------------------------------------------------------

EXPORT int has_amx() {
#ifdef __AMX_BF16__
  constexpr int REQUEST = 0x1023, TILE_DATA = 18;  // from Linux' asm/prctl.h and Intel's manual
  return syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
#else
  return 0;
#endif
}

EXPORT int has_gemm_weight_gradient() {
#ifdef __AMX_BF16__
  return has_amx();
#else
  return 1;
#endif
}

// Each thread sums over its images, and what they come to is added in their order.
EXPORT void gemm_weight_gradient(const uint16_t* x, const uint16_t* dy, float* dweight,
                            const int64_t* numbers, int threads) {
  const Convolution c = Convolution::of(numbers);
  const Row row(c, STEP);
  const int64_t taps = row.taps.size();
  std::vector<std::vector<Sums>> parts(threads);
#pragma omp parallel num_threads(threads)
  {
    const int64_t thread = omp_get_thread_num(), count = omp_get_num_threads();
    std::vector<Sums>& sums = parts[thread];
    sums.resize(c.out_channels * c.in_channels * taps / (LANES * LANES));
    add_gradient(c, row, x, dy, c.images * thread / count, c.images * (thread + 1) / count, sums);
#pragma omp barrier
    for (int64_t tile = thread; tile < int64_t(sums.size()); tile += count) {
      const int64_t tap = tile % taps, blocks = c.out_channels / LANES;
      const int64_t out = tile / taps % blocks * LANES, in = tile / taps / blocks * LANES;
      for (int64_t i = 0; i < LANES; ++i) {
        __m512 sum = _mm512_setzero_ps();
        for (int64_t part = 0; part < count; ++part)
          sum = _mm512_add_ps(sum, _mm512_load_ps(&parts[part][tile].values[i * LANES]));
        _mm512_storeu_ps(dweight + ((out + i) * taps + tap) * c.in_channels + in, sum);
      }
    }
  }
}

#endif
