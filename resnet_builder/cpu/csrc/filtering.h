// Minimal filtering of a line with kernels of three pixels, as Winograd, and Lavin and Gray 2015
// (arXiv 1509.09308, section 4.1) have it: Y = A^T ((G g) * (B^T d)), where d are pixels of the
// input, g is a kernel, * multiplies element by element and Y are pixels of the output. Each way
// has its transforms of d, g and of the products, in 16 lanes, and
//
//   INPUTS   pixels d,
//   STEP     pixels from one d to the next,
//   POINTS   products, and
//   OUTPUTS  pixels Y.
//
// Planes are transformed down their columns, and then across their lines. What goes across in the
// gradient of kernels has the transposed transform of Y, too, which makes points of Y's gradient.

#pragma once

#include "convolution.h"

namespace {

// F(2, 3): 4 products in place of 6. All factors are 1, -1 and 1/2, so that little is rounded more
// than in plain sums.
struct TwoPixels {
  static constexpr int INPUTS = 4, STEP = 2, POINTS = 4, OUTPUTS = 2;

  static void transform_input(const __m512* d, __m512* to) {
    to[0] = _mm512_sub_ps(d[0], d[2]);
    to[1] = _mm512_add_ps(d[1], d[2]);
    to[2] = _mm512_sub_ps(d[2], d[1]);
    to[3] = _mm512_sub_ps(d[3], d[1]);
  }
  static void transform_kernel(const __m512* g, __m512* to) {
    const __m512 half = _mm512_set1_ps(0.5f), ends = _mm512_add_ps(g[0], g[2]);
    to[0] = g[0];
    to[1] = _mm512_mul_ps(half, _mm512_add_ps(ends, g[1]));
    to[2] = _mm512_mul_ps(half, _mm512_sub_ps(ends, g[1]));
    to[3] = g[2];
  }
  static void transform_output(const __m512* m, __m512* to) {
    to[0] = _mm512_add_ps(_mm512_add_ps(m[0], m[1]), m[2]);
    to[1] = _mm512_add_ps(_mm512_sub_ps(m[1], m[2]), m[3]);
  }
  static void transform_gradient(const __m512* y, __m512* to) {
    to[0] = y[0];
    to[1] = _mm512_add_ps(y[0], y[1]);
    to[2] = _mm512_sub_ps(y[0], y[1]);
    to[3] = y[1];
  }
};

// F(4, 3): 6 products in place of 12. Polynomials are evaluated in 0, +-5/8, +-3/2 and infinity:
// all factors of pixels are then exact even in bf16, and half of what is lost with the usual 0, +-1
// and +-2 is, two to three times what plain sums lose. In bf16 it is three times what its rounding
// loses if the other direction has F(2, 3), five times if it has this, too.
struct FourPixels {
  static constexpr int INPUTS = 6, STEP = 4, POINTS = 6, OUTPUTS = 4;

  static void transform_input(const __m512* d, __m512* to) {
    const __m512 near = number(NEAR), far = number(FAR);
    const __m512 near_square = number(-NEAR * NEAR), far_square = number(-FAR * FAR);
    const __m512 both = number(-NEAR * NEAR - FAR * FAR), all = number(NEAR * NEAR * FAR * FAR);
    const auto ends = [&](const __m512* of) {
      return _mm512_fmadd_ps(all, of[0], _mm512_fmadd_ps(both, of[2], of[4]));
    };
    to[0] = ends(d);
    const __m512 even = _mm512_fmadd_ps(far_square, d[2], d[4]);
    const __m512 odd = _mm512_fmadd_ps(far_square, d[1], d[3]);
    to[1] = _mm512_fmadd_ps(near, odd, even);
    to[2] = _mm512_fnmadd_ps(near, odd, even);
    const __m512 far_even = _mm512_fmadd_ps(near_square, d[2], d[4]);
    const __m512 far_odd = _mm512_fmadd_ps(near_square, d[1], d[3]);
    to[3] = _mm512_fmadd_ps(far, far_odd, far_even);
    to[4] = _mm512_fnmadd_ps(far, far_odd, far_even);
    to[5] = ends(d + 1);
  }
  static void transform_kernel(const __m512* g, __m512* to) {
    to[0] = _mm512_mul_ps(number(1 / (NEAR * NEAR * FAR * FAR)), g[0]);
    evaluate(g, NEAR, 1 / (2 * NEAR * NEAR * (NEAR * NEAR - FAR * FAR)), to + 1);
    evaluate(g, FAR, 1 / (2 * FAR * FAR * (FAR * FAR - NEAR * NEAR)), to + 3);
    to[5] = g[2];
  }
  static void transform_output(const __m512* m, __m512* to) {
    const __m512 even = _mm512_add_ps(m[1], m[2]), odd = _mm512_sub_ps(m[1], m[2]);
    const __m512 far_even = _mm512_add_ps(m[3], m[4]), far_odd = _mm512_sub_ps(m[3], m[4]);
    const auto sum = [](float factor, __m512 near, float far_factor, __m512 far) {
      return _mm512_fmadd_ps(number(factor), near, _mm512_mul_ps(number(far_factor), far));
    };
    to[0] = _mm512_add_ps(m[0], _mm512_add_ps(even, far_even));
    to[1] = sum(NEAR, odd, FAR, far_odd);
    to[2] = sum(NEAR * NEAR, even, FAR * FAR, far_even);
    to[3] = _mm512_add_ps(m[5], sum(NEAR * NEAR * NEAR, odd, FAR * FAR * FAR, far_odd));
  }

