/* Several matrix products in one loop over the pool, whatever types their weights have.
 *
 * Query, key and value, or gate and up, share their activations: run together they need one barrier instead of three.
 */
#include "products.h"

enum {
  PARTS_PER_THREAD = 6,
  MOST_WEIGHTS = 1 << 20, /* of a part: some ten microseconds, which is how long threads wait for the last one */
};

typedef struct {
  const Product *products;
  const MultiplyGroups *multiply;
  int count;
  long groups;
  unsigned parts;
} Task;

static void multiply_part(void *arg, unsigned part) {
  const Task *task = arg;
  long first = pool_first(task->groups, part, task->parts), last = pool_first(task->groups, part + 1, task->parts);
  for (int i = 0; i < task->count && last > 0; i++) {
    long groups = row_groups(task->products[i].rows);
    if (first < groups) task->multiply[i](&task->products[i], first > 0 ? first : 0, last < groups ? last : groups);
    first -= groups;
    last -= groups;
  }
}

void multiply_together(Pool *pool, const Product *products, const MultiplyGroups *multiply, int count) {
  Task task = {products, multiply, count, 0, 0};
  long weights = 0;
  for (int i = 0; i < count; i++) {
    task.groups += row_groups(products[i].rows);
    weights += products[i].rows * products[i].columns;
  }
  long per_thread = weights / MOST_WEIGHTS / (long)pool->threads;
  task.parts = pool_parts(pool, task.groups, per_thread > PARTS_PER_THREAD ? (unsigned)per_thread : PARTS_PER_THREAD);
  pool->run(pool, multiply_part, &task, task.parts);
}
