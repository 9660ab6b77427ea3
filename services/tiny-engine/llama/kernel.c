// The arithmetic of a small Llama, for WebAssembly with 128-bit SIMD. Everything else is TypeScript.
//
// One rule shapes it: a row (one token of one sequence) is computed with the same operations in the same order whether
// it comes alone, with other rows of its prompt, or with rows of other sequences. So neither chunking nor company nor
// the place where a prompt was prefilled can change a result, and equality of answers can be tested token by token.
// For the same reason there is no relaxed SIMD, no fused multiply-add and no library function: results are those of
// IEEE 754, on every machine.
//
// All buffers lie in the imported memory and are 16-byte aligned. Matrices are row-major; w[out][in].
#include <stdint.h>
#include <wasm_simd128.h>

#define EXPORT(name) __attribute__((export_name(#name)))
#define BLOCK 32      // Columns that share one scale, as in GGUF's Q8_0.
#define KV_BLOCK 16   // Tokens in one block of the KV cache.

static inline float sum4(v128_t v) {
  v128_t pairs = wasm_f32x4_add(v, wasm_i32x4_shuffle(v, v, 2, 3, 0, 1));
  return wasm_f32x4_extract_lane(pairs, 0) + wasm_f32x4_extract_lane(pairs, 1);
}

// e^x per lane. x is clamped to [-87, 88]; the polynomial is within 2 ulp there (Cephes expf).
static inline v128_t exp4(v128_t x) {
  x = wasm_f32x4_max(wasm_f32x4_min(x, wasm_f32x4_const_splat(88.0f)), wasm_f32x4_const_splat(-87.0f));
  v128_t n = wasm_f32x4_nearest(wasm_f32x4_mul(x, wasm_f32x4_const_splat(1.44269504088896341f)));
  v128_t r = wasm_f32x4_sub(x, wasm_f32x4_mul(n, wasm_f32x4_const_splat(0.693359375f)));
  r = wasm_f32x4_sub(r, wasm_f32x4_mul(n, wasm_f32x4_const_splat(-2.12194440e-4f)));
  v128_t p = wasm_f32x4_const_splat(1.9875691500e-4f);
  p = wasm_f32x4_add(wasm_f32x4_mul(p, r), wasm_f32x4_const_splat(1.3981999507e-3f));
  p = wasm_f32x4_add(wasm_f32x4_mul(p, r), wasm_f32x4_const_splat(8.3334519073e-3f));
  p = wasm_f32x4_add(wasm_f32x4_mul(p, r), wasm_f32x4_const_splat(4.1665795894e-2f));
  p = wasm_f32x4_add(wasm_f32x4_mul(p, r), wasm_f32x4_const_splat(1.6666665459e-1f));
  p = wasm_f32x4_add(wasm_f32x4_mul(p, r), wasm_f32x4_const_splat(5.0000001201e-1f));
  p = wasm_f32x4_add(wasm_f32x4_mul(wasm_f32x4_mul(p, r), r), wasm_f32x4_add(r, wasm_f32x4_const_splat(1.0f)));
  v128_t power = wasm_i32x4_shl(wasm_i32x4_add(wasm_i32x4_trunc_sat_f32x4(n), wasm_i32x4_const_splat(127)), 23);
  return wasm_f32x4_mul(p, power);
}

// Rounds each BLOCK of x to 16-bit integers with one scale. 16 bits lose nothing that 8-bit weights would show.
// x: [rows][n], q: [rows][n], scales: [rows][n / BLOCK].
EXPORT(quantize)
void quantize(int16_t *q, float *scales, const float *x, int rows, int n) {
  for (int block = 0; block < rows * n / BLOCK; block++, x += BLOCK, q += BLOCK) {
    v128_t most = wasm_f32x4_abs(wasm_v128_load(x));
    for (int i = 4; i < BLOCK; i += 4) most = wasm_f32x4_max(most, wasm_f32x4_abs(wasm_v128_load(x + i)));
    most = wasm_f32x4_max(most, wasm_i32x4_shuffle(most, most, 2, 3, 0, 1));
    most = wasm_f32x4_max(most, wasm_i32x4_shuffle(most, most, 1, 0, 3, 2));
    float largest = wasm_f32x4_extract_lane(most, 0);
    scales[block] = largest / 32767.0f;
    v128_t factor = wasm_f32x4_splat(largest == 0.0f ? 0.0f : 32767.0f / largest);
    for (int i = 0; i < BLOCK; i += 8) {
      v128_t low = wasm_i32x4_trunc_sat_f32x4(wasm_f32x4_nearest(wasm_f32x4_mul(wasm_v128_load(x + i), factor)));
      v128_t high = wasm_i32x4_trunc_sat_f32x4(wasm_f32x4_nearest(wasm_f32x4_mul(wasm_v128_load(x + i + 4), factor)));
      wasm_v128_store(q + i, wasm_i16x8_narrow_i32x4(low, high));
    }
  }
}

