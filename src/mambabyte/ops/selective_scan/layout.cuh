// How a warp holds the scan, shared by the forward and the backward kernels.
//
// The N states of a channel are padded to STATES, a power of two, and dealt to STATES / 4 lanes, four in a lane's
// registers. A lane holds the same four states of CHANNELS neighbouring channels, so that one read of B and C from
// shared memory serves 4 * CHANNELS elements. Lane l: `part` = l / PART_LANES says which four states, `column` = l %
// PART_LANES which channels. Time runs in the instruction stream; the warp's channels are WARP_CHANNELS neighbours, so
// every row is one short burst.
//
// What concerns a (position, channel) and no state (softplus, gate, loads, stores) is done once, by "quads": lane l
// handles four neighbouring channels, `quad_column`, of rows quad_row, quad_row + ROWS_PER_PASS, ... Shared memory
// hands it across.
#pragma once

// From the host come IO, the sizes N and WARPS, and what is asked for: GATED, RESETS, SOFTPLUS; ALIGNED (x,
// dt, z, ...) and ALIGNED_BC say that quads are whole and lie on their own size.
constexpr int CHANNELS = 2;
constexpr int STATES = N <= 4 ? 4 : N <= 8 ? 8 : N <= 16 ? 16 : N <= 32 ? 32 : 64;
constexpr int PARTS = STATES / 4;
constexpr int PART_LANES = 32 / PARTS;
constexpr int WARP_CHANNELS = PART_LANES * CHANNELS;
constexpr int LANES_PER_ROW = WARP_CHANNELS / 4;
constexpr int ROWS_PER_PASS = 32 / LANES_PER_ROW;
static_assert(N >= 1 && N <= 64, "N must be 1 to 64");

// Shares of a sum over states (`put_shares`) and steps of one row, padded so that neighbouring rows differ in bank.
constexpr int STEP_ROW = WARP_CHANNELS + 2;
constexpr int PARTIAL_ROW = CHANNELS * 32 + 4;

struct Lane {
    int part, column, quad_row, quad_column, state_row, state_part;
    i64 channel;     // first of the CHANNELS channels whose states this lane holds
    int quad_valid;  // how many of this lane's four quad channels exist

    __device__ Lane(i64 warp_channel, i64 E) {
        int lane = threadIdx.x % 32;
        part = lane / PART_LANES;
        column = lane % PART_LANES;
        quad_row = lane / LANES_PER_ROW;
        quad_column = lane % LANES_PER_ROW * 4;
        state_row = lane / PARTS;
        state_part = lane % PARTS;
        channel = warp_channel + column * CHANNELS;
        quad_valid = (int)max(0ll, min(4ll, E - (warp_channel + quad_column)));
    }
};

// Slabs are (E, N) float32: states, A and their gradients.
__device__ __forceinline__ void load_slab(float4 (&h)[CHANNELS], const float* p, const Lane& me, i64 E, float fill) {
#pragma unroll
    for (int j = 0; j < CHANNELS; j++) {
        const float* from = p + (me.channel + j) * N + me.part * 4;
        bool exists = p != nullptr && me.channel + j < E;
        if (N == STATES) h[j] = exists ? *(const float4*)from : make_float4(fill, fill, fill, fill);
        else h[j] = load_floats(from, exists ? N - me.part * 4 : 0, fill);
    }
}
__device__ __forceinline__ void store_slab(float* p, const float4 (&h)[CHANNELS], const Lane& me, i64 E) {
#pragma unroll
    for (int j = 0; j < CHANNELS; j++) {
        float* to = p + (me.channel + j) * N + me.part * 4;
        if (me.channel + j >= E) continue;
        if (N == STATES) *(float4*)to = h[j];
        else store_floats(to, N - me.part * 4, h[j]);
    }
}
// A in units of log2, so that the decay is ex2(s * A). States that do not exist get -1: they start at 0 and stay there.
__device__ __forceinline__ void load_decay(float4 (&a)[CHANNELS], const float* A, const Lane& me, i64 E) {
    load_slab(a, A, me, E, -LN2);
#pragma unroll
    for (int j = 0; j < CHANNELS; j++)
        a[j] = make_float4(a[j].x * LOG2E, a[j].y * LOG2E, a[j].z * LOG2E, a[j].w * LOG2E);
}
__device__ __forceinline__ float step_of(float raw, float bias) { return SOFTPLUS ? softplus(raw + bias) : raw + bias; }

