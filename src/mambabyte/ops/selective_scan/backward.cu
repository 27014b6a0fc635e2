// Backward selective scan: all gradients of scan_forward from dy, the inputs, and the states that the forward kept every CHUNK rows.
//
// With g_t = dL/dh_t before row t's own share:  g += dy C;  dB += g s x;  dC += dy h;  d(s x) += g . B;  g *= a;  dA += g h_prev s;
// ds += g h_prev . A. A warp walks chunks from the last to the first. In a chunk it (1) runs the states forward again, keeping them at
// the start of every TILE rows in shared memory, and (2) tile by tile, backwards, recomputes states and decays once more, now into
// registers, and walks back over them. Sums over states (y, g . B, g h_prev . A) go through shared memory to the quads, which finish
// dx, ddt and dz. Sums over channels (dB, dC) are taken over the lanes of the warp (`sum_channels`), over the warps of the block in
// shared memory, and over blocks by `scan_sum_blocks`: always in the same order, so gradients are the same bits in every run.

using Burst = Quads<GROUP>;
constexpr int PASSES = Burst::PASSES;
using ChunkBurst = Quads<CHUNK>;
constexpr int TILES = CHUNK / TILE;
constexpr int SUMS = 2 * STATES;  // dB and dC of one row
constexpr int LANE_SUMS = PART_LANES >= 8 ? 1 : 8 / PART_LANES;  // how many of them a lane holds after sum_channels
constexpr bool TENSOR_CORES = STATES == 16 && IO != 2;
static_assert(CHUNK % GROUP == 0 && GROUP % TILE == 0 && CHUNK <= 64, "a chunk is whole groups, a group whole tiles");

struct Warp {
    float4 start[TILES][CHANNELS][32];    // the states before each tile, as the lanes hold them
    float2 step[CHUNK][WARP_CHANNELS];    // s and s x
    float dy[GROUP][WARP_CHANNELS];       // gradient of what is gated
    float y[GROUP][PARTIAL_ROW], dsx[GROUP][PARTIAL_ROW], ds[GROUP][PARTIAL_ROW];  // the parts' shares of C . h, g . B, g h_prev . A
    float sums[CHUNK][SUMS];
};
struct Shared {
    Warp warp[WARPS];
    float4 B[CHUNK][PARTS], C[CHUNK][PARTS];
    float drop[CHUNK];  // added to the exponent of the decay: 0, or -inf at a reset
};
static_assert(sizeof(Shared) <= SHARED_BYTES, "the host computed too little shared memory");

struct Sequence {
    Rows x, dt, z, dy, B, C, dx, ddt, dz;
    const float *A, *D, *dt_bias;
    const unsigned char* resets;
    i64 L, E;
};

// Add the eight values of a lane (dB and dC of its four states) over the lanes that hold the same states. Lane `column` is left with
// the LANE_SUMS sums from number column * 8 / PART_LANES on.
__device__ __forceinline__ void sum_channels(float (&v)[8], float* row, const Lane& me) {
    if constexpr (TENSOR_CORES) {
        // One m16n8k8 product adds over the four lanes of a group and two registers: B[k][n] is k = lane % 4 (+ 4 in the second
        // register), n = lane / 4. Row m of A picks value m, so D[m][n] is value m summed over the group n = (part, half). TF32 keeps
        // 11 bits of a summand, more than the 16-bit inputs have.
        float d0 = 0.f, d1 = 0.f, d2 = 0.f, d3 = 0.f;
        int m = threadIdx.x % 32 / 4;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            unsigned first = m == 2 * i ? 0x3f800000u : 0u, second = m == 2 * i + 1 ? 0x3f800000u : 0u;
            asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                : "+f"(d0), "+f"(d1), "+f"(d2), "+f"(d3)
                : "r"(first), "r"(0u), "r"(second), "r"(0u), "r"(__float_as_uint(v[2 * i])), "r"(__float_as_uint(v[2 * i + 1])));
        }
        int part = threadIdx.x % 4;  // D's columns 2 part and 2 part + 1 are the two halves of a part's lanes
        row[m / 4 * STATES + part * 4 + m % 4] = d0 + d1;
    } else {
        int width = 8;
#pragma unroll
        for (int lanes = PART_LANES / 2; lanes >= 1; lanes /= 2) {
            bool upper = me.column & lanes;
            if (width > 1) {
                width /= 2;
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    if (i >= width) break;
                    float keep = upper ? v[i + width] : v[i], give = upper ? v[i] : v[i + width];
                    v[i] = keep + __shfl_xor_sync(ALL, give, lanes);
                }
            } else {
                v[0] += __shfl_xor_sync(ALL, v[0], lanes);
            }
        }
        constexpr int COPIES = PART_LANES > 8 ? PART_LANES / 8 : 1;
        int first = me.column / COPIES * LANE_SUMS;
