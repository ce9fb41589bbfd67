/* How the bits of packed weights lie in memory once sixteen rows are interleaved.
 *
 * Thirty-two columns of sixteen rows are a *group*; it falls into eight *quads* of four columns each, and one quad of
 * all sixteen rows fills one vector: byte 4 * row + column. A plane keeps one, two, four or eight bits of every weight
 * of a group, several quads sharing the bits of one vector, so that a quad is one load, one shift and one mask. The
 * formats of GGUF differ only in which planes they need, and in their scales.
 */
#ifndef GARZONE_PLANES_H
#define GARZONE_PLANES_H

#include "lanes.h"

enum { GROUP = 32, QUADS = 8, QUAD = 4 };

typedef struct { uint8_t vector[1][VECTOR_BYTES]; } Plane1; /* bit i of a byte belongs to quad i */
typedef struct { uint8_t vector[2][VECTOR_BYTES]; } Plane2; /* vector i % 2, bits 2 * (i / 2) and the next */
typedef struct { uint8_t vector[4][VECTOR_BYTES]; } Plane4; /* vector i % 4, low bits for i < 4 */
typedef struct { uint8_t vector[8][VECTOR_BYTES]; } Plane8;

/* Where the bits of quad i lie within a byte; `to` says where the caller wants them. */
INLINE u8x64 bits_at(u8x64 v, int from, int to, uint8_t mask) {
  return (from > to ? shift_right(v, from - to) : from < to ? shift_left(v, to - from) : v) & (uint8_t)(mask << to);
}
INLINE u8x64 plane1(const Plane1 *p, int i, int to) { return bits_at(load_u8x64(p->vector[0]), i, to, 1); }
INLINE u8x64 plane2(const Plane2 *p, int i, int to) { return bits_at(load_u8x64(p->vector[i % 2]), i / 2 * 2, to, 3); }
INLINE u8x64 plane4(const Plane4 *p, int i) { return bits_at(load_u8x64(p->vector[i % 4]), i / 4 * 4, 0, 15); }
INLINE u8x64 plane8(const Plane8 *p, int i) { return load_u8x64(p->vector[i]); }

/* Sixteen bytes hold columns 0..15 in their low nibbles and 16..31 in their high ones. */
INLINE void split_nibbles(uint8_t q[GROUP], const uint8_t bytes[16]) {
  for (int i = 0; i < 16; i++) {
    q[i] = bytes[i] & 15;
    q[16 + i] = bytes[i] >> 4;
  }
}
/* Bit i of four bytes is bit `to` of column i. */
INLINE void add_bit_of_columns(uint8_t q[GROUP], const uint8_t bits[4], int to) {
  for (int i = 0; i < GROUP; i++) q[i] |= (uint8_t)((bits[i / 8] >> i % 8 & 1) << to);
}

/* Packing, one row at a time: `q` holds the row's values of one group, of which bits `from` and up are kept. The rows
 * of a plane are put into zeroed memory. */
INLINE void put_bits(uint8_t (*vector)[VECTOR_BYTES], int row, const uint8_t q[GROUP], int from, int bits) {
  int vectors = bits; /* 32 columns of `bits` bits fill as many vectors of four bytes a row */
  for (int i = 0; i < QUADS; i++)
    for (int k = 0; k < QUAD; k++) {
      int value = q[QUAD * i + k] >> from & ((1 << bits) - 1);
      vector[i % vectors][QUAD * row + k] |= (uint8_t)(value << i / vectors * bits);
    }
}
INLINE void put_plane1(Plane1 *p, int row, const uint8_t *q, int from) { put_bits(p->vector, row, q, from, 1); }
INLINE void put_plane2(Plane2 *p, int row, const uint8_t *q, int from) { put_bits(p->vector, row, q, from, 2); }
INLINE void put_plane4(Plane4 *p, int row, const uint8_t *q) { put_bits(p->vector, row, q, 0, 4); }
INLINE void put_plane8(Plane8 *p, int row, const uint8_t *q) { put_bits(p->vector, row, q, 0, 8); }

#endif
