/* A model's step as a list of calls; see program.c. */
#ifndef GARZONE_PROGRAM_H
#define GARZONE_PROGRAM_H

#include "operations.h"

typedef enum { CALL_EMBED, CALL_LINEAR, CALL_ATTENTION } CallKind;

typedef struct {
  long kind;             /* CallKind */
  const void *operation; /* Embed, Linear or SelfAttention */
  float *out;
  const float *x;        /* what went before; NULL for an embedding, which reads the step's tokens */
  const float *residual; /* or NULL */
  char *cache;           /* of an attention: its layer's rows */
} Call;

/* Runs the rows of a step through all calls. */
void run_program(const Call *calls, long num_calls, const Batch *batch);

#endif