#pragma unroll
        for (int i = 0; i < LANE_SUMS; i++)
            if (me.column % COPIES == 0) row[(first + i) / 4 * STATES + me.part * 4 + (first + i) % 4] = v[i];
    }
}

// h after row t; returns the decays.
__device__ __forceinline__ void advance(const Shared& shared, const Warp& warp, int t, const Lane& me, const float4 (&a)[CHANNELS], float4 (&h)[CHANNELS], float4 (&decay)[CHANNELS]) {
    float4 B = shared.B[t][me.part];
    float drop = RESETS ? shared.drop[t] : 0.f;
#pragma unroll
    for (int j = 0; j < CHANNELS; j++) {
        float2 step = warp.step[t][me.column * CHANNELS + j];
#pragma unroll
        for (int n = 0; n < 4; n++) {
            at(decay[j], n) = ex2(RESETS ? fmaf(step.x, at(a[j], n), drop) : step.x * at(a[j], n));
            at(h[j], n) = fmaf(at(decay[j], n), at(h[j], n), step.y * at(B, n));
        }
    }
}

// What one row gives back: h after it, h_prev before it.
__device__ __forceinline__ void retreat(Shared& shared, Warp& warp, int t, const Lane& me, const float4 (&a)[CHANNELS], const float4 (&h)[CHANNELS], const float4 (&h_prev)[CHANNELS],
                                        const float4 (&decay)[CHANNELS], float4 (&g)[CHANNELS], float4 (&dA)[CHANNELS]) {
    float4 B = shared.B[t][me.part], C = shared.C[t][me.part];
    float sums[8];
#pragma unroll
    for (int j = 0; j < CHANNELS; j++) {
        int channel = me.column * CHANNELS + j, place = (j * PART_LANES + me.column) * PARTS + me.part;
        float2 step = warp.step[t][channel];
        float dy = warp.dy[t % GROUP][channel], y = 0.f, dsx = 0.f, ds = 0.f;
#pragma unroll
        for (int n = 0; n < 4; n++) {
            y = fmaf(at(h[j], n), at(C, n), y);
            float gn = fmaf(dy, at(C, n), at(g[j], n));
            sums[n] = j == 0 ? gn * step.y : fmaf(gn, step.y, sums[n]);
            sums[4 + n] = j == 0 ? dy * at(h[j], n) : fmaf(dy, at(h[j], n), sums[4 + n]);
            dsx = fmaf(gn, at(B, n), dsx);
            gn *= at(decay[j], n);
            at(g[j], n) = gn;
            float through = gn * at(h_prev[j], n);
            ds = fmaf(through, at(a[j], n), ds);
            at(dA[j], n) = fmaf(through, step.x, at(dA[j], n));
        }
        warp.y[t % GROUP][place] = y;
        warp.dsx[t % GROUP][place] = dsx;
        warp.ds[t % GROUP][place] = ds;
    }
    sum_channels(sums, warp.sums[t], me);
}

// The sum of the parts' shares for channel c of a warp.
__device__ __forceinline__ float gather(const float* row, int channel) {
    const float* p = row + (channel % CHANNELS * PART_LANES + channel / CHANNELS) * PARTS;
    float sum = 0.f;
    if (PARTS % 4 == 0) {
#pragma unroll
        for (int i = 0; i < PARTS / 4; i++) {
            float4 v = ((const float4*)p)[i];
            sum += (v.x + v.y) + (v.z + v.w);
        }
    } else {
#pragma unroll
        for (int i = 0; i < PARTS; i++) sum += p[i];
    }
    return sum;
}

struct Group {  // the rows of one group, from memory to the gradients of their quads
    Burst x, z, dy, dx, ddt, dz;
    io4 raw_x[PASSES], raw_z[PASSES], raw_dy[PASSES];
    float4 D, dD, dbias;

