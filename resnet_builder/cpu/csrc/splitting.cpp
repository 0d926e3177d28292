// Convolutions in fp32, in tiles of bf16.
//
// A number in fp32 is the sum of three in bf16: its first, middle and last bits. Of the nine
// products that two numbers have then, six matter; each is exact in fp32, in which they are summed.

#include <cstdint>

#define EXPORT extern "C" __attribute__((visibility("default")))

#if !defined(__AMX_BF16__) || !defined(__AVX512BW__) || !defined(__linux__)

EXPORT void split_fp32(const float*, const float*, const float*, const float*, int, float*,
                              const std::int64_t*, int) {}

#else

#include <omp.h>

#include <cstring>

#include "numbers.h"
#include "tiles.h"

namespace {

constexpr int64_t GROUPS = 4;              // tiles of pixels that are summed at once
constexpr int64_t GROUP = GROUPS * LANES;  // pixels
constexpr int64_t FACTORS = 3;             // tiles of weights for each tap and 16 x 16 channels

// ---- splitting ---------------------------------------------------------------------------------

// Each has no more bits than bf16, and together they are the number.
struct Bits {
  __m512 first, middle, last;
};

inline Bits split(__m512 value) {
  const auto upper = [](__m512 from) {
    const __m512i mask = _mm512_set1_epi32(int(0xffff0000));
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(from), mask));
  };
  Bits bits;
  bits.first = upper(value);
  const __m512 rest = _mm512_sub_ps(value, bits.first);
  bits.middle = upper(rest);
  bits.last = _mm512_sub_ps(rest, bits.middle);
  return bits;
}

// The upper halves of words, which are numbers in bf16.
inline __m256i halves(__m512 value) {
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_castps_si512(value), 16));
}

inline void store(__m512 left, __m512 right, Line* to) {
  const __m512i both = _mm512_castsi256_si512(halves(left));
  _mm512_store_si512(to, _mm512_inserti64x4(both, halves(right), 1));
}

// ---- factors -----------------------------------------------------------------------------------

// A phase of the input: for each 16 channels the pixels' first and middle bits, then the same
// pixels' first and last bits.
class Inputs {
 public:
  Inputs(const Convolution& c, const Row& row, const Phase& phase)
      : c_(c), row_(row), phase_(phase), lines_(2 * count() * c.in_channels / LANES) {}

  void read(const float* x, const Piece& piece) {
    const Lines lines(c_, row_, piece, phase_);
    if (row_.lines < c_.out_height && !lines.whole)
      std::fill(lines_.begin(), lines_.end(), Line());
    over_lines(c_, row_, piece, phase_, lines, [&](int64_t from, int64_t to) {
      const float* pixel = x + from * c_.in_channels;
      for (int64_t i = 0; i < lines.columns; ++i, pixel += c_.stride * c_.in_channels)
        for (int64_t channel = 0; channel < c_.in_channels; channel += LANES) {
          const Bits bits = split(_mm512_loadu_ps(pixel + channel));
          Line* line = &lines_[2 * channel / LANES * count() + to + i];
          store(bits.first, bits.middle, line);
          store(bits.first, bits.last, line + count());
        }
    });
  }

  // The first and middle bits of the pixels that a tap sees which is moved by so many.
  const Line* middle(int64_t channel, int64_t moved) const {
    return &lines_[2 * channel / LANES * count() + row_.lead + moved];
  }
  const Line* last(int64_t channel, int64_t moved) const {
    return middle(channel, moved) + count();
  }

 private:
  int64_t count() const { return row_.pixels + 2 * row_.lead; }

  const Convolution& c_;
  const Row& row_;
  const Phase& phase_;
  std::vector<Line> lines_;
};

// The weights as tiles that have a line for each pair of input channels: for each 16 output
// channels, 16 input channels and tap one with first bits twice, one with middle bits twice, and
// one with last bits and then first bits.
std::vector<Line> factors(const Convolution& c, const float* weights) {
  const int64_t taps = c.size * c.size;
  std::vector<Line> found;
  found.reserve(FACTORS * c.out_channels * c.in_channels * taps / LANES);
  for (int64_t out = 0; out < c.out_channels; out += LANES)
    for (int64_t in = 0; in < c.in_channels; in += LANES)
      for (int64_t tap = 0; tap < taps; ++tap) {
        uint32_t pairs[3][LANES / 2][LANES];  // of first, middle and last bits
        for (int64_t row = 0; row < LANES; ++row) {
          const float* from = weights + ((out + row) * taps + tap) * c.in_channels + in;
          const Bits bits = split(_mm512_loadu_ps(from));
          const __m512 parts[] = {bits.first, bits.middle, bits.last};
          for (int64_t part = 0; part < 3; ++part) {
            alignas(32) uint32_t words[LANES / 2];
            _mm256_store_si256((__m256i*)words, halves(parts[part]));
            for (int64_t i = 0; i < LANES / 2; ++i) pairs[part][i][row] = words[i];
          }
        }
        const auto put = [&](int64_t part) {
          for (const auto& pair : pairs[part]) {
            found.emplace_back();
            std::memcpy(found.back().words, pair, sizeof pair);
          }
        };
        for (const int64_t part : {0, 0, 1, 1, 2, 0}) put(part);
      }
  return found;
}

