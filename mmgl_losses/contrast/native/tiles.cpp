// The arithmetic of tiles, written once and compiled for each instruction set (`-D ISA=name` and the flags of it).
//
// A product of matrices is made of blocks of ROWS x 2 vectors that stay in registers while the sum runs. A block of
// logits goes through exp2 where it is, so no exponential is written to memory on the way forward. Nothing from the
// standard library is called here: an inline function compiled for one set could be linked into another.
#include "tiles.h"

namespace native::ISA {
namespace {

#if defined(__AVX512F__)
constexpr const char* NAME = "AVX-512";
constexpr int BYTES = 64, ROWS = 12;  // 24 of 32 registers hold sums
#elif defined(__AVX__)
constexpr const char* NAME = "AVX2";
constexpr int BYTES = 32, ROWS = 6;  // 12 of 16
#elif defined(__aarch64__)
constexpr const char* NAME = "NEON";
constexpr int BYTES = 16, ROWS = 12;  // 24 of 32
#else
constexpr const char* NAME = "128 bits";
constexpr int BYTES = 16, ROWS = 6;
#endif
#define INLINE inline __attribute__((always_inline))

template <class Real>
struct Types;
template <>
struct Types<float> {
    typedef float Vector __attribute__((vector_size(BYTES)));
    typedef int32_t Integer;
    typedef Integer Integers __attribute__((vector_size(BYTES)));
    // 2^f = sum c_k f^k for |f| <= 1/2, off by 7.5e-8 at most: fitted for the least largest relative error.
    static constexpr float C[] = {1.0000001f, 0.69314694f, 0.2402212f, 0.05550713f, 0.009675542f, 0.0013276472f};
    static constexpr int MANTISSA = 23, BIAS = 127;
};
template <>
struct Types<double> {
    typedef double Vector __attribute__((vector_size(BYTES)));
    typedef int64_t Integer;
    typedef Integer Integers __attribute__((vector_size(BYTES)));
    // (log 2)^k / k!: the Taylor series, off by 2e-16.
    static constexpr double C[] = {1.0, 0.6931471805599453, 0.24022650695910072, 0.05550410866482158,
                                   0.009618129107628477, 0.0013333558146428443, 0.00015403530393381608,
                                   1.5252733804059841e-05, 1.321548679014431e-06, 1.01780860092397e-07,
                                   7.054911620801123e-09, 4.445538271870812e-10, 2.5678435993488206e-11};
    static constexpr int MANTISSA = 52, BIAS = 1023;
};
template <class Real>
using Vector = typename Types<Real>::Vector;
template <class Real>
using Integers = typename Types<Real>::Integers;
template <class Real>
constexpr int WIDTH = BYTES / sizeof(Real);
template <class Real>
constexpr int LANES = 2 * WIDTH<Real>;
template <class Real>
using Block = Vector<Real>[ROWS][2];

// A vector in memory need not be aligned as one in a register is; the compiler makes one instruction of the copy.
template <class Real>
INLINE Vector<Real> load(const Real* from) {
    Vector<Real> x;
    __builtin_memcpy(&x, from, sizeof x);
    return x;
}

template <class Real>
INLINE void store(Real* to, Vector<Real> x) {
    __builtin_memcpy(to, &x, sizeof x);
}

template <class Real>
INLINE Vector<Real> all(Real x) {
    return Vector<Real>{} + x;
}

template <class Real>
INLINE Vector<Real> chosen(Integers<Real> mask, Vector<Real> x) {  // 0 elsewhere
    return (Vector<Real>)(mask & (Integers<Real>)x);
}

template <class Real>
INLINE double sum(Vector<Real> x) {
    double total = 0;
    for (int lane = 0; lane < WIDTH<Real>; ++lane) total += x[lane];
    return total;
}

// 2^x; 0 and infinity beyond the range of the type, NaN of NaN. Adding MAGIC rounds to a whole number and leaves it,
// with the bias of an exponent, in the lowest bits. A product, not a sum of bits, so that NaN stays NaN.
template <class Real>
INLINE Vector<Real> exp2(Vector<Real> x) {
    using T = Types<Real>;
    constexpr Real MAGIC = Real(3LL << (T::MANTISSA - 1)) + T::BIAS;
    x = all<Real>(-T::BIAS) > x ? all<Real>(-T::BIAS) : x;
    x = all<Real>(T::BIAS + 1) < x ? all<Real>(T::BIAS + 1) : x;
    const Vector<Real> rounded = x + MAGIC, rest = x - (rounded - MAGIC);
    constexpr int DEGREE = sizeof T::C / sizeof *T::C - 1;
    Vector<Real> power = all<Real>(T::C[DEGREE]);
#pragma GCC unroll 16
    for (int k = DEGREE - 1; k >= 0; --k) power = power * rest + T::C[k];
    return power * (Vector<Real>)((Integers<Real>)rounded << T::MANTISSA);
}

template <class Real>
INLINE Vector<Real> exp(Vector<Real> x) {
    return exp2<Real>(x * Real(LOG2_E));
}

// block[r] += sum over k of a[r * row + k * step] * panel[k]
template <class Real>
INLINE void multiply(Block<Real>& block, const Real* a, long row, long step, const Real* panel, long terms) {
    for (long k = 0; k < terms; ++k, a += step, panel += LANES<Real>) {
        const Vector<Real> left = load(panel), right = load(panel + WIDTH<Real>);
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r) {
            block[r][0] += left * a[r * row];
            block[r][1] += right * a[r * row];
        }
    }
}

// Logits of the anchors from `i` on with the panel of keys from `j` on.
template <class Real>
INLINE void logits(const Tile<Real>& t, long i, long j, Block<Real>& block) {
    constexpr long L = LANES<Real>;
    const Real* offset = t.keys->offset + t.first + j;
    for (auto& row : block) row[0] = load(offset), row[1] = load(offset + WIDTH<Real>);
    const long panels = (t.features + L - 1) / L;
    const Real* rows = t.anchors->rows + t.top * panels * L + i * L;
    const Real* columns = t.keys->columns + (t.first + j) * t.features;
    for (long d = 0; d < t.features; d += L, rows += t.size * L, columns += L * L)
        multiply<Real>(block, rows, L, 1, columns, t.features - d < L ? t.features - d : L);
}

// Whether all pairs of a block are of one kind, and none is to be left out.
template <class Real>
INLINE Kind kind(const Tile<Real>& t, long i, long j) {
    const long first = t.first + j, most = t.first + t.width, end = first + LANES<Real>;
    const long last = end < most ? end : most;
    if (i + ROWS > t.height || (t.diagonal() && j < i + ROWS)) return MIXED;
    const Side<Real>& a = *t.anchors;
    const long row = t.top + i, final = row + ROWS - 1;
    if (a.itself)
        for (long r = row; r <= final; ++r)
            if (a.itself[r] >= first && a.itself[r] < last) return MIXED;
    if (a.high[final] <= first || a.low[row] >= last) return NEGATIVE;
    return a.low[final] <= first && a.high[row] >= last ? POSITIVE : MIXED;
}

// Which keys from `j` on are positives and negatives of anchor `i`; pairs that do not count are neither. In a tile on
// the diagonal a pair counts where it is above it: its mirror image is the same pair. No key counts for a row beyond the
// last anchor.
template <class Real>
INLINE void kinds(const Tile<Real>& t, long i, long j, Integers<Real> (&masks)[2]) {
    using I = typename Types<Real>::Integer;
    const Side<Real>& a = *t.anchors;
    const long row = t.top + i, first = t.first + j;
    Integers<Real> key = {};
    for (int lane = 0; lane < WIDTH<Real>; ++lane) key[lane] = lane;
    key += I(first);
    const I after = I(t.diagonal() ? row : -1), end = I(i < t.height ? t.first + t.width : 0);
    const Integers<Real> counts = (key > after) & (key < end) & (key != I(a.itself ? a.itself[row] : -1));
    masks[POSITIVE] = counts & (key >= I(a.low[row])) & (key < I(a.high[row]));
    masks[NEGATIVE] = counts & ~masks[POSITIVE];
}

// Of a tile on the diagonal, where the blocks of rows from `i` on begin: those before have no pair above it.
template <class Real>
INLINE long start(const Tile<Real>& t, long i) {
    return t.diagonal() ? (i + 1) / LANES<Real> * LANES<Real> : 0;
}

template <class Real>
INLINE void credit(const Block<Real>& block, Vector<Real>* row, Real* column) {
    Vector<Real> left = load(column), right = load(column + WIDTH<Real>);
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) {
        row[r] += block[r][0] + block[r][1];
        left += block[r][0];
        right += block[r][1];
    }
    store(column, left);
    store(column + WIDTH<Real>, right);
}