    __device__ __forceinline__ Group(const Sequence& q, const Lane& me, i64 b, i64 t0, float4 D)
        : x(q.x, me, b, t0), z(q.z, me, b, t0), dy(q.dy, me, b, t0), dx(q.dx, me, b, t0), ddt(q.ddt, me, b, t0), dz(q.dz, me, b, t0), D(D), dD(float4()), dbias(float4()) {}
    __device__ __forceinline__ void load(const Lane& me, int rows) {
        x.load(raw_x, me, rows), dy.load(raw_dy, me, rows);
        if (GATED) z.load(raw_z, me, rows);
    }
    __device__ __forceinline__ void move_inputs(i64 rows) { x.move(rows), z.move(rows), dy.move(rows); }
    __device__ __forceinline__ void move_outputs(i64 rows) { dx.move(rows), ddt.move(rows), dz.move(rows); }

    __device__ __forceinline__ void stage(Warp& warp, const Lane& me) const {
#pragma unroll
        for (int i = 0; i < PASSES; i++) {
            int row = me.quad_row + i * ROWS_PER_PASS;
            if (GROUP % ROWS_PER_PASS != 0 && row >= GROUP) break;
            float4 v = unpack(raw_dy[i]), z = unpack(raw_z[i]);
            if (GATED) {
#pragma unroll
                for (int c = 0; c < 4; c++) at(v, c) *= at(z, c) * sigmoid(at(z, c));
            }
            *(float4*)&warp.dy[row][me.quad_column] = v;
        }
    }
    // t0 is the group's first row within the chunk.
    __device__ __forceinline__ void finish(const Warp& warp, const io4 (&raw_x)[PASSES], const io4 (&raw_z)[PASSES], const io4 (&raw_dy)[PASSES], const Lane& me, int t0, int rows) {
#pragma unroll
        for (int i = 0; i < PASSES; i++) {
            int row = me.quad_row + i * ROWS_PER_PASS;
            if (GROUP % ROWS_PER_PASS != 0 && row >= GROUP) break;
            float4 u = unpack(raw_x[i]), gate = unpack(raw_z[i]), dout = unpack(raw_dy[i]), out_x, out_dt, out_z;
            float4 dgated = *(const float4*)&warp.dy[row][me.quad_column];
#pragma unroll
            for (int c = 0; c < 4; c++) {
                int channel = me.quad_column + c;
                float s = warp.step[t0 + row][channel].x, dsx = gather(warp.dsx[row], channel);
                float ds = fmaf(dsx, at(u, c), LN2 * gather(warp.ds[row], channel));
                ds = row < rows ? SOFTPLUS ? ds * softplus_slope(s) : ds : 0.f;
                at(out_x, c) = fmaf(dsx, s, at(D, c) * at(dgated, c));
                at(out_dt, c) = ds;
                at(dD, c) = fmaf(at(dgated, c), at(u, c), at(dD, c));
                at(dbias, c) += ds;
                if (GATED) {
                    float y = fmaf(at(D, c), at(u, c), gather(warp.y[row], channel)), open = sigmoid(at(gate, c));
                    at(out_z, c) = at(dout, c) * y * open * fmaf(at(gate, c), 1.f - open, 1.f);
                }
            }
            dx.store(i, out_x, me, rows), ddt.store(i, out_dt, me, rows);
            if (GATED) dz.store(i, out_z, me, rows);
        }
    }
};

