// The pieces of one byte's work, which the persistent kernel and the kernels for many rows share.
//
// A *column* is one byte of one sequence. Whatever the number of columns, each one's sums are taken in the same order:
// a product over K inputs is a sum, from the first, of slices of 128 inputs, each the sum of two chains of matrix
// instructions from zero. So a column's results do not depend, to the last bit, on what is computed beside it.
//
// From the host: IO, D (width), E (inner width), N (states), R (rank of dt), W (taps), V (vocabulary), LAYER (1: the
// norm subtracts the mean), BIAS (1: it has a bias). EPS_BITS is the float32 eps of the norm.
#pragma once

constexpr int SLICE = 128, TILE = 8;                 // inputs and outputs of a block of weights
constexpr int BLOCK = SLICE * TILE, BLOCK_BYTES = BLOCK * 2;  // [8 inputs of 128][8 outputs][8 inputs] of 16 bits
constexpr int D_SLICES = (D + SLICE - 1) / SLICE, E_SLICES = (E + SLICE - 1) / SLICE;
constexpr int D_PITCH = D_SLICES * SLICE, E_PITCH = E_SLICES * SLICE;
constexpr int D_TILES = (D + TILE - 1) / TILE, E_TILES = (E + TILE - 1) / TILE;
constexpr int V_TILES = (V + TILE - 1) / TILE;
constexpr int PARTS = 4;  // lanes that share the sum of a step size
__device__ constexpr int power_of_two(int least) { return least <= 1 ? 1 : 2 * power_of_two((least + 1) / 2); }
constexpr int N_PITCH = power_of_two(N) > PARTS ? power_of_two(N) : PARTS;
constexpr int R_OWN = (R + 4 * PARTS - 1) / (4 * PARTS) * 4;  // inputs of dt of a lane, in whole quads
constexpr int R_PITCH = PARTS * R_OWN;
constexpr int SELECT = R + 2 * N, SELECT_TILES = (SELECT + TILE - 1) / TILE;
constexpr int SELECT_PITCH = SELECT_TILES * TILE > R_PITCH ? SELECT_TILES * TILE : R_PITCH;
constexpr int CONV_STATE = W - 1;

// A lane's part of a block in shared memory, as matrix instructions take it: of row lane / 4 the pair lane % 4 of each
// 8 inputs, [4][8 inputs of 32].
__device__ __forceinline__ void take_block(uint4 (&part)[4], const void* block, int lane) {
#pragma unroll
    for (int i = 0; i < 4; i++) part[i] = load_matrices((const uint4*)block + i * 32 + lane);
}
// The same in global memory.
__device__ __forceinline__ void read_block(uint4 (&part)[4], const void* block, int lane) {
    const unsigned* pairs = (const unsigned*)block + lane;
#pragma unroll
    for (int i = 0; i < 4; i++)
        part[i] = make_uint4(pairs[i * 128], pairs[i * 128 + 32], pairs[i * 128 + 64], pairs[i * 128 + 96]);
}

// A slice's product of 16 columns (low: column lane / 4, high: that plus 8) with 8 outputs, all as `take_block` has
// them. Of each 32 inputs the first chain has the first 16.
__device__ __forceinline__ void multiply(float (&d)[4], const uint4 (&low)[4], const uint4 (&high)[4],
                                         const uint4 (&weights)[4]) {
    float odd[4] = {0.f, 0.f, 0.f, 0.f};
    d[0] = d[1] = d[2] = d[3] = 0.f;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        mma(d, {low[i].x, high[i].x, low[i].y, high[i].y}, weights[i].x, weights[i].y);
        mma(odd, {low[i].z, high[i].z, low[i].w, high[i].w}, weights[i].z, weights[i].w);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) d[i] += odd[i];
}

__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) v += __shfl_xor_sync(ALL, v, lanes);
    return v;
}

// The norm of a column: a warp sums a slice, of which lane l has x from 4 l on, zero beyond D; the slices' sums are
// added in order.
__device__ __forceinline__ float slice_sum(float4 x) { return warp_sum((x.x + x.y) + (x.z + x.w)); }
__device__ __forceinline__ float slice_square(float4 x) {
    return warp_sum(fmaf(x.x, x.x, x.y * x.y) + fmaf(x.z, x.z, x.w * x.w));
}
__device__ __forceinline__ float add_slices(const float* sums) {
    float sum = sums[0];
#pragma unroll
    for (int slice = 1; slice < D_SLICES; slice++) sum += sums[slice];
    return sum;
}
// x less the mean of the column, zero beyond D; `place` is that of x.x.
__device__ __forceinline__ float4 centred(float4 x, float mean, int place) {
#pragma unroll
    for (int c = 0; c < 4; c++) at(x, c) = place + c < D ? at(x, c) - mean : 0.f;
    return x;
}
__device__ __forceinline__ float rate_of(float squares) { return rsqrtf(squares / D + __int_as_float(EPS_BITS)); }
// norm: scale (D_PITCH) and, if there is one, bias (D_PITCH).
__device__ __forceinline__ io4 scaled(float4 x, float rate, const float* norm, int place) {
    float4 w = *(const float4*)(norm + place), y;
#pragma unroll
    for (int c = 0; c < 4; c++) at(y, c) = at(x, c) * rate * at(w, c);
    if (BIAS) {
        float4 b = *(const float4*)(norm + D_PITCH + place);
        y = make_float4(y.x + b.x, y.y + b.y, y.z + b.z, y.w + b.w);
    }
    return pack(y);
}

