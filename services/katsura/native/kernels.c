// Products, FFN and paged attention in f32, for one thread.
#include "kernels.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define TERMS 64  // of a sum, before it is added to the sums of earlier ones
#define UNROLL _Pragma("GCC unroll 48")

// One KV head of one sequence.
struct katsura_kv {
  const float *keys, *values;
  const int64_t *pages;
  long page_tokens, page_stride, dim, lanes;
};

static inline const float *key_block(const struct katsura_kv *kv, long block) {
  long slot = block * 16;
  return kv->keys + kv->pages[slot / kv->page_tokens] * kv->page_stride + slot % kv->page_tokens * kv->dim;
}

static inline const float *key_lane(const struct katsura_kv *kv, long key) {
  long slot = key % kv->page_tokens;
  const float *page = kv->keys + kv->pages[key / kv->page_tokens] * kv->page_stride;
  return page + slot / kv->lanes * kv->lanes * kv->dim + slot % kv->lanes;
}

static inline const float *value_page(const struct katsura_kv *kv, long first) {
  return kv->values + kv->pages[first / kv->page_tokens] * kv->page_stride;
}

struct kernels {
  void (*linear)(const float *, long, const float *, long, long, float *);
  void (*swiglu)(const float *, long, long, float *);
  void (*rms_norm)(const float *, long, long, const float *, float, float *);
  void (*attend_head)(const struct katsura_kv *, long, long, long, long, const float *, float *, float *);
  void (*place)(const struct katsura_attention *, float *, const float *, const float *, int64_t, long);
};

#if defined(__x86_64__)
#define LANES 16
#define NAME(x) x##_avx512
#define TARGET __attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")))
#define SUMS 24
#include "kernels.inc"
#define LANES 8
#define NAME(x) x##_avx2
#define TARGET __attribute__((target("avx2,fma")))
#define SUMS 12
#include "kernels.inc"
#endif

static const struct kernels *chosen;

// Choose an instruction set by name; whether this machine has it.
int katsura_select(const char *set) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  int fma = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  int wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
  if (!strcmp(set, "avx512") && fma && wide) return chosen = &kernels_avx512, 1;
  if (!strcmp(set, "avx2") && fma) return chosen = &kernels_avx2, 1;
#endif
  return 0;
}

// Memory for what lies between two kernels, kept by the thread.
static float *scratch(size_t floats) {
  static _Thread_local float *memory;
  static _Thread_local size_t size;
  if (floats > size) {
    free(memory);
    size = (floats + 1023) & ~(size_t)1023;
    memory = aligned_alloc(64, size * sizeof(float));
    if (!memory) abort();
  }
  return memory;
}

void katsura_linear(const float *x, int64_t rows, const float *panels, int64_t in, int64_t out, float *y) {
  chosen->linear(x, rows, panels, in, out, y);
}

#define FFN_ROWS 48  // as many at a time: what they need lies in a cache

void katsura_ffn(const struct katsura_ffn *f, const float *x, int64_t rows, float *y) {
  int64_t count = rows < FFN_ROWS ? rows : FFN_ROWS;
  float *gate_up = scratch(3 * count * f->width), *activated = gate_up + 2 * count * f->width;
  for (; rows > 0; rows -= count, x += count * f->hidden, y += count * f->hidden) {
    if (rows < count) count = rows;
    chosen->linear(x, count, f->gate_up, f->hidden, 2 * f->width, gate_up);
    chosen->swiglu(gate_up, count, f->width, activated);
    chosen->linear(activated, count, f->down, f->width, f->hidden, y);
  }
}

void katsura_attend(const struct katsura_attention *a, const struct katsura_step *s, float *residual, float *hidden) {
  long group = a->heads / a->kv_heads, dim = a->dim, width = a->heads * dim, row = width + 2 * a->kv_heads * dim;
  long longest = 0;
  for (int64_t i = 0; i < s->sequences; i++) {
    long keys = s->sequence[i].position + s->sequence[i].count;
    longest = keys > longest ? keys : longest;
  }
  float *qkv = scratch(s->rows * (2 * row + a->hidden) + 6 * (longest + 16));
  float *out = qkv + s->rows * row, *added = out + s->rows * row, *scores = added + s->rows * a->hidden;
  chosen->rms_norm(residual, s->rows, a->hidden, a->input_norm, a->eps, hidden);
  chosen->linear(hidden, s->rows, a->qkv, a->hidden, row, qkv);
  for (int64_t i = 0; i < s->sequences; i++) {
    const struct katsura_sequence *of = &s->sequence[i];
    for (int64_t j = 0; j < of->count; j++) {
      int64_t at = of->row + j, position = of->position + j;
      chosen->place(a, qkv + at * row, s->cos + at * dim, s->sin + at * dim, of->pages[position / a->page_tokens],
                    position % a->page_tokens);
    }
    for (long h = 0; h < a->kv_heads; h++) {
      long from = h * a->page_tokens * dim, head = of->row * row + h * group * dim;
      struct katsura_kv kv = {a->keys + from,  a->values + from, of->pages, a->page_tokens,
                              a->page_stride, dim,              a->lanes};
      chosen->attend_head(&kv, of->count, of->position, group, row, qkv + head, out + head, scores);
    }
  }
  for (int64_t i = 1; i < s->rows; i++) memmove(out + i * width, out + i * row, sizeof(float) * width);
  chosen->linear(out, s->rows, a->o, width, a->hidden, added);
  for (int64_t i = 0; i < s->rows * a->hidden; i++) residual[i] += added[i];
  chosen->rms_norm(residual, s->rows, a->hidden, a->post_norm, a->eps, hidden);
}
