/* What one layer does between its matrix products, in one pass over memory each way.
 *
 * A row holds one unit's values for the n samples of a batch, next to each other. Names are those
 * of engine.py, whose Python computes the same where no compiler is found; REAL is float or
 * double, and F(name) the C library's function for it. */
#include <math.h>

#ifdef DOUBLE
#define REAL double
#define F(name) name
#else
#define REAL float
#define F(name) name##f
#endif

/* glibc has these for whole vectors; the compiler has to be told. */
#pragma omp declare simd notinbranch
extern REAL F(tanh)(REAL);
#pragma omp declare simd notinbranch
extern REAL F(sin)(REAL);
#pragma omp declare simd notinbranch
extern REAL F(cos)(REAL);
#pragma omp declare simd notinbranch
extern REAL F(expm1)(REAL);

enum activation { IDENTITY, TANH, SIN, RELU, LEAKY_RELU, SELU };
enum norm { FIXED, SCALE, CENTER }; /* FIXED: mean and rstd are given */
static const REAL LEAK = (REAL)0.01;
static const REAL ALPHA = (REAL)1.6732632423543772, LAMBDA = (REAL)1.0507009873554805; /* of SELU */

typedef struct {
    REAL *linear, *middle, *out;           /* (slots, R, d, n); middle only with act_norm */
    REAL *mean, *rstd;                     /* (slots, R, d) */
    const REAL *bias, *weight, *shift;     /* (layers, R, d) or NULL: of the model */
    REAL *bias_grad, *weight_grad, *shift_grad; /* (layers, R, d) or NULL */
    const double *gains;                   /* (layers, R) */
    const int *activations;                /* (R,) */
    long replicas, width, n;
    int norm, act_norm;
    double eps, scale; /* of the normalisation: rows have mean square scale^2 */
} stack;

enum { TILE = 16 }; /* rows at a time, so that they stay in the first cache */

static void activate(int kind, REAL *restrict y, long n) {
    switch (kind) {
    case TANH:
#pragma omp simd
        for (long j = 0; j < n; j++) y[j] = F(tanh)(y[j]);
        break;
    case SIN:
#pragma omp simd
        for (long j = 0; j < n; j++) y[j] = F(sin)(y[j]);
        break;
    case RELU:
#pragma omp simd
        for (long j = 0; j < n; j++) y[j] = y[j] < 0 ? 0 : y[j];
        break;
    case LEAKY_RELU:
#pragma omp simd
        for (long j = 0; j < n; j++) y[j] = y[j] < 0 ? LEAK * y[j] : y[j];
        break;
    case SELU:
#pragma omp simd
        for (long j = 0; j < n; j++) y[j] = LAMBDA * (y[j] > 0 ? y[j] : ALPHA * F(expm1)(y[j]));
    }
}

/* Multiply a gradient by gain times the slope of the activation at (z - m) a + c, out being the
 * activation there. */
static void deactivate(int kind, REAL gain, REAL *restrict grad, const REAL *restrict out,
                       const REAL *restrict z, REAL m, REAL a, REAL c, long n) {
    switch (kind) {
    case IDENTITY:
#pragma omp simd
        for (long j = 0; j < n; j++) grad[j] *= gain;
        break;
    case TANH:
#pragma omp simd
        for (long j = 0; j < n; j++) grad[j] *= gain * (1 - out[j] * out[j]);
        break;
    case SIN:
#pragma omp simd
        for (long j = 0; j < n; j++) grad[j] *= gain * F(cos)((z[j] - m) * a + c);
        break;
    case RELU:
#pragma omp simd
        for (long j = 0; j < n; j++) grad[j] = out[j] <= 0 ? 0 : grad[j] * gain;
        break;
    case LEAKY_RELU:
#pragma omp simd
        for (long j = 0; j < n; j++) grad[j] *= out[j] < 0 ? LEAK * gain : gain;
        break;
    case SELU:
#pragma omp simd
        for (long j = 0; j < n; j++)
            grad[j] *= gain * (out[j] > 0 ? LAMBDA : out[j] + LAMBDA * ALPHA);
    }
}

/* Mean and one over the root mean square of x + b. */
static void statistics(const stack *s, const REAL *restrict x, REAL b, REAL *mean, REAL *rstd) {
    const long n = s->n;
    REAL sum = 0, squares = 0, m = -b;
    if (s->norm == FIXED) return;
    if (s->norm == CENTER) {
#pragma omp simd reduction(+ : sum)
        for (long j = 0; j < n; j++) sum += x[j];
        m = sum / n;
    }
#pragma omp simd reduction(+ : squares)
    for (long j = 0; j < n; j++) squares += (x[j] - m) * (x[j] - m);
    *mean = s->norm == CENTER ? m + b : 0;
    *rstd = 1 / F(sqrt)(squares / n + (REAL)s->eps);
}