// One block of a row: 32 products summed in 32-bit integers (127 * 32767 * 8 fits a lane), then scaled.
static inline v128_t dot_block(v128_t acc, const int16_t *x, float scale, v128_t w0, v128_t w1, v128_t w2, v128_t w3) {
  v128_t sum = wasm_i32x4_dot_i16x8(w0, wasm_v128_load(x));
  sum = wasm_i32x4_add(sum, wasm_i32x4_dot_i16x8(w1, wasm_v128_load(x + 8)));
  sum = wasm_i32x4_add(sum, wasm_i32x4_dot_i16x8(w2, wasm_v128_load(x + 16)));
  sum = wasm_i32x4_add(sum, wasm_i32x4_dot_i16x8(w3, wasm_v128_load(x + 24)));
  return wasm_f32x4_add(acc, wasm_f32x4_mul(wasm_f32x4_convert_i32x4(sum), wasm_f32x4_splat(scale)));
}

#define LOAD_WEIGHTS(w)                                                     \
  v128_t lo = wasm_v128_load(w), hi = wasm_v128_load((w) + 16);             \
  v128_t w0 = wasm_i16x8_extend_low_i8x16(lo), w1 = wasm_i16x8_extend_high_i8x16(lo); \
  v128_t w2 = wasm_i16x8_extend_low_i8x16(hi), w3 = wasm_i16x8_extend_high_i8x16(hi);

// out[rows][outs] = x[rows][n] * w[outs][n]^T, with Q8_0 weights split into a plane of bytes and a plane of scales.
// Four rows at a time share each load of the weights; the operations of a row are those of a single one.
EXPORT(matmul_q8)
void matmul_q8(float *out, const int16_t *x, const float *xs, int rows, const int8_t *w, const float *ws, int outs, int n) {
  const int blocks = n / BLOCK;
  int row = 0;
  for (; row + 4 <= rows; row += 4) {
    const int16_t *x0 = x + row * n, *x1 = x0 + n, *x2 = x1 + n, *x3 = x2 + n;
    const float *s0 = xs + row * blocks, *s1 = s0 + blocks, *s2 = s1 + blocks, *s3 = s2 + blocks;
    const int8_t *wp = w;
    const float *wsp = ws;
    for (int o = 0; o < outs; o++) {
      v128_t a0 = wasm_f32x4_const_splat(0.0f), a1 = a0, a2 = a0, a3 = a0;
      for (int b = 0, i = 0; b < blocks; b++, i += BLOCK, wp += BLOCK) {
        LOAD_WEIGHTS(wp)
        float s = *wsp++;
        a0 = dot_block(a0, x0 + i, s * s0[b], w0, w1, w2, w3);
        a1 = dot_block(a1, x1 + i, s * s1[b], w0, w1, w2, w3);
        a2 = dot_block(a2, x2 + i, s * s2[b], w0, w1, w2, w3);
        a3 = dot_block(a3, x3 + i, s * s3[b], w0, w1, w2, w3);
      }
      float *at = out + row * outs + o;
      at[0] = sum4(a0), at[outs] = sum4(a1), at[2 * outs] = sum4(a2), at[3 * outs] = sum4(a3);
    }
  }
  for (; row < rows; row++) {
    const int8_t *wp = w;
    const float *wsp = ws;
    for (int o = 0; o < outs; o++) {
      v128_t acc = wasm_f32x4_const_splat(0.0f);
      const int16_t *xp = x + row * n;
      const float *sp = xs + row * blocks;
      for (int b = 0; b < blocks; b++, wp += BLOCK, xp += BLOCK) {
        LOAD_WEIGHTS(wp)
        acc = dot_block(acc, xp, *wsp++ * *sp++, w0, w1, w2, w3);
      }
      out[row * outs + o] = sum4(acc);
    }
  }
}

