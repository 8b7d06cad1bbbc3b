// What a tile is: some anchors against some keys, both in the order of their ids. `engine.cpp` makes tiles and decides
// who computes which; `tiles.cpp` computes them, compiled once for each instruction set.
#pragma once
#include <cstdint>

namespace native {

constexpr double LOG2_E = 1.4426950408889634;
constexpr long MOST = 96;  // points of a side of a tile at most: all that belongs to a tile stays in the L2 cache
enum Kind { POSITIVE, NEGATIVE, MIXED };
constexpr Kind BOTH[] = {POSITIVE, NEGATIVE};

// One side of all pairs of a group: its anchors, or its keys, or both where the anchors are the keys. Only points that
// take part are here, sorted by id; arrays that are read as vectors are padded to whole tiles.
template <class Real>
struct Side {
    long count;               // points
    const Real* given;        // the points as given, in any layout
    long point_step, feature_step;
    int64_t* place;           // which of the points given stands here
    uint64_t* id;             // ids as numbers that sort as they do
    // Packed tile by tile, since products read it so, panel after panel of LANES numbers:
    Real* rows;               // [tile][features / LANES][point][LANES], as given or of unit length
    Real* columns;            // [tile][points / LANES][feature][LANES], scaled, so that products are logits
    Real* length;             // of the points as given, infinite of a zero vector; null where none is made a unit vector
    Real* offset;             // of keys: added to every logit with them; so small beyond `count` that exp2 gives 0
    int64_t *low, *high;      // of anchors: the keys low <= j < high are the positives
    int64_t* itself;          // of anchors: its own key, -1 for none; null where a tile need not ask
    double* sums[2];          // of anchors: of exp2, over positives and over negatives
    Real* peak[2];            // of anchors: forward, what was taken from the exponents of these sums; backward, their
                              // logarithms; null where `offset` has it all, and logits are in units of log 2, for exp2
    Real *factor[2], *total;  // backward: what an exponential is multiplied by, and the gradient of the positive sum
    Real* gradient;           // of the points, as given, contiguous; null: not wanted
};

template <class Real>
struct Tile {
    const Side<Real>* anchors;
    const Side<Real>* keys;
    long top, first;      // its first anchor and key
    long height, width;   // how many of them
    long features, size;  // numbers of a point; points of a whole tile
    bool mirrored;        // stands for its mirror image too: anchors and keys are one side
    Real scale;           // of what is added to gradients
    Real* room;           // size * size numbers

    bool diagonal() const { return mirrored && top == first; }
};

// The functions of one instruction set.
template <class Real>
struct Kernels {
    long rows, lanes;  // of a block; MOST is a multiple of both
    void (*pack)(const Side<Real>&, long first, long size, long features, Real scale);
    void (*sums)(const Tile<Real>&);
    void (*gradients)(const Tile<Real>&);
    void (*positive_sums)(const Side<Real>& anchors, const Side<Real>& keys, bool mirrored, long size, long features,
                          double* window, double* found);
    void (*project)(const Side<Real>&, long size, long features);
};

struct InstructionSet {
    const char* name;
    Kernels<float> single;
    Kernels<double> twice;
};

}  // namespace native