void forward(const stack *s, long slot, long layer) {
    const long n = s->n, d = s->width, tiles = (d + TILE - 1) / TILE;
#pragma omp parallel for schedule(static) if (s->replicas * d * n > 16384)
    for (long t = 0; t < s->replicas * tiles; t++) {
        const long r = t / tiles, first = t % tiles * TILE, stop = first + TILE < d ? first + TILE : d;
        const REAL gain = (REAL)s->gains[layer * s->replicas + r];
        REAL *tile = (s->act_norm ? s->middle : s->out) + ((slot * s->replicas + r) * d + first) * n;
        for (long i = first; i < stop; i++) {
            const long k = (slot * s->replicas + r) * d + i, p = (layer * s->replicas + r) * d + i;
            const REAL *restrict z = s->linear + k * n, b = s->bias ? s->bias[p] : 0;
            REAL *restrict y = tile + (i - first) * n;
            REAL m = -b, a = gain, c = 0;
            if (!s->act_norm) {
                statistics(s, z, b, s->mean + k, s->rstd + k);
                m = s->mean[k] - b;
                a *= s->rstd[k] * (REAL)s->scale * (s->weight ? s->weight[p] : 1);
                c = s->shift ? gain * s->shift[p] : 0;
            }
#pragma omp simd
            for (long j = 0; j < n; j++) y[j] = (z[j] - m) * a + c;
        }
        activate(s->activations[r], tile, (stop - first) * n);
        if (!s->act_norm) continue;
        for (long i = first; i < stop; i++) {
            const long k = (slot * s->replicas + r) * d + i, p = (layer * s->replicas + r) * d + i;
            const REAL *restrict y = s->middle + k * n;
            REAL *restrict out = s->out + k * n;
            statistics(s, y, 0, s->mean + k, s->rstd + k);
            const REAL m = s->mean[k], c = s->shift ? s->shift[p] : 0;
            const REAL a = s->rstd[k] * (REAL)s->scale * (s->weight ? s->weight[p] : 1);
#pragma omp simd
            for (long j = 0; j < n; j++) out[j] = (y[j] - m) * a + c;
        }
    }
}

/* The gradient of what is normalised, x, from that of what comes out. */
static void denormalize(const stack *s, REAL *restrict g, const REAL *restrict x, REAL m, REAL rstd,
                        long p) {
    const long n = s->n;
    REAL sum = 0, along = 0;
#pragma omp simd reduction(+ : sum, along)
    for (long j = 0; j < n; j++) {
        sum += g[j];
        along += g[j] * (x[j] - m);
    }
    along *= rstd;
    if (s->weight_grad) s->weight_grad[p] = along * (REAL)s->scale;
    if (s->shift_grad) s->shift_grad[p] = sum;
    const REAL a = rstd * (REAL)s->scale * (s->weight ? s->weight[p] : 1);
    const REAL b = s->norm == FIXED ? 0 : a * rstd * along / n;
    const REAL c = s->norm == CENTER ? a * sum / n : 0;
#pragma omp simd
    for (long j = 0; j < n; j++) g[j] = a * g[j] - (b * (x[j] - m) + c);
}

/* In place: the gradient of the layer's output becomes that of its linear stage. */
void backward(const stack *s, long slot, long layer, REAL *grad) {
    const long n = s->n, d = s->width, rows = s->replicas * d;
#pragma omp parallel for schedule(static) if (rows * n > 16384)
    for (long i = 0; i < rows; i++) {
        const long k = slot * rows + i, p = layer * rows + i, r = i / d;
        const REAL gain = (REAL)s->gains[layer * s->replicas + r], b = s->bias ? s->bias[p] : 0;
        const REAL *z = s->linear + k * n, *out = s->out + k * n;
        REAL *restrict g = grad + i * n;
        const REAL rstd = s->rstd[k];
        if (s->act_norm) {
            denormalize(s, g, s->middle + k * n, s->mean[k], rstd, p);
            deactivate(s->activations[r], gain, g, s->middle + k * n, z, -b, gain, 0, n);
        } else {
            const REAL m = s->mean[k] - b, c = s->shift ? gain * s->shift[p] : 0;
            const REAL a = gain * rstd * (REAL)s->scale * (s->weight ? s->weight[p] : 1);
            deactivate(s->activations[r], gain, g, out, z, m, a, c, n);
            denormalize(s, g, z, m, rstd, p);
        }
        if (s->bias_grad) {
            REAL sum = 0;
#pragma omp simd reduction(+ : sum)
            for (long j = 0; j < n; j++) sum += g[j];
            s->bias_grad[p] = sum;
        }
    }
}
