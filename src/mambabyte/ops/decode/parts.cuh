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
constexpr int BLOCK_BYTES = SLICE * TILE * 2;        // [4][32 lanes][8 inputs] of a 16-bit type
constexpr int D_SLICES = (D + SLICE - 1) / SLICE, E_SLICES = (E + SLICE - 1) / SLICE;
constexpr int D_PITCH = D_SLICES * SLICE, E_PITCH = E_SLICES * SLICE;
constexpr int D_TILES = (D + TILE - 1) / TILE, E_TILES = (E + TILE - 1) / TILE;
constexpr int V_TILES = (V + TILE - 1) / TILE;
constexpr int PARTS = 4;                             // lanes that share a channel's states
constexpr int OWN = (N + PARTS - 1) / PARTS;         // states of a lane
constexpr int N_PITCH = PARTS * OWN;
constexpr int R_OWN = (R + 4 * PARTS - 1) / (4 * PARTS) * 4;  // inputs of dt of a lane, in whole quads
constexpr int R_PITCH = PARTS * R_OWN;
constexpr int SELECT = R + 2 * N, SELECT_TILES = (SELECT + TILE - 1) / TILE;
constexpr int SELECT_PITCH = SELECT_TILES * TILE > R_PITCH ? SELECT_TILES * TILE : R_PITCH;
constexpr int CONV_STATE = W - 1;

// A slice's product of 16 columns (low: column lane / 4, high: that plus 8; this lane's 32 inputs of each) with the 8
// outputs of a block of weights.
__device__ __forceinline__ void multiply(float (&d)[4], const uint4 (&low)[4], const uint4 (&high)[4],
                                         const uint4* weights) {
    float odd[4] = {0.f, 0.f, 0.f, 0.f};
    d[0] = d[1] = d[2] = d[3] = 0.f;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        uint4 w = weights[i * 32];
        mma(d, {low[i].x, high[i].x, low[i].y, high[i].y}, w.x, w.y);
        mma(odd, {low[i].z, high[i].z, low[i].w, high[i].w}, w.z, w.w);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) d[i] += odd[i];
}

__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) v += __shfl_xor_sync(ALL, v, lanes);
    return v;
}

// A warp normalises one column of the stream: lane l has x[i] from SLICE i + 4 l on, zero beyond D. scale (D_PITCH), and
// after it shift if there is a bias. `store` takes a place and the four outputs from there on, zero beyond D.
template <class Store>
__device__ __forceinline__ void normalise(float4 (&x)[D_SLICES], const float* scale, int lane, Store store) {
    float mean = 0.f, square = 0.f;
    if (LAYER) {
#pragma unroll
        for (int i = 0; i < D_SLICES; i++) mean += (x[i].x + x[i].y) + (x[i].z + x[i].w);
        mean = warp_sum(mean) / D;
#pragma unroll
        for (int i = 0; i < D_SLICES; i++)
#pragma unroll
            for (int c = 0; c < 4; c++) at(x[i], c) = i * SLICE + lane * 4 + c < D ? at(x[i], c) - mean : 0.f;
    }
#pragma unroll
    for (int i = 0; i < D_SLICES; i++)
#pragma unroll
        for (int c = 0; c < 4; c++) square = fmaf(at(x[i], c), at(x[i], c), square);
    float rate = rsqrtf(warp_sum(square) / D + __int_as_float(EPS_BITS));
#pragma unroll
    for (int i = 0; i < D_SLICES; i++) {
        int place = i * SLICE + lane * 4;
        float4 w = *(const float4*)(scale + place), y;
#pragma unroll
        for (int c = 0; c < 4; c++) at(y, c) = at(x[i], c) * rate * at(w, c);
        if (BIAS) {
            float4 b = *(const float4*)(scale + D_PITCH + place);
            y = make_float4(y.x + b.x, y.y + b.y, y.z + b.z, y.w + b.w);
        }
        store(place, pack(y));
    }
}

__device__ __forceinline__ float rounded(float v) { return to_float(from_float(v)); }
__device__ __forceinline__ float silu(float v) { return v * sigmoid(v); }

// What 8 channels bring along, as it lies in memory: float32 in the model's own values but A, which is A log2(e).
struct Channels {
    float taps[TILE][W], conv_bias[TILE], dt_bias[TILE], skip[TILE], A[TILE][N_PITCH];
    __align__(16) io_t dt[TILE][R_PITCH];
};
static_assert(sizeof(Channels) % 16 == 0, "copied 16 bytes at a time");

// One channel's convolution at one column: the last inputs move on, u is returned as it is stored.
__device__ __forceinline__ float convolve(float (&past)[CONV_STATE], float x, const float* taps, float bias) {
    float sum = bias;
#pragma unroll
    for (int w = 0; w < CONV_STATE; w++) sum = fmaf(taps[w], past[w], sum);
    sum = fmaf(taps[CONV_STATE], x, sum);
#pragma unroll
    for (int w = 0; w + 1 < CONV_STATE; w++) past[w] = past[w + 1];
    past[CONV_STATE - 1] = x;
    return rounded(silu(sum));
}

// The step size of one channel at one column, from the first R selected values and a lane's share of the channel's
// R_PITCH weights, zero beyond R; PARTS lanes (`group`) share the sum.
struct StepWeights {
    io4 quads[R_OWN / 4];
    __device__ __forceinline__ StepWeights(const io_t* weights, int part) {
#pragma unroll
        for (int r = 0; r < R_OWN / 4; r++) quads[r] = ((const io4*)(weights + part * R_OWN))[r];
    }
};
__device__ __forceinline__ float step_size(const float* selected, const StepWeights& weights, float bias, int part,
                                           unsigned group) {
    float sum = 0.f;
#pragma unroll
    for (int r = 0; r < R_OWN / 4; r++) {
        float4 low = ((const float4*)(selected + part * R_OWN))[r], weight = unpack(weights.quads[r]);
#pragma unroll
        for (int c = 0; c < 4; c++) sum = fmaf(at(low, c), at(weight, c), sum);
    }
    sum += __shfl_xor_sync(group, sum, 1);
    sum += __shfl_xor_sync(group, sum, 2);
    return softplus(rounded(sum) + bias);
}

// A lane's states, at a place where quads lie on their own size.
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
__device__ __forceinline__ void store_states(const float (&h)[OWN], float* to) {
    if constexpr (OWN % 4 == 0)
#pragma unroll
        for (int i = 0; i < OWN; i += 4) *(float4*)(to + i) = make_float4(h[i], h[i + 1], h[i + 2], h[i + 3]);
    else
#pragma unroll
        for (int i = 0; i < OWN; i++) to[i] = h[i];
}

// A lane's states of one channel at one column, A its own decays, B and C all N; y, gated, is returned to the PARTS
// lanes of the channel.
__device__ __forceinline__ float scan(float (&h)[OWN], float dt, float u, float z, const float* B, const float* C,
                                      const float* A, float skip, int part, unsigned group) {
    float sum = 0.f, in = dt * u;
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        int n = part * OWN + i;
        if (N != N_PITCH && n >= N) break;
        h[i] = fmaf(ex2(dt * A[i]), h[i], in * B[n]);
        sum = fmaf(h[i], C[n], sum);
    }
    sum += __shfl_xor_sync(group, sum, 1);
    sum += __shfl_xor_sync(group, sum, 2);
    return fmaf(skip, u, sum) * silu(z);
}
