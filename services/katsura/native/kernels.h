// What Python hands to the kernels. All floats are f32, rows are contiguous, and a weight [out, in] lies in panels
// [ceil(out / PANEL)][in][PANEL], its last panel filled with zeros. `library.py` mirrors these structures.
#pragma once
#include <stdint.h>

#define PANEL 64

struct katsura_ffn {
  const float *gate_up, *down;  // panels of [2 * width, hidden] and of [hidden, width]
  int64_t hidden, width;
};

// The attention of one layer. A page holds, per KV head, its keys in blocks of `lanes` slots [dim][lanes], and its values
// [slot][dim]; `keys` and `values` point to page 0, `page_stride` floats lie from page to page.
struct katsura_attention {
  const float *input_norm, *qkv, *o, *post_norm;
  float *keys, *values;
  int64_t hidden, heads, kv_heads, dim, page_tokens, page_stride, lanes;
  float eps;
};

// New tokens of one sequence: `count` rows from `row` on, the first at `position`; `pages` from its beginning.
struct katsura_sequence {
  int64_t row, count, position;
  const int64_t *pages;
};

struct katsura_step {
  int64_t rows, sequences;
  const float *cos, *sin;  // [rows, dim]
  const struct katsura_sequence *sequence;
};

int katsura_select(const char *set);
void katsura_linear(const float *x, int64_t rows, const float *panels, int64_t in, int64_t out, float *y);
void katsura_ffn(const struct katsura_ffn *f, const float *x, int64_t rows, float *y);
void katsura_attend(const struct katsura_attention *a, const struct katsura_step *s, float *residual, float *hidden);