// The same for F32 weights (F16 ones are widened when the model is read).
EXPORT(matmul_f32)
void matmul_f32(float *out, const float *x, int rows, const float *w, int outs, int n) {
  for (int row = 0; row < rows; row++) {
    for (int o = 0; o < outs; o++) {
      v128_t acc = wasm_f32x4_const_splat(0.0f);
      for (int i = 0; i < n; i += 4) {
        acc = wasm_f32x4_add(acc, wasm_f32x4_mul(wasm_v128_load(x + row * n + i), wasm_v128_load(w + o * n + i)));
      }
      out[row * outs + o] = sum4(acc);
    }
  }
}

// out = x / rms(x) * w, per row of n.
EXPORT(rms_norm)
void rms_norm(float *out, const float *x, const float *w, int rows, int n, float epsilon) {
  for (int row = 0; row < rows; row++, x += n, out += n) {
    v128_t acc = wasm_f32x4_const_splat(0.0f);
    for (int i = 0; i < n; i += 4) {
      v128_t v = wasm_v128_load(x + i);
      acc = wasm_f32x4_add(acc, wasm_f32x4_mul(v, v));
    }
    v128_t scale = wasm_f32x4_splat(1.0f / __builtin_sqrtf(sum4(acc) / (float)n + epsilon));
    for (int i = 0; i < n; i += 4) {
      wasm_v128_store(out + i, wasm_f32x4_mul(wasm_f32x4_mul(wasm_v128_load(x + i), scale), wasm_v128_load(w + i)));
    }
  }
}

// Rotates interleaved pairs of each head. angles: [max positions][head_dim / 2][cos, sin].
EXPORT(rope)
void rope(float *x, const int32_t *positions, const float *angles, int rows, int heads, int head_dim) {
  for (int row = 0; row < rows; row++) {
    const float *angle = angles + positions[row] * head_dim;
    for (int head = 0; head < heads; head++, x += head_dim) {
      for (int i = 0; i < head_dim; i += 2) {
        float a = x[i], b = x[i + 1], c = angle[i], s = angle[i + 1];
        x[i] = a * c - b * s;
        x[i + 1] = a * s + b * c;
      }
    }
  }
}

// Writes the keys and values of each row into its sequence's KV block.
// A block is [layers][K, V][KV_BLOCK tokens][kv_dim]; tables[row] points to the row's table of block addresses.
EXPORT(store_kv)
void store_kv(const float *k, const float *v, const int32_t *positions, float ***tables, int rows, int layer, int kv_dim) {
  for (int row = 0; row < rows; row++) {
    int at = positions[row];
    float *keys = tables[row][at / KV_BLOCK] + (layer * 2 * KV_BLOCK + at % KV_BLOCK) * kv_dim;
    float *values = keys + KV_BLOCK * kv_dim;
    for (int i = 0; i < kv_dim; i += 4) {
      wasm_v128_store(keys + i, wasm_v128_load(k + row * kv_dim + i));
      wasm_v128_store(values + i, wasm_v128_load(v + row * kv_dim + i));
    }
  }
}

// The keys, or the values, of one block of a sequence.
static inline const float *block_of(float **table, int t, int offset) { return table[t / KV_BLOCK] + offset; }

