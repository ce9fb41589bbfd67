/* Attention of some tokens over the rows of the KV cache; see attention.c. */
#ifndef GARZONE_ATTENTION_H
#define GARZONE_ATTENTION_H

#include "lanes.h"
#include "pool.h"

enum {
  MOST_HEAD_SIZE = 256,
  SPAN = 128, /* positions whose rows lie together, and between two updates of the running maximum */
};

/* One layer's cache. Positions come in spans, so that what a slot has not used yet lies together and is never touched:
 * in memory a span of a slot is [kv_heads][keys, values], as the type of rows has them (rows/<type>.h). Other layers may
 * lie between two spans. */
typedef struct {
  char *rows;                          /* of slot 0 */
  long slot_bytes, span_bytes;         /* from one slot, and from one span of a slot, to the next */
  long kv_heads, head_size, positions; /* positions: of a slot */
} KVCache;

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

/* Bytes of a head's keys and values in a span, and of one key or value on its own. */
long head_span_bytes(long head_size);
long row_bytes(long head_size);

/* Rows as [count][keys, values][kv_heads][row_bytes], whatever processor this is, and back. */
void read_rows(const KVCache *cache, long slot, long start, long count, char *to);
void write_rows(const KVCache *cache, long slot, long start, long count, const char *from);
/* The first rows of a slot into another. */
void copy_rows(const KVCache *cache, long from_slot, long to_slot, long count);

#endif