// A strided (B, L, channels) or (B, L, N) tensor whose rows are contiguous.
struct Rows {
    io_t* data;
    i64 batch_stride, row_stride;
    __device__ io_t* row(i64 b, i64 t) const { return data + b * batch_stride + t * row_stride; }
};

// Where this lane stands in such a tensor: its quad of channels (or of states) in the rows of a block of ROWS rows.
// Only rows below `rows` are touched, which is ROWS but at the end of the sequence.
template <int ROWS>
struct Quads {
    static constexpr int PASSES = (ROWS + ROWS_PER_PASS - 1) / ROWS_PER_PASS;
    io_t* p;
    int stride;

    __device__ __forceinline__ Quads(const Rows& tensor, const Lane& me, i64 b, i64 t0) {
        stride = (int)tensor.row_stride;
        p = tensor.row(b, t0) + (me.quad_row * stride + (int)(me.channel - me.column * CHANNELS) + me.quad_column);
    }
    __device__ __forceinline__ void move(int rows) { p += (i64)rows * stride; }
    __device__ __forceinline__ void load(io4 (&v)[PASSES], const Lane& me, int rows) const {
#pragma unroll
        for (int i = 0; i < PASSES; i++)
            v[i] = load4<ALIGNED>(p + i * ROWS_PER_PASS * stride,
                                  me.quad_row + i * ROWS_PER_PASS < rows ? me.quad_valid : 0);
    }
    __device__ __forceinline__ void store(int pass, float4 v, const Lane& me, int rows) const {
        store4<ALIGNED>(p + pass * ROWS_PER_PASS * stride,
                        me.quad_row + pass * ROWS_PER_PASS < rows ? me.quad_valid : 0, v);
    }
};
template <int ROWS>
struct StateQuads {
    static constexpr int ROWS_A_PASS = 32 / PARTS, PASSES = (ROWS + ROWS_A_PASS - 1) / ROWS_A_PASS;
    io_t* p;
    int stride;

    __device__ __forceinline__ StateQuads(const Rows& tensor, const Lane& me, i64 b, i64 t0) {
        stride = (int)tensor.row_stride;
        p = tensor.row(b, t0) + (me.state_row * stride + me.state_part * 4);
    }
    __device__ __forceinline__ void move(int rows) { p += (i64)rows * stride; }
    __device__ __forceinline__ void load(io4 (&v)[PASSES], const Lane& me, int rows) const {
#pragma unroll
        for (int i = 0; i < PASSES; i++) {
            bool exists = me.state_row + i * ROWS_A_PASS < rows;
            v[i] =
                load4 < ALIGNED_BC && N == STATES > (p + i * ROWS_A_PASS * stride, exists ? N - me.state_part * 4 : 0);
        }
    }
    __device__ __forceinline__ static void put(float4 (*tile)[PARTS], const io4 (&v)[PASSES], const Lane& me) {
#pragma unroll
        for (int i = 0; i < PASSES; i++)
            if (ROWS % ROWS_A_PASS == 0 || me.state_row + i * ROWS_A_PASS < ROWS)
                tile[me.state_row + i * ROWS_A_PASS][me.state_part] = unpack(v[i]);
    }
};

// (s, what enters the state) of a row for the channels of this lane.
struct Step {
    float2 of[CHANNELS];
    __device__ __forceinline__ void load(const float2* row, const Lane& me) {
        float4 two = *(const float4*)(row + me.column * CHANNELS);
        of[0] = make_float2(two.x, two.y), of[1] = make_float2(two.z, two.w);
    }
};
__device__ __forceinline__ void put_steps(float2* row, float4 s, float4 enters) {
    ((float4*)row)[0] = make_float4(s.x, enters.x, s.y, enters.y);
    ((float4*)row)[1] = make_float4(s.z, enters.z, s.w, enters.w);
}