// The same of a block in which pairs are of both kinds.
template <class Real>
INLINE void credit_mixed(const Tile<Real>& t, long i, long j, const Block<Real>& block, Vector<Real> (&row)[2][ROWS],
                         Real (&column)[2][MOST]) {
    for (int half = 0; half < 2; ++half) {
        const long at = j + half * WIDTH<Real>;
        Vector<Real> found[2] = {load(column[POSITIVE] + at), load(column[NEGATIVE] + at)};
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r) {
            Integers<Real> masks[2];
            kinds(t, i + r, at, masks);
            for (Kind k : BOTH) {
                const Vector<Real> x = chosen<Real>(masks[k], block[r][half]);
                row[k][r] += x;
                found[k] += x;
            }
        }
        for (Kind k : BOTH) store(column[k] + at, found[k]);
    }
}

// Sums of exponentials over positives and over negatives: a few numbers of a tile in `Real`, tiles in double.
template <class Real>
void constant_shift_sums(const Tile<Real>& t) {
    Real column[2][MOST] = {};
    for (long i = 0; i < t.height; i += ROWS) {
        Vector<Real> row[2][ROWS] = {};
        for (long j = start(t, i); j < t.width; j += LANES<Real>) {
            Block<Real> block;
            logits(t, i, j, block);
            for (auto& r : block) r[0] = exp2<Real>(r[0]), r[1] = exp2<Real>(r[1]);
            const Kind one = kind(t, i, j);
            if (one == MIXED) credit_mixed(t, i, j, block, row, column);
            else credit<Real>(block, row[one], column[one] + j);
        }
        for (Kind k : BOTH)
            for (int r = 0; r < ROWS && i + r < t.height; ++r) t.anchors->sums[k][t.top + i + r] += sum<Real>(row[k][r]);
    }
    if (t.mirrored)
        for (Kind k : BOTH)
            for (long j = 0; j < t.width; ++j) t.keys->sums[k][t.first + j] += column[k][j];
}