// ---- products ----------------------------------------------------------------------------------

// Adds a product for GROUP pixels and 16 output channels. An instruction takes longer than one sum
// can wait for the next, so four sums take turns.
inline void multiply(const Line* pixels, const Line* weights) {
  _tile_loadd(5, weights, 64);
  _tile_loadd(6, pixels, 64);
  _tile_dpbf16ps(0, 6, 5);
  _tile_loadd(7, pixels + LANES, 64);
  _tile_dpbf16ps(1, 7, 5);
  _tile_loadd(6, pixels + 2 * LANES, 64);
  _tile_dpbf16ps(2, 6, 5);
  _tile_loadd(7, pixels + 3 * LANES, 64);
  _tile_dpbf16ps(3, 7, 5);
}

// Where each pixel of the long row is in a piece's output, or -1 where it is a zero in between.
std::vector<int64_t> places(const Convolution& c, const Row& row, const Piece& piece) {
  std::vector<int64_t> found(row.whole(piece.images, piece.lines), -1);
  for (int64_t image = 0; image < piece.images; ++image)
    for (int64_t y = 0; y < piece.lines; ++y)
      for (int64_t x = 0; x < c.out_width; ++x)
        found[image * row.image + y * row.pitch + x] =
            ((piece.image + image) * c.out_height + piece.line + y) * c.out_width + x;
  return found;
}

// Convolves some of the images.
void convolve(const Convolution& c, const Row& row, const float* x, const Line* weights,
              const Tail<Fp32>& tail, float* y, int64_t from_image, int64_t to_image) {
  std::vector<Inputs> inputs;
  for (const Phase& phase : row.phases) inputs.emplace_back(c, row, phase);
  Sums sums[GROUPS];

  const Tiles tiles;
  for (const Piece& piece : pieces(c, row, from_image, to_image)) {
    for (Inputs& input : inputs) input.read(x, piece);
    const std::vector<int64_t> place = places(c, row, piece);
    for (int64_t from = 0; from < int64_t(place.size()); from += GROUP) {
      const Line* factor = weights;
      for (int64_t out = 0; out < c.out_channels; out += LANES) {
        settle_memory();
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        for (int64_t in = 0; in < c.in_channels; in += LANES)
          for (const Tap& tap : row.taps) {
            const Inputs& input = inputs[tap.phase];
            const Line* pixels = input.middle(in, tap.moved) + from;
            multiply(pixels, factor);
            multiply(pixels, factor + LANES);
            multiply(input.last(in, tap.moved) + from, factor + 2 * LANES);
            factor += FACTORS * LANES;
          }
        _tile_stored(0, &sums[0], 64);
        _tile_stored(1, &sums[1], 64);
        _tile_stored(2, &sums[2], 64);
        _tile_stored(3, &sums[3], 64);
        settle_memory();
        const __m512 bias = tail.bias_of(out);
        const float* sum = sums[0].values;
        for (int64_t i = from; i < from + GROUP; ++i, sum += LANES) {
          if (place[i] < 0) continue;
          tail.write(_mm512_load_ps(sum), bias, y, place[i] * c.out_channels + out);
        }
      }
    }
  }
}

}  // namespace

// ---- what Python calls -------------------------------------------------------------------------

EXPORT void split_fp32(const float* x, const float* weights, const float* bias,
                              const float* addend, int relu, float* y, const int64_t* numbers,
                              int threads) {
  const Convolution c = Convolution::of(numbers);
  const Row row(c, 1);
  const std::vector<Line> factor = factors(c, weights);
#pragma omp parallel num_threads(threads)
  {
    const int64_t thread = omp_get_thread_num(), count = omp_get_num_threads();
    convolve(c, row, x, factor.data(), {bias, addend, bool(relu)}, y, c.images * thread / count,
             c.images * (thread + 1) / count);
  }
}

#endif
