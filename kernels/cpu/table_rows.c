/* Rows of embedding tables: sums of them, and row-wise Adagrad on them. A row lies in memory by itself, so that what
 * counts is to ask for it early: every loop prefetches the rows that it comes to AHEAD places later.
 *
 * The tables lie one after another in w [R, width]. Ids are [N], feature by feature; feature f has ids `segments[f]`
 * to `segments[f + 1]` in a table that starts at row `starts[f]` and has `rows[f]` of them. With `bags` [features *
 * batch + 1] bag b of feature f is the ids bags[f * batch + b] to bags[f * batch + b + 1], and its sum lies at place
 * b * features + f; without, every id is a bag and lies at its own place.
 */
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define AHEAD 16
#define DIGIT 11 /* bits of a pass of the sort */

typedef const int64_t *restrict Ids;
typedef struct { uint32_t row, at; } Item;

static inline void ask(const float *row, long width) {
    for (long j = 0; j < width; j += 16) __builtin_prefetch(row + j);
}

static inline void ask_to_write(const float *row, long width) {
    for (long j = 0; j < width; j += 16) __builtin_prefetch(row + j, 1);
}

/* out [places, width]; `wrong` is the number of an id outside its table, counted from 1: its row is not read. */
void rows_sum(
    long batch, long features, long width, int threads, Ids ids, Ids bags, Ids segments, Ids starts, Ids rows,
    const float *restrict w, float *restrict out, int64_t *wrong
) {
#pragma omp parallel num_threads(threads)
    for (long f = 0; f < features; f++) {
        const float *table = w + starts[f] * width;
        const long count = bags ? batch : segments[f + 1] - segments[f];
        const long last = segments[f + 1] - 1;
#pragma omp for schedule(static) nowait
        for (long b = 0; b < count; b++) {
            const long begin = bags ? bags[f * batch + b] : segments[f] + b;
            const long end = bags ? bags[f * batch + b + 1] : begin + 1;
            float *sum = out + (bags ? b * features + f : begin) * width;
            if (begin == end) memset(sum, 0, width * sizeof(float));
            for (long n = begin; n < end; n++) {
                if (n + AHEAD <= last) ask(table + ids[n + AHEAD] * width, width);
                if ((uint64_t)ids[n] >= (uint64_t)rows[f]) {
#pragma omp atomic write
                    *wrong = n + 1;
                    if (n == begin) memset(sum, 0, width * sizeof(float));
                    continue;
                }
                const float *row = table + ids[n] * width;
                if (n == begin) memcpy(sum, row, width * sizeof(float));
                else
                    for (long j = 0; j < width; j++) sum[j] += row[j];
            }
        }
    }
}

/* Which thread moves a row: rows of one small table go to all of them. */
static inline int owner(uint32_t row, int threads) {
    return (int)(((uint64_t)(row * 0x9E3779B1u) * (uint64_t)threads) >> 32);
}

/* Stable, by row; returns which of the two holds the result. */
static Item *by_row(Item *items, Item *spare, long count, uint32_t highest) {
    for (int shift = 0; shift < 32 && (highest >> shift); shift += DIGIT) {
        long at[1 << DIGIT] = {0}, sum = 0;
        for (long i = 0; i < count; i++) at[(items[i].row >> shift) & ((1 << DIGIT) - 1)]++;
        for (long d = 0; d < 1 << DIGIT; d++) { long n = at[d]; at[d] = sum; sum += n; }
        for (long i = 0; i < count; i++) spare[at[(items[i].row >> shift) & ((1 << DIGIT) - 1)]++] = items[i];
        Item *sorted = spare;
        spare = items;
        items = sorted;
    }
    return items;
}

/* The gradients of a row's places are summed in the order of its ids; w -= lr g / (sqrt(state) + eps), where state [R]
 * has grown by mean g^2, or, `by_element`, state [R, width] by g^2.
 * Ids were checked by `rows_sum`. Returns 1 where memory ends: then nothing or a part of the rows has moved. */
int rows_adagrad(
    long batch, long features, long width, int threads, Ids ids, Ids bags, Ids segments, Ids starts, Ids rows,
    const float *restrict grad, float *restrict w, float *restrict state, float lr, float eps, int by_element
) {
    const long total = segments[features];
    uint32_t *place = malloc((total + 1) * sizeof(uint32_t)), highest = 0;
    int failed = 0;
    if (place == NULL) return 1;
    for (long f = 0; f < features; f++)
        if (starts[f] + rows[f] > highest) highest = (uint32_t)(starts[f] + rows[f]);
#pragma omp parallel num_threads(threads)
    {
        const int me = omp_get_thread_num(), all = omp_get_num_threads();
        long own = 0;
        for (long f = 0; f < features; f++) {
            if (bags) {
#pragma omp for schedule(static) nowait
                for (long b = 0; b < batch; b++)
                    for (long n = bags[f * batch + b]; n < bags[f * batch + b + 1]; n++)
                        place[n] = (uint32_t)(b * features + f);
            } else {
#pragma omp for schedule(static) nowait
                for (long n = segments[f]; n < segments[f + 1]; n++) place[n] = (uint32_t)n;
            }
            for (long n = segments[f]; n < segments[f + 1]; n++) own += owner((uint32_t)(starts[f] + ids[n]), all) == me;
        }
        Item *items = malloc((2 * own + 1) * sizeof(Item));
        float *sum = malloc(width * sizeof(float));
        if (items == NULL || sum == NULL) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp barrier
        if (!failed) {
            long count = 0;
            for (long f = 0; f < features; f++)
                for (long n = segments[f]; n < segments[f + 1]; n++) {
                    const uint32_t row = (uint32_t)(starts[f] + ids[n]);
                    if (owner(row, all) == me) items[count++] = (Item){row, (uint32_t)n};
                }
            const Item *sorted = by_row(items, items + own, own, highest);
            for (long i = 0; i < own;) {
                const uint32_t row = sorted[i].row;
                const float *g = grad + (long)place[sorted[i].at] * width;
                long next = i + 1;
                if (next < own && sorted[next].row == row) {
                    memcpy(sum, g, width * sizeof(float));
                    for (; next < own && sorted[next].row == row; next++) {
                        const float *more = grad + (long)place[sorted[next].at] * width;
                        for (long j = 0; j < width; j++) sum[j] += more[j];
                    }
                    g = sum;
                }
                for (long k = i + AHEAD; k < next + AHEAD && k < own; k++) {
                    ask_to_write(w + (long)sorted[k].row * width, width);
                    if (by_element) ask_to_write(state + (long)sorted[k].row * width, width);
                    else __builtin_prefetch(state + sorted[k].row, 1);
                    ask(grad + (long)place[sorted[k].at] * width, width);
                }
                float square = 0.0f, *moved = w + (long)row * width;
                i = next;
                if (by_element) {
                    float *own_state = state + (long)row * width;
                    for (long j = 0; j < width; j++) {
                        own_state[j] += g[j] * g[j];
                        moved[j] -= lr * g[j] / (sqrtf(own_state[j]) + eps);
                    }
                    continue;
                }
#pragma omp simd reduction(+ : square)
                for (long j = 0; j < width; j++) square += g[j] * g[j];
                state[row] += square / width;
                const float rate = lr / (sqrtf(state[row]) + eps);
                for (long j = 0; j < width; j++) moved[j] -= rate * g[j];
            }
        }
        free(items);
        free(sum);
    }
    free(place);
    return failed;
}
