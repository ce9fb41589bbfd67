/* Attention of some tokens over the rows of the KV cache; see attention.c. */
#ifndef GARZONE_ATTENTION_H
#define GARZONE_ATTENTION_H

#include "lanes.h"
#include "pool.h"

enum { MOST_HEAD_SIZE = 256 };

/* One layer's cache. Keys lie sixteen positions side by side, so that a score needs no sum across a register; values
 * lie as they are. The head size is rounded up to sixteen; what is added stays zero. */
typedef struct {
  half *keys;   /* [slots][kv_heads][positions / 16][head_size rounded up][16] */
  half *values; /* [slots][kv_heads][positions][head_size rounded up] */
  long kv_heads, head_size, positions; /* positions: of a slot, a multiple of sixteen */
} KVCache;

static inline long padded_head_size(long head_size) { return (head_size + LANES - 1) / LANES * LANES; }

typedef struct {
  KVCache cache;
  const float *queries;     /* [tokens][query_stride]: heads of head_size, already rotated and scaled */
  float *out;               /* [tokens][heads * head_size] */
  const int32_t *slots;     /* [tokens] */
  const int32_t *positions; /* [tokens]; a token sees its slot's rows up to and including its own. Tokens of one slot
                               that follow each other have ascending positions */
  long tokens, heads, query_stride;
  long window;              /* a token sees as many positions, its own included; 0: all up to its own */
  void *scratch;            /* attention_scratch_bytes(..) */
} Attention;

/* `positions`: of a slot of the cache */
long attention_scratch_bytes(long tokens, long heads, long kv_heads, long threads, long positions);
void attend(Pool *pool, const Attention *attention);

/* Writes one head's key and value, float[head_size] each, into a row of the cache. */
void store_kv(const KVCache *cache, long slot, long kv_head, long position, const float *key, const float *value);

#endif
