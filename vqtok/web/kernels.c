/* The loops that a page decodes and encodes with, in WebAssembly with 128-bit SIMD: sums of
   products of 16-bit integers (exact) for the integer prior, 3x3 convolutions for decoder and
   encoder, and the encoder's other two, its 1x1 convolution and 2x2 places made channels.

   Built by build_kernels.py; kernels.wasm is what it gives. Whoever calls lays out the memory.
   Images are float32 (rows, columns, channels) with channels a multiple of 8. */

#include <wasm_simd128.h>

typedef float f32;
typedef short i16;
typedef int i32;

static i32 total(v128_t x) {
  return wasm_i32x4_extract_lane(x, 0) + wasm_i32x4_extract_lane(x, 1) +
         wasm_i32x4_extract_lane(x, 2) + wasm_i32x4_extract_lane(x, 3);
}

/* out (n, outputs) = x (n, inputs) times weight (outputs, inputs), transposed; inputs is a
   multiple of 8, outputs of 4. Exact while no sum passes 2^31. */
__attribute__((export_name("integers"))) void integers(const i16 *x, i32 n, i32 inputs,
                                                       const i16 *weight, i32 outputs, i32 *out) {
  for (i32 o = 0; o < outputs; o += 4) {
    const i16 *w = weight + o * inputs;
    for (i32 row = 0; row < n; row += 2) {
      const i16 *a = x + row * inputs, *b = row + 1 < n ? a + inputs : a;
      v128_t sums[2][4];
      for (i32 k = 0; k < 4; k++) sums[0][k] = sums[1][k] = wasm_i32x4_splat(0);
      for (i32 i = 0; i < inputs; i += 8) {
        v128_t first = wasm_v128_load(a + i), second = wasm_v128_load(b + i);
#pragma clang loop unroll(full)
        for (i32 k = 0; k < 4; k++) {
          v128_t one = wasm_v128_load(w + k * inputs + i);
          sums[0][k] = wasm_i32x4_add(sums[0][k], wasm_i32x4_dot_i16x8(first, one));
          sums[1][k] = wasm_i32x4_add(sums[1][k], wasm_i32x4_dot_i16x8(second, one));
        }
      }
      for (i32 k = 0; k < 4; k++) {
        out[row * outputs + o + k] = total(sums[0][k]);
        if (row + 1 < n) out[(row + 1) * outputs + o + k] = total(sums[1][k]);
      }
    }
  }
}

/* Winograd's F(4x4, 3x3) (Lavin and Gray 2015, arXiv 1509.09308): 4x4 outputs from 6x6 inputs by
   36 products in place of 144. */

enum { POINTS = 36, TILE = 4, PATCH = 6, TILES_AT_ONCE = 48 };

static inline v128_t add(v128_t a, v128_t b) { return wasm_f32x4_add(a, b); }
static inline v128_t sub(v128_t a, v128_t b) { return wasm_f32x4_sub(a, b); }
static inline v128_t mul(v128_t a, f32 b) { return wasm_f32x4_mul(a, wasm_f32x4_splat(b)); }

static inline void transform_input(const v128_t *d, i32 step, v128_t *t) {
  v128_t d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step], d4 = d[4 * step],
         d5 = d[5 * step];
  v128_t a = sub(d4, mul(d2, 4)), b = sub(d3, mul(d1, 4)), c = sub(d4, d2),
         e = mul(sub(d3, d1), 2);
  t[0] = add(sub(mul(d0, 4), mul(d2, 5)), d4);
  t[step] = add(a, b);
  t[2 * step] = sub(a, b);
  t[3 * step] = add(c, e);
  t[4 * step] = sub(c, e);
  t[5 * step] = add(sub(mul(d1, 4), mul(d3, 5)), d5);
}