// One head of one row: softmax(q . keys / sqrt(head_dim)) . values, over the first `count` tokens.
static inline void attend_head(float *out, const float *q, float *scores, float **table, int count, int offset, int kv_dim, int head_dim) {
  const float scale = 1.0f / __builtin_sqrtf((float)head_dim);
  float most = -3.4e38f;
  for (int t = 0; t < count;) {
    const float *key = block_of(table, t, offset);
    for (int end = t + KV_BLOCK < count ? t + KV_BLOCK : count; t < end; t++, key += kv_dim) {
      v128_t even = wasm_f32x4_const_splat(0.0f), odd = even;
      int i = 0;
      for (; i + 8 <= head_dim; i += 8) {
        even = wasm_f32x4_add(even, wasm_f32x4_mul(wasm_v128_load(q + i), wasm_v128_load(key + i)));
        odd = wasm_f32x4_add(odd, wasm_f32x4_mul(wasm_v128_load(q + i + 4), wasm_v128_load(key + i + 4)));
      }
      for (; i < head_dim; i += 4) even = wasm_f32x4_add(even, wasm_f32x4_mul(wasm_v128_load(q + i), wasm_v128_load(key + i)));
      float score = sum4(wasm_f32x4_add(even, odd)) * scale;
      scores[t] = score;
      if (score > most) most = score;
    }
  }
  const v128_t peak = wasm_f32x4_splat(most);
  for (int t = count; t % 4 != 0; t++) scores[t] = -3.4e38f;
  for (int t = 0; t < count; t += 4) wasm_v128_store(scores + t, exp4(wasm_f32x4_sub(wasm_v128_load(scores + t), peak)));
  float total = 0.0f;
  for (int t = 0; t < count; t++) total += scores[t];
  const v128_t share = wasm_f32x4_splat(1.0f / total);
  // 16 columns at a time stay in registers while the tokens go by.
  int i = 0;
  for (; i + 16 <= head_dim; i += 16) {
    v128_t a0 = wasm_f32x4_const_splat(0.0f), a1 = a0, a2 = a0, a3 = a0;
    for (int t = 0; t < count;) {
      const float *value = block_of(table, t, offset + KV_BLOCK * kv_dim + i);
      for (int end = t + KV_BLOCK < count ? t + KV_BLOCK : count; t < end; t++, value += kv_dim) {
        v128_t weight = wasm_v128_load32_splat(scores + t);
        a0 = wasm_f32x4_add(a0, wasm_f32x4_mul(weight, wasm_v128_load(value)));
        a1 = wasm_f32x4_add(a1, wasm_f32x4_mul(weight, wasm_v128_load(value + 4)));
        a2 = wasm_f32x4_add(a2, wasm_f32x4_mul(weight, wasm_v128_load(value + 8)));
        a3 = wasm_f32x4_add(a3, wasm_f32x4_mul(weight, wasm_v128_load(value + 12)));
      }
    }
    wasm_v128_store(out + i, wasm_f32x4_mul(a0, share));
    wasm_v128_store(out + i + 4, wasm_f32x4_mul(a1, share));
    wasm_v128_store(out + i + 8, wasm_f32x4_mul(a2, share));
    wasm_v128_store(out + i + 12, wasm_f32x4_mul(a3, share));
  }
  for (; i < head_dim; i += 4) {
    v128_t acc = wasm_f32x4_const_splat(0.0f);
    for (int t = 0; t < count; t++) {
      const float *value = block_of(table, t, offset + (KV_BLOCK + t % KV_BLOCK) * kv_dim + i);
      acc = wasm_f32x4_add(acc, wasm_f32x4_mul(wasm_v128_load32_splat(scores + t), wasm_v128_load(value)));
    }
    wasm_v128_store(out + i, wasm_f32x4_mul(acc, share));
  }
}

// Causal attention of each row over its own sequence, up to and with its own position.
// q, out: [rows][heads][head_dim]; scores: scratch of max positions + 3.
EXPORT(attend)
void attend(float *out, const float *q, float *scores, const int32_t *positions, float ***tables, int rows, int layer,
            int heads, int kv_heads, int head_dim) {
  const int kv_dim = kv_heads * head_dim, group = heads / kv_heads;
  for (int row = 0; row < rows; row++) {
    for (int head = 0; head < heads; head++, q += head_dim, out += head_dim) {
      const int offset = layer * 2 * KV_BLOCK * kv_dim + head / group * head_dim;
      attend_head(out, q, scores, tables[row], positions[row] + 1, offset, kv_dim, head_dim);
    }
  }
}

// gate = silu(gate) * up.
EXPORT(silu_gate)
void silu_gate(float *gate, const float *up, int n) {
  const v128_t one = wasm_f32x4_const_splat(1.0f);
  for (int i = 0; i < n; i += 4) {
    v128_t g = wasm_v128_load(gate + i);
    v128_t sigmoid = wasm_f32x4_div(one, wasm_f32x4_add(one, exp4(wasm_f32x4_neg(g))));
    wasm_v128_store(gate + i, wasm_f32x4_mul(wasm_f32x4_mul(g, sigmoid), wasm_v128_load(up + i)));
  }
}

// x += y.
EXPORT(add)
void add(float *x, const float *y, int n) {
  for (int i = 0; i < n; i += 4) wasm_v128_store(x + i, wasm_f32x4_add(wasm_v128_load(x + i), wasm_v128_load(y + i)));
}
