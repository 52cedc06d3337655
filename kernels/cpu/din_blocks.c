/* Parts of DIN's activation unit on a block of events in float32: all steps of a value at once, where ATen takes a
 * pass over memory for each. Names as in kernels/dice.py and kernels/din_attention.py. Loops over channels become
 * vector code; sums go by chunks of rows in a fixed order, so that they do not depend on the number of threads.
 *
 * Tensors are contiguous, N events, O or C channels; `row` is the row of each event, `at` the first event of each row.
 */
#include <math.h>
#include <stdint.h>

#define CHUNK 256

typedef float *restrict Out;
typedef const float *restrict In;

/* 1 / (1 + exp(-z)) within 2 ulp: exp by its remainder after n ln 2 (Cephes' polynomial), then 2^n by the exponent. */
static inline float sigmoid(float z) {
    float a = -z > 87.0f ? 87.0f : (-z < -87.0f ? -87.0f : -z);
    float n = rintf(a * 1.44269504088896341f);
    float r = (a - n * 0.693359375f) + n * 2.12194440e-4f;
    float e = 1.9875691500e-4f;
    e = e * r + 1.3981999507e-3f;
    e = e * r + 8.3334519073e-3f;
    e = e * r + 4.1665795894e-2f;
    e = e * r + 1.6666665459e-1f;
    e = e * r + 5.0000001201e-1f;
    e = e * (r * r) + r + 1.0f;
    union { int32_t bits; float value; } power = { ((int32_t)n + 127) << 23 };
    return 1.0f / (1.0f + e * power.value);
}

/* y = (alpha + (1 - alpha) p) x */
void dice_out(long rows, long width, int threads, In x, In scale, In shift, In alpha, Out y) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long e = 0; e < rows; e++) {
        const long at = e * width;
        for (long o = 0; o < width; o++) {
            float p = sigmoid(x[at + o] * scale[o] + shift[o]);
            y[at + o] = (alpha[o] + (1.0f - alpha[o]) * p) * x[at + o];
        }
    }
}

/* y as above; dx but for what flows through mean and variance; sums [chunks, 3, O] of d alpha, s, s z. */
void dice_back(
    long rows, long width, int threads, In x, In scale, In shift, In alpha, In dy, Out y, Out dx, Out sums
) {
    const long chunks = (rows + CHUNK - 1) / CHUNK;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long c = 0; c < chunks; c++) {
        float *restrict dalpha = sums + c * 3 * width, *restrict s1 = dalpha + width, *restrict sz = s1 + width;
        for (long o = 0; o < 3 * width; o++) dalpha[o] = 0.0f;
        const long end = (c + 1) * CHUNK < rows ? (c + 1) * CHUNK : rows;
        for (long e = c * CHUNK; e < end; e++) {
            const float *restrict xe = x + e * width, *restrict de = dy + e * width;
            float *restrict dxe = dx + e * width, *restrict ye = y + e * width;
#pragma omp simd
            for (long o = 0; o < width; o++) {
                float rest = 1.0f - alpha[o], z = xe[o] * scale[o] + shift[o];
                float p = sigmoid(z), g = alpha[o] + rest * p;
                float t = de[o] * xe[o] * (1.0f - p), s = t * p;
                dalpha[o] += t;
                s1[o] += s;
                sz[o] += s * z;
                ye[o] = g * xe[o];
                dxe[o] = de[o] * g + s * (rest * scale[o]);
            }
        }
    }
}

/* dx += slope x + base */
void dice_finish(long rows, long width, int threads, In x, In slope, In base, Out dx) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long e = 0; e < rows; e++)
        for (long o = 0; o < width; o++) dx[e * width + o] += x[e * width + o] * slope[o] + base[o];
}

/* pair [N, 2C] = (h, q h) */
void din_pairs(long rows, long width, int threads, In q, In h, const int64_t *restrict row, Out pair) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long e = 0; e < rows; e++) {
        const float *restrict qe = q + row[e] * width, *restrict he = h + e * width;
        float *restrict pe = pair + e * 2 * width;
        for (long c = 0; c < width; c++) {
            pe[c] = he[c];
            pe[width + c] = qe[c] * he[c];
        }
    }
}

/* x += what is its row's */
void din_add_rows(long rows, long width, int threads, In by_row, const int64_t *restrict row, Out x) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long e = 0; e < rows; e++)
        for (long o = 0; o < width; o++) x[e * width + o] += by_row[row[e] * width + o];
}

/* Gradient of the scores: da = du of the row . h */
void din_scores_back(long rows, long width, int threads, In du, In h, const int64_t *restrict row, Out da) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long e = 0; e < rows; e++) {
        const float *restrict ue = du + row[e] * width, *restrict he = h + e * width;
        float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
        for (long c = 0; c < width; c++) sum += ue[c] * he[c];
        da[e] = sum;
    }
}

/* From dpair [N, 2C] and dx [N, O]: dh = a du + dh part + q dp; by row, dq = sum of h dp and drow = sum of dx. */
void din_first_back(
    long rows, long width, long out, int threads, In dpair, In dx, In q, In h, const int64_t *restrict at, In a, In du,
    Out dh, Out dq, Out drow
) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long b = 0; b < rows; b++) {
        const float *restrict qb = q + b * width, *restrict ub = du + b * width;
        float *restrict dqb = dq + b * width, *restrict rb = drow + b * out;
        for (long c = 0; c < width; c++) dqb[c] = 0.0f;
        for (long o = 0; o < out; o++) rb[o] = 0.0f;
        for (long e = at[b] - at[0]; e < at[b + 1] - at[0]; e++) {
            const float *restrict pe = dpair + e * 2 * width, *restrict he = h + e * width, *restrict xe = dx + e * out;
            float *restrict de = dh + e * width;
            const float ae = a[e];
#pragma omp simd
            for (long c = 0; c < width; c++) {
                de[c] = ae * ub[c] + pe[c] + pe[width + c] * qb[c];
                dqb[c] += pe[width + c] * he[c];
            }
#pragma omp simd
            for (long o = 0; o < out; o++) rb[o] += xe[o];
        }
    }
}