static inline void transform_output(const v128_t *m, i32 step, v128_t *y, i32 to) {
  v128_t p = add(m[step], m[2 * step]), q = sub(m[step], m[2 * step]),
         r = add(m[3 * step], m[4 * step]), s = sub(m[3 * step], m[4 * step]);
  y[0] = add(add(m[0], p), r);
  y[to] = add(q, mul(s, 2));
  y[2 * to] = add(p, mul(r, 4));
  y[3 * to] = add(add(q, mul(s, 8)), m[5 * step]);
}

/* Kernels (outputs, inputs, 3, 3) to (36, inputs padded, outputs padded), zeros where padded;
   output o goes to place[o]. */
__attribute__((export_name("transform_kernels"))) void transform_kernels(
    const f32 *kernel, i32 outputs, i32 inputs, const i32 *place, i32 padded_in, i32 padded_out,
    f32 *to) {
  static const f32 G[6][3] = {{1.f / 4, 0, 0},
                              {-1.f / 6, -1.f / 6, -1.f / 6},
                              {-1.f / 6, 1.f / 6, -1.f / 6},
                              {1.f / 24, 1.f / 12, 1.f / 6},
                              {1.f / 24, -1.f / 12, 1.f / 6},
                              {0, 0, 1}};
  i32 size = padded_in * padded_out;
  for (i32 i = 0; i < POINTS * size; i++) to[i] = 0;
  for (i32 o = 0; o < outputs; o++)
    for (i32 i = 0; i < inputs; i++) {
      const f32 *k = kernel + (o * inputs + i) * 9;
      f32 half[6][3];
      for (i32 u = 0; u < 6; u++)
        for (i32 x = 0; x < 3; x++)
          half[u][x] = G[u][0] * k[x] + G[u][1] * k[3 + x] + G[u][2] * k[6 + x];
      for (i32 u = 0; u < 6; u++)
        for (i32 v = 0; v < 6; v++)
          to[(u * 6 + v) * size + i * padded_out + place[o]] =
              half[u][0] * G[v][0] + half[u][1] * G[v][1] + half[u][2] * G[v][2];
    }
}

/* (6 rows, inputs) times (inputs, 8 columns of `outputs`). */
static inline void product(const f32 *a, i32 inputs, const f32 *b, i32 outputs, f32 *c) {
  v128_t s[6][2];
#pragma clang loop unroll(full)
  for (i32 r = 0; r < 6; r++) s[r][0] = s[r][1] = wasm_f32x4_splat(0);
  for (i32 i = 0; i < inputs; i++, b += outputs) {
    v128_t left = wasm_v128_load(b), right = wasm_v128_load(b + 4);
#pragma clang loop unroll(full)
    for (i32 r = 0; r < 6; r++) {
      v128_t x = wasm_v128_load32_splat(a + r * inputs + i);
      s[r][0] = add(s[r][0], wasm_f32x4_mul(x, left));
      s[r][1] = add(s[r][1], wasm_f32x4_mul(x, right));
    }
  }
#pragma clang loop unroll(full)
  for (i32 r = 0; r < 6; r++) {
    wasm_v128_store(c + r * outputs, s[r][0]);
    wasm_v128_store(c + r * outputs + 4, s[r][1]);
  }
}

/* Rows from `first` on of a 3x3 convolution with zeros around the image. x holds x_rows of its
   rows, those from x_first on; rows that it does not hold count as zeros. `more` (same shape as
   out), where not 0, is added. scratch holds 36 * 48 * (inputs + outputs) floats. */