// The logits of a whole tile, in its room.
template <class Real>
void write_logits(const Tile<Real>& t) {
    for (long i = 0; i < t.height; i += ROWS)
        for (long j = 0; j < t.width; j += LANES<Real>) {
            Block<Real> block;
            logits(t, i, j, block);
            for (int r = 0; r < ROWS; ++r) {
                store(t.room + (i + r) * t.size + j, block[r][0]);
                store(t.room + (i + r) * t.size + j + WIDTH<Real>, block[r][1]);
            }
        }
}

// The same where no constant serves all exponents: each anchor has its largest logit of each kind taken out. Where a
// tile has a larger one than those before, their sum is rescaled.
template <class Real>
void own_shift_sums(const Tile<Real>& t) {
    using V = Vector<Real>;
    write_logits(t);
    for (long i = 0; i < t.height; ++i) {
        const Real* row = t.room + i * t.size;
        V most[2] = {all(t.anchors->peak[POSITIVE][t.top + i]), all(t.anchors->peak[NEGATIVE][t.top + i])}, found[2] = {};
        Integers<Real> masks[2];
        for (long j = 0; j < t.width; j += WIDTH<Real>) {
            kinds(t, i, j, masks);
            const V x = load(row + j);
            for (Kind k : BOTH) most[k] = (x > most[k]) & masks[k] ? x : most[k];
        }
        Real peak[2] = {most[POSITIVE][0], most[NEGATIVE][0]};
        for (Kind k : BOTH)
            for (int lane = 1; lane < WIDTH<Real>; ++lane)
                if (most[k][lane] > peak[k]) peak[k] = most[k][lane];
        for (long j = 0; j < t.width; j += WIDTH<Real>) {
            kinds(t, i, j, masks);
            const V value = exp<Real>(load(row + j) - (masks[POSITIVE] ? all(peak[POSITIVE]) : all(peak[NEGATIVE])));
            for (Kind k : BOTH) found[k] += chosen<Real>(masks[k], value);
        }
        for (Kind k : BOTH) {
            Real& before = t.anchors->peak[k][t.top + i];
            double& total = t.anchors->sums[k][t.top + i];
            total = total * exp<Real>(all(before - peak[k]))[0] + sum<Real>(found[k]);
            before = peak[k];
        }
    }
}

