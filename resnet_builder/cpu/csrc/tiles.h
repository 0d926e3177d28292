// The matrix unit of Intel's processors (AMX).

#pragma once

#include <immintrin.h>

#include "rows.h"

namespace {

struct alignas(64) TileConfig {
  std::uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  std::uint8_t rows[16];
};

// Tiles of 16 lines of 64 bytes, for as long as it is in scope; whoever had others has them back.
class Tiles {
 public:
  Tiles() {
    asm volatile("sttilecfg %0" : "=m"(before_));
    TileConfig config = {};
    config.palette = 1;
    std::fill_n(config.row_bytes, 8, 4 * LANES);
    std::fill_n(config.rows, 8, LANES);
    load(config);
  }
  ~Tiles() {
    if (before_.palette)
      load(before_);
    else
      _tile_release();
  }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;

 private:
  // The intrinsic function tells the compiler of the first eight bytes only.
  static void load(const TileConfig& config) { asm volatile("ldtilecfg %0" : : "m"(config)); }

  TileConfig before_;
};

// The compiler does not know that tiles read and write memory.
inline void settle_memory() { asm volatile("" ::: "memory"); }

}  // namespace