// B and C of a chunk by the whole block, s and s x of the warp's channels by each warp; rows that do not exist have s = 0.
__device__ __forceinline__ void stage_chunk(Shared& shared, Warp& warp, const Sequence& q, const Lane& me, float4 bias, i64 b, i64 t0, int rows) {
    for (int i = threadIdx.x; i < CHUNK * PARTS; i += WARPS * 32) {
        int row = i / PARTS, part = i % PARTS;
        i64 states = row < rows ? N - part * 4 : 0;
        shared.B[row][part] = unpack(load4<ALIGNED_BC && N == STATES>(q.B.row(b, t0 + row) + part * 4, states));
        shared.C[row][part] = unpack(load4<ALIGNED_BC && N == STATES>(q.C.row(b, t0 + row) + part * 4, states));
    }
    if (RESETS && threadIdx.x < CHUNK) shared.drop[threadIdx.x] = threadIdx.x < rows && q.resets[b * q.L + t0 + threadIdx.x] ? -INF : 0.f;
    io4 raw_x[ChunkBurst::PASSES], raw_dt[ChunkBurst::PASSES];
    ChunkBurst(q.x, me, b, t0).load(raw_x, me, rows);
    ChunkBurst(q.dt, me, b, t0).load(raw_dt, me, rows);
#pragma unroll
    for (int i = 0; i < ChunkBurst::PASSES; i++) {
        int row = me.quad_row + i * ROWS_PER_PASS;
        if (CHUNK % ROWS_PER_PASS != 0 && row >= CHUNK) break;
        float4 x = unpack(raw_x[i]), dt = unpack(raw_dt[i]), s;
#pragma unroll
        for (int c = 0; c < 4; c++) at(s, c) = row < rows ? step_of(at(dt, c), at(bias, c)) : 0.f;
        float4* to = (float4*)&warp.step[row][me.quad_column];
        to[0] = make_float4(s.x, s.x * x.x, s.y, s.y * x.y);
        to[1] = make_float4(s.z, s.z * x.z, s.w, s.w * x.w);
    }
}

__device__ __forceinline__ void recompute_starts(Shared& shared, Warp& warp, const Lane& me, const float4 (&a)[CHANNELS], float4 (&h)[CHANNELS]) {
    float4 decay[CHANNELS];
#pragma unroll 1
    for (int k = 0; k < TILES; k++) {
#pragma unroll
        for (int j = 0; j < CHANNELS; j++) warp.start[k][j][threadIdx.x % 32] = h[j];
        if (k + 1 == TILES) break;
#pragma unroll
        for (int t = 0; t < TILE; t++) advance(shared, warp, k * TILE + t, me, a, h, decay);
    }
}

__device__ __forceinline__ void walk_tile_back(Shared& shared, Warp& warp, int k, const Lane& me, const float4 (&a)[CHANNELS], float4 (&g)[CHANNELS], float4 (&dA)[CHANNELS]) {
    float4 h[TILE + 1][CHANNELS], decay[TILE][CHANNELS];
#pragma unroll
    for (int j = 0; j < CHANNELS; j++) h[0][j] = warp.start[k][j][threadIdx.x % 32];
#pragma unroll
    for (int t = 0; t < TILE; t++) {
#pragma unroll
        for (int j = 0; j < CHANNELS; j++) h[t + 1][j] = h[t][j];
        advance(shared, warp, k * TILE + t, me, a, h[t + 1], decay[t]);
    }
#pragma unroll
    for (int t = TILE - 1; t >= 0; t--) retreat(shared, warp, k * TILE + t, me, a, h[t + 1], h[t], decay[t], g, dA);
}