// W (or W + W transposed where mirrored) of a block, from its exponentials: E times the factors of both points, and
// among positives the gradients of their sums.
template <class Real>
INLINE void weigh(const Tile<Real>& t, long i, long j, Block<Real>& block) {
    const Side<Real>&a = *t.anchors, &b = *t.keys;
    const long row = t.top + i, first = t.first + j;
    const Kind one = kind(t, i, j);
    for (int r = 0; r < ROWS; ++r)
        for (int half = 0; half < 2; ++half) {
            Vector<Real>& x = block[r][half];
            const long column = first + half * WIDTH<Real>;
            const Vector<Real> total = load(b.total + column) + a.total[row + r];
            if (one != MIXED) {
                x *= load(b.factor[one] + column) + a.factor[one][row + r];
                if (one == POSITIVE) x += total;
                continue;
            }
            Integers<Real> masks[2];
            kinds(t, i + r, j + half * WIDTH<Real>, masks);
            const Vector<Real> factor[2] = {load(b.factor[0] + column) + a.factor[0][row + r],
                                            load(b.factor[1] + column) + a.factor[1][row + r]};
            x = chosen<Real>(masks[POSITIVE], x * factor[POSITIVE] + total) +
                chosen<Real>(masks[NEGATIVE], x * factor[NEGATIVE]);
        }
}

// W of a tile by the constant shift, in its room.
template <class Real>
void constant_shift_weights(const Tile<Real>& t) {
    for (long i = 0; i < t.height; i += ROWS)
        for (long j = 0; j < t.width; j += LANES<Real>) {
            Block<Real> block = {};
            if (j >= start(t, i)) {
                logits(t, i, j, block);
                for (auto& r : block) r[0] = exp2<Real>(r[0]), r[1] = exp2<Real>(r[1]);
                weigh(t, i, j, block);
            }
            for (int r = 0; r < ROWS; ++r) {
                store(t.room + (i + r) * t.size + j, block[r][0]);
                store(t.room + (i + r) * t.size + j + WIDTH<Real>, block[r][1]);
            }
        }
}

// The same from the logarithms of the sums of each anchor, which are in `peak`.
template <class Real>
void own_shift_weights(const Tile<Real>& t) {
    write_logits(t);
    for (long i = 0; i < t.height; ++i) {
        const Side<Real>& a = *t.anchors;
        const long at = t.top + i;
        for (long j = 0; j < t.width; j += WIDTH<Real>) {
            Integers<Real> masks[2];
            kinds(t, i, j, masks);
            Real* x = t.room + i * t.size + j;
            const Vector<Real> share = exp<Real>(load(x) - (masks[0] ? all(a.peak[0][at]) : all(a.peak[1][at])));
            store(x, chosen<Real>(masks[POSITIVE], share * a.factor[POSITIVE][at] + a.total[at]) +
                         chosen<Real>(masks[NEGATIVE], share * a.factor[NEGATIVE][at]));
        }
    }
}

// to[0 ... count) += scale * x
template <class Real>
INLINE void add(Real* to, const Vector<Real> (&x)[2], Real scale, long count) {
    if (count >= LANES<Real>) {
        store(to, load(to) + x[0] * scale);
        store(to + WIDTH<Real>, load(to + WIDTH<Real>) + x[1] * scale);
        return;
    }
    for (long lane = 0; lane < count; ++lane) to[lane] += x[lane / WIDTH<Real>][lane % WIDTH<Real>] * scale;
}

