// An identity shortcut to more channels and fewer pixels: every stride-th pixel, between channels
// of zeros. Images are channels-last; their numbers are copied as they are.

#include <algorithm>
#include <cstdint>
#include <cstring>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

using std::int64_t;

struct Shortcut {
  int64_t images, height, width, stride;
  int64_t before, pixel, after;  // bytes

  int64_t out_height() const { return (height + stride - 1) / stride; }
  int64_t out_width() const { return (width + stride - 1) / stride; }
  int64_t out_pixel() const { return before + pixel + after; }
};

}  // namespace

EXPORT void pad_shortcut_forward(const char* x, char* y, const int64_t* numbers, int threads) {
  Shortcut s;
  std::memcpy(&s, numbers, sizeof s);
#pragma omp parallel for num_threads(threads)
  for (int64_t line = 0; line < s.images * s.out_height(); ++line) {
    const int64_t image = line / s.out_height(), row = line % s.out_height() * s.stride;
    const char* from = x + (image * s.height + row) * s.width * s.pixel;
    char* to = y + line * s.out_width() * s.out_pixel();
    for (int64_t i = 0; i < s.out_width(); ++i, from += s.stride * s.pixel) {
      std::memset(to, 0, s.before);
      std::memcpy(to + s.before, from, s.pixel);
      std::memset(to + s.before + s.pixel, 0, s.after);
      to += s.out_pixel();
    }
  }
}

EXPORT void pad_shortcut_backward(const char* dy, char* dx, const int64_t* numbers, int threads) {
  Shortcut s;
  std::memcpy(&s, numbers, sizeof s);
#pragma omp parallel for num_threads(threads)
  for (int64_t line = 0; line < s.images * s.height; ++line) {
    const int64_t image = line / s.height, row = line % s.height;
    char* to = dx + line * s.width * s.pixel;
    if (row % s.stride) {
      std::memset(to, 0, s.width * s.pixel);
      continue;
    }
    const int64_t out_line = image * s.out_height() + row / s.stride;
    const char* from = dy + out_line * s.out_width() * s.out_pixel() + s.before;
    for (int64_t i = 0; i < s.width; i += s.stride, from += s.out_pixel()) {
      std::memcpy(to, from, s.pixel);
      const int64_t skipped = std::min(s.stride, s.width - i) - 1;
      std::memset(to + s.pixel, 0, skipped * s.pixel);
      to += (1 + skipped) * s.pixel;
    }
  }
}