__attribute__((export_name("convolve"))) void convolve(const f32 *x, i32 x_first, i32 x_rows,
                                                       i32 width, i32 inputs, const f32 *kernels,
                                                       const f32 *bias, i32 outputs,
                                                       const f32 *more, f32 *out, i32 first,
                                                       i32 rows, f32 *scratch) {
  i32 across = (width + TILE - 1) / TILE, count = across * ((rows + TILE - 1) / TILE);
  f32 *patches = scratch, *products = scratch + POINTS * TILES_AT_ONCE * inputs;
  for (i32 start = 0; start < count; start += TILES_AT_ONCE) {
    i32 n = count - start < TILES_AT_ONCE ? count - start : TILES_AT_ONCE;
    i32 even = (n + 5) / 6 * 6;
    for (i32 t = 0; t < n; t++) {
      i32 top = first + (start + t) / across * TILE - 1 - x_first;
      i32 left = (start + t) % across * TILE - 1;
      for (i32 c = 0; c < inputs; c += 4) {
        v128_t d[POINTS];
        for (i32 r = 0; r < PATCH; r++)
          for (i32 k = 0; k < PATCH; k++) {
            i32 row = top + r, column = left + k;
            d[r * PATCH + k] =
                row < 0 || row >= x_rows || column < 0 || column >= width
                    ? wasm_f32x4_splat(0)
                    : wasm_v128_load(x + ((long)row * width + column) * inputs + c);
          }
        for (i32 k = 0; k < PATCH; k++) transform_input(d + k, PATCH, d + k);
        for (i32 r = 0; r < PATCH; r++) transform_input(d + r * PATCH, 1, d + r * PATCH);
        for (i32 p = 0; p < POINTS; p++)
          wasm_v128_store(patches + (p * TILES_AT_ONCE + t) * inputs + c, d[p]);
      }
    }
    for (i32 p = 0; p < POINTS; p++)
      for (i32 o = 0; o < outputs; o += 8)
        for (i32 t = 0; t < even; t += 6)
          product(patches + (p * TILES_AT_ONCE + t) * inputs, inputs,
                  kernels + (long)p * inputs * outputs + o, outputs,
                  products + (p * TILES_AT_ONCE + t) * outputs + o);
    for (i32 t = 0; t < n; t++) {
      i32 top = (start + t) / across * TILE, left = (start + t) % across * TILE;
      for (i32 c = 0; c < outputs; c += 4) {
        v128_t m[POINTS], half[4 * PATCH], y[16];
        for (i32 p = 0; p < POINTS; p++)
          m[p] = wasm_v128_load(products + (p * TILES_AT_ONCE + t) * outputs + c);
        for (i32 k = 0; k < PATCH; k++) transform_output(m + k, PATCH, half + k, PATCH);
        for (i32 r = 0; r < TILE; r++) transform_output(half + r * PATCH, 1, y + r * TILE, 1);
        v128_t offset = wasm_v128_load(bias + c);
        for (i32 r = 0; r < TILE && top + r < rows; r++)
          for (i32 k = 0; k < TILE && left + k < width; k++) {
            long at = ((long)(top + r) * width + left + k) * outputs + c;
            v128_t value = add(y[r * TILE + k], offset);
            if (more) value = add(value, wasm_v128_load(more + at));
            wasm_v128_store(out + at, value);
          }
      }
    }
  }
}

/* e^x by 2^n times a polynomial, to 2e-7 of it, for x from -87 to 87. */
static inline v128_t exponential(v128_t x) {
  x = wasm_f32x4_pmax(wasm_f32x4_pmin(x, wasm_f32x4_splat(87)), wasm_f32x4_splat(-87));
  v128_t n = wasm_f32x4_nearest(mul(x, 1.44269504f));
  v128_t r = sub(sub(x, mul(n, 0.693359375f)), mul(n, -2.12194440e-4f));
  v128_t p = wasm_f32x4_splat(1.9875691500e-4f);
  p = add(wasm_f32x4_mul(p, r), wasm_f32x4_splat(1.3981999507e-3f));
  p = add(wasm_f32x4_mul(p, r), wasm_f32x4_splat(8.3334519073e-3f));
  p = add(wasm_f32x4_mul(p, r), wasm_f32x4_splat(4.1665795894e-2f));
  p = add(wasm_f32x4_mul(p, r), wasm_f32x4_splat(1.6666665459e-1f));
  p = add(wasm_f32x4_mul(p, r), wasm_f32x4_splat(5.0000001201e-1f));
  p = add(add(wasm_f32x4_mul(wasm_f32x4_mul(p, r), r), r), wasm_f32x4_splat(1));
  v128_t power = wasm_i32x4_shl(
      wasm_i32x4_add(wasm_i32x4_trunc_sat_f32x4(n), wasm_i32x4_splat(127)), 23);
  return wasm_f32x4_mul(p, power);
}