 private:
  static constexpr float NEAR = 0.625f, FAR = 1.5f;

  static __m512 number(float value) { return _mm512_set1_ps(value); }

  // A kernel's polynomial in a number and its negative, times a factor.
  static void evaluate(const __m512* g, float at, float factor, __m512* to) {
    const __m512 even = _mm512_fmadd_ps(number(at * at), g[2], g[0]);
    const __m512 odd = _mm512_mul_ps(number(at), g[1]);
    to[0] = _mm512_mul_ps(number(factor), _mm512_add_ps(even, odd));
    to[1] = _mm512_mul_ps(number(factor), _mm512_sub_ps(even, odd));
  }
};

// Kernels that are moved on by two pixels see even pixels with their middle alone, and odd ones
// with their ends: for these F(2, 2), 5 products in place of 6 in all.
struct TwoOfFour {
  static constexpr int INPUTS = 5, STEP = 4, POINTS = 5, OUTPUTS = 2;

  static void transform_input(const __m512* d, __m512* to) {
    to[0] = _mm512_sub_ps(d[0], d[2]);
    to[1] = d[2];
    to[2] = _mm512_sub_ps(d[4], d[2]);
    to[3] = d[1];
    to[4] = d[3];
  }
  static void transform_kernel(const __m512* g, __m512* to) {
    to[0] = g[0];
    to[1] = _mm512_add_ps(g[0], g[2]);
    to[2] = g[2];
    to[3] = to[4] = g[1];
  }
  static void transform_output(const __m512* m, __m512* to) {
    to[0] = _mm512_add_ps(_mm512_add_ps(m[0], m[1]), m[3]);
    to[1] = _mm512_add_ps(_mm512_add_ps(m[1], m[2]), m[4]);
  }
  static void transform_gradient(const __m512* y, __m512* to) {
    to[0] = to[3] = y[0];
    to[1] = _mm512_add_ps(y[0], y[1]);
    to[2] = to[4] = y[1];
  }
};

// The gradient of what such kernels are given, of kernels turned by half a turn.
struct FourOfTwo {
  static constexpr int INPUTS = 3, STEP = 2, POINTS = 5, OUTPUTS = 4;

  static void transform_input(const __m512* d, __m512* to) {
    to[0] = _mm512_sub_ps(d[0], d[1]);
    to[1] = d[1];
    to[2] = _mm512_sub_ps(d[1], d[2]);
    to[3] = d[0];
    to[4] = d[1];
  }
  static void transform_kernel(const __m512* g, __m512* to) { TwoOfFour::transform_kernel(g, to); }
  static void transform_output(const __m512* m, __m512* to) {
    to[0] = m[3];
    to[1] = _mm512_add_ps(m[0], m[1]);
    to[2] = m[4];
    to[3] = _mm512_sub_ps(m[1], m[2]);
  }
};

// What two ways make of a plane: one down its columns, one across its lines.
template <typename DownWay, typename AcrossWay>
struct Plane {
  using Down = DownWay;
  using Across = AcrossWay;
  static constexpr int POINTS = Down::POINTS * Across::POINTS;
};
template <typename Way>
using Square = Plane<Way, Way>;

}  // namespace