// Gradients of `count` points of one side from `first` on: sums over the points of the other, each times a weight.
// Weights are rows of the room for anchors, columns for keys. Of a diagonal tile, those below it are zeros.
template <class Real, bool KEYS>
void spread(const Tile<Real>& t, const Side<Real>& to, long first, long count, const Side<Real>& from, long other,
            long terms) {
    constexpr long L = LANES<Real>;
    const long panels = (t.features + L - 1) / L;
    const Real* rows = from.rows + other * panels * L;
    for (long p = 0; p < panels; ++p)  // outside, so that a panel stays in the L1 cache
        for (long i = 0; i < count; i += ROWS) {
            const long begin = !KEYS && t.diagonal() ? i : 0;
            const long end = KEYS && t.diagonal() && i + ROWS < terms ? i + ROWS : terms;
            Block<Real> block = {};
            const Real* panel = rows + (p * t.size + begin) * L;
            if (KEYS)
                multiply<Real>(block, t.room + begin * t.size + i, 1, t.size, panel, end - begin);
            else
                multiply<Real>(block, t.room + i * t.size + begin, t.size, 1, panel, end - begin);
            for (int r = 0; r < ROWS && i + r < count; ++r)
                add<Real>(to.gradient + to.place[first + i + r] * t.features + p * L, block[r], t.scale, t.features - p * L);
        }
}

template <class Real>
void sums(const Tile<Real>& t) {
    t.anchors->peak[0] ? own_shift_sums(t) : constant_shift_sums(t);
}

template <class Real>
void gradients(const Tile<Real>& t) {
    t.anchors->peak[0] ? own_shift_weights(t) : constant_shift_weights(t);
    if (t.anchors->gradient)
        spread<Real, false>(t, *t.anchors, t.top, t.height, *t.keys, t.first, t.width);
    if (t.keys->gradient)
        spread<Real, true>(t, *t.keys, t.first, t.width, *t.anchors, t.top, t.height);
}

// Where the numbers of point `i` of a side begin, of the panel `p` of `panels`.
template <class Real>
INLINE Real* row(const Side<Real>& side, long i, long p, long panels, long size) {
    return side.rows + ((i / size * panels + p) * size + i % size) * LANES<Real>;
}

// Gives a packed point unit length, and returns the length that it had. It is divided by its largest number first, so
// that no square is too large or too small. A zero vector has no direction: it stays, and as its length is infinite,
// its gradient is 0.
template <class Real>
INLINE Real make_unit(Real* to, long panels, long step) {
    using V = Vector<Real>;
    V most = {};
    for (long p = 0; p < panels; ++p)
        for (int half = 0; half < 2; ++half) {
            V x = load(to + p * step + half * WIDTH<Real>);
            x = x < 0 ? -x : x;
            most = x <= most ? most : x;  // NaN too
        }
    Real largest = most[0];
    for (int lane = 1; lane < WIDTH<Real>; ++lane) largest = most[lane] <= largest ? largest : most[lane];
    if (largest == 0) return Real(__builtin_inf());
    V squares = {};
    for (long p = 0; p < panels; ++p)
        for (int half = 0; half < 2; ++half) {
            Real* at = to + p * step + half * WIDTH<Real>;
            const V x = load(at) / largest;
            store(at, x);
            squares += x * x;
        }
    const Real root = Real(__builtin_sqrt(sum<Real>(squares)));
    for (long p = 0; p < panels; ++p)
        for (int half = 0; half < 2; ++half) {
            Real* at = to + p * step + half * WIDTH<Real>;
            store(at, load(at) / root);
        }
    return root * largest;
}