/* to = x sigmoid(x), n numbers, a multiple of 4. */
__attribute__((export_name("silu"))) void silu(const f32 *x, f32 *to, i32 n) {
  v128_t one = wasm_f32x4_splat(1);
  for (i32 i = 0; i < n; i += 4) {
    v128_t value = wasm_v128_load(x + i);
    wasm_v128_store(
        to + i, wasm_f32x4_div(value, add(one, exponential(wasm_f32x4_neg(value)))));
  }
}

/* Places with channels (2, 2, part) to twice the rows and columns, of `part` channels. Where
   `shortcut` is not 0, channel k of x, for k = shortcut[channel], is added to each. */
__attribute__((export_name("upsample"))) void upsample(const f32 *wide, i32 rows, i32 width,
                                                       i32 part, const f32 *x, i32 inputs,
                                                       const i32 *shortcut, f32 *out) {
  for (i32 row = 0; row < rows; row++)
    for (i32 column = 0; column < width; column++) {
      long at = (long)row * width + column;
      for (i32 q = 0; q < 4; q++) {
        const f32 *from = wide + at * 4 * part + q * part;
        f32 *to = out + ((2L * row + (q >> 1)) * 2 * width + 2 * column + (q & 1)) * part;
        if (shortcut)
          for (i32 c = 0; c < part; c++) {
            i32 k = shortcut[q * part + c];
            to[c] = from[c] + (k < 0 ? 0 : x[at * inputs + k]);
          }
        else
          for (i32 c = 0; c < part; c += 4) wasm_v128_store(to + c, wasm_v128_load(from + c));
      }
    }
}

/* out (n, outputs) = x (n, inputs) times weight (inputs, outputs), plus bias (outputs). x and out
   have room for n rounded up to a multiple of 6; outputs is a multiple of 8. */
__attribute__((export_name("multiply"))) void multiply(const f32 *x, i32 n, i32 inputs,
                                                       const f32 *weight, const f32 *bias,
                                                       i32 outputs, f32 *out) {
  for (i32 o = 0; o < outputs; o += 8) {
    v128_t left = wasm_v128_load(bias + o), right = wasm_v128_load(bias + o + 4);
    for (i32 t = 0; t < n; t += 6) {
      f32 *c = out + (long)t * outputs + o;
      product(x + (long)t * inputs, inputs, weight + o, outputs, c);
      for (i32 r = 0; r < 6; r++) {
        f32 *row = c + r * outputs;
        wasm_v128_store(row, add(wasm_v128_load(row), left));
        wasm_v128_store(row + 4, add(wasm_v128_load(row + 4), right));
      }
    }
  }
}

/* (2 rows, 2 width, part) to (rows, width, (2, 2, part)): each 2x2 places become channels. */
__attribute__((export_name("halve"))) void halve(const f32 *x, i32 rows, i32 width, i32 part,
                                                 f32 *out) {
  i32 pair = 2 * part;
  for (i32 row = 0; row < rows; row++)
    for (i32 column = 0; column < width; column++)
      for (i32 a = 0; a < 2; a++) {
        const f32 *from = x + ((2L * row + a) * width + column) * pair;
        f32 *to = out + (((long)row * width + column) * 2 + a) * pair;
        for (i32 c = 0; c < pair; c += 4) wasm_v128_store(to + c, wasm_v128_load(from + c));
      }
}
