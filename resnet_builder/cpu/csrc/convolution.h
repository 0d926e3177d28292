// What all convolutions have in common: their shape, and memory in lines of the cache.

#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace {

using std::int64_t;
using std::uint16_t;
using std::uint32_t;

constexpr int64_t LANES = 16;  // channels at once: a vector's 32-bit numbers, a tile's lines

// Tiles are read several times slower from where their lines are not those of the cache.
struct alignas(64) Line {
  uint32_t words[LANES];
};
struct alignas(64) Sums {
  float values[LANES * LANES];
};

struct Convolution {
  int64_t images, height, width, in_channels, out_height, out_width, out_channels;
  int64_t size, stride, padding;

  // As Python tells it.
  static Convolution of(const int64_t* numbers) {
    Convolution c;
    std::memcpy(&c, numbers, sizeof c);
    return c;
  }
};

}  // namespace