// x, dt, z, dy and their gradients (B, L, E), the latter contiguous; B, C (B, L, N). first (B, segments, E, N) or null is the gradient
// of the state after each segment. dA (B, segments, E, N), dD and ddt_bias (B, segments, E), dBC (blocks, B, L, 2, STATES) are partial
// sums; dfirst (B, E, N) is the gradient of the state before row 0.
extern "C" __global__ void __launch_bounds__(WARPS * 32, MIN_BLOCKS)
scan_backward(io_t* x, i64 x_batch, i64 x_row, io_t* dt, i64 dt_batch, i64 dt_row, io_t* z, i64 z_batch, i64 z_row, io_t* dy, i64 dy_batch, i64 dy_row,
              io_t* B, i64 B_batch, i64 B_row, io_t* C, i64 C_batch, i64 C_row, const float* A, const float* D, const float* dt_bias,
              const unsigned char* resets, i64 L, i64 E, i64 segments, i64 segment_rows, const float* checkpoints, const float* first,
              io_t* dx, io_t* ddt, io_t* dz, float* dA_out, float* dD_out, float* dbias_out, float* dBC, float* dfirst) {
    extern __shared__ float4 memory[];
    Shared& shared = *(Shared*)memory;
    Warp& warp = shared.warp[threadIdx.x / 32];
    Sequence q{{x, x_batch, x_row}, {dt, dt_batch, dt_row}, {z, z_batch, z_row}, {dy, dy_batch, dy_row}, {B, B_batch, B_row}, {C, C_batch, C_row},
               {dx, L * E, E}, {ddt, L * E, E}, {dz, L * E, E}, A, D, dt_bias, resets, L, E};
    i64 b = blockIdx.x / segments, slab = blockIdx.x * E * N;  // blockIdx.x is (sequence, segment)
    i64 begin = blockIdx.x % segments * segment_rows, end = min(L, begin + segment_rows), chunks = (L + CHUNK - 1) / CHUNK;
    Lane me(((i64)blockIdx.y * WARPS + threadIdx.x / 32) * WARP_CHANNELS, E);
    i64 quad_channel = me.channel - me.column * CHANNELS + me.quad_column;

    float4 a[CHANNELS], h[CHANNELS], g[CHANNELS], dA[CHANNELS];
    load_decay(a, A, me, E);
    load_slab(g, first == nullptr ? nullptr : first + slab, me, E, 0.f);
#pragma unroll
    for (int j = 0; j < CHANNELS; j++) dA[j] = float4();
    float4 bias = load_floats(dt_bias == nullptr ? nullptr : dt_bias + quad_channel, me.quad_valid, 0.f);
    i64 c = (end - 1) / CHUNK, t0 = c * CHUNK;
    Group group(q, me, b, t0 + CHUNK - GROUP, load_floats(D == nullptr ? nullptr : D + quad_channel, me.quad_valid, 0.f));

    group.load(me, (int)min((i64)GROUP, end - (t0 + CHUNK - GROUP)));
    for (; t0 >= begin; c--, t0 -= CHUNK) {
        int rows = (int)min((i64)CHUNK, end - t0);
        stage_chunk(shared, warp, q, me, bias, b, t0, rows);
        load_slab(h, checkpoints + (b * chunks + c) * E * N, me, E, 0.f);
        __syncthreads();
        recompute_starts(shared, warp, me, a, h);
#pragma unroll 1
        for (int r = CHUNK - GROUP; r >= 0; r -= GROUP) {
            group.stage(warp, me);
            io4 raw_x[PASSES], raw_z[PASSES], raw_dy[PASSES];
#pragma unroll
            for (int p = 0; p < PASSES; p++) raw_x[p] = group.raw_x[p], raw_z[p] = group.raw_z[p], raw_dy[p] = group.raw_dy[p];
            group.move_inputs(-GROUP);
            if (t0 + r > begin) group.load(me, (int)min((i64)GROUP, end - (t0 + r - GROUP)));  // on its way while this group is walked
            __syncwarp();
#pragma unroll 1
            for (int k = (r + GROUP) / TILE - 1; k >= r / TILE; k--) walk_tile_back(shared, warp, k, me, a, g, dA);
            __syncwarp();
            group.finish(warp, raw_x, raw_z, raw_dy, me, r, rows - r);
            group.move_outputs(-GROUP);
        }
        __syncthreads();
        for (int i = threadIdx.x; i < rows * SUMS; i += WARPS * 32) {
            float sum = 0.f;
#pragma unroll
            for (int w = 0; w < WARPS; w++) sum += shared.warp[w].sums[i / SUMS][i % SUMS];
            dBC[((blockIdx.y * (gridDim.x / segments) + b) * L + t0) * SUMS + i] = sum;
        }
        __syncthreads();
    }
    store_slab(dA_out + slab, dA, me, E);
    if (begin == 0 && dfirst != nullptr) store_slab(dfirst + b * E * N, g, me, E);
#pragma unroll
    for (int lanes = LANES_PER_ROW; lanes < 32; lanes *= 2)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            at(group.dD, i) += __shfl_xor_sync(ALL, at(group.dD, i), lanes);
            at(group.dbias, i) += __shfl_xor_sync(ALL, at(group.dbias, i), lanes);
        }
    if (me.quad_row == 0) {
        store_floats(dD_out + blockIdx.x * E + quad_channel, me.quad_valid, group.dD);
        store_floats(dbias_out + blockIdx.x * E + quad_channel, me.quad_valid, group.dbias);
    }
}

// dB and dC (rows, N) from the partial sums (blocks, rows, 2, STATES), block after block. One thread an element.
extern "C" __global__ void scan_sum_blocks(const float* partial, io_t* dB, io_t* dC, i64 blocks, i64 rows) {
    i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= rows * SUMS) return;
    float sum = 0.f;
    for (i64 k = 0; k < blocks; k++) sum += partial[k * rows * SUMS + i];
    i64 row = i / SUMS, state = i % STATES;
    if (state < N) (i % SUMS < STATES ? dB : dC)[row * N + state] = from_float(sum);
}