__device__ __forceinline__ float rounded(float v) { return to_float(from_float(v)); }

// What 8 channels bring along, as it lies in memory: float32 in the model's own values but A, which is A log2(e).
struct Channels {
    float taps[TILE][W], conv_bias[TILE], dt_bias[TILE], skip[TILE], A[TILE][N_PITCH];
    __align__(16) io_t dt[TILE][R_PITCH];
};
static_assert(sizeof(Channels) % 16 == 0, "copied 16 bytes at a time");

// One channel's convolution at one column, of its last CONV_STATE inputs and x; u as it is stored.
__device__ __forceinline__ float convolve(const float (&past)[CONV_STATE], float x, const float* taps, float bias) {
    float sum = bias;
#pragma unroll
    for (int w = 0; w < CONV_STATE; w++) sum = fmaf(taps[w], past[w], sum);
    return rounded(silu(fmaf(taps[CONV_STATE], x, sum)));
}
// The inputs that the next column finds.
__device__ __forceinline__ void move_on(float (&past)[CONV_STATE], float x) {
#pragma unroll
    for (int w = 0; w + 1 < CONV_STATE; w++) past[w] = past[w + 1];
    past[CONV_STATE - 1] = x;
}

// A part's share of the step size of one channel at one column, from the first R selected values and the part's R_OWN
// of the channel's R_PITCH weights, zero beyond R.
struct StepWeights {
    io4 quads[R_OWN / 4];
    __device__ __forceinline__ StepWeights(const io_t* weights, int part) {
#pragma unroll
        for (int r = 0; r < R_OWN / 4; r++) quads[r] = ((const io4*)(weights + part * R_OWN))[r];
    }
};
__device__ __forceinline__ float step_part(const float* selected, const StepWeights& weights) {
    float sum = 0.f;
#pragma unroll
    for (int r = 0; r < R_OWN / 4; r++) {
        float4 low = ((const float4*)selected)[r], weight = unpack(weights.quads[r]);
#pragma unroll
        for (int c = 0; c < 4; c++) sum = fmaf(at(low, c), at(weight, c), sum);
    }
    return sum;
}
__device__ __forceinline__ float step_size(float sum, float bias) { return softplus(rounded(sum) + bias); }

// The sum of what LANES neighbours hold: a tree, neighbours first.
template <int LANES>
__device__ __forceinline__ float add_lanes(float v, unsigned group) {
#pragma unroll
    for (int lanes = 1; lanes < LANES; lanes *= 2) v += __shfl_xor_sync(group, v, lanes);
    return v;
}
// The lanes of `lanes` neighbours that this one is of; a power of two.
__device__ __forceinline__ unsigned group_of(int lane, int lanes) {
    return (lanes == 32 ? ALL : (1u << lanes) - 1) << (lane & ~(lanes - 1));
}

// A lane's OWN states, at a place where quads lie on their own size.
template <int OWN>
__device__ __forceinline__ void load_states(float (&h)[OWN], const float* from) {
    if constexpr (OWN % 4 == 0)
#pragma unroll
        for (int i = 0; i < OWN; i += 4) {
            float4 v = *(const float4*)(from + i);
            h[i] = v.x, h[i + 1] = v.y, h[i + 2] = v.z, h[i + 3] = v.w;
        }
    else
#pragma unroll
        for (int i = 0; i < OWN; i++) h[i] = from[i];
}
template <int OWN>
__device__ __forceinline__ void store_states(const float (&h)[OWN], float* to) {
    if constexpr (OWN % 4 == 0)
#pragma unroll
        for (int i = 0; i < OWN; i += 4) store_four(to + i, make_float4(h[i], h[i + 1], h[i + 2], h[i + 3]));
    else
#pragma unroll
        for (int i = 0; i < OWN; i++) to[i] = h[i];
}
// A lane's values of all N of B or C, zero beyond N.
template <int OWN>
__device__ __forceinline__ void pick(float (&own)[OWN], const float* all, int part) {
    if constexpr (OWN % 4 == 0 && N == N_PITCH && R % 4 == 0) load_states(own, all + part * OWN);
    else
#pragma unroll
        for (int i = 0; i < OWN; i++) own[i] = N == N_PITCH || part * OWN + i < N ? all[part * OWN + i] : 0.f;
}
// A lane's states of one channel at one column, and its share of y. All N products are added as a tree, neighbours
// first, however many lanes share them.
template <int OWN>
__device__ __forceinline__ float advance(float (&h)[OWN], float dt, float u, const float (&B)[OWN],
                                         const float (&C)[OWN], const float (&A)[OWN]) {
    float products[OWN], in = dt * u;
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        h[i] = fmaf(ex2(dt * A[i]), h[i], in * B[i]);
        products[i] = __fmul_rn(h[i], C[i]);  // never fused with an addition, which depends on OWN
    }
#pragma unroll
    for (int width = 1; width < OWN; width *= 2)
#pragma unroll
        for (int i = 0; i < OWN; i += 2 * width) products[i] += products[i + width];
    return products[0];
}
__device__ __forceinline__ float gated(float sum, float u, float z, float skip) { return fmaf(skip, u, sum) * silu(z); }
