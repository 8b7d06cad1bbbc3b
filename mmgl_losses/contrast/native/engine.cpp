// The engine around the tiles: it sorts points by id, shares out pairs of tiles among threads, and finishes results.
//
// Only plain pointers come in and nothing outlives a call: no state, no pool of threads. Where torch runs on OpenMP, the
// caller gives the functions of that runtime, and the work runs on its threads, which are awake: a second runtime, or
// threads started for one call, would fight with them for the cores.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <stdexcept>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "tiles.h"

namespace native {
namespace base { extern const InstructionSet SET; }
#ifdef __x86_64__
namespace avx2 { extern const InstructionSet SET; }
namespace avx512 { extern const InstructionSet SET; }
#endif

// The fastest one that this processor has: 2, AVX-512; 1, AVX2; 0, what every processor of its kind has.
const InstructionSet& instruction_set([[maybe_unused]] int most) {
#ifdef __x86_64__
    __builtin_cpu_init();
    if (most >= 2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl"))
        return avx512::SET;
    if (most >= 1 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return avx2::SET;
#endif
    return base::SET;
}

const Kernels<float>& kernels(const InstructionSet& set, float) { return set.single; }
const Kernels<double>& kernels(const InstructionSet& set, double) { return set.twice; }

// What is called of an OpenMP runtime: the name is that of GCC's, which LLVM's and Intel's have too.
struct Runtime {
    void (*parallel)(void (*work)(void*), void* context, unsigned threads, unsigned flags);  // GOMP_parallel
    int (*rank)();                                                                           // omp_get_thread_num
    int (*size)();                                                                           // omp_get_num_threads
};

// A problem and where its results go, as `__init__.py` fills it in: shapes are those of `problem.Problem`. There are three
// calls: results forward, the mean loss of a formula forward, and gradients backward from what either of them gave.
struct Call {
    const void *anchors, *keys, *ids, *key_ids;
    const int64_t* self_index;
    const uint8_t *anchor_mask, *key_mask;
    const void *log_weights, *limit;
    void* lse[2];                // written forward, read backward
    void* total;                 // results: sums of positive logits; else the derivatives by them, null where they are 0
    int64_t* counts[2];          // results
    void* upstream[2];           // derivatives by `lse`: written with a formula, read backward
    void* gradient[2];           // backward: of anchors and keys; null where not wanted
    void* loss;                  // with a formula, of each group or `average`: written; backward: the gradient of it
    double* share;               // of each group: what the loss of an anchor counts in `loss`; null without a formula
    int64_t groups, n, m, features, anchor_steps[3], key_steps[3], threads;
    Runtime runtime;             // of the threads; nulls: threads are started and ended with the call
    int32_t backward, wide, id_type, has_tolerance, unit, most;  // id_type: 0 int64, 1 float32, 2 float64
    int32_t formula, negatives, average;  // anchors without negatives do not count; groups are averaged
    double scale, tolerance, weight;      // of the loss
};

// As `losses.formulas` has them; a `Call` names one by its number.
enum Formula { SUPCON, SUPCON_IN, DECOUPLED, MMGL_LOCAL, MMGL_GLOBAL };

struct Loss { double value, by[2], by_total; };  // of an anchor; its derivatives by both log-sum-exps and by the sum

double log_add(double a, double b) {
    const double most = std::max(a, b);
    return std::isinf(most) ? most : most + std::log(std::exp(a - most) + std::exp(b - most));
}

// p, q: log-sum-exps over positives and negatives; total: of the logits of the `number` positives; itself: of the anchor
// with itself.
Loss loss_of(int formula, double p, double q, double total, double number, double itself) {
    const double mean = total / number;
    if (formula == MMGL_LOCAL) return {(q - p) / number, {-1 / number, 1 / number}, 0};
    if (formula == DECOUPLED) return {q - mean, {0, 1}, -1 / number};
    const double all = log_add(formula == MMGL_GLOBAL ? itself : p, q), by_q = std::exp(q - all);
    if (formula == MMGL_GLOBAL) return {all - mean, {0, by_q}, -1 / number};
    const double by_p = std::exp(p - all);
    if (formula == SUPCON_IN) return {all - p + std::log(number), {by_p - 1, by_q}, 0};
    return {all - mean, {by_p, by_q}, -1 / number};
}

constexpr double MARGIN = 0.35;      // log 2 / 2: exp2 rounds its exponent
constexpr double NEVER = -1e30;      // as a logit: its exp2 is 0
constexpr double WORK = 1 << 22;     // multiplications that are worth another thread
constexpr size_t ALIGNMENT = 64;
enum Error { NO_MEMORY = 1, BAD_INDEX = 2 };

// Memory that is given back together.
class Memory {
    struct Free { void operator()(void* p) const { ::operator delete(p, std::align_val_t(ALIGNMENT)); } };
    std::vector<std::unique_ptr<void, Free>> pieces;

  public:
    template <class T>
    T* take(long count) {
        pieces.emplace_back(::operator new(std::max(count, 1L) * sizeof(T), std::align_val_t(ALIGNMENT)));
        return static_cast<T*>(pieces.back().get());
    }
};

// Threads that go through the same phases together. What one of them throws is kept until all are through.
class Team {
    std::atomic<long> size, arrived{0};
    std::vector<std::atomic<long>> claimed;  // of each phase: tasks that someone has taken
    std::atomic<int> failed{0};

    template <class Work>
    void start(const Work& work) {
        std::vector<std::thread> others;
        const long wanted = size;
        try {
            others.reserve(wanted);
            for (long rank = 1; rank < wanted; ++rank) others.emplace_back([&work, rank] { work(rank); });
        } catch (...) {  // fewer will do
            size = others.size() + 1;
        }
        work(0);
        for (auto& thread : others) thread.join();
    }

    template <class Work>
    void borrow(const Runtime& runtime, const Work& work) {
        struct Context { Team& team; const Runtime& runtime; const Work& work; } context = {*this, runtime, work};
        auto member = [](void* given) {
            const Context& c = *static_cast<Context*>(given);
            c.team.size = c.runtime.size();  // which may be less than was asked for, as inside a parallel region
            c.work(c.runtime.rank());
        };
        runtime.parallel(member, &context, unsigned(size.load()), 0);
    }

  public:
    Team(long threads, long phases) : size(threads), claimed(phases) {}

    // `work(rank)` in every thread; what went wrong, or 0.
    template <class Work>
    int run(const Runtime& runtime, const Work& work) {
        if (size == 1) work(0);
        else if (runtime.parallel) borrow(runtime, work);
        else start(work);
        return failed;
    }

    // A phase: `task(0)` to `task(count - 1)`, each by whoever comes first; all are done when it returns.
    template <class Task>
    void each(long phase, long count, const Task& task) {
        for (long i; !failed && (i = claimed[phase]++) < count;) {
            try {
                task(i);
            } catch (const std::out_of_range&) {
                failed = BAD_INDEX;
            } catch (...) {
                failed = NO_MEMORY;
            }
        }
        ++arrived;
        while (arrived < size * (phase + 1)) std::this_thread::yield();
    }
};

// Ids as numbers that sort as they do; 0.0 and -0.0 are one.
uint64_t sortable(double x) {
    uint64_t bits;
    x += 0.0;
    std::memcpy(&bits, &x, sizeof bits);
    return bits >> 63 ? ~bits : bits | 1ULL << 63;
}

uint64_t read_id(const void* ids, int type, long i) {
    if (type == 0) return uint64_t(static_cast<const int64_t*>(ids)[i]) ^ 1ULL << 63;
    return sortable(type == 1 ? static_cast<const float*>(ids)[i] : static_cast<const double*>(ids)[i]);
}

double as_number(uint64_t id) {  // the inverse of `sortable`
    const uint64_t bits = id >> 63 ? id & ~(1ULL << 63) : ~id;
    double x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

template <class Real>
struct Group {
    Side<Real> anchors, others;
    Side<Real>* keys;
    std::atomic<int>*anchors_done, *keys_done;  // of each tile of a side: pairs that are computed
    long anchor_tiles = 0, key_tiles = 0;
};

// A pair of tiles, and how many pairs before it each of the two is in: whoever takes it waits for those. So no tile
// is written to from two threads, and sums are in the same order whatever their number.
struct Pair { long i, j, before_i, before_j; };

// All pairs of B tiles with one another: first each with itself, then rounds in which each meets another, as the
// teams of a tournament do: B or B - 1 stand in a circle, and the pair at the same distance from `round` meet.
Pair in_tournament(long tiles, long number) {
    if (number < tiles) return {number, number, 0, 0};
    const bool odd = tiles % 2;
    const long circle = tiles - !odd, round = (number - tiles) / (tiles / 2), slot = (number - tiles) % (tiles / 2);
    const long distance = slot + odd;  // 0: with the one that stands in the middle
    long i = (round + distance) % circle, j = distance ? (round - distance + circle) % circle : circle;
    if (i > j) std::swap(i, j);
    auto before = [&](long tile) { return 1 + round - (odd && tile < round); };  // tile `round` rests
    return {i, j, before(i), before(j)};
}

// All pairs of tiles of two sides, the first being the shorter: in each round all of it meet others.
Pair in_rounds(long shorter, long longer, long number) {
    const long round = number / shorter, i = number % shorter;
    const long before = std::min(round, shorter - 1 - i) + std::max(0L, round - longer + i + 1);
    return {i, (i + round) % longer, round, before};
}

Pair pair(long anchor_tiles, long key_tiles, bool own, long number) {
    if (own) return in_tournament(anchor_tiles, number);
    if (anchor_tiles <= key_tiles) return in_rounds(anchor_tiles, key_tiles, number);
    const Pair turned = in_rounds(key_tiles, anchor_tiles, number);
    return {turned.j, turned.i, turned.before_j, turned.before_i};
}

template <class Real>
class Solver {
    const Call& call;
    const Kernels<Real>& kernel;
    Memory memory;
    std::vector<Group<Real>> groups;  // those that are solved at a time, one after another in the same memory
    long threads;
    double shift = 0;         // what all logits are lessened by
    bool common;              // there is such a constant
    bool mirrored;            // anchors are keys, and i is a positive of j where j is one of i
    double size = 1;          // of the gradients: taken out, so that small ones do not become denormal
    std::vector<double> means;  // of the losses of each group
    long tile, panels;
    Real* rooms = nullptr;

    bool own() const { return !call.keys; }
    Real* real(void* p, long at) const { return static_cast<Real*>(p) + at; }
    const Real* real(const void* p, long at) const { return static_cast<const Real*>(p) + at; }

    double longest(const void* points, const int64_t* steps, long count) const {
        double most = 0;
        for (long g = 0; g < call.groups; ++g)
            for (long i = 0; i < count; ++i) {
                const Real* x = real(points, g * steps[0] + i * steps[1]);
                double length = 0;
                for (long d = 0; d < call.features; ++d) length += double(x[d * steps[2]]) * x[d * steps[2]];
                if (!(length <= most)) most = length;  // NaN too
            }
        return std::sqrt(most);
    }

    // The constant with which all exponentials and their sums are normal numbers, if there is one. Logits are within
    // what was promised, or within the product of the longest vectors.
    bool find_shift() {
        double reach;
        if (call.limit) {
            reach = *real(call.limit, 0);
        } else if (call.unit) {
            reach = call.scale;
        } else {
            const double one = longest(call.anchors, call.anchor_steps, call.n);
            reach = one * (own() ? one : longest(call.keys, call.key_steps, call.m)) * call.scale;
        }
        double most = 0;
        for (long j = 0; call.log_weights && j < call.groups * call.m; ++j)
            if (!call.key_mask || call.key_mask[j]) most = std::max(most, std::abs(double(*real(call.log_weights, j))));
        reach += most;
        using Limits = std::numeric_limits<Real>;
        shift = std::max(0.0, reach + std::log(std::max(call.m, int64_t(1))) - std::log(double(Limits::max())) + MARGIN);
        return shift <= -std::log(double(Limits::min())) - reach;  // false of NaN
    }

    bool same_masks() const {
        if (!call.anchor_mask || !call.key_mask) return call.anchor_mask == call.key_mask;
        return !std::memcmp(call.anchor_mask, call.key_mask, call.groups * call.n);
    }

    // Whether every thread can take whole groups, and all would end at about the same time.
    bool alike() const {
        if (!call.groups || call.groups % threads) return false;
        double least = std::numeric_limits<double>::max(), most = 0;
        auto some = [](const uint8_t* mask, long g, long count) {
            return mask ? count - std::count(mask + g * count, mask + (g + 1) * count, 0) : count;
        };
        for (long g = 0; g < call.groups; ++g) {
            const double work = double(some(call.anchor_mask, g, call.n)) * some(call.key_mask, g, call.m);
            least = std::min(least, work), most = std::max(most, work);
        }
        return most <= 1.1 * least;
    }

    Side<Real> side(const int64_t* steps, long most) {
        Side<Real> s = {};
        s.point_step = steps[1], s.feature_step = steps[2];
        const long padded = (most + tile - 1) / tile * tile;
        s.place = memory.take<int64_t>(most), s.id = memory.take<uint64_t>(most);
        s.rows = memory.take<Real>(padded * panels * kernel.lanes);
        s.columns = memory.take<Real>(padded * call.features);
        if (call.unit) s.length = memory.take<Real>(most);
        return s;
    }

    void make_room(Group<Real>& group) {
        const long n = call.n, padded = (n + tile - 1) / tile * tile;
        auto reals = [&](long count) { return memory.take<Real>(count); };
        Side<Real>& a = group.anchors = side(call.anchor_steps, n);
        group.keys = &a;
        a.low = memory.take<int64_t>(padded), a.high = memory.take<int64_t>(padded);
        for (Kind k : BOTH) {
            a.sums[k] = memory.take<double>(n);
            if (!common) a.peak[k] = reals(n);
            if (call.backward) a.factor[k] = reals(padded);
        }
        if (call.backward) a.total = reals(padded);
        if (!mirrored) {
            group.keys = &group.others;
            group.others = side(own() ? call.anchor_steps : call.key_steps, call.m);
            if (own() || call.self_index) a.itself = memory.take<int64_t>(padded);
            const long key_padded = (call.m + tile - 1) / tile * tile;
            if (call.backward) {
                Real* zeros = group.others.total = reals(key_padded);
                std::fill_n(zeros, key_padded, Real(0));
                group.others.factor[0] = group.others.factor[1] = zeros;
            }
            if (own() && call.backward) group.others.gradient = reals(call.m * call.features);
        }
        group.keys->offset = reals((call.m + tile - 1) / tile * tile);
        const long most = (std::max(n, int64_t(call.m)) + tile - 1) / tile;
        for (auto done : {&group.anchors_done, &group.keys_done}) *done = memory.take<std::atomic<int>>(most);
        if (mirrored) group.keys_done = group.anchors_done;
    }

    void sort(Side<Real>& side, const void* ids, const uint8_t* mask, long first, long count) {
        std::vector<std::pair<uint64_t, int64_t>> order;
        order.reserve(count);
        for (long i = 0; i < count; ++i)
            if (!mask || mask[first + i]) order.emplace_back(read_id(ids, call.id_type, first + i), i);
        std::sort(order.begin(), order.end());
        side.count = order.size();
        for (long i = 0; i < side.count; ++i) side.id[i] = order[i].first, side.place[i] = order[i].second;
    }

    void find_positives(Group<Real>& group) {
        const Side<Real>&a = group.anchors, &k = *group.keys;
        const double reach = call.has_tolerance ? call.tolerance : 0;
        for (long i = 0, low = 0, high = 0; i < a.count; ++i) {
            uint64_t least = a.id[i], most = a.id[i];
            if (reach > 0) least = sortable(as_number(a.id[i]) - reach), most = sortable(as_number(a.id[i]) + reach);
            while (low < k.count && k.id[low] < least) ++low;
            while (high < k.count && k.id[high] <= most) ++high;
            a.low[i] = low, a.high[i] = std::max(low, high);
        }
    }

    void find_itself(Group<Real>& group, long g) {
        const Side<Real>&a = group.anchors, &k = *group.keys;
        std::vector<int64_t> at(call.m, -1);
        for (long j = 0; j < k.count; ++j) at[k.place[j]] = j;
        for (long i = 0; i < a.count; ++i) {
            const int64_t itself = own() ? a.place[i] : call.self_index[g * call.n + a.place[i]];
            a.itself[i] = itself < 0 ? -1 : at.at(itself);
        }
    }

    // A gradient of an anchor's results. Where it is 0 as such, not even a loss whose own gradient is NaN changes that.
    double upstream(const void* gradients, long g, long at) const {
        const double own = *real(gradients, at);
        return call.share && own ? own * call.share[g] * *real(call.loss, call.average ? 0 : g) : own;
    }

    void find_factors(const Side<Real>& a, long g) {
        std::fill_n(a.factor[0], tiles(a.count) * tile, Real(0));
        std::fill_n(a.factor[1], tiles(a.count) * tile, Real(0));
        std::fill_n(a.total, tiles(a.count) * tile, Real(0));
        for (long i = 0; i < a.count; ++i) {
            const long at = g * call.n + a.place[i];
            for (Kind k : BOTH) {
                const double lse = *real(call.lse[k], at), factor = upstream(call.upstream[k], g, at) / size;
                a.factor[k][i] = Real(common ? factor * std::exp(shift - lse) : factor);
                if (!common) a.peak[k][i] = Real(lse);
            }
            if (call.total) a.total[i] = Real(upstream(call.total, g, at) / size);
        }
    }

    long tiles(long count) const { return (count + tile - 1) / tile; }

    void prepare(Group<Real>& group, long g) {
        Side<Real>&a = group.anchors, &k = *group.keys;
        a.given = real(call.anchors, g * call.anchor_steps[0]);
        if (call.gradient[0]) a.gradient = real(call.gradient[0], g * call.n * call.features);
        if (!mirrored) k.given = own() ? a.given : real(call.keys, g * call.key_steps[0]);
        if (call.gradient[1]) k.gradient = real(call.gradient[1], g * call.m * call.features);
        sort(a, call.ids, call.anchor_mask, g * call.n, call.n);
        if (!mirrored) sort(k, own() ? call.ids : call.key_ids, call.key_mask, g * call.m, call.m);
        find_positives(group);
        if (a.itself) find_itself(group, g);
        group.anchor_tiles = tiles(a.count), group.key_tiles = tiles(k.count);
        for (long i = 0; i < group.anchor_tiles; ++i) new (group.anchors_done + i) std::atomic<int>(0);
        for (long j = 0; j < group.key_tiles; ++j) new (group.keys_done + j) std::atomic<int>(0);
        const long padded = group.key_tiles * tile;
        for (long j = 0; j < padded; ++j) {
            const double weight = j < k.count && call.log_weights ? *real(call.log_weights, g * call.m + k.place[j]) : 0;
            k.offset[j] = Real(j < k.count ? (weight - shift) * unit() : NEVER);
        }
        for (Kind kind : BOTH) {
            std::fill_n(a.sums[kind], a.count, 0.0);
            if (!common) std::fill_n(a.peak[kind], a.count, std::numeric_limits<Real>::lowest());
        }
        if (call.backward) {
            find_factors(a, g);
            if (a.gradient) std::fill_n(a.gradient, call.n * call.features, Real(0));
            if (k.gradient) std::fill_n(k.gradient, call.m * call.features, Real(0));
        }
        for (long i = 0; i < group.anchor_tiles; ++i) kernel.pack(a, i * tile, tile, call.features, Real(call.scale * unit()));
        if (!mirrored)
            for (long j = 0; j < group.key_tiles; ++j) kernel.pack(k, j * tile, tile, call.features, Real(call.scale * unit()));
    }

    long pairs(const Group<Real>& group) const {
        const long i = group.anchor_tiles, j = group.key_tiles;
        return mirrored ? i * (i + 1) / 2 : i * j;
    }

    double unit() const { return common ? LOG2_E : 1; }  // of logits

    void compute(Group<Real>& group, long number, Real* room) {
        if (number >= pairs(group)) return;
        const Side<Real>&a = group.anchors, &k = *group.keys;
        const Pair p = pair(group.anchor_tiles, group.key_tiles, mirrored, number);
        auto &one = group.anchors_done[p.i], &other = group.keys_done[p.j];
        while (one.load(std::memory_order_acquire) < p.before_i || other.load(std::memory_order_acquire) < p.before_j)
            std::this_thread::yield();
        const long top = p.i * tile, first = p.j * tile;
        const Tile<Real> t = {&a, &k, top, first, std::min(tile, a.count - top), std::min(tile, k.count - first),
                              call.features, tile, mirrored, Real(size * call.scale), room};
        (call.backward ? kernel.gradients : kernel.sums)(t);
        one.fetch_add(1, std::memory_order_release);
        if (&one != &other) other.fetch_add(1, std::memory_order_release);
    }

    // How many positives and negatives an anchor has, and the log-sum-exps over them.
    struct Anchor { long count[2]; double lse[2]; };

    Anchor anchor(const Group<Real>& group, long i) const {
        const Side<Real>& a = group.anchors;
        const long itself = mirrored ? i : a.itself ? a.itself[i] : -1, among = a.high[i] - a.low[i];
        const bool positive = itself >= a.low[i] && itself < a.high[i];
        Anchor found = {{among - positive, group.keys->count - among - (itself >= 0 && !positive)}, {}};
        for (Kind k : BOTH)
            found.lse[k] = found.count[k] ? std::log(a.sums[k][i]) + (common ? shift : double(a.peak[k][i])) : -INFINITY;
        return found;
    }

    // Of each anchor: the sum of the products with its positives.
    std::vector<double> totals(const Group<Real>& group) const {
        std::vector<double> found(group.anchors.count), window(panels * kernel.lanes);
        kernel.positive_sums(group.anchors, *group.keys, mirrored, tile, call.features, window.data(), found.data());
        return found;
    }

    void give_results(const Group<Real>& group, long g) {
        const long first = g * call.n;
        for (Kind k : BOTH) {
            std::fill_n(real(call.lse[k], first), call.n, Real(-INFINITY));
            std::fill_n(call.counts[k] + first, call.n, 0);
        }
        std::fill_n(real(call.total, first), call.n, Real(0));
        const std::vector<double> sums = totals(group);
        for (long i = 0; i < group.anchors.count; ++i) {
            const long at = first + group.anchors.place[i];
            const Anchor found = anchor(group, i);
            for (Kind k : BOTH) call.counts[k][at] = found.count[k], *real(call.lse[k], at) = Real(found.lse[k]);
            if (found.count[POSITIVE]) *real(call.total, at) = Real(sums[i] * call.scale);
        }
    }

    void give_losses(const Group<Real>& group, long g) {
        const long first = g * call.n;
        for (Kind k : BOTH) {
            std::fill_n(real(call.lse[k], first), call.n, Real(INFINITY));
            std::fill_n(real(call.upstream[k], first), call.n, Real(0));
        }
        if (call.total) std::fill_n(real(call.total, first), call.n, Real(0));
        const std::vector<double> sums = call.total ? totals(group) : std::vector<double>(group.anchors.count);
        const Side<Real>& a = group.anchors;
        double sum = 0;
        long valid = 0;
        for (long i = 0; i < a.count; ++i) {
            const long at = first + a.place[i];
            const Anchor found = anchor(group, i);
            if (!found.count[POSITIVE] || (call.negatives && !found.count[NEGATIVE])) continue;
            const double itself = a.length && std::isinf(a.length[i]) ? 0 : call.scale;  // 0: of a zero vector
            const Loss loss = loss_of(call.formula, found.lse[POSITIVE], found.lse[NEGATIVE], sums[i] * call.scale,
                                      found.count[POSITIVE], itself);
            sum += loss.value, ++valid;
            for (Kind k : BOTH) {
                if (found.count[k]) *real(call.lse[k], at) = Real(found.lse[k]);
                *real(call.upstream[k], at) = Real(loss.by[k]);
            }
            if (call.total) *real(call.total, at) = Real(loss.by_total);
        }
        means[g] = valid ? sum / valid : 0, call.share[g] = valid ? 1.0 / valid : 0;
    }

    void give_gradients(const Group<Real>& group) {
        const Side<Real>&a = group.anchors, &k = group.others;
        if (call.unit)
            for (const Side<Real>* side : {&a, &k})
                if (side->gradient) kernel.project(*side, tile, call.features);
        if (own() && !mirrored)
            for (long i = 0; i < call.n * call.features; ++i) a.gradient[i] += k.gradient[i];
    }

    void finish(const Group<Real>& group, long g) {
        if (call.backward) give_gradients(group);
        else if (call.share) give_losses(group, g);
        else give_results(group, g);
    }

    // From the means of the groups to the loss.
    void average() {
        const long some = call.groups - std::count(call.share, call.share + call.groups, 0.0);
        const double weight = call.average ? call.weight / std::max(some, 1L) : call.weight;
        double sum = 0;
        for (long g = 0; g < call.groups; ++g) {
            call.share[g] *= weight, sum += means[g] * weight;
            if (!call.average) *real(call.loss, g) = Real(means[g] * weight);
        }
        if (call.average) *real(call.loss, 0) = Real(sum);
    }

    void find_size() {
        size = 0;
        for (Kind k : BOTH)
            for (long i = 0; i < call.groups * call.n; ++i)
                size = std::max(size, std::abs(upstream(call.upstream[k], i / call.n, i)));
        if (size == 0) size = 1;
    }

    // A group by one thread: nobody waits.
    void solve_alone(Group<Real>& group, long g, Real* room) {
        prepare(group, g);
        for (long number = 0; number < pairs(group); ++number) compute(group, number, room);
        finish(group, g);
    }

    // The groups by all threads. Their pairs of tiles are taken in turn, so that those of one group rarely wait for another.
    void solve_together(Team& team, Real* room) {
        const long at_once = groups.size();
        for (long first = 0, phase = 0; first < call.groups; first += at_once, phase += 3) {
            const long count = std::min(at_once, call.groups - first);
            team.each(phase, count, [&](long i) { prepare(groups[i], first + i); });
            long rounds = 0;
            for (long i = 0; i < count; ++i) rounds = std::max(rounds, pairs(groups[i]));
            team.each(phase + 1, rounds * count, [&](long number) { compute(groups[number % count], number / count, room); });
            team.each(phase + 2, count, [&](long i) { finish(groups[i], first + i); });
        }
    }

  public:
    Solver(const Call& call, const Kernels<Real>& kernel) : call(call), kernel(kernel) {
        common = find_shift();
        if (!common) shift = 0;
        mirrored = own() && common && !call.has_tolerance && !call.log_weights && same_masks();
        if (call.backward) find_size();
        const long most = std::max(call.n, call.m);
        auto whole = [](long count, long unit) { return (count + unit - 1) / unit * unit; };
        tile = std::min(MOST, whole(whole(most, kernel.rows), kernel.lanes));
        panels = (call.features + kernel.lanes - 1) / kernel.lanes;
        const double work = double(call.groups) * call.n * call.m * call.features;
        threads = std::max(1L, std::min(long(call.threads), long(work / WORK)));
        groups.resize(std::min(threads, long(call.groups)));
        for (auto& group : groups) make_room(group);
        if (call.share) means.resize(call.groups);
    }

    // As many groups at a time as there are threads: what is packed of them is still in the cache when it is needed.
    int solve() {
        rooms = memory.take<Real>(threads * tile * tile);
        std::fill_n(rooms, threads * tile * tile, Real(0));
        Team team(threads, 3 * call.groups);
        const bool whole = alike();
        const int error = team.run(call.runtime, [&](long rank) {
            Real* room = rooms + rank * tile * tile;
            if (whole) team.each(0, call.groups, [&](long g) { solve_alone(groups[rank], g, room); });
            else solve_together(team, room);
        });
        if (!error && call.share && !call.backward) average();
        return error;
    }
};

template <class Real>
int solve(const Call& call) {
    return Solver<Real>(call, kernels(instruction_set(call.most), Real())).solve();
}

}  // namespace native

extern "C" {
// 0, or an `Error`.
__attribute__((visibility("default"))) int mmgl_solve(const native::Call* call) {
    try {
        return call->wide ? native::solve<double>(*call) : native::solve<float>(*call);
    } catch (...) {
        return native::NO_MEMORY;
    }
}

// Of a `Call`, in bytes: a caller that means another one must not call.
__attribute__((visibility("default"))) int mmgl_call_size() { return sizeof(native::Call); }

__attribute__((visibility("default"))) const char* mmgl_instruction_set(int most) { return native::instruction_set(most).name; }
}