// Both layouts of the points of the tile that begins at `first`, zeros after the last feature and the last point.
template <class Real>
void pack(const Side<Real>& side, long first, long size, long features, Real scale) {
    constexpr long L = LANES<Real>;
    const long panels = (features + L - 1) / L, left = side.count - first;
    Real* rows = side.rows + first * panels * L;
    Real* columns = side.columns + first * features;
    for (long begin = 0; begin < size && begin < left + ROWS; begin += L) {
        for (long i = begin; i < begin + L; ++i) {
            const Real* point = i < left ? side.given + side.place[first + i] * side.point_step : nullptr;
            for (long p = 0; p < panels; ++p) {
                Real* to = rows + (p * size + i) * L;
                const long within = point ? (features - p * L < L ? features - p * L : L) : 0;
                if (within == L && side.feature_step == 1)
                    __builtin_memcpy(to, point + p * L, L * sizeof(Real));
                else
                    for (long d = 0; d < L; ++d) to[d] = d < within ? point[(p * L + d) * side.feature_step] : Real(0);
            }
            if (point && side.length) side.length[first + i] = make_unit<Real>(rows + i * L, panels, size * L);
        }
        for (long d = 0; d < features; ++d, columns += L) {
            const Real* from = rows + (d / L * size + begin) * L + d % L;
            for (long lane = 0; lane < L; ++lane) columns[lane] = from[lane * L] * scale;
        }
    }
}

// Sums of positive logits: products with sums of keys, which follow one another as the ranges of positives do. `window`
// has room for the numbers of one packed point.
template <class Real>
void positive_sums(const Side<Real>& a, const Side<Real>& k, bool mirrored, long size, long features, double* window,
                   double* found) {
    constexpr long L = LANES<Real>;
    const long panels = (features + L - 1) / L;
    long low = 0, high = 0;
    auto add = [&](long j, double sign) {
        for (long p = 0; p < panels; ++p) {
            const Real* x = row(k, j, p, panels, size);
            for (long d = 0; d < L; ++d) window[p * L + d] += sign * x[d];
        }
    };
    for (long i = 0; i < a.count; ++i) {
        if (a.low[i] >= high) {  // none of those before: start anew, so that nothing is left of them
            for (long d = 0; d < panels * L; ++d) window[d] = 0;
            low = high = a.low[i];
        }
        for (; high < a.high[i]; ++high) add(high, 1);
        for (; low < a.low[i]; ++low) add(low, -1);
        const long itself = mirrored ? i : a.itself ? a.itself[i] : -1;
        const bool positive = itself >= low && itself < high;
        double parts[L] = {};
        for (long p = 0; p < panels; ++p) {
            const Real* x = row(a, i, p, panels, size);
            const Real* y = positive ? row(k, itself, p, panels, size) : nullptr;
            for (long d = 0; d < L; ++d) parts[d] += x[d] * (window[p * L + d] - (y ? double(y[d]) : 0.0));
        }
        found[i] = 0;
        for (double part : parts) found[i] += part;
    }
}

// From gradients of unit vectors z to those of the points as given: dx = (dz - z <z, dz>) / |x|.
template <class Real>
void project(const Side<Real>& side, long size, long features) {
    constexpr long L = LANES<Real>;
    const long panels = (features + L - 1) / L;
    for (long i = 0; i < side.count; ++i) {
        Real* gradient = side.gradient + side.place[i] * features;
        Real parts[L] = {}, along = 0;
        auto each_panel = [&](auto act) {
            for (long p = 0; p < panels; ++p)
                act(gradient + p * L, row(side, i, p, panels, size), features - p * L < L ? features - p * L : L);
        };
        each_panel([&](const Real* dz, const Real* z, long count) {
            for (long d = 0; d < count; ++d) parts[d] += dz[d] * z[d];
        });
        for (Real part : parts) along += part;
        each_panel([&](Real* dz, const Real* z, long count) {
            for (long d = 0; d < count; ++d) dz[d] = (dz[d] - z[d] * along) / side.length[i];
        });
    }
}

template <class Real>
constexpr Kernels<Real> KERNELS = {ROWS,        LANES<Real>,     pack<Real>,          sums<Real>,
                                   gradients<Real>, positive_sums<Real>, project<Real>};

}  // namespace

extern const InstructionSet SET;
const InstructionSet SET = {NAME, KERNELS<float>, KERNELS<double>};

}  // namespace native::ISA
