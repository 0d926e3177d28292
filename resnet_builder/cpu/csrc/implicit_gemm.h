// Implicit GEMM: layout in which a convolution is matrix products without im2col.
//
// The pixels of an output are put into one long row, with zeros between the lines and between the
// images, and so are those of the input. What one tap (a pixel of the weight) reads is then the
// input's row, shifted by a constant.

#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "convolution.h"

namespace {

constexpr int64_t CHUNK = 1280;  // pixels whose copies stay in the second-level cache

// Every stride-th pixel of the input in both directions, from one of stride x stride first ones on.
struct Phase {
  int64_t line, column;
};

// A tap of the weight: it reads the pixels of a phase, shifted by so many.
struct Tap {
  std::size_t phase;
  int64_t shift;
};

// Where pixels are in the long row: those of several images at once, or of some lines of one.
struct Row {
  std::vector<Phase> phases;
  std::vector<Tap> taps;
  int64_t reach;          // lines and columns that a tap is shifted by, at most
  int64_t pitch, image;   // pixels from line to line, and from image to image
  int64_t lead;           // zeros before the first pixel and behind the last; even
  int64_t lines, images;  // of the output, at once
  int64_t pixels;         // of the output, at once

  // `step` divides the pitch.
  Row(const Convolution& c, int64_t step) {
    const auto shifted = [&](int64_t at) {  // floor division
      return (at - c.padding - first(at, c)) / c.stride;
    };
    reach = std::max(-shifted(0), shifted(c.size - 1));
    pitch = std::max(c.out_width + reach, (c.width + c.stride - 1) / c.stride + 1);
    pitch = (pitch + step - 1) / step * step;
    const int64_t most = std::max<int64_t>(1, CHUNK / pitch - reach);
    const int64_t cuts = (c.out_height + most - 1) / most;
    lines = (c.out_height + cuts - 1) / cuts;
    image = pitch * (lines + reach);
    images = lines < c.out_height ? 1 : std::max<int64_t>(1, CHUNK / image);
    lead = (reach * pitch + reach) / 2 * 2 + 2;
    pixels = whole(images, lines);

    std::vector<int64_t> known(c.stride * c.stride, -1);
    for (int64_t y = 0; y < c.size; ++y)
      for (int64_t x = 0; x < c.size; ++x) {
        int64_t& phase = known[first(y, c) * c.stride + first(x, c)];
        if (phase < 0) {
          phase = int64_t(phases.size());
          phases.push_back({first(y, c), first(x, c)});
        }
        taps.push_back({std::size_t(phase), shifted(y) * pitch + shifted(x)});
      }
  }

  // Pixels of so many lines of so many images, and zeros behind them, in whole tiles.
  int64_t whole(int64_t images, int64_t lines) const {
    return ((images - 1) * image + lines * pitch + 4 * LANES - 1) / (4 * LANES) * (4 * LANES);
  }

 private:
  static int64_t first(int64_t at, const Convolution& c) {
    return ((at - c.padding) % c.stride + c.stride) % c.stride;
  }
};

// What is put into the row at once: some lines of the output, of each of some images.
struct Piece {
  int64_t image, images, line, lines;
};

// Cuts a range of images into pieces.
inline std::vector<Piece> pieces(const Convolution& c, const Row& row, int64_t from, int64_t to) {
  std::vector<Piece> found;
  for (int64_t image = from; image < to; image += row.images)
    for (int64_t line = 0; line < c.out_height; line += row.lines)
      found.push_back({image, std::min(row.images, to - image), line,
                       std::min(row.lines, c.out_height - line)});
  return found;
}

// The lines of a phase that a piece needs.
struct Lines {
  int64_t first, end, columns;
  bool whole;  // none that it needs are outside the image

  Lines(const Convolution& c, const Row& row, const Piece& piece, const Phase& phase) {
    const auto taken = [&](int64_t all, int64_t first) {
      return (all - first + c.stride - 1) / c.stride;
    };
    first = std::max<int64_t>(0, piece.line - row.reach);
    end = std::min(taken(c.height, phase.line), piece.line + piece.lines + row.reach);
    columns = taken(c.width, phase.column);
    whole = end - first == row.lines + 2 * row.reach;
  }
};

// Calls body(from, to) for each of these lines that has a pixel, with the first one's place in the
// input and in the long row.
template <typename Body>
void over_lines(const Convolution& c, const Row& row, const Piece& piece, const Phase& phase,
                const Lines& lines, Body body) {
  if (lines.columns <= 0) return;
  for (int64_t image = 0; image < piece.images; ++image)
    for (int64_t y = lines.first; y < lines.end; ++y) {
      const int64_t line = (piece.image + image) * c.height + y * c.stride + phase.line;
      body(line * c.width + phase.column,
           row.lead + image * row.image + (y - piece.line) * row.pitch);
    }
}

}  // namespace
